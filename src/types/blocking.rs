//! Work that blocks, off the threads that answer.

use super::{Code, Failure};

/// From so many bytes on, bodies are read and searched off the threads that answer: others wait meanwhile.
pub const LARGE_BYTES: usize = 128 << 10;

/// Does the work on a thread of its own.
///
/// # Errors
/// As the work; [`Code::INTERNAL`] when it panicked. What a panic says is for the server's log alone: it may hold what was asked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        tracing::error!(%error, "work on the store or on a request broke off");
        Err(Failure::new(Code::INTERNAL, "something inside Refit failed; the server's log has more"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_tells_the_caller_nothing() {
        let failure = blocking(|| -> Result<(), Failure> { panic!("a secret in a panic") }).await.expect_err("it panicked");
        assert!(failure.code() == Code::INTERNAL && !failure.to_string().contains("secret"), "{failure}");
        assert_eq!(blocking(|| Ok(1)).await.expect("done"), 1);
    }
}
