//! What happened: the durable request log and metrics.
