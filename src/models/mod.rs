//! Known models: the catalogue, pulling, verification and content-addressed storage.
