//! Trace context of a caller: the `traceparent` header (W3C Trace Context, level 1).

use std::fmt::Write;

/// What a `traceparent` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace that the request belongs to; not zero.
    pub trace_id: [u8; 16],
    /// The caller's span; not zero.
    pub span_id: [u8; 8],
    /// Whether the caller records the trace.
    pub sampled: bool,
}

impl TraceParent {
    /// Reads the header; none for what the recommendation calls invalid. Later versions are read as the first one.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let mut parts = text.split('-');
        let (version, trace_id, span_id, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let [version] = bytes::<1>(version)?;
        if version == 0xff || (version == 0 && parts.next().is_some()) {
            return None;
        }
        let (trace_id, span_id, [flags]) = (bytes(trace_id)?, bytes(span_id)?, bytes(flags)?);
        let is_set = trace_id != [0; 16] && span_id != [0; 8];
        is_set.then_some(TraceParent { trace_id, span_id, sampled: flags & 1 == 1 })
    }
}

/// Lower-case hex digits as exactly so many bytes.
pub fn bytes<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let digits = hex.as_bytes();
    if digits.len() != 2 * N || digits.iter().any(|digit| !matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

/// Bytes as lower-case hex digits.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_recommendation_calls_valid_is_taken() {
        // The example of the recommendation, section 3.2.3.
        let example = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let read = TraceParent::parse(example).expect("valid");
        assert_eq!((hex(&read.trace_id).as_str(), hex(&read.span_id).as_str()), (&example[3..35], &example[36..52]));
        assert!(read.sampled && !TraceParent::parse(&example.replace("-01", "-00")).expect("valid").sampled);
        assert!(TraceParent::parse(&format!("cc{}-what-comes-later", &example[2..])).is_some());
        for bad in [
            &format!("{example}-more"),
            &example.replacen("00", "ff", 1),
            &example.to_uppercase(),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "",
            "é",
        ] {
            assert_eq!(TraceParent::parse(bad), None, "{bad}");
        }
    }
}
