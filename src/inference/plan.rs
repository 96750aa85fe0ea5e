//! What will answer: a route's live release, a manifest, or a model named directly (`provider/model`, `local/<model>:<adapter>`).

use super::Setup;
use crate::prompts::Library;
use crate::prompts::parse::Prompt;
use crate::providers::Provider;
use crate::releases::Manifest;
use crate::releases::manifest::PromptRef;
use crate::store::{Store, StoreError, adapters, models, prompts, releases, routes};
use crate::types::error::did_you_mean;
use crate::types::ids::{is_safe_name, is_slug};
use crate::types::told::{Named, NamedPrompt};
use crate::types::{Code, Digest, Failure};
use std::sync::Arc;

const LIVE: &str = "live";

/// A resolved call target.
#[derive(Clone)]
pub struct Plan {
    /// Route that was called.
    pub route: Option<String>,
    /// Release that answers: the route's, or the digest of the manifest that was given.
    pub release: Option<Digest>,
    /// Its content.
    pub manifest: Option<Manifest>,
    /// Provider.
    pub provider: Arc<dyn Provider>,
    /// Its name.
    pub provider_name: String,
    /// The provider's model.
    pub model: String,
    /// What was written for it: `provider/model`, for an adapter `local/<model>:<reference>`.
    pub called: String,
    /// Adapter to apply.
    pub adapter: Option<Digest>,
    /// Local models: digest of the file that has the name now.
    pub file: Option<Digest>,
    /// What callers are told that it is.
    pub named: Named,
    /// The version of the manifest's prompt, as callers are told.
    pub prompt: Option<Arc<NamedPrompt>>,
}

/// Something that may be named in `model`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Name.
    pub id: String,
    /// Who owns it.
    pub owner: String,
    /// Milliseconds; 0 where nobody knows.
    pub created_at: i64,
}

impl Plan {
    /// Whether a `provider/model` of the configuration means this: the model, with whatever adapter, or exactly what was called. An
    /// adapter's name means all of its versions.
    pub(super) fn is_called(&self, name: &str) -> bool {
        let is_model = name.split_once('/') == Some((self.provider_name.as_str(), self.model.as_str()));
        let versionless = |called: &str| called.split_once('@').is_some_and(|(adapter, _)| adapter == name && adapter.contains(':'));
        is_model || self.called == name || (self.adapter.is_some() && versionless(&self.called))
    }

    /// The manifest's prompt, compiled.
    pub(super) fn prompt(&self, library: &Library) -> Result<Option<Arc<Prompt>>, Failure> {
        let Some(reference) = self.manifest.as_ref().and_then(|manifest| manifest.prompt.as_ref()) else { return Ok(None) };
        Ok(Some(library.by_digest(&reference.name, &reference.digest)?))
    }
}

/// Plans a call of whatever a caller wrote in `model`.
pub(super) fn for_model(store: &Store, setup: &Setup, name: &str) -> Result<Plan, Failure> {
    if is_slug(name)
        && let Some(route) = routes::find(store.db.as_ref(), name)?
    {
        return for_route(store, setup, &route);
    }
    if !name.contains('/') {
        return Err(unknown(store, setup, name)?);
    }
    let (provider, provider_name, model) = setup.providers.resolve(name)?;
    let provider_name = provider_name.to_string();
    let (model, adapter) = match model.split_once(':') {
        Some((model, reference)) if provider_name == "local" => (model, Some(adapter(store, model, reference)?)),
        _ => (model, None),
    };
    let (model, called, named) = (model.to_string(), name.to_string(), Named::new(&provider_name, model));
    let file = if provider_name == "local" { models::find(store.db.as_ref(), &model)?.map(|record| record.digest) } else { None };
    Ok(Plan { route: None, release: None, manifest: None, provider, provider_name, model, called, adapter, file, named, prompt: None })
}

/// Plans a call of a manifest that no route holds.
pub(super) fn for_manifest(store: &Store, setup: &Setup, manifest: Manifest) -> Result<Plan, Failure> {
    let plan = for_model_only(store, setup, &manifest)?;
    let prompt = manifest.prompt.as_ref().map(|prompt| named_prompt(store, prompt)).transpose()?.flatten();
    Ok(Plan { release: Some(manifest.digest()), manifest: Some(manifest), prompt, ..plan })
}

/// The version of a manifest's prompt; none where it is not stored, which rendering it will tell.
fn named_prompt(store: &Store, prompt: &PromptRef) -> Result<Option<Arc<NamedPrompt>>, StoreError> {
    let stored = prompts::by_digest(store.db.as_ref(), Some(&prompt.name), &prompt.digest)?;
    Ok(stored.map(|stored| Arc::new(NamedPrompt { name: stored.prompt, version: stored.version, digest: stored.digest })))
}

fn for_model_only(store: &Store, setup: &Setup, manifest: &Manifest) -> Result<Plan, Failure> {
    if !manifest.model.contains('/') {
        return Err(unknown(store, setup, &manifest.model)?);
    }
    let plan = for_model(store, setup, &manifest.model)?;
    Ok(Plan { adapter: manifest.adapter.or(plan.adapter), ..plan })
}

/// The serving rule: only the release at stage `live`, with the stored run that promoted it, is served.
fn for_route(store: &Store, setup: &Setup, route: &routes::RouteRecord) -> Result<Plan, Failure> {
    let db = store.db.as_ref();
    let not_live = |what: String| {
        let failure = Failure::on(Code::GATE_REFUSED, "model", format!("the route \"{}\" {what}", route.name));
        failure.with_hint(format!("`refit release promote` puts a release that passes the gate on it; `refit route show {}`", route.name))
    };
    let stages = routes::stages(db, &route.name)?;
    let Some(live) = stages.into_iter().find(|stage| stage.stage == LIVE) else {
        return Err(not_live("has no live release".into()));
    };
    let proofs = routes::proofs(db, Some(&route.suite), &live.release)?;
    if !proofs.iter().any(|proof| proof.run == live.run) {
        return Err(not_live(format!("holds {} without the stored run that proved it", live.release.short())));
    }
    let lost = || StoreError::Corrupt(format!("release {} of route \"{}\" is not stored", live.release, route.name));
    let record = releases::find(db, &live.release)?.ok_or_else(lost)?;
    let manifest: Manifest =
        serde_json::from_value(record.manifest).map_err(|error| StoreError::Corrupt(format!("manifest of {}: {error}", live.release)))?;
    if manifest.digest() != live.release {
        return Err(StoreError::Corrupt(format!("the manifest of {} does not match its digest", live.release)).into());
    }
    let plan = for_manifest(store, setup, manifest)?;
    Ok(Plan { route: Some(route.name.clone()), ..plan })
}

fn adapter(store: &Store, model: &str, reference: &str) -> Result<Digest, Failure> {
    match adapters::get(store.db.as_ref(), model, reference) {
        Ok(adapter) => Ok(adapter.digest),
        Err(error @ StoreError::Unknown { .. }) => Err(Failure::on(Code::MODEL_NOT_FOUND, "model", error.to_string())),
        Err(error) => Err(error.into()),
    }
}

fn unknown(store: &Store, setup: &Setup, name: &str) -> Result<Failure, Failure> {
    let listed = listed(store, setup)?;
    let shown = if is_safe_name(name) { format!("\"{name}\"") } else { "of this name".to_string() };
    let nearest = did_you_mean(name, listed.iter().map(|listed| listed.id.as_str()));
    let failure = Failure::on(Code::MODEL_NOT_FOUND, "model", format!("the model {shown} does not exist{nearest}"));
    Ok(failure.with_hint("GET /v1/models lists what can be called: routes, and models as provider/model"))
}

/// Everything that can be listed without a network call.
pub(super) fn listed(store: &Store, setup: &Setup) -> Result<Vec<Listed>, Failure> {
    let db = store.db.as_ref();
    let stages = routes::all_stages(db)?;
    let live = stages.into_iter().filter(|stage| stage.stage == LIVE);
    let mut all: Vec<_> = live.map(|stage| Listed { id: stage.route, owner: "refit".into(), created_at: stage.since }).collect();
    let of_provider = |(provider, info): (String, crate::providers::ModelInfo)| Listed {
        id: format!("{provider}/{}", info.name),
        owner: info.owner,
        created_at: 0,
    };
    all.extend(setup.providers.models().into_iter().map(of_provider));
    let configured = setup.config.routes.iter();
    all.extend(configured.map(|route| Listed { id: route.name.clone(), owner: "refit".into(), created_at: 0 }));
    if setup.providers.get("local").is_some() {
        let with_adapter = |adapter: adapters::AdapterRecord| Listed {
            id: format!("local/{}:{}", adapter.model, adapter.name),
            owner: "refit".into(),
            created_at: adapter.created_at,
        };
        all.extend(adapters::list(db)?.into_iter().map(with_adapter));
    }
    // The newest version of an adapter stands for its name.
    all.sort_by(|a, b| (&a.id, b.created_at).cmp(&(&b.id, a.created_at)));
    all.dedup_by(|a, b| a.id == b.id);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::mock::Mock;

    fn plan(called: &str, adapter: Option<Digest>) -> Plan {
        let (provider, model) = called.split_once('/').expect("a provider");
        let (provider_name, model) = (provider.to_string(), model.split(':').next().unwrap_or(model).to_string());
        let named = Named::new(&provider_name, &model);
        let provider = Arc::new(Mock);
        let called = called.to_string();
        Plan {
            route: None,
            release: None,
            manifest: None,
            provider,
            provider_name,
            model,
            called,
            adapter,
            file: None,
            named,
            prompt: None,
        }
    }

    #[test]
    fn a_name_means_its_model_and_an_adapters_name_the_adapter() {
        let adapted = Some(Digest::of(b"a"));
        for (called, adapter, name, is) in [
            ("local/m:ann", adapted, "local/m:ann", true),
            ("local/m:ann@2", adapted, "local/m:ann", true),
            ("local/m:ann@2", adapted, "local/m:ann@2", true),
            ("local/m:ann", adapted, "local/m", true),
            ("local/m:ann", adapted, "local/m:bob", false),
            ("local/m:ann@2", adapted, "local/m:ann@1", false),
            ("local/m", None, "local/m:ann", false),
            ("up/m", None, "up/m", true),
            ("up/m", None, "up/n", false),
        ] {
            assert_eq!(plan(called, adapter).is_called(name), is, "{called} {name}");
        }
    }
}
