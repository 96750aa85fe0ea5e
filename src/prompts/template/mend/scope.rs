//! Where a name leads: a walk over the crate's blocks, innermost first.
//!
//! A block with a base value is a scope: that is the number of its `this`. One with an `@index` is a turn of a loop. One with `ups` is a
//! body with inline partials. One with `resume` is an inclusion: what lies behind it is what lay around the place where the partial was
//! defined, found by counting blocks from the outermost one.

use handlebars::{BlockContext, BlockParamHolder, RenderContext, Template};
use serde_json::Value;
use std::collections::VecDeque;

/// The variable of a block that is an inclusion: number of blocks to the body that defines the partial; 0 where none does.
pub(super) const RESUME: &str = "resume";
/// The variable of a body with inline partials: how many scopes `../` of a partial skips.
pub(super) const UPS: &str = "ups";

/// Blocks, the innermost one first.
pub(super) type Blocks<'rc> = VecDeque<BlockContext<'rc>>;

/// Lets a function look at all blocks.
pub(super) fn look<'rc, T>(rc: &mut RenderContext<'_, 'rc>, at: impl FnOnce(&Blocks<'rc>) -> T) -> T {
    let blocks = rc.replace_blocks(VecDeque::new());
    let seen = at(&blocks);
    rc.replace_blocks(blocks);
    seen
}

fn variable(block: &BlockContext<'_>, name: &str) -> Option<usize> {
    block.get_local_var(name)?.as_u64().and_then(|number| usize::try_from(number).ok())
}

/// The first scope from a block on.
fn scope(blocks: &Blocks<'_>, from: usize) -> Option<usize> {
    (from..blocks.len()).find(|at| blocks[*at].base_value().is_some())
}

/// The number of `this`, as many scopes outwards as asked for.
pub(super) fn this(blocks: &Blocks<'_>, ups: usize) -> Option<Value> {
    let (mut at, mut ups) = (scope(blocks, 0)?, ups);
    while ups > 0 {
        match variable(&blocks[at], RESUME) {
            None => (at, ups) = (scope(blocks, at + 1)?, ups - 1),
            Some(0) => return None,
            Some(count) => {
                let body = blocks.len().checked_sub(count)?;
                (at, ups) = (scope(blocks, body)?, ups - 1 + variable(&blocks[body], UPS).unwrap_or(0));
            }
        }
    }
    blocks[at].base_value().cloned()
}

/// The number of what a name from `as |…|` stands for, and how many blocks were passed.
pub(super) fn named(blocks: &Blocks<'_>, name: &str) -> (Option<Value>, usize) {
    let (mut at, mut passed) = (0, 0);
    while let Some(block) = blocks.get(at) {
        if let Some(BlockParamHolder::Value(number)) = block.get_block_param(name) {
            return (Some(number.clone()), passed);
        }
        at = match variable(block, RESUME) {
            Some(0) => break,
            Some(count) => blocks.len().saturating_sub(count),
            None => at + 1,
        };
        passed += 1;
    }
    (None, passed)
}

/// What a turn of a loop knows.
pub(super) struct Turn {
    pub(super) index: Value,
    pub(super) key: Value,
    pub(super) is_last: bool,
}

/// A turn, as many outwards as asked for; none where a template stands in no loop. An error where fewer are around.
pub(super) fn turn(blocks: &Blocks<'_>, ups: usize) -> Result<Option<Turn>, ()> {
    let mut turns = blocks.iter().filter(|block| block.get_local_var("index").is_some());
    let mut turn = turns.next();
    for _ in 0..ups {
        turn.ok_or(())?;
        turn = turns.next();
    }
    Ok(turn.map(|block| {
        let variable = |name: &str| block.get_local_var(name).cloned().unwrap_or_default();
        Turn { index: variable("index"), key: variable("key"), is_last: variable("last") == true }
    }))
}

/// An inline partial that is known here, the number of blocks to the body that defines it, and how many were passed.
pub(super) fn partial<'rc>(blocks: &Blocks<'rc>, name: &str) -> (Option<(&'rc Template, usize)>, usize) {
    let found = blocks.iter().enumerate().find_map(|(at, block)| Some((at, block.get_local_partial(name)?)));
    match found {
        Some((at, template)) => (Some((template, blocks.len() - at)), at),
        None => (None, blocks.len()),
    }
}
