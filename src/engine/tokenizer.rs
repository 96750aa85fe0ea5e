//! Text to token ids and back. [`tokenizer_files`](super::tokenizer_files) rebuilds a tokenizer from a GGUF file's metadata or reads a folder's
//! `tokenizer.json`; this is what they have in common.

use super::EngineError;
use super::detokenizer::TokenBytes;
use super::grammar::Grammars;
use super::pieces::{Pieces, SPACE};
use crate::types::traits::CountTokens;
use aho_corasick::{AhoCorasick, MatchKind};
use std::collections::HashMap;
use std::sync::OnceLock;

/// Text to token ids and back, as the model was trained.
pub struct Tokenizer {
    pub(super) inner: Inner,
    pub(super) bos: Option<u32>,
    /// Ascending.
    pub(super) eos: Vec<u32>,
    pub(super) add_bos: bool,
    pub(super) vocabulary: usize,
    pub(super) control: Control,
    pub(super) bytes: TokenBytes,
    pub(super) grammars: OnceLock<Option<Grammars>>,
}

/// What splits text.
pub(super) enum Inner {
    /// The tokenizers library.
    Library(Box<tokenizers::Tokenizer>),
    /// Scores of pieces.
    Pieces(Box<Spelled>),
}

/// A vocabulary of SentencePiece with its special tokens.
pub(super) struct Spelled {
    pub(super) pieces: Pieces,
    pub(super) special: Special,
    /// A space is put before a text, and behind a special token.
    pub(super) adds_space: bool,
}

/// Tokens that are matched before anything is split; of several the leftmost, the longest of those.
pub(super) struct Special {
    automaton: AhoCorasick,
    ids: Vec<u32>,
}

impl Special {
    /// # Errors
    /// The library's message when the texts make too large an automaton.
    pub(super) fn new(tokens: &[(u32, &str)]) -> Result<Self, String> {
        let built = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(tokens.iter().map(|(_, text)| text));
        Ok(Special { automaton: built.map_err(|error| error.to_string())?, ids: tokens.iter().map(|(id, _)| *id).collect() })
    }
}

/// Tokens that shape the conversation and are no part of its text.
pub(super) struct Control {
    names: HashMap<u32, String>,
    /// Those of at least two characters.
    automaton: AhoCorasick,
}

impl Control {
    /// # Errors
    /// As [`Special::new`].
    pub(super) fn new(tokens: impl Iterator<Item = (u32, String)>) -> Result<Self, String> {
        let names: HashMap<u32, String> = tokens.collect();
        let longer = names.values().filter(|name| name.chars().count() > 1);
        let automaton = AhoCorasick::builder().match_kind(MatchKind::Standard).build(longer).map_err(|error| error.to_string())?;
        Ok(Control { names, automaton })
    }
}

impl Tokenizer {
    /// Token ids of a text, special tokens in it recognised, none added.
    ///
    /// # Errors
    /// [`EngineError::Template`] when the library refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        match &self.inner {
            Inner::Library(library) => {
                let encoding = library.encode_fast(text, false).map_err(|error| EngineError::Template(error.to_string()))?;
                Ok(encoding.get_ids().to_vec())
            }
            Inner::Pieces(_) if u32::try_from(text.len()).is_err() => Err(EngineError::Template("it makes more than 4 GiB of text".into())),
            Inner::Pieces(spelled) => Ok(spelled.encode(&self.bytes, text)),
        }
    }

    /// Token ids of a rendered conversation: as [`Tokenizer::encode`], with the beginning-of-sequence token where the model wants it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        let mut ids = self.encode(text)?;
        if let Some(bos) = self.bos.filter(|bos| self.add_bos && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// A text in which no control token can be recognised: a zero-width space is put behind the first character of each. What a person
    /// wrote can then never end a turn or begin one in another role.
    pub fn without_control(&self, text: &str) -> String {
        // Tokens may overlap, and a broken one must not leave another whole.
        let mut cuts: Vec<usize> = self
            .control
            .automaton
            .find_overlapping_iter(text)
            .map(|found| found.start() + text[found.start()..].chars().next().map_or(0, char::len_utf8))
            .collect();
        cuts.sort_unstable();
        cuts.dedup();
        let mut safe = String::with_capacity(text.len() + 3 * cuts.len());
        let mut from = 0;
        for cut in cuts {
            safe.push_str(&text[from..cut]);
            safe.push('\u{200b}');
            from = cut;
        }
        safe + &text[from..]
    }

    /// The tokenizer as `tokenizer.json`, which other programs read.
    ///
    /// # Errors
    /// [`EngineError::Template`] when the library cannot write it, [`EngineError::Unsupported`] for a vocabulary of scored pieces.
    pub fn to_json(&self) -> Result<String, EngineError> {
        match &self.inner {
            Inner::Library(library) => library.to_string(false).map_err(|error| EngineError::Template(error.to_string())),
            Inner::Pieces(_) => Err(EngineError::Unsupported("a vocabulary of scored pieces is not written as tokenizer.json".into())),
        }
    }

    /// Text of token ids. Bytes that are no UTF-8 (yet) come out as U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        match &self.inner {
            Inner::Library(library) => library.decode(ids, skip_special).unwrap_or_default(),
            Inner::Pieces(_) => {
                let mut bytes = Vec::new();
                for id in ids {
                    let name = self.control.names.get(id).filter(|_| !skip_special);
                    bytes.extend_from_slice(name.map_or(self.bytes(*id), |name| name.as_bytes()));
                }
                String::from_utf8_lossy(&bytes).into_owned()
            }
        }
    }

    /// The beginning-of-sequence token.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Whether that begins every prompt.
    pub fn adds_bos(&self) -> bool {
        self.add_bos
    }

    /// Whether a token ends a reply.
    pub fn is_end(&self, id: u32) -> bool {
        self.eos.binary_search(&id).is_ok()
    }

    /// Text of one token: control tokens as the vocabulary spells them, others as they stand in a reply.
    pub fn token(&self, id: u32) -> Option<String> {
        match &self.inner {
            Inner::Library(library) => library.id_to_token(id),
            Inner::Pieces(_) if (id as usize) < self.vocabulary => {
                let name = self.control.names.get(&id).cloned();
                Some(name.unwrap_or_else(|| String::from_utf8_lossy(self.bytes(id)).into_owned()))
            }
            Inner::Pieces(_) => None,
        }
    }

    /// Bytes that a token adds to a reply; none for control tokens.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id)
    }

    /// Whether a token shapes the conversation and is no part of its text.
    pub fn is_control(&self, id: u32) -> bool {
        self.control.names.contains_key(&id)
    }

    /// The id of a control token, by its name.
    pub fn control_id(&self, name: &str) -> Option<u32> {
        self.control.names.iter().find(|(_, own)| *own == name).map(|(id, _)| *id)
    }

    /// Tokens that end a reply, ascending.
    pub fn ends(&self) -> &[u32] {
        &self.eos
    }

    /// Compiles grammars over this vocabulary; built when it is first asked for.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] for a vocabulary that the library cannot take.
    pub fn grammars(&self) -> Result<&Grammars, EngineError> {
        let built = self.grammars.get_or_init(|| Grammars::new(self));
        built.as_ref().ok_or_else(|| EngineError::Unsupported("this model's vocabulary cannot be bound to a grammar".into()))
    }

    /// Number of tokens in the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }
}

impl Spelled {
    fn encode(&self, bytes: &TokenBytes, text: &str) -> Vec<u32> {
        let (mut ids, mut from) = (Vec::new(), 0);
        for found in self.special.automaton.find_iter(text) {
            self.part(bytes, &text[from..found.start()], &mut ids);
            ids.push(self.special.ids[found.pattern().as_usize()]);
            from = found.end();
        }
        self.part(bytes, &text[from..], &mut ids);
        ids
    }

    /// What stands between special tokens.
    fn part(&self, bytes: &TokenBytes, part: &str, ids: &mut Vec<u32>) {
        if part.is_empty() {
            return;
        }
        if self.adds_space || part.contains(SPACE) {
            let space = if self.adds_space { " " } else { "" };
            self.pieces.encode(bytes, &format!("{space}{}", part.replace(SPACE, " ")), ids);
        } else {
            self.pieces.encode(bytes, part, ids);
        }
    }
}

impl CountTokens for Tokenizer {
    fn count(&self, text: &str) -> usize {
        self.encode(text).map_or(0, |ids| ids.len())
    }
}
