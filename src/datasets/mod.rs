//! Datasets: samples, import, checks and splits.
