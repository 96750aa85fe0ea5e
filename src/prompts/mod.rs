//! Prompts: parse, render, versions and labels.
