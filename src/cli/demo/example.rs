//! The example inside the binary: dataset, prompts, suite and recipe, written to the data directory (anew at each run) so that the demo
//! works from any folder and its files can be looked at.

use crate::types::{Code, Failure};
use std::path::{Path, PathBuf};

const DATASET: &str = include_str!("../../../evals/data/support-intake.jsonl");
const SUITE: &str = include_str!("../../../evals/support-intake.yaml");
const TEST_SUITE: &str = include_str!("../../../evals/support-intake-test.yaml");
const RECIPE: &str = include_str!("../../../recipes/support-intake.yaml");
const PROMPTS: [(&str, &str); 3] = [
    ("support-intake-adapter", include_str!("../../../prompts/support-intake-adapter.prompt")),
    ("support-intake-naive", include_str!("../../../prompts/support-intake-naive.prompt")),
    ("support-intake", include_str!("../../../prompts/support-intake.prompt")),
];

/// Samples, splits, steps and gate of the quick demo: the machinery is the same, the numbers mean little.
const QUICK_SAMPLES: usize = 96;
const QUICK_SPLITS: &str = "splits: {seed: 7, by: intent, train: 64, validation: 8, test: 24}";
const QUICK_STEPS: &str = "max_steps: 16\n";
const QUICK_GATE: &str = "gate:\n  - {metric: json_field, at_least: 0.1}\n";

/// The example on disk.
pub struct Example {
    /// Name of dataset, suite, adapter and route.
    pub name: String,
    /// Suite with both prompts as targets.
    pub suite: PathBuf,
    /// Suite with the adapter as well, on the test split.
    test_suite: PathBuf,
    /// Dataset file.
    pub dataset: PathBuf,
    /// Recipe text.
    pub recipe: String,
    /// Prompt files by name.
    pub prompts: Vec<(&'static str, PathBuf)>,
}

impl Example {
    /// Writes the example below the data directory.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn write(data_dir: &Path, quick: bool) -> Result<Self, Failure> {
        let folder = data_dir.join("demo");
        let name = if quick { "support-intake-quick" } else { "support-intake" };
        let write = |file: String, text: &str| -> Result<PathBuf, Failure> {
            let path = folder.join(file);
            let parent = path.parent().expect("a file in a folder has a parent");
            std::fs::create_dir_all(parent)
                .and_then(|()| std::fs::write(&path, text))
                .map_err(|error| Failure::new(Code::STORAGE, format!("cannot write {}: {error}", path.display())))?;
            Ok(path)
        };
        let change = |text: &str| if quick { quick_suite(text, name) } else { text.to_string() };
        let (dataset, recipe) = if quick { quick_data_and_recipe(name) } else { (DATASET.to_string(), RECIPE.to_string()) };
        let prompts = PROMPTS.into_iter().map(|(prompt, text)| Ok((prompt, write(format!("prompts/{prompt}.prompt"), text)?)));
        let prompts = prompts.collect::<Result<_, Failure>>()?;
        write(format!("recipes/{name}.yaml"), &recipe)?;
        let dataset = write(format!("evals/data/{name}.jsonl"), &dataset)?;
        let suite = write(format!("evals/{name}.yaml"), &change(SUITE))?;
        let test_suite = write(format!("evals/{name}-test.yaml"), &change(TEST_SUITE))?;
        Ok(Example { name: name.to_string(), suite, test_suite, dataset, recipe, prompts })
    }

    /// Text of the test suite for exactly this adapter, `name@version`.
    ///
    /// # Errors
    /// When the suite file cannot be read.
    pub fn test_suite(&self, adapter: &str) -> Result<String, Failure> {
        let source = std::fs::read_to_string(&self.test_suite)
            .map_err(|error| Failure::new(Code::STORAGE, format!("cannot read {}: {error}", self.test_suite.display())))?;
        Ok(source.replacen("adapter: support-intake\n", &format!("adapter: {adapter}\n"), 1))
    }
}

fn quick_data_and_recipe(name: &str) -> (String, String) {
    let dataset: Vec<&str> = DATASET.lines().take(QUICK_SAMPLES).collect();
    let recipe = RECIPE.replace("name: support-intake\n", &format!("name: {name}\n"));
    let recipe = recipe.replace("dataset: support-intake\n", &format!("dataset: {name}\n"));
    (dataset.join("\n") + "\n", recipe + QUICK_STEPS)
}

fn quick_suite(text: &str, name: &str) -> String {
    let lines = text.lines().map(|line| if line.starts_with("splits:") { QUICK_SPLITS } else { line }).collect::<Vec<_>>().join("\n");
    let before_gate = lines.split("gate:\n").next().unwrap_or_default();
    let renamed = format!("{before_gate}{QUICK_GATE}").replace("name: support-intake\n", &format!("name: {name}\n"));
    renamed.replace("data/support-intake.jsonl", &format!("data/{name}.jsonl"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evals::Suite;
    use crate::tuning::AnyRecipe;

    #[test]
    fn both_examples_are_whole() {
        for quick in [false, true] {
            let folder = tempfile::tempdir().expect("a folder");
            let example = Example::write(folder.path(), quick).expect("written");
            let text = example.test_suite("a@1").expect("read");
            let suite = Suite::parse(&text, "suite", example.suite.parent().expect("a folder")).expect("a good suite");
            let names: Vec<_> = suite.targets.iter().map(|target| target.name.as_str()).collect();
            assert_eq!((suite.targets[2].adapter.as_deref(), suite.split.as_deref()), (Some("a@1"), Some("test")));
            assert_eq!((suite.name.as_str(), names), (example.name.as_str(), vec!["base-naive", "base-prompt", "adapter"]));
            let AnyRecipe::Lora(recipe) = AnyRecipe::parse(&example.recipe).expect("a good recipe") else { panic!("a low-rank adapter") };
            assert_eq!((&recipe.name, &recipe.dataset), (&example.name, &example.name));
            assert_eq!(recipe.max_steps.is_some(), quick);
        }
    }
}
