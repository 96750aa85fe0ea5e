//! Encoders: models that turn texts into vectors. [`files`] reads a model's folder, [`bert`] is the network, [`worker`] the thread that owns
//! it and shares its steps among requests.

mod bert;
mod files;
mod worker;

pub use worker::{Encoder, EncoderOptions};

use super::EngineError;
use bert::Bert;
use files::Folder;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use tokenizers::Tokenizer;

/// Rows that one task takes through the network: enough for the matrix kernels, few enough for the caches.
const TASK_ROWS: usize = 512;

/// How the vectors of a text's tokens become the vector of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pooling {
    /// Their mean.
    Mean,
    /// The first one's, `[CLS]`.
    First,
    /// Their greatest elements.
    Max,
}

/// A loaded embedding model: text in, a vector of length one out.
pub struct Embedder {
    network: Bert,
    tokenizer: Tokenizer,
    pooling: Pooling,
    max_tokens: usize,
}

impl Embedder {
    /// Loads a model folder, its files by name: `config.json`, `tokenizer.json`, safetensors, and what sentence-transformers adds
    /// (`1_Pooling/config.json`, `sentence_bert_config.json`).
    ///
    /// # Errors
    /// [`EngineError::Model`] naming the file and the key or tensor at fault, [`EngineError::Unsupported`] for another architecture.
    pub fn load(files: &BTreeMap<String, PathBuf>) -> Result<Self, EngineError> {
        let folder = Folder::new(files);
        let config = folder.config()?;
        let network = Bert::load(&config, &folder.weights()?)?;
        let tokenizer = folder.tokenizer()?;
        let vocabulary = tokenizer.get_vocab_size(true);
        if vocabulary > config.vocabulary {
            let problem = format!("has {vocabulary} tokens, the model's vocabulary {}", config.vocabulary);
            return Err(EngineError::Model { file: "tokenizer.json".into(), problem });
        }
        let max_tokens = folder.max_tokens()?.unwrap_or(config.positions).min(config.positions);
        Ok(Embedder { network, tokenizer, pooling: folder.pooling()?, max_tokens })
    }

    /// Elements of a vector.
    pub fn dimensions(&self) -> usize {
        self.network.width()
    }

    /// Tokens of a text that the model takes, with those that mark its ends.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Token ids of a text, with those that mark its ends.
    ///
    /// # Errors
    /// [`EngineError::Request`] when the tokenizer refuses the text.
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        let encoding = self.tokenizer.encode_fast(text, true);
        let encoding =
            encoding.map_err(|error| EngineError::Request { param: "input", problem: format!("cannot be tokenized: {error}") })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Refuses token ids that the model does not have.
    ///
    /// # Errors
    /// [`EngineError::Request`] naming the id.
    pub fn check(&self, tokens: &[u32]) -> Result<(), EngineError> {
        let vocabulary = self.network.vocabulary();
        match tokens.iter().find(|id| **id as usize >= vocabulary) {
            None => Ok(()),
            Some(id) => {
                Err(EngineError::Request { param: "input", problem: format!("has the token id {id}; the model has {vocabulary} tokens") })
            }
        }
    }

    /// Vectors of length one of texts as [token ids](Embedder::tokens), in their order. The work is spread over the current rayon pool.
    pub fn embed(&self, texts: &[&[u32]]) -> Vec<Vec<f32>> {
        // Texts of one length together make even tasks.
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|i| texts[*i].len());
        let tasks = tasks(&order, texts);
        let alone = tasks.len() == 1;
        let parts: Vec<Vec<Vec<f32>>> = tasks.par_iter().map(|task| self.task(&order[task.clone()], texts, alone)).collect();
        let mut vectors = vec![Vec::new(); texts.len()];
        for (i, vector) in order.into_iter().zip(parts.into_iter().flatten()) {
            vectors[i] = vector;
        }
        vectors
    }

    fn task(&self, which: &[usize], texts: &[&[u32]], parallel: bool) -> Vec<Vec<f32>> {
        let mut tokens = Vec::new();
        let ranges: Vec<Range<usize>> = which
            .iter()
            .map(|i| {
                let start = tokens.len();
                tokens.extend_from_slice(&texts[*i][..texts[*i].len().min(self.max_tokens)]);
                start..tokens.len()
            })
            .collect();
        let hidden = self.network.hidden(&tokens, &ranges, parallel);
        let width = self.network.width();
        ranges.iter().map(|rows| self.pooling.vector(&hidden[rows.start * width..rows.end * width], width)).collect()
    }
}

/// Consecutive texts of the order, some [`TASK_ROWS`] rows together.
fn tasks(order: &[usize], texts: &[&[u32]]) -> Vec<Range<usize>> {
    let mut tasks: Vec<Range<usize>> = Vec::new();
    let mut rows = usize::MAX;
    for (at, i) in order.iter().enumerate() {
        let more = texts[*i].len();
        match tasks.last_mut() {
            Some(task) if rows + more <= TASK_ROWS => task.end = at + 1,
            _ => {
                tasks.push(at..at + 1);
                rows = 0;
            }
        }
        rows += more;
    }
    tasks
}

impl Pooling {
    /// The vector of a text, of length one, from its rows (tokens, width).
    fn vector(self, rows: &[f32], width: usize) -> Vec<f32> {
        let mut vector = rows.get(..width).map_or_else(|| vec![0.0; width], <[f32]>::to_vec);
        for row in rows.chunks_exact(width).skip(1) {
            match self {
                Pooling::First => break,
                Pooling::Mean => vector.iter_mut().zip(row).for_each(|(sum, x)| *sum += x),
                Pooling::Max => vector.iter_mut().zip(row).for_each(|(most, x)| *most = most.max(*x)),
            }
        }
        // The mean's divisor is a factor of the length as well, and goes with it.
        let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        if length > 0.0 {
            vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
        }
        vector
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_hold_every_text_once_and_are_not_too_large() {
        let lengths = [600usize, 1, 200, 300, 13, 500];
        let texts: Vec<Vec<u32>> = lengths.iter().map(|n| vec![0; *n]).collect();
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|i| texts[*i].len());
        let found = tasks(&order, &texts);
        assert_eq!(found.iter().flat_map(Clone::clone).collect::<Vec<_>>(), (0..6).collect::<Vec<_>>());
        for task in &found {
            let rows: usize = order[task.clone()].iter().map(|i| lengths[*i]).sum();
            assert!(rows <= TASK_ROWS || task.len() == 1, "{task:?} has {rows} rows");
        }
        assert_eq!(found.len(), 4);
    }

    #[test]
    fn vectors_have_length_one() {
        let rows = [1.0, 2.0, 3.0, -2.0, 5.0, 0.5];
        for (pooling, raw) in [(Pooling::Mean, [-0.5, 3.5, 1.75]), (Pooling::First, [1.0, 2.0, 3.0]), (Pooling::Max, [1.0, 5.0, 3.0])] {
            let length = raw.iter().map(|x: &f32| x * x).sum::<f32>().sqrt();
            let vector = pooling.vector(&rows, 3);
            for (found, raw) in vector.iter().zip(raw) {
                assert!((found - raw / length).abs() < 1e-6, "{pooling:?}: {vector:?}");
            }
        }
        assert_eq!(Pooling::Mean.vector(&[], 3), [0.0; 3]);
    }
}
