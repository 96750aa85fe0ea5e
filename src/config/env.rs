//! Every environment variable Refit reads, in one place.
