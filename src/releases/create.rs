//! Making a release: a manifest whose parts are all stored here, written under the digest of its content.

use super::{Change, Commit, Manifest, ReleaseError};
use crate::config::guardrails;
use crate::store::releases::{ReleaseRecord, find, insert};
use crate::store::{Store, StoreError, adapters, prompts, runs};
use crate::types::Digest;
use crate::types::error::did_you_mean;
use crate::types::ids::is_slug;
use crate::types::time::now_ms;
use serde_json::{Map, Value, json};

/// Who makes a release, and why.
#[derive(Debug, Clone)]
pub struct Authorship {
    /// Who acts.
    pub author: String,
    /// Why.
    pub message: String,
}

/// Decoding parameters by their wire names. Others are passed on too, as providers have some of their own; but one that is nearly a
/// known one is a typing error, which would otherwise be served for ever.
const PARAMETERS: &[&str] = &[
    "temperature",
    "top_p",
    "top_k",
    "max_tokens",
    "max_completion_tokens",
    "stop",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "reasoning_effort",
];

/// Stores a release and returns it; one that exists already is returned as it is.
///
/// # Errors
/// [`ReleaseError::Manifest`] naming the field that is wrong or the part that is not stored here.
pub fn create(store: &Store, manifest: &Manifest, by: &Authorship, commit: Commit<'_>) -> Result<ReleaseRecord, ReleaseError> {
    check(store, manifest)?;
    let digest = manifest.digest();
    if let Some(release) = find(store.db.as_ref(), &digest)? {
        return Ok(release);
    }
    let release =
        ReleaseRecord { digest, manifest: json!(manifest), author: by.author.clone(), message: by.message.clone(), created_at: now_ms() };
    let change = Change {
        actor: by.author.clone(),
        action: "release.create".into(),
        subject: digest.to_string(),
        detail: json!({"model": manifest.model, "adapter": manifest.adapter, "message": by.message}),
        statements: vec![insert(&release)],
    };
    match commit(&change) {
        // Another process stored the same content meanwhile.
        Err(StoreError::Conflict(reason)) => find(store.db.as_ref(), &digest)?.ok_or(StoreError::Conflict(reason).into()),
        done => done.map(|()| release).map_err(Into::into),
    }
}

/// The manifest that a run recorded for one of its targets, which is what its metrics prove.
///
/// # Errors
/// [`StoreError::Unknown`] naming the run's targets; [`ReleaseError::Manifest`] when the stored manifest is not the one the digest names.
pub fn of_run(store: &Store, run: &str, target: &str) -> Result<Manifest, ReleaseError> {
    let targets = runs::targets(store.db.as_ref(), &runs::get(store.db.as_ref(), run)?.id)?;
    let Some(found) = targets.iter().find(|found| found.target == target) else {
        let names: Vec<_> = targets.iter().map(|target| target.target.as_str()).collect();
        let nearest = format!("; it has {}", names.join(", "));
        return Err(StoreError::Unknown { what: "target", name: format!("{run}/{target}"), nearest }.into());
    };
    let manifest = parse(found.manifest.clone())?;
    if manifest.digest() != found.release {
        let message = format!("run {run} recorded {} for target {target}, but its manifest has {}", found.release, manifest.digest());
        return Err(ReleaseError::Manifest { field: "digest", message });
    }
    Ok(manifest)
}

/// Reads a manifest.
///
/// # Errors
/// [`ReleaseError::Manifest`] naming the field.
pub fn parse(value: Value) -> Result<Manifest, ReleaseError> {
    serde_json::from_value(value).map_err(|error| ReleaseError::Manifest { field: "manifest", message: error.to_string() })
}

fn check(store: &Store, manifest: &Manifest) -> Result<(), ReleaseError> {
    let fault = |field, message: String| Err(ReleaseError::Manifest { field, message });
    let Some((provider, model)) = manifest.model.split_once('/').filter(|(provider, model)| !provider.is_empty() && !model.is_empty())
    else {
        return fault("model", format!("model \"{}\" is not provider/model", manifest.model));
    };
    match (provider, &manifest.model_digest) {
        ("local", None) => return fault("model_digest", "a local model needs the digest of its file".into()),
        ("local", Some(digest)) if !store.blobs.contains(digest) => {
            return fault("model_digest", format!("the model file {digest} is not stored here"));
        }
        _ => {}
    }
    if let Some(digest) = &manifest.adapter {
        check_adapter(store, manifest, model, digest)?;
    }
    if let Some(prompt) = &manifest.prompt
        && prompts::by_digest(store.db.as_ref(), Some(&prompt.name), &prompt.digest)?.is_none()
    {
        return fault("prompt", format!("prompt \"{}\" has no version {}", prompt.name, prompt.digest));
    }
    check_guardrails(&manifest.guardrails)?;
    check_parameters(&manifest.parameters)
}

/// Sets in the manifest itself must be sets; a name is looked up in the configuration of whoever serves.
fn check_guardrails(sets: &[Value]) -> Result<(), ReleaseError> {
    for (place, set) in sets.iter().enumerate() {
        let wrong = match set.as_str() {
            Some(name) if is_slug(name) => None,
            Some(_) => Some("expected the name of a set: 1 to 64 of a-z, 0-9, '.', '_', '-'".to_string()),
            None => guardrails::inline(set).err(),
        };
        if let Some(wrong) = wrong {
            return Err(ReleaseError::Manifest { field: "guardrails", message: format!("guardrails[{place}]: {wrong}") });
        }
    }
    Ok(())
}

fn check_adapter(store: &Store, manifest: &Manifest, model: &str, digest: &Digest) -> Result<(), ReleaseError> {
    let fault = |message: String| Err(ReleaseError::Manifest { field: "adapter", message });
    let Some(adapter) = adapters::by_digest(store.db.as_ref(), digest)? else {
        return fault(format!("the adapter {digest} is not stored here"));
    };
    if Some(adapter.model_digest) != manifest.model_digest {
        return fault(format!(
            "adapter {}@{} was trained on another file of {}, not on this one of {model}",
            adapter.name, adapter.version, adapter.model
        ));
    }
    Ok(())
}

fn check_parameters(parameters: &Map<String, Value>) -> Result<(), ReleaseError> {
    let fault = |message: String| Err(ReleaseError::Manifest { field: "parameters", message });
    for (name, value) in parameters {
        let nearest = did_you_mean(name, PARAMETERS.iter().copied());
        if !PARAMETERS.contains(&name.as_str()) && !nearest.is_empty() {
            return fault(format!("\"{name}\" is not a decoding parameter{nearest}"));
        }
        let (low, high) = match name.as_str() {
            "temperature" => (0.0, 2.0),
            "top_p" => (0.0, 1.0),
            "max_tokens" | "max_completion_tokens" => (1.0, 1e9),
            _ => continue,
        };
        if !value.as_f64().is_some_and(|number| (low..=high).contains(&number)) {
            return fault(format!("{name} is {value}, expected a number from {low} to {high}"));
        }
    }
    Ok(())
}
