//! The local engine: tokenizer, weights, decoder and scheduler on candle. Knows neither the store nor HTTP.
