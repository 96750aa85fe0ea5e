//! A prompt of the library that is called by its name: which version, which model, and the road there. The version is looked up at each
//! call, so that a label that was moved or taken away counts at once.

use super::plan::{self, Plan};
use super::render;
use super::road::{Parts, Road};
use crate::prompts::{Library, Prompt};
use crate::releases::Manifest;
use crate::releases::manifest::PromptRef;
use crate::store::prompts::PromptVersion;
use crate::store::routes;
use crate::types::ids::is_slug;
use crate::types::told::NamedPrompt;
use crate::types::{Code, Coded, Failure};
use serde_json::Value;
use std::sync::Arc;

/// What a caller says of a prompt.
pub(super) struct Call {
    id: String,
    /// Number, digest or label; the newest version without one.
    selector: Option<(&'static str, String)>,
    /// What is named in `model`; the prompt's own name where nothing is.
    model: String,
}

impl Call {
    /// Reads `prompt` of a request; none where it names no prompt.
    pub(super) fn of(model: &str, prompt: &Value) -> Option<Self> {
        let field = |name: &str| prompt.get(name).and_then(Value::as_str).map(str::to_string);
        let selector = ["version", "label"].into_iter().find_map(|name| Some((name, field(name)?)));
        Some(Call { id: field("id")?, selector, model: model.to_string() })
    }

    /// The version that is called.
    fn version(&self, library: &Library) -> Result<PromptVersion, Failure> {
        let reference = self.selector.as_ref().map_or_else(|| self.id.clone(), |(_, selector)| format!("{}@{selector}", self.id));
        library.get(&reference).map_err(|error| {
            if error.code() != Code::UNKNOWN_NAME {
                return error.into();
            }
            let field = match &self.selector {
                Some((field, _)) if library.newest(&self.id).ok().flatten().is_some() => format!("prompt.{field}"),
                _ => "prompt.id".to_string(),
            };
            Failure::on(Code::UNKNOWN_NAME, field, error.to_string()).with_hint("GET /v1/prompts lists prompts and their labels")
        })
    }

    /// The model that answers: the caller's choice, else the prompt's.
    fn model(&self, prompt: &Prompt) -> Result<String, Failure> {
        match &prompt.front.model {
            _ if self.model != self.id => Ok(self.model.clone()),
            Some(model) => Ok(model.clone()),
            None => {
                let message = format!("the prompt \"{}\" names no model", self.id);
                let failure = Failure::on(Code::MISSING_FIELD, "model", message);
                Err(failure.with_hint("send \"model\", or put it into the prompt's front matter"))
            }
        }
    }
}

impl Parts {
    /// The road of a prompt that is called by its name. Where a gated route has that name, its live release answers.
    pub(super) fn of_prompt(&self, library: &Library, call: &Call) -> Result<Road, Failure> {
        if call.model == call.id && call.selector.is_none() && self.is_gated(&call.id)? {
            return Ok(self.direct(plan::for_model(&self.store, &self.setup, &call.id)?));
        }
        let version = call.version(library)?;
        let prompt = library.compile(&version)?;
        let model = call.model(&prompt)?;
        if self.is_gated(&model)? {
            let message = format!("the route \"{model}\" answers with the prompt of its live release");
            let failure = Failure::on(Code::INVALID_VALUE, "prompt", message);
            return Err(failure.with_hint("call the route without prompt.id, or name a model"));
        }
        let called = Called {
            reference: PromptRef { name: version.prompt.clone(), digest: version.digest },
            named: Arc::new(NamedPrompt { name: version.prompt, version: version.version, digest: version.digest }),
            prompt: &prompt,
        };
        match self.setup.config.routes.iter().find(|route| route.name == model) {
            Some(route) => called.on(self.configured(route)?),
            None => Ok(self.direct(called.by(plan::for_model(&self.store, &self.setup, &model)?)?)),
        }
    }

    fn is_gated(&self, name: &str) -> Result<bool, Failure> {
        Ok(is_slug(name) && routes::find(self.store.db.as_ref(), name)?.is_some())
    }
}

/// A version that is called.
struct Called<'p> {
    reference: PromptRef,
    named: Arc<NamedPrompt>,
    prompt: &'p Prompt,
}

impl Called<'_> {
    /// Every target of a configured route, with the prompt.
    fn on(&self, mut road: Road) -> Result<Road, Failure> {
        let with_prompt = |plan: &Arc<Plan>| Ok::<_, Failure>(Arc::new(self.by(Plan::clone(plan))?));
        road.targets = road.targets.iter().map(with_prompt).collect::<Result<_, _>>()?;
        if let Some(cascade) = &mut road.cascade {
            let first = Road::clone(&cascade.first);
            cascade.first = Arc::new(Road { targets: first.targets.iter().map(with_prompt).collect::<Result<_, _>>()?, ..first });
        }
        Ok(road)
    }

    /// A model, with the prompt. Nobody proved this pair: it is a model called with a prompt, no release.
    fn by(&self, plan: Plan) -> Result<Plan, Failure> {
        if let Some(route) = &plan.route {
            let message = format!("a target of this route is the route \"{route}\", which answers with the prompt of its live release");
            return Err(Failure::on(Code::INVALID_VALUE, "prompt", message).with_hint("name a model, or a route of models"));
        }
        let manifest = Manifest {
            model: format!("{}/{}", plan.provider_name, plan.model),
            model_digest: None,
            adapter: plan.adapter,
            prompt: Some(self.reference.clone()),
            parameters: render::parameters(&self.prompt.front.config),
            tools: Vec::new(),
            response_format: None,
            guardrails: Vec::new(),
        };
        Ok(Plan { manifest: Some(manifest), prompt: Some(self.named.clone()), ..plan })
    }
}
