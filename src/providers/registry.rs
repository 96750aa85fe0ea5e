//! The registry: which providers there are, by name, and how `provider/model` is resolved.

use super::compatible::{ROWS, row};
use super::http::{Auth, Service};
use super::{ModelInfo, Provider, ProviderError, anthropic, azure, gemini, mock, openai};
use crate::config::{ProviderConfig, Secret, env};
use crate::types::Code;
use crate::types::error::did_you_mean;
use crate::types::traits::CountTokens;
use futures_util::future::join_all;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Every provider of this process, by name.
pub struct Providers {
    by_name: BTreeMap<String, Arc<dyn Provider>>,
    /// What each hosted one was opened with.
    opened: BTreeMap<String, ProviderConfig>,
    /// Names of the configuration file: only these are asked for their models.
    configured: Vec<String>,
    remote: Mutex<Remote>,
    /// Held by the one who asks.
    asking: tokio::sync::Mutex<()>,
}

/// What the configured services listed, and when.
#[derive(Default)]
struct Remote {
    asked: Option<Instant>,
    models: BTreeMap<String, Vec<ModelInfo>>,
}

/// How long a service's list is good for.
const LIST_AGE: Duration = Duration::from_secs(300);

impl Providers {
    /// The built-in providers, the rows of `compatible.rs` under their own names, and the configured ones over them. `local` is the
    /// engine's provider, where it is compiled in.
    pub fn open(configured: &[ProviderConfig], local: Option<Arc<dyn Provider>>) -> Self {
        let own = [("mock", Some(Arc::new(mock::Mock) as Arc<dyn Provider>)), ("local", local)];
        let own = own.into_iter().filter_map(|(name, provider)| Some((name.to_string(), provider?)));
        Providers::with(own.collect(), configured, |_| None)
    }

    /// The providers of another configuration. Those whose section did not change are the same ones, with their connections; so is the
    /// engine's.
    pub fn renewed(&self, configured: &[ProviderConfig]) -> Self {
        let own = self.by_name.iter().filter(|(name, _)| !self.opened.contains_key(*name));
        let own = own.map(|(name, provider)| (name.clone(), provider.clone())).collect();
        let same = |config: &ProviderConfig| {
            self.opened.get(&config.name).filter(|opened| *opened == config).and_then(|_| self.by_name.get(&config.name).cloned())
        };
        let renewed = Providers::with(own, configured, same);
        let remote = self.remote.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = remote.models.iter().filter(|(name, _)| renewed.opened.get(*name) == self.opened.get(*name));
        let models = kept.map(|(name, models)| (name.clone(), models.clone())).collect();
        // They are asked again all the same: others may have come.
        *renewed.remote.lock().unwrap_or_else(PoisonError::into_inner) = Remote { asked: None, models };
        renewed
    }

    fn with(
        mut by_name: BTreeMap<String, Arc<dyn Provider>>,
        configured: &[ProviderConfig],
        same: impl Fn(&ProviderConfig) -> Option<Arc<dyn Provider>>,
    ) -> Self {
        let mut opened = BTreeMap::new();
        let unlisted = ROWS.iter().filter(|row| row.base_url.is_some() && configured.iter().all(|c| c.name != row.kind));
        let unlisted = unlisted
            .map(|row| row.kind)
            .chain(OWN_KINDS.iter().map(|(kind, _)| *kind).filter(|kind| configured.iter().all(|c| c.name != *kind)));
        let unlisted: Vec<_> = unlisted.map(|kind| ProviderConfig::new(kind, kind)).collect();
        for config in unlisted.iter().chain(configured) {
            if let Some(provider) = same(config).or_else(|| hosted(config)) {
                by_name.insert(config.name.clone(), provider);
                opened.insert(config.name.clone(), config.clone());
            }
        }
        let configured = configured.iter().map(|config| config.name.clone()).collect();
        Providers { by_name, opened, configured, remote: Mutex::default(), asking: tokio::sync::Mutex::default() }
    }

    /// Asks the configured services for their models, unless they were asked lately. A service that does not answer keeps the list it
    /// had; who asks in the meantime gets that, too.
    pub async fn refresh(&self) {
        let Ok(_asking) = self.asking.try_lock() else { return };
        let asked = self.remote.lock().unwrap_or_else(PoisonError::into_inner).asked;
        if asked.is_some_and(|asked| asked.elapsed() < LIST_AGE) {
            return;
        }
        let asked = self.configured.iter().filter_map(|name| Some((name, self.by_name.get(name)?)));
        let lists = join_all(asked.map(|(name, provider)| async move { (name, provider.list_models().await) })).await;
        let mut remote = self.remote.lock().unwrap_or_else(PoisonError::into_inner);
        // Only now: a caller that leaves early has asked nobody.
        remote.asked = Some(Instant::now());
        for (name, list) in lists {
            match list {
                Ok(models) => drop(remote.models.insert(name.clone(), models)),
                Err(error) => tracing::info!(provider = name, %error, "the provider's models could not be listed"),
            }
        }
    }

    /// The provider of this name.
    pub fn get(&self, name: &str) -> Option<Arc<dyn Provider>> {
        self.by_name.get(name).cloned()
    }

    /// Splits `provider/model` at the first slash; returns the provider, its name and the model's name at it.
    ///
    /// # Errors
    /// [`Code::MODEL_NOT_FOUND`] when there is no such provider, [`Code::UNSUPPORTED`] for `local/…` in a build without it.
    pub fn resolve<'m>(&self, model: &'m str) -> Result<(Arc<dyn Provider>, &'m str, &'m str), ProviderError> {
        let unknown = || {
            let listed: Vec<_> = self.models().into_iter().map(|(provider, info)| format!("{provider}/{}", info.name)).collect();
            let nearest = did_you_mean(model, listed.iter().map(String::as_str));
            let mut error = ProviderError::new(Code::MODEL_NOT_FOUND, format!("the model \"{model}\" does not exist{nearest}"));
            error.param = Some("model".into());
            error.hint = Some("GET /v1/models lists what can be called; models of a provider are named provider/model".into());
            error
        };
        let (name, rest) = model.split_once('/').filter(|(_, rest)| !rest.is_empty()).ok_or_else(unknown)?;
        match self.by_name.get(name) {
            Some(provider) => Ok((provider.clone(), name, rest)),
            None if name == "local" => Err(no_local(model)),
            None => Err(unknown()),
        }
    }

    /// A counter of the tokens of `provider/model`.
    ///
    /// # Errors
    /// As [`Providers::resolve`]; [`Code::UNSUPPORTED`] where tokens cannot be counted without a call.
    pub async fn counter(&self, model: &str) -> Result<Arc<dyn CountTokens>, ProviderError> {
        let (provider, _, name) = self.resolve(model)?;
        provider.counter(name).await
    }

    /// Names of all providers, sorted.
    pub fn names(&self) -> Vec<&str> {
        self.by_name.keys().map(String::as_str).collect()
    }

    /// All models that can be listed without a network call, with the provider's name.
    pub fn models(&self) -> Vec<(String, ModelInfo)> {
        let remote = self.remote.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |(name, provider): (&String, &Arc<dyn Provider>)| {
            let listed = remote.models.get(name).cloned().unwrap_or_else(|| provider.models());
            listed.into_iter().map(|info| (name.clone(), info)).collect::<Vec<_>>()
        };
        self.by_name.iter().flat_map(of).collect()
    }
}

fn no_local(model: &str) -> ProviderError {
    let mut error =
        ProviderError::new(Code::UNSUPPORTED, format!("\"{model}\" is a local model, and this build of refit has no local engine"));
    error.param = Some("model".into());
    error.hint = Some("build with the feature `local`, which is on by default".into());
    error
}

/// Opens a provider from its configuration; none when that lacks something, which `config` has refused before.
type Open = fn(&ProviderConfig) -> Option<Arc<dyn Provider>>;

/// Kinds with a protocol of their own.
const OWN_KINDS: &[(&str, Open)] = &[
    ("azure", |config| Some(Arc::new(azure::open(config, key(config, Some(azure::KEY_VARIABLE)))?))),
    ("anthropic", |config| Some(Arc::new(anthropic::open(config, key(config, Some(anthropic::KEY_VARIABLE)))))),
    ("gemini", |config| Some(Arc::new(gemini::open(config, key(config, Some(gemini::KEY_VARIABLE)))))),
];

/// Names of the kinds with a protocol of their own.
#[cfg(test)]
pub(super) fn own_kinds() -> impl Iterator<Item = &'static str> {
    OWN_KINDS.iter().map(|(kind, _)| *kind)
}

/// A key is bound to its origin: the kind's variable is read only where the kind's own base URL is used. Azure has no address of its
/// own, so that there the key must be named in the configuration.
fn key(config: &ProviderConfig, variable: Option<&'static str>) -> Option<Secret> {
    let variable = variable.filter(|_| config.base_url.is_none());
    config.api_key.clone().or_else(|| variable.and_then(env::text).map(Secret::new))
}

/// A hosted provider from its configuration; none when the kind is unknown, which `config` has refused before.
fn hosted(config: &ProviderConfig) -> Option<Arc<dyn Provider>> {
    if let Some((_, open)) = OWN_KINDS.iter().find(|(kind, _)| *kind == config.kind) {
        return open(config);
    }
    let row = row(&config.kind)?;
    let base_url = config.base_url.clone().or_else(|| row.base_url.map(str::to_string))?;
    let key_variable = row.key_variable.filter(|_| config.base_url.is_none());
    let service = Service { base_url, key: key(config, row.key_variable), key_variable, auth: Auth::Bearer };
    Some(Arc::new(openai::OpenAi::new(config, service, openai::Dialect { quirks: row.quirks, api_version: None })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_whose_section_did_not_change_stays_the_same_one() {
        let section = |name: &str, port: u16| {
            let base_url = Some(format!("http://127.0.0.1:{port}"));
            ProviderConfig { base_url, ..ProviderConfig::new(name, "compatible") }
        };
        let before = Providers::open(&[section("a", 1), section("b", 1), section("openai", 1)], None);
        let after = before.renewed(&[section("a", 1), section("b", 2)]);
        let same = |name: &str| match (before.get(name), after.get(name)) {
            (Some(before), Some(after)) => Arc::ptr_eq(&before, &after),
            _ => panic!("{name} is gone"),
        };
        assert!(same("a") && same("mock") && same("groq") && !same("b") && !same("openai"));
        assert!(after.renewed(&[]).get("a").is_none());
    }

    #[test]
    fn unknown_names_get_the_nearest_and_local_says_what_is_missing() {
        let providers = Providers::open(&[], None);
        let code = |model: &str| providers.resolve(model).err().map(|error| (error.code.name, error.message));
        assert_eq!(code("mock/echo"), None);
        assert_eq!(code("openai/gpt-4o"), None);
        assert!(code("mok/echo").is_some_and(|(code, text)| code == "model_not_found" && text.contains("mock/echo")));
        assert_eq!(code("mock/").map(|(code, _)| code), Some("model_not_found"));
        assert_eq!(code("local/smollm2").map(|(code, _)| code), Some("unsupported"));
    }
}
