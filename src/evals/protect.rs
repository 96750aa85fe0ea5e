//! Protected labels of prompts: a version gets one only when a stored run of the prompt's suite measured exactly that version and
//! passes the suite's gate. Nothing is measured here. The one door for moving labels: the command line and the gateway both go through it.

use super::proof::prove;
use crate::config::PromptsConfig;
use crate::prompts::library::{By, check_label};
use crate::prompts::{Library, LibraryError};
use crate::store::prompts::{LabelMove, PromptVersion};
use crate::store::{Change, Store};
use crate::types::{Code, Failure};
use serde_json::{Value, json};

const BY_FORCE: &str = "`--force -m WHY`, over HTTP \"force\": true with a \"message\"";

/// A label that is to move.
#[derive(Debug, Clone, Copy)]
pub struct Promotion<'a> {
    /// The version: a reference into the library.
    pub reference: &'a str,
    /// The label.
    pub label: &'a str,
    /// Whether the gate is set aside. Only admins may, and they say why.
    pub force: bool,
}

/// Points a label at a version, if it is free or the version is proven. A refusal is written down, too.
///
/// # Errors
/// [`LibraryError::Protected`] with what is missing; [`Code::MISSING_FIELD`] for a gate that is set aside without a reason; as
/// [`Library::promote`].
pub fn promote(
    store: &Store,
    library: &Library,
    config: &PromptsConfig,
    promotion: Promotion<'_>,
    by: By<'_>,
) -> Result<LabelMove, Failure> {
    let Promotion { reference, label, force } = promotion;
    let version = library.get(reference)?;
    check_label(&version.prompt, label)?;
    // The version that was judged, whatever the reference names by then.
    let pinned = format!("{}@{}", version.prompt, version.version);
    if !config.protects(label) {
        return Ok(library.promote(&pinned, label, by, Value::Null)?);
    }
    let suite = config.suite_of(&version.prompt);
    let detail = match prove(store, suite, &version, library.compile(&version)?.as_ref())? {
        Ok(proof) => proof,
        Err(reasons) if force => forced(by, reasons)?,
        Err(reasons) => {
            let way_out = format!(
                "run the suite on this version (`prompt: {pinned}` in a target of suite \"{suite}\", then `refit eval run`), and promote again; \
                 an admin may set the gate aside with a reason: {BY_FORCE}"
            );
            return Err(refused(version, label, reasons, way_out, by));
        }
    };
    Ok(library.promote(&pinned, label, by, detail)?)
}

/// Takes a label away; a protected one only by force.
///
/// # Errors
/// [`LibraryError::Protected`] for a protected label; as [`Library::remove_label`].
pub fn remove(
    library: &Library,
    config: &PromptsConfig,
    (name, label): (&str, &str),
    force: bool,
    by: By<'_>,
) -> Result<LabelMove, Failure> {
    if !config.protects(label) {
        return Ok(library.remove_label(name, label, by, Value::Null)?);
    }
    if !force {
        let reasons = vec!["it may not be taken away".to_string()];
        let way_out = format!("an admin may, with a reason: {BY_FORCE}");
        return Err(refused(library.get(&format!("{name}@{label}"))?, label, reasons, way_out, by));
    }
    let detail = forced(by, Vec::new())?;
    Ok(library.remove_label(name, label, by, detail)?)
}

/// Points a label back to where it stood before its last move. A protected one goes back only to a version that came there by proof, and
/// only from another version: what was taken away stays away.
///
/// # Errors
/// [`LibraryError::Protected`] with what is missing; [`Code::MISSING_FIELD`] for a gate that is set aside without a reason; as
/// [`Library::earlier`].
pub fn rollback(
    library: &Library,
    config: &PromptsConfig,
    (name, label): (&str, &str),
    force: bool,
    by: By<'_>,
) -> Result<LabelMove, Failure> {
    let earlier = library.earlier(name, label)?;
    if !config.protects(label) {
        return Ok(library.rollback(&earlier, by, Value::Null)?);
    }
    let mut reasons = Vec::new();
    if earlier.from.is_none() {
        reasons.push("it was taken away".to_string());
    }
    if !earlier.detail["run"].is_string() {
        reasons.push(format!("it came to version {} without a run that passed", earlier.to));
    }
    if !reasons.is_empty() && !force {
        let version = library.get(&format!("{name}@{}", earlier.to))?;
        let way_out = format!(
            "promote a version that is proven: `refit prompt promote {name}@VERSION {label}`; an admin may go back, with a reason: {BY_FORCE}"
        );
        return Err(refused(version, label, reasons, way_out, by));
    }
    let detail = if reasons.is_empty() { earlier.detail.clone() } else { forced(by, reasons)? };
    Ok(library.rollback(&earlier, by, detail)?)
}

fn forced(by: By<'_>, reasons: Vec<String>) -> Result<Value, Failure> {
    if by.message.trim().is_empty() {
        let failure = Failure::on(Code::MISSING_FIELD, "message", "message is missing: whoever sets a gate aside says why");
        return Err(failure.with_hint("-m WHY, over HTTP \"message\""));
    }
    Ok(json!({"forced": true, "missing": reasons}))
}

/// Writes a refusal down and returns it.
fn refused(version: PromptVersion, label: &str, reasons: Vec<String>, way_out: String, by: By<'_>) -> Failure {
    let change = Change {
        actor: by.author.to_string(),
        action: "prompt.refuse".into(),
        subject: format!("{}@{label}", version.prompt),
        detail: json!({"version": version.version, "digest": version.digest, "reasons": reasons}),
        statements: Vec::new(),
    };
    if let Err(error) = (by.commit)(&change) {
        return error.into();
    }
    let (prompt, version) = (version.prompt, version.version);
    LibraryError::Protected { prompt, version, label: label.to_string(), reasons, way_out }.into()
}
