//! Tokens as bytes, and a growing reply as text that never splits a UTF-8 character.

use super::pieces::SPACE;
use super::tokenizer::Tokenizer;

/// The bytes of every token, as they stand in a reply. Byte-level BPE writes a byte as one printable character (GPT-2's table), so that
/// a token may end in the middle of a character.
#[derive(Debug, Default)]
pub struct TokenBytes {
    bytes: Vec<u8>,
    /// Where each token ends in `bytes`.
    ends: Vec<u32>,
}

impl TokenBytes {
    /// The table of a vocabulary of SentencePiece, where U+2581 is a space; `is_silent` as below, `byte` gives the byte that a token stands
    /// for.
    pub fn pieces<'a>(
        tokens: impl Iterator<Item = &'a str>,
        is_silent: impl Fn(usize) -> bool,
        byte: impl Fn(usize) -> Option<u8>,
    ) -> Self {
        let mut all = TokenBytes::default();
        for (id, token) in tokens.enumerate() {
            match byte(id) {
                _ if is_silent(id) => {}
                Some(byte) => all.bytes.push(byte),
                None => token.split(SPACE).enumerate().for_each(|(nth, part)| {
                    all.bytes.extend((nth > 0).then_some(b' '));
                    all.bytes.extend_from_slice(part.as_bytes());
                }),
            }
            all.ends.push(all.bytes.len() as u32);
        }
        all
    }

    /// The table of a byte-level vocabulary; `is_silent` names tokens that are no part of a text.
    pub fn new<'a>(tokens: impl Iterator<Item = &'a str>, is_silent: impl Fn(usize) -> bool) -> Self {
        let table = byte_of_char();
        let mut all = TokenBytes::default();
        for (id, token) in tokens.enumerate() {
            if !is_silent(id) {
                let begin = all.bytes.len();
                let known = token.chars().all(|c| match table.get(c as usize).copied().flatten() {
                    Some(byte) => {
                        all.bytes.push(byte);
                        true
                    }
                    None => false,
                });
                // A token that is not spelled in the table's characters stands for itself.
                if !known {
                    all.bytes.truncate(begin);
                    all.bytes.extend_from_slice(token.as_bytes());
                }
            }
            all.ends.push(all.bytes.len() as u32);
        }
        all
    }

    /// Bytes of one token; empty for silent and unknown ones.
    pub fn get(&self, id: u32) -> &[u8] {
        let Some(end) = self.ends.get(id as usize) else { return &[] };
        let begin = if id == 0 { 0 } else { self.ends[id as usize - 1] };
        &self.bytes[begin as usize..*end as usize]
    }
}

/// GPT-2's `bytes_to_unicode`, inverted: printable bytes stand for themselves, the others for the characters from U+0100 on.
fn byte_of_char() -> Vec<Option<u8>> {
    let mut table = vec![None; 512];
    let mut next = 256;
    for byte in 0..=255u8 {
        let is_printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let place = if is_printable { usize::from(byte) } else { next };
        next += usize::from(!is_printable);
        table[place] = Some(byte);
    }
    table
}

/// Turns a growing list of tokens into text.
#[derive(Debug, Default)]
pub struct Detokenizer {
    /// Bytes of a character that is not whole yet.
    pending: Vec<u8>,
}

impl Detokenizer {
    /// Adds a token; returns the text that is complete now, possibly empty. Bytes that can never become a character are U+FFFD.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        self.pending.extend_from_slice(tokenizer.bytes(id));
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(whole) => {
                    text.push_str(whole);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    text.push_str(&String::from_utf8_lossy(&rest[..error.valid_up_to()]));
                    let Some(broken) = error.error_len() else {
                        rest = &rest[error.valid_up_to()..];
                        break;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[error.valid_up_to() + broken..];
                }
            }
        }
        self.pending = rest.to_vec();
        text
    }

    /// What is left at the end: bytes of an unfinished character become U+FFFD.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_character() {
        let table = byte_of_char();
        let mut bytes: Vec<u8> = table.iter().flatten().copied().collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        // From GPT-2's published table: a space is U+0120, a line break U+010A.
        assert_eq!((table[0x120], table[0x10A]), (Some(b' '), Some(b'\n')));
    }

    #[test]
    fn tokens_stand_for_their_bytes() {
        let tokens = ["a", "\u{120}b", "<|end|>", "ðŁĲ", "a b"];
        let table = TokenBytes::new(tokens.into_iter(), |id| id == 2);
        assert_eq!(table.get(1), b" b");
        assert_eq!(table.get(2), b"");
        assert_eq!(table.get(3), [0xF0, 0x9F, 0x90]);
        assert_eq!((table.get(4), table.get(99)), (b"a b".as_slice(), b"".as_slice()));
    }
}
