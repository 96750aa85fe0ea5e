//! SentencePiece tokenization of a vocabulary with scores (Kudo and Richardson 2018, arXiv 1808.06226; its BPE): characters are joined in
//! pairs, the pair whose piece has the highest score first, the leftmost of equal ones, until no pair is a piece. What is no piece then is
//! spelled in byte tokens. Memory is a few bytes a piece: vocabularies of 262,144 pieces are usual.

use super::detokenizer::TokenBytes;
use hashbrown::{DefaultHashBuilder, HashTable};
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::hash::BuildHasher;

/// Stands for a space in vocabularies.
pub const SPACE: char = '\u{2581}';
/// Nothing before, or behind, a symbol.
const NONE: u32 = u32::MAX;

/// What is joined. The pieces' bytes are the caller's: the same table turns tokens into text.
pub struct Pieces {
    scores: Vec<f32>,
    /// Ids of pieces by their bytes.
    ids: HashTable<u32>,
    hasher: DefaultHashBuilder,
    /// Token of each byte, where the vocabulary has it.
    bytes: [Option<u32>; 256],
    unknown: Option<u32>,
}

/// A piece of the text so far, in a list.
#[derive(Clone, Copy)]
struct Symbol {
    start: u32,
    /// 0: it was joined to the one before.
    length: u32,
    before: u32,
    behind: u32,
}

/// Two symbols that may be joined.
struct Pair {
    score: f32,
    left: u32,
    right: u32,
    /// Bytes of both: a pair whose symbols changed since is passed over.
    length: u32,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

impl Pieces {
    /// The pieces of a vocabulary: the ids that `is_piece` says can be joined, with their bytes and scores. `byte_tokens` are pairs of a
    /// byte and its token; `unknown` stands for a byte without one.
    pub fn new(
        table: &TokenBytes,
        scores: Vec<f32>,
        is_piece: impl Fn(u32) -> bool,
        byte_tokens: impl Iterator<Item = (u8, u32)>,
        unknown: Option<u32>,
    ) -> Self {
        let hasher = DefaultHashBuilder::default();
        let hash = |id: &u32| hasher.hash_one(table.get(*id));
        let mut ids = HashTable::with_capacity(scores.len());
        for id in (0..scores.len() as u32).filter(|id| is_piece(*id) && !table.get(*id).is_empty()) {
            let bytes = table.get(id);
            // Of two pieces with the same bytes the first stands.
            if ids.find(hash(&id), |other| table.get(*other) == bytes).is_none() {
                ids.insert_unique(hash(&id), id, hash);
            }
        }
        let mut bytes = [None; 256];
        byte_tokens.for_each(|(byte, id)| bytes[usize::from(byte)] = Some(id));
        Pieces { scores, ids, hasher, bytes, unknown }
    }

    /// Appends the ids of a text; spaces are spaces.
    pub fn encode(&self, table: &TokenBytes, text: &str, ids: &mut Vec<u32>) {
        let mut symbols = symbols(text);
        let mut pairs = BinaryHeap::new();
        for left in 1..symbols.len() as u32 {
            pairs.extend(self.pair(table, text, &symbols, (left - 1, left)));
        }
        while let Some(pair) = pairs.pop() {
            let (left, right) = (symbols[pair.left as usize], symbols[pair.right as usize]);
            if left.length == 0 || right.length == 0 || left.length + right.length != pair.length {
                continue;
            }
            symbols[pair.left as usize] = Symbol { length: pair.length, behind: right.behind, ..left };
            symbols[pair.right as usize].length = 0;
            if right.behind != NONE {
                symbols[right.behind as usize].before = pair.left;
                pairs.extend(self.pair(table, text, &symbols, (pair.left, right.behind)));
            }
            if left.before != NONE {
                pairs.extend(self.pair(table, text, &symbols, (left.before, pair.left)));
            }
        }
        for symbol in symbols.iter().filter(|symbol| symbol.length > 0) {
            let bytes = &text.as_bytes()[symbol.start as usize..(symbol.start + symbol.length) as usize];
            match self.find(table, bytes) {
                Some(id) => ids.push(id),
                None => ids.extend(bytes.iter().filter_map(|byte| self.bytes[usize::from(*byte)].or(self.unknown))),
            }
        }
    }

    fn find(&self, table: &TokenBytes, bytes: &[u8]) -> Option<u32> {
        self.ids.find(self.hasher.hash_one(bytes), |id| table.get(*id) == bytes).copied()
    }

    /// Two neighbours, if they make a piece.
    fn pair(&self, table: &TokenBytes, text: &str, symbols: &[Symbol], (left, right): (u32, u32)) -> Option<Pair> {
        let start = symbols[left as usize].start;
        let length = symbols[left as usize].length + symbols[right as usize].length;
        let id = self.find(table, &text.as_bytes()[start as usize..(start + length) as usize])?;
        Some(Pair { score: self.scores[id as usize], left, right, length })
    }
}

/// A symbol for each character.
fn symbols(text: &str) -> Vec<Symbol> {
    let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
    for (start, character) in text.char_indices() {
        let place = symbols.len() as u32;
        symbols.push(Symbol { start: start as u32, length: character.len_utf8() as u32, before: place.wrapping_sub(1), behind: place + 1 });
    }
    if let Some(last) = symbols.last_mut() {
        last.behind = NONE;
    }
    symbols
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores in the order of the list, the first the highest.
    fn ids(vocabulary: &[&str], text: &str) -> Vec<u32> {
        let table = TokenBytes::pieces(vocabulary.iter().copied(), |_| false, |_| None);
        let scores = (0..vocabulary.len()).map(|id| -(id as f32)).collect();
        let pieces = Pieces::new(&table, scores, |_| true, std::iter::once((b'~', 900)), Some(999));
        let mut ids = Vec::new();
        pieces.encode(&table, text, &mut ids);
        ids
    }

    #[test]
    fn the_pair_with_the_highest_score_is_joined_first() {
        // "ab" before "bc", though "bcd" would be longer.
        assert_eq!(ids(&["ab", "bc", "bcd", "cd", "a", "b", "c", "d"], "abcd"), [0, 3]);
        assert_eq!(ids(&["bc", "ab", "abcd", "cd", "a", "b", "c", "d"], "abcd"), [4, 0, 7]);
        // Of equal ones the leftmost.
        assert_eq!(ids(&["aa", "a"], "aaaaa"), [0, 0, 1]);
    }

    #[test]
    fn spaces_are_spelled_and_what_is_no_piece_becomes_bytes() {
        assert_eq!(ids(&["\u{2581}a", "\u{2581}", "a"], "a a~é"), [2, 0, 900, 999, 999]);
        assert_eq!(ids(&["a"], ""), [0u32; 0]);
    }
}
