//! Near-duplicates: word 3-grams, MinHash to find candidate pairs, exact Jaccard similarity to decide.
//!
//! Sources: Broder, "On the resemblance and containment of documents" (1997); banding after Leskovec, Rajaraman & Ullman, Mining of
//! Massive Datasets, 3.4. With 32 bands of 3 rows a pair of similarity 0.6 is missed once in 2,400, one of 0.8 practically never.
//!
//! A text takes 4 bytes for each of its 3-grams and 384 for its bands. Equal texts are compared once, whatever their number.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

const SHINGLE_WORDS: usize = 3;
const BANDS: usize = 32;
const ROWS: usize = 3;
/// Texts of one band that each is compared with.
const NEIGHBOURS: usize = 32;

/// Two samples by position, and how alike they are (Jaccard, 0 to 1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    /// Position of the first.
    pub a: usize,
    /// Position of the second, larger.
    pub b: usize,
    /// Shared share of all 3-grams.
    pub similarity: f64,
}

/// Lower case, letters and digits only, single spaces: texts that differ only in layout and punctuation become equal.
pub fn normalise(text: &str) -> String {
    let mut normal = String::with_capacity(text.len());
    words(text, &mut |word| {
        if !normal.is_empty() {
            normal.push(' ');
        }
        normal.push_str(word);
    });
    normal
}

/// What ends or joins sentences and says nothing else, unless it stands inside a word or a number.
const PUNCTUATION: &[char] = &['.', ',', ';', ':', '!', '?', '"', '(', ')', '“', '”', '„', '«', '»', '…', '¿', '¡'];
/// What words are written with or without.
const APOSTROPHES: &[char] = &['\'', '’', '‘', '`'];

/// Lower case without the punctuation of sentences and without white space around: texts that say the same, letter by letter. Signs
/// stay (`2 + 3`, `C++`), and so does what stands inside numbers (`1.5`).
pub fn letters(text: &str) -> String {
    let text: Vec<char> = text.to_lowercase().chars().collect();
    let is_inside = |at: usize| {
        let beside = [at.checked_sub(1).and_then(|before| text.get(before)), text.get(at + 1)];
        beside.iter().all(|c| c.is_some_and(|c| c.is_alphanumeric()))
    };
    let is_kept = |at: usize| !APOSTROPHES.contains(&text[at]) && (!PUNCTUATION.contains(&text[at]) || is_inside(at));
    let kept: String = (0..text.len()).filter(|at| is_kept(*at)).map(|at| text[at]).collect();
    kept.trim().to_string()
}

/// Gives each word in lower case.
fn words(text: &str, take: &mut dyn FnMut(&str)) {
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        if word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) { take(word) } else { take(&word.to_lowercase()) }
    }
}

/// All pairs at least `threshold` alike, by position. Of many equal texts each is paired with a few of those before it.
pub fn pairs(texts: &[String], threshold: f64) -> Vec<Pair> {
    pairs_across(texts, threshold, &|_| 0)
}

/// All pairs at least `threshold` alike, by position. Of many equal texts each is paired with a few of those before it, and with one of
/// each other side, so that of what stands on two sides nothing is passed over.
pub fn pairs_across(texts: &[String], threshold: f64, side: &dyn Fn(usize) -> usize) -> Vec<Pair> {
    let sets: Vec<Box<[u32]>> = texts.iter().map(|text| shingles(text)).collect();
    // Equal sets are one.
    let mut first_of: HashMap<&[u32], Vec<usize>, Mixed> = HashMap::default();
    for (i, set) in sets.iter().enumerate().filter(|(_, set)| !set.is_empty()) {
        first_of.entry(set).or_default().push(i);
    }
    let mut classes: Vec<Vec<usize>> = first_of.into_values().collect();
    classes.sort_unstable();
    let mut bands: Vec<[Band; BANDS]> = classes.iter().map(|class| bands(&sets[class[0]])).collect();
    let mut found: Vec<Pair> = classes.iter().flat_map(|class| within(class, side)).collect();
    for band in 0..BANDS {
        let mut buckets: HashMap<u64, Vec<usize>, Mixed> = HashMap::default();
        for b in 0..classes.len() {
            let bucket = buckets.entry(bands[b][band].hash).or_default();
            bands[b][band].place = u32::try_from(bucket.len()).unwrap_or(u32::MAX);
            // In a crowded bucket the nearest before, and the first, which stands for all.
            let first = bucket.first().filter(|_| bucket.len() > NEIGHBOURS);
            for a in bucket.iter().rev().take(NEIGHBOURS).chain(first) {
                if (0..band).any(|earlier| were_compared(&bands[*a][earlier], &bands[b][earlier])) {
                    continue;
                }
                let (a, b) = (&classes[*a], &classes[b]);
                let similarity = jaccard(&sets[a[0]], &sets[b[0]]);
                if similarity >= threshold {
                    found.extend(between(a, b, side).into_iter().map(|(a, b)| Pair { a: a.min(b), b: a.max(b), similarity }));
                }
            }
            bucket.push(b);
        }
    }
    found.retain(|pair| pair.similarity >= threshold);
    found.sort_by_key(|pair| (pair.a, pair.b));
    found
}

/// Whether two texts met in a band: they are in one bucket, and the later one looked as far back as the earlier one stands.
fn were_compared(a: &Band, b: &Band) -> bool {
    a.hash == b.hash && (a.place == 0 || (b.place - a.place) as usize <= NEIGHBOURS)
}

/// Pairs of equal texts: each with a few before it, and with the first of each other side before it.
fn within(class: &[usize], side: &dyn Fn(usize) -> usize) -> Vec<Pair> {
    let (mut pairs, mut firsts): (Vec<Pair>, Vec<(usize, usize)>) = (Vec::new(), Vec::new());
    for (at, b) in class.iter().enumerate() {
        let own = side(*b);
        let start = at.saturating_sub(NEIGHBOURS);
        let across = firsts.iter().filter(|(other, place)| *other != own && *place < start).map(|(_, place)| class[*place]);
        pairs.extend(across.chain(class[start..at].iter().copied()).map(|a| Pair { a, b: *b, similarity: 1.0 }));
        if firsts.iter().all(|(other, _)| *other != own) {
            firsts.push((own, at));
        }
    }
    pairs
}

/// Pairs of two classes of equal texts: all where they are small, otherwise each of the one with the first of each side of the other.
fn between(a: &[usize], b: &[usize], side: &dyn Fn(usize) -> usize) -> Vec<(usize, usize)> {
    if a.len() * b.len() <= NEIGHBOURS {
        return a.iter().flat_map(|a| b.iter().map(move |b| (*a, *b))).collect();
    }
    let firsts = |class: &[usize]| {
        let mut firsts: Vec<(usize, usize)> = Vec::new();
        for i in class {
            if firsts.iter().all(|(other, _)| *other != side(*i)) {
                firsts.push((side(*i), *i));
            }
        }
        firsts
    };
    let (of_a, of_b) = (firsts(a), firsts(b));
    let mut pairs: Vec<(usize, usize)> = of_b.iter().flat_map(|(_, b)| a.iter().map(move |a| (*a, *b))).collect();
    pairs.extend(of_a.iter().flat_map(|(_, a)| b.iter().map(move |b| (*a, *b))));
    pairs.sort_unstable();
    pairs.dedup();
    pairs
}

/// Groups of positions that pairs connect: for each position the smallest position of its group.
pub fn groups(count: usize, pairs: &[Pair]) -> Vec<usize> {
    let mut parent: Vec<usize> = (0..count).collect();
    fn root(parent: &mut [usize], mut i: usize) -> usize {
        while parent[i] != i {
            parent[i] = parent[parent[i]];
            i = parent[i];
        }
        i
    }
    for pair in pairs {
        let (a, b) = (root(&mut parent, pair.a), root(&mut parent, pair.b));
        parent[a.max(b)] = a.min(b);
    }
    (0..count).map(|i| root(&mut parent, i)).collect()
}

/// The hashes of a text's 3-grams, sorted, each once.
fn shingles(text: &str) -> Box<[u32]> {
    let mut hashes: Vec<u64> = Vec::new();
    words(text, &mut |word| hashes.push(hash(word.as_bytes())));
    if hashes.is_empty() {
        return Box::default();
    }
    let fold = |window: &[u64]| window.iter().fold(0, |all, word| mix(all ^ word)) as u32;
    let mut set: Vec<u32> = hashes.windows(SHINGLE_WORDS.min(hashes.len())).map(fold).collect();
    set.sort_unstable();
    set.dedup();
    set.into_boxed_slice()
}

/// FNV-1a (Fowler, Noll & Vo), finished by [`mix`]: the same in every build, so that a split is.
fn hash(bytes: &[u8]) -> u64 {
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)))
}

/// One band of a text: its hash, and its place among those that share it.
#[derive(Clone, Copy)]
struct Band {
    hash: u64,
    place: u32,
}

/// The hash of each band of a set's signature.
fn bands(set: &[u32]) -> [Band; BANDS] {
    let mut least = [u64::MAX; BANDS * ROWS];
    for shingle in set {
        for (i, slot) in least.iter_mut().enumerate() {
            *slot = (*slot).min(mix(u64::from(*shingle) ^ (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        }
    }
    let hash = |band: usize| least[band * ROWS..(band + 1) * ROWS].iter().fold(0, |all, value| mix(all ^ value));
    std::array::from_fn(|band| Band { hash: hash(band), place: 0 })
}

/// SplitMix64's finaliser (Steele, Lea & Flood 2014): a bijection that scatters all bits.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn jaccard(a: &[u32], b: &[u32]) -> f64 {
    let (mut i, mut j, mut shared) = (0, 0, 0usize);
    while i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => {
                shared += 1;
                i += 1;
                j += 1;
            }
        }
    }
    shared as f64 / ((a.len() + b.len() - shared) as f64).max(1.0)
}

type Mixed = BuildHasherDefault<MixHasher>;

/// For keys that are hashes already.
#[derive(Default)]
struct MixHasher(u64);

impl Hasher for MixHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 = mix(self.0 ^ u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = mix(self.0 ^ word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_copies_are_found_and_others_are_not() {
        let texts: Vec<String> = [
            "please send me a new kettle because the old one leaks on my table",
            "Please send me a new kettle, because the old one leaks on my floor!",
            "where is my order, it should have been here on monday",
            "the blender works but I changed my mind and want to return it",
            "",
        ]
        .map(String::from)
        .to_vec();
        let found = pairs(&texts, 0.6);
        assert_eq!(found.iter().map(|pair| (pair.a, pair.b)).collect::<Vec<_>>(), [(0, 1)]);
        // 12 three-word windows each, 11 shared: 11 / 13.
        assert!((found[0].similarity - 11.0 / 13.0).abs() < 1e-12, "{}", found[0].similarity);
        assert_eq!(groups(5, &found), [0, 0, 2, 3, 4]);
        assert_eq!(normalise("  It's OK,\n ok? "), "it s ok ok");
        assert_eq!(letters("\n It's OK, my_friend ? "), "its ok my_friend");
        assert_eq!(letters("Is 1.5 + C++ (more) than -2?"), "is 1.5 + c++ more than -2");
    }

    #[test]
    fn very_many_equal_texts_are_joined_without_comparing_each_with_each() {
        let mut texts = vec!["one two three four five six seven eight".to_string(); 5_000];
        texts.push("one two three four five six seven eight nine".to_string());
        let found = pairs(&texts, 0.6);
        assert!(found.len() < 5_001 * (NEIGHBOURS + 1) + 2, "{}", found.len());
        assert!(groups(texts.len(), &found).iter().all(|first| *first == 0));
    }
}
