//! Several prompts on one suite: every target is measured with each of them, in place of its own.

use super::EvalError;
use super::demands::{Demand, Other, What};
use super::suite::{GateCondition, Suite, Target};
use crate::types::Failure;
use crate::types::ids::is_slug;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// Most characters of a target's name.
const MAX_NAME: usize = 64;

/// Puts each prompt in the place of each target's own; nothing where there are none. Files are named from where the command was
/// called, so they come with their whole paths. A condition of the gate for a target counts for each of its variants.
///
/// # Errors
/// [`EvalError::Invalid`] for a prompt that is named twice.
pub fn replace(suite: &mut Suite, prompts: &[String]) -> Result<(), Failure> {
    if prompts.is_empty() {
        return Ok(());
    }
    let mut seen = HashSet::new();
    if let Some(twice) = prompts.iter().find(|prompt| !seen.insert(prompt.as_str())) {
        let problem = format!("the prompt {twice} is named twice");
        return Err(EvalError::Invalid { suite: suite.name.clone(), problem, hint: None }.into());
    }
    let is_alone = suite.targets.len() == 1;
    let (mut taken, mut names) = (HashSet::new(), HashMap::<String, Vec<String>>::new());
    let mut targets = Vec::new();
    for target in &suite.targets {
        for prompt in prompts {
            let word = word(prompt);
            let wanted = if is_alone { word } else { format!("{}-{word}", target.name) };
            let name = free(&wanted, &mut taken);
            names.entry(target.name.clone()).or_default().push(name.clone());
            targets.push(Target { name, prompt: Some(prompt.clone()), ..target.clone() });
        }
    }
    suite.targets = targets;
    let conditions = std::mem::take(&mut suite.gate);
    let of = |target: &Option<String>| variants_of(target.as_ref(), &names);
    suite.gate = conditions
        .iter()
        .flat_map(|one| of(&one.target).into_iter().map(|target| GateCondition { target, condition: one.condition.clone() }))
        .collect();
    let demands = std::mem::take(&mut suite.demands);
    suite.demands = demands.into_iter().flat_map(|one| demanded(one, &names)).collect();
    Ok(())
}

/// A demand, for the variants. Who is compared with another target is compared with its variant of the same prompt.
fn demanded(demand: Demand, names: &HashMap<String, Vec<String>>) -> Vec<Demand> {
    let Demand { target, what } = demand;
    let What::NotWorseThan { other: Other::Target(other), metric, margin } = what else {
        return variants_of(target.as_ref(), names).into_iter().map(|target| Demand { target, what: what.clone() }).collect();
    };
    let others = names.get(&other).map(Vec::as_slice).unwrap_or_default();
    let mut judged: Vec<_> = names.iter().filter(|(name, _)| target.as_ref().map_or(**name != other, |target| target == *name)).collect();
    judged.sort_unstable();
    let against = |(target, other): (&String, &String)| Demand {
        target: Some(target.clone()),
        what: What::NotWorseThan { other: Other::Target(other.clone()), metric: metric.clone(), margin },
    };
    judged.into_iter().flat_map(|(_, variants)| variants.iter().zip(others)).map(against).collect()
}

/// The targets that stand in the place of one; of every one where none is named.
fn variants_of(target: Option<&String>, names: &HashMap<String, Vec<String>>) -> Vec<Option<String>> {
    let Some(target) = target else { return vec![None] };
    names.get(target).cloned().unwrap_or_default().into_iter().map(Some).collect()
}

/// What a prompt is called in reports: a file by its name without the ending, a reference with a dash for its `@`.
pub(super) fn word(prompt: &str) -> String {
    let stem = match prompt.strip_suffix(".prompt") {
        Some(_) => Path::new(prompt).file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default(),
        None => prompt.replace("sha256:", ""),
    };
    let word = slug(&stem);
    if is_slug(&word) { word } else { "prompt".into() }
}

/// A text with a dash for everything that no plain name has.
pub(super) fn slug(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c.to_ascii_lowercase() } else { '-' };
    text.chars().map(plain).take(MAX_NAME).collect()
}

/// The name, with a number behind it where another has it.
pub(super) fn free(wanted: &str, taken: &mut HashSet<String>) -> String {
    for number in 1.. {
        let end = if number == 1 { String::new() } else { format!("-{number}") };
        let start: String = wanted.chars().take(MAX_NAME - end.len()).collect();
        if taken.insert(format!("{start}{end}")) {
            return format!("{start}{end}");
        }
    }
    wanted.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_with_every_prompt_and_the_gate_follows() {
        let source = "name: s\ndataset: d.jsonl\ntargets:\n  - {name: a, model: mock/echo, prompt: own.prompt}\n  - {name: b, model: mock/fixed}\n\
                      scorers: [exact_match]\ngate:\n  - {target: a, metric: exact_match, at_least: 0.5}\n  - {metric: exact_match, at_least: 0.1}\n";
        let mut suite = Suite::parse(source, "s.yaml", Path::new("")).expect("parses");
        let than = What::NotWorseThan { other: Other::Target("a".into()), metric: "exact_match".into(), margin: 0.1 };
        suite.demands = vec![Demand { target: Some("b".into()), what: than.clone() }, Demand { target: None, what: than }];
        replace(&mut suite, &["/x/One.prompt".into(), "/y/one.prompt".into(), "two@3".into()]).expect("replaces");
        let names: Vec<_> = suite.targets.iter().map(|target| target.name.as_str()).collect();
        assert_eq!(names, ["a-one", "a-one-2", "a-two-3", "b-one", "b-one-2", "b-two-3"]);
        assert_eq!((suite.targets[5].model.as_str(), suite.targets[5].prompt.as_deref()), ("mock/fixed", Some("two@3")));
        let gate: Vec<_> = suite.gate.iter().map(|condition| condition.target.as_deref()).collect();
        assert_eq!(gate, [Some("a-one"), Some("a-one-2"), Some("a-two-3"), None]);
        // Each variant is compared with the one of the same prompt, whether its target is named or every one is meant.
        let demands: Vec<_> = suite.demands.iter().map(|demand| (demand.target.clone().expect("a target"), demand.what.clone())).collect();
        let expected: Vec<_> = [("b-one", "a-one"), ("b-one-2", "a-one-2"), ("b-two-3", "a-two-3")]
            .map(|(target, other)| {
                let other = Other::Target(other.into());
                (target.to_string(), What::NotWorseThan { other, metric: "exact_match".into(), margin: 0.1 })
            })
            .into();
        assert_eq!(demands, [expected.clone(), expected].concat());
        assert!(replace(&mut suite, &["p".into(), "p".into()]).is_err());
    }
}
