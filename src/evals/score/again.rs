//! An earlier run, scored again: with its own scorers or others, on the answers that it has.

use super::{Others, Scoring, compared_with, hand_over};
use crate::evals::prepare::restore_as;
use crate::evals::{EvalError, Suite};
use crate::store::cases::each_case;
use crate::store::{Store, StoreError, runs};
use crate::types::Failure;

/// Gets a stored run ready to be scored; with the scorers and the gate of `suite`, or its own ones.
///
/// # Errors
/// What the run lacks: its dataset, or any answer.
pub fn again(store: &Store, run: &str, suite: Option<Suite>) -> Result<Scoring, Failure> {
    let run = runs::get(store.db.as_ref(), run)?;
    let plan = restore_as(store, &run, suite)?;
    let wanted = compared_with(&plan);
    let (mut cases, mut answers) = (0, 0);
    let mut others = Others::new();
    each_case::<StoreError>(store.db.as_ref(), &run.id, &mut |case| {
        cases += 1;
        answers += usize::from(!case.output.is_empty() || !case.tool_calls.is_null());
        if case.error.is_none() && wanted.contains(&case.target) {
            others.entry((case.position, case.repeat)).or_default().push((case.target, case.output));
        }
        Ok(())
    })?;
    if answers == 0 {
        return Err(EvalError::Run { run: run.id, problem: "it has no answers that could be scored".into() }.into());
    }
    let id = run.id.clone();
    let source = Box::new(move |store: &Store, sender: &tokio::sync::mpsc::Sender<_>| {
        Ok(each_case::<StoreError>(store.db.as_ref(), &id, &mut |case| hand_over(sender, case))?)
    });
    Ok(Scoring { plan, cases, source, from: run.id, others })
}
