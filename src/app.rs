//! The composition root: every long-lived part, built in one place.
