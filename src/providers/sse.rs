//! Server-sent events, read incrementally (WHATWG HTML, section 9.2.6 "Interpreting an event stream"): any split of the bytes gives
//! the same events. Lines end with LF, CR or CRLF; comments, a byte-order mark and unknown fields are skipped; an event without its
//! blank line at the end of the stream is dropped, as the specification says.

use std::borrow::Cow;
use std::collections::VecDeque;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `event:`, `message` when absent.
    pub kind: Cow<'static, str>,
    /// `data:` lines joined with line feeds.
    pub data: String,
}

/// A line or an event is longer than the parser takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event is larger than {0} bytes")]
pub struct TooLong(pub usize);

/// The incremental parser.
pub struct Parser {
    line: Vec<u8>,
    data: String,
    has_data: bool,
    kind: String,
    after_carriage_return: bool,
    first_line: bool,
    max_bytes: usize,
    ready: VecDeque<Event>,
}

impl Parser {
    /// A parser that takes events of up to `max_bytes`.
    pub fn new(max_bytes: usize) -> Self {
        Parser {
            line: Vec::new(),
            data: String::new(),
            has_data: false,
            kind: String::new(),
            after_carriage_return: false,
            first_line: true,
            max_bytes,
            ready: VecDeque::new(),
        }
    }

    /// Takes the next bytes of the stream.
    ///
    /// # Errors
    /// [`TooLong`] when a line or an event grows past the limit; the stream cannot be continued then.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), TooLong> {
        if self.after_carriage_return && !bytes.is_empty() {
            self.after_carriage_return = false;
            bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
        }
        while let Some(end) = memchr::memchr2(b'\n', b'\r', bytes) {
            self.grow(&bytes[..end])?;
            self.end_line()?;
            let carriage_return = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            if carriage_return {
                self.after_carriage_return = bytes.is_empty();
                bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
            }
        }
        self.grow(bytes)
    }

    /// The next complete event.
    pub fn next_event(&mut self) -> Option<Event> {
        self.ready.pop_front()
    }

    fn grow(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        if self.line.len() + bytes.len() > self.max_bytes {
            return Err(TooLong(self.max_bytes));
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn end_line(&mut self) -> Result<(), TooLong> {
        let taken = std::mem::take(&mut self.line);
        let mut line = taken.as_slice();
        if std::mem::take(&mut self.first_line) {
            line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line);
        }
        if line.is_empty() {
            self.dispatch();
        } else {
            self.field(&String::from_utf8_lossy(line))?;
        }
        // The buffer is kept for the next line.
        self.line = taken;
        self.line.clear();
        Ok(())
    }

    fn field(&mut self, line: &str) -> Result<(), TooLong> {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "data" => {
                if self.data.len() + value.len() > self.max_bytes {
                    return Err(TooLong(self.max_bytes));
                }
                if self.has_data {
                    self.data.push('\n');
                }
                self.has_data = true;
                self.data.push_str(value);
            }
            "event" => self.kind = value.to_string(),
            // Comments have an empty name; `id` and `retry` are for clients that reconnect, which no provider call does.
            _ => {}
        }
        Ok(())
    }

    fn dispatch(&mut self) {
        let kind = std::mem::take(&mut self.kind);
        if std::mem::take(&mut self.has_data) {
            let kind = if kind.is_empty() { Cow::Borrowed("message") } else { kind.into() };
            self.ready.push_back(Event { kind, data: std::mem::take(&mut self.data) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The events, and whether the parser refused to go on.
    fn incremental(text: &[u8], cuts: &[usize], cap: usize) -> (Vec<Event>, bool) {
        let mut parser = Parser::new(cap);
        let mut events = Vec::new();
        let mut rest = text;
        for cut in cuts.iter().copied().chain([usize::MAX]) {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            let pushed = parser.push(now);
            events.extend(std::iter::from_fn(|| parser.next_event()));
            if pushed.is_err() {
                return (events, true);
            }
            rest = later;
        }
        (events, false)
    }

    /// The specification read literally on the whole text, with the caps on a line's bytes and an event's data.
    fn naive(bytes: &[u8], cap: usize) -> (Vec<Event>, bool) {
        let mut lines = vec![Vec::new()];
        let mut bytes = bytes.iter().peekable();
        while let Some(byte) = bytes.next() {
            match byte {
                b'\r' => {
                    bytes.next_if(|next| **next == b'\n');
                    lines.push(Vec::new());
                }
                b'\n' => lines.push(Vec::new()),
                byte => lines.last_mut().expect("a line").push(*byte),
            }
        }
        let (mut events, mut data, mut kind) = (Vec::new(), Vec::<String>::new(), String::new());
        let unfinished = lines.pop().expect("a line");
        for (at, line) in lines.iter().enumerate() {
            if line.len() > cap {
                return (events, true);
            }
            let line = if at == 0 { line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line) } else { line };
            let line = String::from_utf8_lossy(line);
            let (name, value) = line.split_once(':').map_or((&*line, ""), |(name, value)| (name, value.strip_prefix(' ').unwrap_or(value)));
            match (&*line, name) {
                ("", _) => {
                    if !data.is_empty() {
                        let kind = if kind.is_empty() { "message".to_string() } else { kind.clone() };
                        events.push(Event { kind: kind.into(), data: data.join("\n") });
                    }
                    data.clear();
                    kind.clear();
                }
                (_, "data") => {
                    if data.join("\n").len() + value.len() > cap {
                        return (events, true);
                    }
                    data.push(value.to_string());
                }
                (_, "event") => kind = value.to_string(),
                _ => {}
            }
        }
        (events, unfinished.len() > cap)
    }

    proptest! {
        #[test]
        fn any_split_equals_the_naive_parser_on_the_whole_text(
            pieces in proptest::collection::vec(prop_oneof![
                Just(b"data: ".to_vec()), Just(b"data:".to_vec()), Just(b"data".to_vec()), Just(b"event: x".to_vec()),
                Just(b": comment".to_vec()), Just(b"\n".to_vec()), Just(b"\r".to_vec()), Just(b"\r\n".to_vec()), Just(b"\n\n".to_vec()),
                Just("\u{feff}".as_bytes().to_vec()), Just("é🦀".as_bytes().to_vec()), Just(b"id: 1".to_vec()),
                // Bytes that are no UTF-8, and characters that break off.
                Just(b"\xff".to_vec()), Just(b"\xf0\x9f".to_vec()), Just(b"\xef\xbb".to_vec()), Just(b"\xc3".to_vec()),
                "[a-z: ]{0,5}".prop_map(String::into_bytes),
            ], 0..40),
            cuts in proptest::collection::vec(0usize..7, 0..60),
            cap in prop_oneof![Just(1usize << 20), 4usize..24],
        ) {
            let text = pieces.concat();
            prop_assert_eq!(incremental(&text, &cuts, cap), naive(&text, cap));
        }
    }

    #[test]
    fn one_byte_at_a_time_with_split_characters_and_line_ends() {
        let text = "\u{feff}: hi\r\ndata: {\"a\":\"é🦀\"}\r\rdata: x\r\ndata: y\r\n\r\nevent: end\ndata\n\ndata: cut off\n";
        let (events, _) = incremental(text.as_bytes(), &vec![1; text.len()], 1 << 20);
        let data: Vec<_> = events.iter().map(|event| event.data.as_str()).collect();
        assert_eq!(data, ["{\"a\":\"é🦀\"}", "x\ny", ""]);
        assert_eq!(events[2].kind, "end");
    }

    #[test]
    fn a_line_of_ten_megabytes_passes_in_any_pieces_below_the_cap() {
        let long = "é".repeat(5 << 20);
        let text = format!("data: {long}\n\n");
        for (piece, cap) in [(1, 16 << 20), (4_097, 16 << 20), (usize::MAX, 11 << 20)] {
            let mut parser = Parser::new(cap);
            text.as_bytes().chunks(piece).for_each(|piece| parser.push(piece).expect("below the cap"));
            let data = parser.next_event().map(|event| event.data);
            assert!(data.is_some_and(|data| data == long), "pieces of {piece}");
        }
        let mut parser = Parser::new(10 << 20);
        assert_eq!(text.as_bytes().chunks(4_097).try_for_each(|piece| parser.push(piece)), Err(TooLong(10 << 20)));
    }

    #[test]
    fn endless_lines_and_events_are_refused() {
        let mut parser = Parser::new(100);
        assert_eq!(parser.push(&[b'a'; 101]), Err(TooLong(100)));
        let mut parser = Parser::new(100);
        let grown = (0..20).try_for_each(|_| parser.push(b"data: 0123456789\n"));
        assert_eq!(grown, Err(TooLong(100)));
    }
}
