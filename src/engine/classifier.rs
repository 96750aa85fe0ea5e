//! Classifiers on a chat model: a [`Head`] on the hidden state of a text's last token, with or without an adapter below it. It is stored as
//! a head is, its configuration with PEFT's under `adapter`, its tensors with PEFT's beside `weight` and `bias`.

use super::adapter::{Adapter, AdapterConfig, LoraTarget};
use super::tokenizer::Tokenizer;
use super::{EngineError, Head, adapter_check};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;

const ADAPTER: &str = "adapter";
const DECODER: &str = "decoder";

/// A head and what is below it.
#[derive(Debug, Clone)]
pub struct Classifier {
    /// What answers.
    pub head: Head,
    /// What the text goes through.
    pub adapter: Option<Arc<Adapter>>,
}

impl Classifier {
    /// Whether a stored configuration is that of a classifier on a chat model; heads on embedding models and adapters are none.
    pub fn is_one(config: &[u8]) -> bool {
        serde_json::from_slice::<Value>(config).is_ok_and(|config| config.get("reads").and_then(Value::as_str) == Some(DECODER))
    }

    /// Reads a classifier for a model with these modules.
    ///
    /// # Errors
    /// [`EngineError::Adapter`] naming the key or tensor at fault.
    pub fn load(config: &[u8], weights: &[u8], targets: &[LoraTarget]) -> Result<Self, EngineError> {
        adapter_check::files(config, weights)?;
        let refuse = |problem: String| EngineError::Adapter(problem);
        let mut config: Value = serde_json::from_slice(config).map_err(|error| refuse(format!("head_config.json: {error}")))?;
        let fields = config.as_object_mut().ok_or_else(|| refuse("head_config.json is no object".into()))?;
        fields.shift_remove("reads");
        let below = fields.shift_remove(ADAPTER).filter(|adapter| !adapter.is_null());
        let tensors = SafeTensors::deserialize(weights).map_err(|error| refuse(format!("head.safetensors: {error}")))?;
        let (own, others): (Vec<_>, Vec<_>) = tensors.tensors().into_iter().partition(|(key, _)| key == "weight" || key == "bias");
        let own = safetensors::serialize(own, None).map_err(|error| refuse(error.to_string()))?;
        let head = Head::load(config.to_string().as_bytes(), &own)?;
        let adapter = match below {
            Some(config) => {
                let config = AdapterConfig::deserialize(config).map_err(|error| refuse(format!("head_config.json: adapter: {error}")))?;
                Some(Arc::new(Adapter::from_tensors(config, others, targets)?))
            }
            None if others.is_empty() => None,
            None => return Err(refuse(format!("head.safetensors holds the tensor {}; the configuration has no adapter", others[0].0))),
        };
        Ok(Classifier { head, adapter })
    }

    /// Tokens that a classifier reads of a text: it, between the tokens that begin and end a turn.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn tokens(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, EngineError> {
        let mut tokens: Vec<u32> = tokenizer.bos().into_iter().collect();
        tokens.extend(tokenizer.encode(&tokenizer.without_control(text))?);
        tokens.extend(tokenizer.ends().last());
        Ok(tokens)
    }

    /// `head_config.json`.
    pub fn to_config_json(&self) -> Vec<u8> {
        let mut config: Value = serde_json::from_slice(&self.head.to_config_json()).expect("a head writes JSON");
        config["reads"] = DECODER.into();
        config[ADAPTER] = match &self.adapter {
            Some(adapter) => serde_json::to_value(&adapter.config).expect("texts and numbers: serialising cannot fail"),
            None => Value::Null,
        };
        serde_json::to_vec_pretty(&config).expect("JSON serialises")
    }

    /// `head.safetensors`.
    ///
    /// # Errors
    /// [`EngineError`] when a tensor cannot be read.
    pub fn to_safetensors(&self) -> Result<Vec<u8>, EngineError> {
        let failed = |error: safetensors::SafeTensorError| EngineError::Adapter(error.to_string());
        let head = self.head.to_safetensors()?;
        let head = SafeTensors::deserialize(&head).map_err(failed)?;
        let below = self.adapter.as_ref().map(|adapter| adapter.buffers()).transpose()?.unwrap_or_default();
        let mut views = head.tensors();
        for (key, (shape, bytes)) in &below {
            views.push((key.clone(), TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).map_err(failed)?));
        }
        safetensors::serialize(views, None).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classifier() -> Classifier {
        let labels = ["yes", "no"].map(String::from).to_vec();
        Classifier { head: Head::new(labels, vec![1.0, 0.0, 0.0, 2.0], vec![0.0, 0.5]).expect("a head"), adapter: None }
    }

    #[test]
    fn a_classifier_is_read_back_and_is_no_head() {
        let (config, weights) = (classifier().to_config_json(), classifier().to_safetensors().expect("written"));
        assert!(Classifier::is_one(&config) && !Classifier::is_one(&classifier().head.to_config_json()));
        assert_eq!(Classifier::load(&config, &weights, &[]).expect("read").head, classifier().head);
        let told = Head::load(&config, &weights).expect_err("refused").to_string();
        assert!(told.contains("reads"), "{told}");
        for end in 0..weights.len() {
            assert!(Classifier::load(&config, &weights[..end], &[]).is_err());
        }
    }
}
