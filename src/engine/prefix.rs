//! Which slot a new sequence takes, and whose beginning it reuses: system prompts and few-shot examples are computed once.

use super::adapter::Adapter;
use std::sync::Arc;

/// Shorter common beginnings are computed again rather than copied or waited for.
const WORTHWHILE: usize = 16;

/// What a slot holds.
#[derive(Debug, Clone, Default)]
pub(super) struct SlotContent {
    /// Tokens that are or will be computed there.
    pub(super) tokens: Vec<u32>,
    /// How many of them are in the cache now.
    pub(super) computed: usize,
    /// The adapter they were computed with.
    pub(super) adapter: Option<Arc<Adapter>>,
    /// Whether a sequence runs there.
    pub(super) busy: bool,
    /// Step in which it was last used.
    pub(super) used: u64,
}

/// What to do with a new sequence.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Begin, reusing this many positions of that slot (0: of none).
    Start { from: usize, positions: usize },
    /// Another sequence is computing a longer common beginning: wait for it.
    Wait,
}

/// Plans a sequence with the given tokens. The last token is always computed anew: its logits are needed.
pub(super) fn plan(tokens: &[u32], adapter: Option<&Arc<Adapter>>, slots: &[SlotContent]) -> Plan {
    let same = |slot: &&(usize, &SlotContent)| match (adapter, &slot.1.adapter) {
        (None, None) => true,
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        _ => false,
    };
    let all: Vec<_> = slots.iter().enumerate().collect();
    let usable = all.iter().filter(same).map(|(index, slot)| {
        let common = common_prefix(&slot.tokens, tokens).min(tokens.len().saturating_sub(1));
        (*index, common, common.min(slot.computed), slot.busy)
    });
    let usable: Vec<_> = usable.collect();
    let ready = usable.iter().max_by_key(|(_, _, ready, _)| *ready);
    let coming = usable.iter().filter(|(_, _, _, busy)| *busy).map(|(_, common, _, _)| *common).max().unwrap_or(0);
    match ready {
        _ if coming >= WORTHWHILE + ready.map_or(0, |r| r.2) => Plan::Wait,
        Some((from, _, positions, _)) if *positions >= WORTHWHILE => Plan::Start { from: *from, positions: *positions },
        _ => Plan::Start { from: 0, positions: 0 },
    }
}

/// The idle slot to take: empty ones first, then the longest unused, `keep` only if there is no other.
pub(super) fn free_slot(slots: &[SlotContent], keep: usize, reused: usize) -> Option<usize> {
    let idle = slots.iter().enumerate().filter(|(_, slot)| !slot.busy);
    idle.min_by_key(|(index, slot)| (reused > 0 && *index == keep, slot.computed > 0, slot.used)).map(|(index, _)| index)
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(tokens: std::ops::Range<u32>, computed: usize, busy: bool) -> SlotContent {
        SlotContent { tokens: tokens.collect(), computed, adapter: None, busy, used: 0 }
    }

    #[test]
    fn the_longest_ready_beginning_is_reused() {
        let tokens: Vec<u32> = (0..60).chain([999, 998]).collect();
        let slots = [slot(0..30, 30, false), slot(0..50, 50, false), slot(100..200, 100, false)];
        assert_eq!(plan(&tokens, None, &slots), Plan::Start { from: 1, positions: 50 });
        assert_eq!(free_slot(&slots, 1, 50), Some(0));
    }

    #[test]
    fn a_beginning_that_is_being_computed_is_waited_for() {
        let tokens: Vec<u32> = (0..60).collect();
        assert_eq!(plan(&tokens, None, &[slot(0..50, 0, true)]), Plan::Wait);
        assert_eq!(plan(&tokens, None, &[slot(0..50, 50, true)]), Plan::Start { from: 0, positions: 50 });
    }

    #[test]
    fn the_last_token_is_computed_anew_and_short_beginnings_are_not_reused() {
        let tokens: Vec<u32> = (0..40).collect();
        assert_eq!(plan(&tokens, None, &[slot(0..40, 40, false)]), Plan::Start { from: 0, positions: 39 });
        assert_eq!(plan(&tokens, None, &[slot(0..5, 5, false)]), Plan::Start { from: 0, positions: 0 });
    }
}
