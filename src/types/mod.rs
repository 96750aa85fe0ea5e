//! Rank 0: what every room may speak of. Wire types (unknown fields kept), ids, content digests, the error-code table, and the
//! small traits that lower rooms need from higher ones. Nothing here does I/O; [`blocking`] is where others do it.

pub mod asker;
pub mod blocking;
pub mod chat;
pub mod digest;
pub mod embeddings;
pub mod error;
pub mod glance;
pub mod ids;
pub mod json;
pub mod messages;
pub mod money;
pub mod plain;
pub mod secrets;
pub mod shard;
pub mod soon;
pub mod text;
pub mod time;
pub mod told;
pub mod trace;
pub mod traits;

pub use digest::Digest;
pub use error::{Code, Coded, Failure};
pub use told::Told;
