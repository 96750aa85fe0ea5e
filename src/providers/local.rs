//! The `local` provider: candle models of the engine behind the [`Provider`](super::Provider) trait.
