//! Azure OpenAI: OpenAI's API under a resource's own address. Without `api_version` the newer `/openai/v1` paths are used, where
//! `model` names the deployment; with it the classic `/openai/deployments/{deployment}` paths. The key travels as `api-key`.
//! (Azure OpenAI REST API reference.)

use super::compatible::OPENAI;
use super::http::{Auth, Service};
use super::openai::{Dialect, OpenAi};
use crate::config::{ProviderConfig, Secret};

/// Variable that holds the key where the configuration names none.
pub const KEY_VARIABLE: &str = "AZURE_OPENAI_API_KEY";

/// The provider of a configured resource; none without `base_url`, which `config` has refused before.
pub fn open(config: &ProviderConfig, key: Option<Secret>) -> Option<OpenAi> {
    let resource = config.base_url.as_deref()?;
    // The portal shows the address with or without the path.
    let resource = resource.strip_suffix("/openai/v1").or_else(|| resource.strip_suffix("/openai")).unwrap_or(resource);
    let base_url = if config.api_version.is_some() { resource.to_string() } else { format!("{resource}/openai/v1") };
    let service = Service { base_url, key, key_variable: Some(KEY_VARIABLE), auth: Auth::Header("api-key") };
    Some(OpenAi::new(config, service, Dialect { quirks: OPENAI, api_version: config.api_version.clone() }))
}
