//! Classifier heads: a softmax over the vectors of an embedding model, which answers with one of its labels. A head is stored like any
//! adapter: a configuration (JSON) and a safetensors file with the tensors `weight` (labels, dimensions) and `bias` (labels), f32.

use super::EngineError;
use crate::types::chat::Message;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// Labels that a head may have.
const MAX_LABELS: usize = 100_000;

/// A head's configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeadConfig {
    head_type: HeadType,
    /// Elements of the vectors that it reads.
    dimensions: usize,
    /// What it answers with, in the order of the rows of `weight`.
    labels: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum HeadType {
    #[serde(rename = "SOFTMAX")]
    Softmax,
}

/// A classifier head: P(label | x) = softmax(W x + b).
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    config: HeadConfig,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Head {
    /// A head of labels, its weight (labels, dimensions) and its bias (labels).
    ///
    /// # Errors
    /// [`EngineError::Adapter`] when they do not fit together, a label stands twice or a value is no number.
    pub fn new(labels: Vec<String>, weight: Vec<f32>, bias: Vec<f32>) -> Result<Self, EngineError> {
        let dimensions = weight.len() / labels.len().max(1);
        let head = Head { config: HeadConfig { head_type: HeadType::Softmax, dimensions, labels }, weight, bias };
        head.check()?;
        Ok(head)
    }

    /// Reads a head.
    ///
    /// # Errors
    /// [`EngineError::Adapter`] naming the key or tensor at fault.
    pub fn load(config: &[u8], weights: &[u8]) -> Result<Self, EngineError> {
        let config: HeadConfig =
            serde_json::from_slice(config).map_err(|error| EngineError::Adapter(format!("head_config.json: {error}")))?;
        let tensors = SafeTensors::deserialize(weights).map_err(|error| EngineError::Adapter(format!("head.safetensors: {error}")))?;
        if let Some(other) = tensors.names().into_iter().find(|name| *name != "weight" && *name != "bias") {
            return Err(EngineError::Adapter(format!("head.safetensors holds the tensor {other}; a head has weight and bias")));
        }
        let labels = config.labels.len();
        let values = |name: &str, shape: &[usize]| -> Result<Vec<f32>, EngineError> {
            let view = tensors.tensor(name).map_err(|_| EngineError::Adapter(format!("head.safetensors has no tensor {name}")))?;
            if view.dtype() != Dtype::F32 || view.shape() != shape {
                let problem = format!("tensor {name} is {:?} {:?}; the configuration asks for F32 {shape:?}", view.dtype(), view.shape());
                return Err(EngineError::Adapter(problem));
            }
            Ok(view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
        };
        let (weight, bias) = (values("weight", &[labels, config.dimensions])?, values("bias", &[labels])?);
        let head = Head { config, weight, bias };
        head.check()?;
        Ok(head)
    }

    fn check(&self) -> Result<(), EngineError> {
        let refuse = |problem: String| Err(EngineError::Adapter(problem));
        let (labels, dimensions) = (&self.config.labels, self.config.dimensions);
        if labels.len() < 2 || labels.len() > MAX_LABELS || dimensions == 0 {
            return refuse(format!("a head of {} labels over {dimensions} dimensions; it takes 2 to {MAX_LABELS} labels", labels.len()));
        }
        if self.weight.len() != labels.len() * dimensions || self.bias.len() != labels.len() {
            return refuse(format!("{} weights and {} biases for {} labels", self.weight.len(), self.bias.len(), labels.len()));
        }
        let mut seen = HashSet::new();
        if let Some(twice) = labels.iter().find(|label| label.is_empty() || !seen.insert(label.as_str())) {
            return refuse(format!("the label {twice:?} is empty or stands twice"));
        }
        match self.weight.iter().chain(&self.bias).all(|value| value.is_finite()) {
            true => Ok(()),
            false => refuse("a weight is infinite or no number".into()),
        }
    }

    /// What it answers with.
    pub fn labels(&self) -> &[String] {
        &self.config.labels
    }

    /// Elements of the vectors that it reads.
    pub fn dimensions(&self) -> usize {
        self.config.dimensions
    }

    /// Weights (labels, dimensions), row by row.
    pub fn weight(&self) -> &[f32] {
        &self.weight
    }

    /// Biases (labels).
    pub fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// Trained values.
    pub fn parameters(&self) -> usize {
        self.weight.len() + self.bias.len()
    }

    /// Natural logarithms of the labels' probabilities for a vector (dimensions), in the labels' order.
    pub fn log_probabilities(&self, vector: &[f32]) -> Vec<f32> {
        let row = |(row, bias): (&[f32], &f32)| -> f64 {
            f64::from(*bias) + row.iter().zip(vector).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>()
        };
        let logits: Vec<f64> = self.weight.chunks_exact(self.config.dimensions).zip(&self.bias).map(row).collect();
        let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total = logits.iter().map(|logit| (logit - most).exp()).sum::<f64>().ln() + most;
        logits.iter().map(|logit| (logit - total) as f32).collect()
    }

    /// `head_config.json`.
    pub fn to_config_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(&self.config).expect("texts and numbers: serialising cannot fail")
    }

    /// `head.safetensors`.
    ///
    /// # Errors
    /// [`EngineError::Adapter`] when it cannot be written.
    pub fn to_safetensors(&self) -> Result<Vec<u8>, EngineError> {
        let failed = |error: safetensors::SafeTensorError| EngineError::Adapter(error.to_string());
        let bytes = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|value| value.to_le_bytes()).collect() };
        let (weight, bias, labels) = (bytes(&self.weight), bytes(&self.bias), self.config.labels.len());
        let weight = TensorView::new(Dtype::F32, vec![labels, self.config.dimensions], &weight).map_err(failed)?;
        let bias = TensorView::new(Dtype::F32, vec![labels], &bias).map_err(failed)?;
        safetensors::serialize([("bias", bias), ("weight", weight)], None).map_err(failed)
    }
}

/// What of a conversation is classified: the text of its last user message.
///
/// # Errors
/// What is missing.
pub fn classified_text(messages: &[Message]) -> Result<String, &'static str> {
    let last = messages.iter().rev().find(|message| message.role == "user").ok_or("there is no user message to classify")?;
    let text = last.plain_text();
    if text.trim().is_empty() { Err("the last user message has no text to classify") } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn head() -> Head {
        let labels = ["yes", "no", "perhaps"].map(String::from).to_vec();
        Head::new(labels, vec![1.0, 0.0, 0.0, 2.0, -1.0, 0.5], vec![0.0, 0.5, -0.25]).expect("a head")
    }

    #[test]
    fn a_head_is_read_back_and_its_probabilities_are_a_softmax() {
        let head = head();
        assert_eq!(Head::load(&head.to_config_json(), &head.to_safetensors().expect("written")).expect("read"), head);
        // Logits of (2, 1): 2, 2.5, -1.75.
        let exponents = [2f64, 2.5, -1.75].map(f64::exp);
        let total: f64 = exponents.iter().sum();
        for (found, expected) in head.log_probabilities(&[2.0, 1.0]).iter().zip(exponents) {
            assert!((f64::from(*found) - (expected / total).ln()).abs() < 1e-6);
        }
        let far = Head::new(vec!["a".into(), "b".into()], vec![1e30, -1e30], vec![0.0; 2]).expect("a head");
        assert_eq!(far.log_probabilities(&[1e8])[0], 0.0, "no overflow");
    }

    #[test]
    fn what_is_no_head_is_refused_by_name() {
        let (config, weights) = (head().to_config_json(), head().to_safetensors().expect("written"));
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut value: Value = serde_json::from_slice(&config).expect("JSON");
            change(&mut value);
            Head::load(value.to_string().as_bytes(), &weights).expect_err("refused").to_string()
        };
        assert!(changed(&|config| config["dimensions"] = json!(3)).contains("tensor weight"));
        assert!(changed(&|config| config["labels"] = json!(["a", "a", "b"])).contains("\"a\""));
        assert!(changed(&|config| config["labels"] = json!(["a"])).contains("weight"));
        assert!(changed(&|config| config["head_type"] = json!("TREE")).contains("TREE"));
        assert!(changed(&|config| config["more"] = json!(1)).contains("more"));
        for end in 0..weights.len() {
            assert!(Head::load(&config, &weights[..end]).is_err());
        }
        let labels = || vec!["a".to_string(), "b".to_string()];
        assert!(Head::new(labels(), vec![f32::NAN, 0.0], vec![0.0; 2]).expect_err("refused").to_string().contains("no number"));
        assert!(Head::new(labels(), vec![0.0; 3], vec![0.0; 2]).is_err());
    }
}
