//! Which examples each forward pass of each step sees: a function of the recipe, the number of examples and their lengths, so that a
//! resumed training goes on with the very same batches.

use super::Recipe;
use super::example::epoch_order;

/// The steps of a training.
pub struct Plan {
    /// Steps that have begun when an epoch begins; one more entry than epochs.
    begins: Vec<usize>,
    lengths: Vec<usize>,
    seed: u64,
    batch: Batching,
    accumulation: usize,
}

#[derive(Clone, Copy)]
enum Batching {
    Examples(usize),
    Tokens(usize),
}

impl Plan {
    /// The plan of a recipe for examples of these lengths in tokens.
    pub fn new(recipe: &Recipe, lengths: Vec<usize>) -> Self {
        let batch = recipe.batch_tokens.map_or(Batching::Examples(recipe.batch_size), Batching::Tokens);
        let mut plan = Plan { begins: vec![0], lengths, seed: recipe.seed, batch, accumulation: recipe.accumulation };
        let most = recipe.max_steps.unwrap_or(usize::MAX);
        let mut steps = 0;
        for epoch in 0..recipe.epochs {
            if steps >= most || plan.lengths.is_empty() {
                break;
            }
            steps = (steps + plan.passes(epoch).len().div_ceil(plan.accumulation)).min(most);
            plan.begins.push(steps);
        }
        plan
    }

    /// Steps in all.
    pub fn steps(&self) -> usize {
        self.begins.last().copied().unwrap_or_default()
    }

    /// Whether an epoch ends after so many steps.
    pub fn ends_epoch(&self, step: usize) -> bool {
        self.begins.binary_search(&step).is_ok()
    }

    /// The examples of each forward pass of a step (0-based).
    pub fn step(&self, step: usize) -> Vec<Vec<usize>> {
        let epoch = self.begins.partition_point(|begin| *begin <= step).saturating_sub(1);
        let within = step - self.begins[epoch];
        self.passes(epoch).into_iter().skip(within * self.accumulation).take(self.accumulation).collect()
    }

    /// All forward passes of an epoch, in order.
    fn passes(&self, epoch: usize) -> Vec<Vec<usize>> {
        passes(&epoch_order(self.lengths.len(), self.seed, epoch), &self.lengths, self.batch)
    }

    /// All examples in order, in passes of the same size as in training: for measuring.
    pub fn measured(recipe: &Recipe, lengths: &[usize]) -> Vec<Vec<usize>> {
        let batch = recipe.batch_tokens.map_or(Batching::Examples(recipe.batch_size), Batching::Tokens);
        passes(&(0..lengths.len()).collect::<Vec<_>>(), lengths, batch)
    }
}

fn passes(order: &[usize], lengths: &[usize], batch: Batching) -> Vec<Vec<usize>> {
    let most = match batch {
        Batching::Examples(examples) => return order.chunks(examples).map(<[usize]>::to_vec).collect(),
        Batching::Tokens(tokens) => tokens,
    };
    let (mut passes, mut tokens) = (Vec::<Vec<usize>>::new(), 0);
    for example in order {
        match passes.last_mut().filter(|_| tokens + lengths[*example] <= most) {
            Some(pass) => {
                pass.push(*example);
                tokens += lengths[*example];
            }
            None => {
                passes.push(vec![*example]);
                tokens = lengths[*example];
            }
        }
    }
    passes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuning::AnyRecipe;

    fn plan(keys: &str, lengths: &[usize]) -> Plan {
        let source = format!("name: a\nmodel: local/m\ndataset: d\nepochs: 3\n{keys}");
        let AnyRecipe::Lora(recipe) = AnyRecipe::parse(&source).expect("a recipe") else { panic!("a low-rank adapter") };
        Plan::new(&recipe, lengths.to_vec())
    }

    #[test]
    fn every_epoch_sees_every_example_once() {
        for keys in ["batch_size: 3\n", "batch_size: 2\naccumulation: 2\n", "batch_tokens: 10\n", "batch_tokens: 10\naccumulation: 3\n"] {
            let lengths = [4, 9, 2, 3, 30, 5, 1];
            let plan = plan(keys, &lengths);
            let mut steps = 0;
            for _ in 0..3 {
                let mut seen = Vec::new();
                loop {
                    let passes = plan.step(steps);
                    assert!(passes.len() <= plan.accumulation && !passes.is_empty(), "{keys}");
                    for pass in &passes {
                        let tokens: usize = pass.iter().map(|example| lengths[*example]).sum();
                        assert!(!keys.contains("tokens") || tokens <= 10 || pass.len() == 1, "{keys}: {tokens} tokens");
                    }
                    seen.extend(passes.concat());
                    steps += 1;
                    if plan.ends_epoch(steps) {
                        break;
                    }
                }
                seen.sort_unstable();
                assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>(), "{keys}");
            }
            assert_eq!(plan.steps(), steps, "{keys}");
        }
    }

    #[test]
    fn the_recipe_may_end_it_early() {
        let plan = plan("batch_size: 2\nmax_steps: 5\n", &[1; 8]);
        assert_eq!((plan.steps(), plan.ends_epoch(4), plan.ends_epoch(3), plan.ends_epoch(5)), (5, true, false, true));
        assert_eq!(plan_of_nothing().steps(), 0);
    }

    fn plan_of_nothing() -> Plan {
        plan("", &[])
    }
}
