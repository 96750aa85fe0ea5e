//! Which target is asked next: among those that can be, by weight, order, latency or load, or the one that a user or a conversation
//! stays with; then the fallbacks, in their order.

use super::pool::{Kind, now_ms};
use super::road::{Lane, Road};
use crate::config::routes::{Choose, Sticky};
use crate::types::chat::{ChatRequest, Content};
use serde_json::Value;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

/// A set of a road's targets, by their places.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Places(u64);

impl Places {
    pub(super) fn add(&mut self, place: usize) {
        self.0 |= 1 << place;
    }

    pub(super) fn has(self, place: usize) -> bool {
        self.0 & (1 << place) != 0
    }

    pub(super) fn and(self, others: Places) -> Places {
        Places(self.0 | others.0)
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// Whether a target may be asked now.
pub(super) fn can_be_asked(road: &Road, place: usize, now: u64) -> bool {
    let target = &road.lanes[place].target;
    target.open_for(&road.rules.resilience, now) == 0 && (!road.is_route() || target.quiet_for(now) == 0)
}

/// The next target for a request, if any can be asked that is not in `but`.
pub(super) fn pick(road: &Road, but: Places, kind: Kind, stays_with: Option<u64>) -> Option<usize> {
    let now = now_ms();
    let can = |place: &usize| !but.has(*place) && can_be_asked(road, *place, now);
    let primary = road.rules.primary;
    if primary > 1 {
        let candidates = Candidates { road, kind, now };
        let chosen = match stays_with {
            Some(key) => candidates.by_rendezvous(&mut (0..primary).filter(can), key),
            None => candidates.choose(&mut (0..primary).filter(can)),
        };
        if chosen.is_some() {
            return chosen;
        }
    }
    let rest = if primary > 1 { primary } else { 0 };
    (rest..road.lanes.len()).find(can)
}

struct Candidates<'r> {
    road: &'r Road,
    kind: Kind,
    now: u64,
}

impl Candidates<'_> {
    fn lane(&self, place: usize) -> &Lane {
        &self.road.lanes[place]
    }

    /// The least by this measure among those with room, or among all where none has; ties are broken at random.
    fn least(&self, places: &mut dyn Iterator<Item = usize>, measure: impl Fn(&Lane) -> f64) -> Option<usize> {
        let mut best: Option<(usize, (bool, f64), u32)> = None;
        for place in places {
            let lane = self.lane(place);
            let value = (!lane.has_room(), measure(lane));
            best = match best {
                Some((_, least, ties)) if value == least => {
                    let keep = rand::random_range(0..=ties) > 0;
                    best.map(|(held, ..)| (if keep { held } else { place }, least, ties + 1))
                }
                Some((_, least, _)) if value > least => best,
                _ => Some((place, value, 1)),
            };
        }
        best.map(|(place, ..)| place)
    }

    fn choose(&self, places: &mut dyn Iterator<Item = usize>) -> Option<usize> {
        match self.road.rules.choose {
            Choose::Ordered => places.next(),
            // Exponential times at rates of the weights: the least is each one's with the probability of its share.
            Choose::Weighted => self.least(places, |lane| -unit(rand::random()).ln() / f64::from(lane.weight)),
            Choose::LeastBusy => self.least(places, |lane| f64::from(lane.target.in_flight()) / f64::from(lane.weight)),
            Choose::LeastLatency => self.least(places, |lane| {
                let busy = f64::from(1 + lane.target.in_flight());
                match lane.target.latency(self.kind, self.now) {
                    Some(ms) => ms * busy,
                    // Not measured yet: once, and not by everybody until the answer is there.
                    None if lane.target.in_flight() == 0 => 0.0,
                    None => 1e9 * busy,
                }
            }),
        }
    }

    /// Weighted rendezvous hashing: each key has its own order of the targets, which stays when others come or go (Schindelhauer and
    /// Schomaker 2005, the logarithmic method).
    fn by_rendezvous(&self, places: &mut dyn Iterator<Item = usize>, key: u64) -> Option<usize> {
        let cost = |place: usize| {
            let lane = self.lane(place);
            -unit(hashed(&(key, lane.target.name()))).ln() / f64::from(lane.weight)
        };
        places.map(|place| (place, cost(place))).min_by(|a, b| a.1.total_cmp(&b.1)).map(|(place, _)| place)
    }
}

/// A number between 0 and 1, neither of them, out of 64 bits.
fn unit(bits: u64) -> f64 {
    ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

fn hashed(value: &impl Hash) -> u64 {
    // Its keys are fixed: the same user comes to the same target after a restart and at every replica.
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// What a request stays with: a hash of its user or its conversation, which never leaves this process. None where the request names
/// no user.
pub(super) fn stays_with(sticky: Sticky, project: &str, request: &ChatRequest) -> Option<u64> {
    let field = |name: &str| request.extra.get(name).and_then(text);
    let metadata = |name: &str| request.extra.get("metadata")?.get(name).and_then(text);
    match sticky {
        Sticky::None => None,
        Sticky::User => {
            let user = field("safety_identifier").or_else(|| field("user")).or_else(|| metadata("user_id"))?;
            Some(hashed(&(project, "user", user)))
        }
        Sticky::Conversation => {
            let named = || request.extra.get("conversation")?.get("id").and_then(text);
            let id = field("conversation").or_else(named).or_else(|| metadata("conversation_id")).or_else(|| field("prompt_cache_key"));
            if let Some(id) = id {
                return Some(hashed(&(project, "conversation", id)));
            }
            // A conversation begins with the same words however long it gets.
            let first = request.messages.iter().find(|message| message.role == "user")?.content.as_ref()?;
            Some(match first {
                Content::Text(text) => hashed(&(project, "begins", text.as_str())),
                parts => hashed(&(project, "begins", parts.plain_text().as_str())),
            })
        }
    }
}

fn text(value: &Value) -> Option<&str> {
    value.as_str().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_user_and_a_conversation_are_found_where_each_api_puts_them() {
        let of = |sticky, fields: Value| {
            let mut body = json!({"model": "m", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]});
            body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
            stays_with(sticky, "p", &serde_json::from_value(body).expect("a request"))
        };
        let user = of(Sticky::User, json!({"user": "bo"}));
        assert!(user.is_some() && user != of(Sticky::User, json!({"user": "al"})));
        assert_eq!(user, of(Sticky::User, json!({"safety_identifier": "bo", "user": "al"})));
        assert_eq!(user, of(Sticky::User, json!({"metadata": {"user_id": "bo"}})));
        assert_eq!(of(Sticky::User, json!({})), None);
        let conversation = of(Sticky::Conversation, json!({"conversation": "c"}));
        for other in [json!({"conversation": {"id": "c"}}), json!({"metadata": {"conversation_id": "c"}}), json!({"prompt_cache_key": "c"})]
        {
            assert_eq!(of(Sticky::Conversation, other), conversation);
        }
        let begins = of(Sticky::Conversation, json!({}));
        assert!(begins.is_some() && begins == of(Sticky::Conversation, json!({"temperature": 1})));
    }
}
