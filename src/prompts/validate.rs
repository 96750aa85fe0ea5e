//! What is checked of a prompt as a whole: its partials exist, none leads back to itself, and nothing nests deeper than a render may go.
//! Blocks and parentheses are bounded while they are read ([`super::template::read`]).

use super::Problem;
use super::template::read::Fault;
use super::template::tree::Partials;
use super::template::tree::{Node, Place, Program};
use super::template::{MAX_DEPTH, MAX_LEVELS};
use crate::types::error::did_you_mean;
use std::collections::{BTreeMap, BTreeSet};

/// Largest prompt file, in bytes; partials have the same bound, each.
pub const MAX_SOURCE_BYTES: usize = 64 * 1024;
/// Most partials from outside that one prompt may draw in, directly or through others.
pub const MAX_PARTIALS: usize = 64;

/// Names of the partials that a template includes, in order, with where.
pub fn inclusions(program: &Program) -> Vec<(&str, Place)> {
    let mut found = Vec::new();
    gather(program, &mut |partial| found.push(partial));
    for (_, inline) in inlines(program) {
        gather(inline, &mut |partial| found.push(partial));
    }
    found
}

/// Every partial that is defined inside of a template, at any depth.
pub fn inlines(program: &Program) -> Vec<(&str, &Program)> {
    let mut found: Vec<(&str, &Program)> = Vec::new();
    for inline in program.inlines.values() {
        found.push((&inline.name, &inline.program));
        found.extend(inlines(&inline.program));
    }
    for node in &program.body {
        if let Node::Block(block) = node {
            block.bodies().for_each(|body| found.extend(inlines(body)));
        }
    }
    found
}

/// The inclusions of a body itself, those of its inline partials left out.
fn gather<'p>(program: &'p Program, found: &mut impl FnMut((&'p str, Place))) {
    for node in &program.body {
        match node {
            Node::Partial(partial) => found((&partial.name, partial.place)),
            Node::Block(block) => block.bodies().for_each(|body| gather(body, found)),
            _ => {}
        }
    }
}

/// Checks the partials of a prompt, and says how deep a render goes. The fault comes with the name of the partial in whose text it stands,
/// `None` for the prompt's own.
///
/// # Errors
/// Unknown partials, [`Problem::Recursive`] and [`Problem::TooNested`].
pub fn partials(body: &Program, outside: &Partials) -> Result<usize, (Option<String>, Fault)> {
    let texts = || std::iter::once((None, body)).chain(outside.iter().map(|(name, program)| (Some(name), program)));
    // A name may be defined in several places; whichever is meant, all its bodies count.
    let mut bodies: BTreeMap<&str, Vec<&Program>> = outside.iter().map(|(name, program)| (name.as_str(), vec![program])).collect();
    for (_, program) in texts() {
        inlines(program).into_iter().for_each(|(name, body)| bodies.entry(name).or_default().push(body));
    }
    for (owner, program) in texts() {
        if let Some((name, place)) = inclusions(program).into_iter().find(|(name, _)| !bodies.contains_key(name)) {
            let nearest = did_you_mean(name, bodies.keys().copied());
            return Err((owner.cloned(), (place, Problem::Syntax(format!("there is no partial \"{name}\"{nearest}")))));
        }
    }
    let uses: BTreeMap<&str, Vec<(&str, Place)>> = bodies.iter().map(|(name, bodies)| (*name, uses_of(bodies))).collect();
    let owner_of = |name: &str| {
        let owner = texts().find(|(owner, program)| {
            owner.is_some_and(|owner| owner == name) || inlines(program).iter().any(|(inline, _)| *inline == name)
        });
        owner.and_then(|(owner, _)| owner.cloned())
    };
    let order = order(&uses).map_err(|name| {
        let place = uses[name].first().map(|(_, place)| *place).unwrap_or_default();
        (owner_of(name), (place, Problem::Recursive(name.to_string())))
    })?;
    let mut heights: BTreeMap<&str, usize> = BTreeMap::new();
    for name in order {
        // Also of partials that nobody includes: they are walked all the same.
        let (levels, place) = bodies[name].iter().map(|body| height(body, &heights)).max_by_key(|found| found.0).unwrap_or_default();
        within(levels).map_err(|problem| (owner_of(name), (place, problem)))?;
        heights.insert(name, levels);
    }
    let (levels, place) = height(body, &heights);
    within(levels).map_err(|problem| (None, (place, problem)))?;
    Ok(levels)
}

fn within(levels: usize) -> Result<(), Problem> {
    if levels <= MAX_LEVELS {
        return Ok(());
    }
    let text = format!("partials and blocks are nested {levels} deep; at most {MAX_LEVELS} are taken ({MAX_DEPTH} blocks in one another)");
    Err(Problem::TooNested(text))
}

fn uses_of<'p>(bodies: &[&'p Program]) -> Vec<(&'p str, Place)> {
    let mut uses = Vec::new();
    bodies.iter().for_each(|body| gather(body, &mut |partial| uses.push(partial)));
    uses
}

/// Names in an order in which each comes behind those that it includes, or one that lies on a circle.
fn order<'p>(uses: &BTreeMap<&'p str, Vec<(&'p str, Place)>>) -> Result<Vec<&'p str>, &'p str> {
    let mut open: BTreeMap<&str, BTreeSet<&str>> =
        uses.iter().map(|(name, uses)| (*name, uses.iter().map(|(name, _)| *name).collect())).collect();
    let mut users: BTreeMap<&str, Vec<&'p str>> = BTreeMap::new();
    for (name, uses) in &open {
        uses.iter().for_each(|used| users.entry(used).or_default().push(name));
    }
    let mut ready: Vec<&'p str> = open.iter().filter(|(_, uses)| uses.is_empty()).map(|(name, _)| *name).collect();
    let mut order = Vec::with_capacity(open.len());
    while let Some(name) = ready.pop() {
        open.remove(name);
        order.push(name);
        for user in users.get(name).into_iter().flatten() {
            if let Some(uses) = open.get_mut(user)
                && uses.remove(name)
                && uses.is_empty()
            {
                ready.push(user);
            }
        }
    }
    // What is left lies on a circle or leads to one: follow it until a name comes again.
    let Some((mut name, _)) = open.iter().next() else { return Ok(order) };
    let mut seen = BTreeSet::new();
    while seen.insert(*name) {
        name = open[name].iter().find(|used| open.contains_key(*used)).unwrap_or(name);
    }
    let circle = uses.keys().find(|known| *known == name).copied();
    Err(circle.unwrap_or_default())
}

/// How deep a render goes in a body, and the first place in it where it goes deepest.
fn height(program: &Program, heights: &BTreeMap<&str, usize>) -> (usize, Place) {
    let mut highest = (0, Place::default());
    for node in &program.body {
        let (levels, place) = match node {
            Node::Block(block) => {
                let inner = block.bodies().map(|body| height(body, heights)).max_by_key(|(levels, _)| *levels);
                inner.map_or((0, block.place), |(levels, place)| (levels, if place == Place::default() { block.place } else { place }))
            }
            Node::Partial(partial) => (heights.get(partial.name.as_str()).copied().unwrap_or(0), partial.place),
            _ => continue,
        };
        if levels + 1 > highest.0 {
            highest = (levels + 1, place);
        }
    }
    highest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompts::template::read::read;

    fn check(source: &str, outside: &[(&str, &str)]) -> Result<usize, (Option<String>, Fault)> {
        let read = |text: &str| read(text, Place { line: 1, column: 1 }).expect("reads");
        let outside: Partials = outside.iter().map(|(name, text)| (name.to_string(), read(text))).collect();
        partials(&read(source), &outside)
    }

    #[test]
    fn circles_are_found_wherever_they_lie() {
        for (source, outside) in [
            ("{{#*inline \"a\"}}{{> a}}{{/inline}}{{> a}}", &[][..]),
            ("{{#*inline \"a\"}}{{> b}}{{/inline}}{{#*inline \"b\"}}{{#if x}}{{> a}}{{/if}}{{/inline}}{{> a}}", &[]),
            ("{{> a}}", &[("a", "{{> b}}"), ("b", "{{> c}}"), ("c", "{{> b}}")]),
            ("{{> a}}{{#*inline \"b\"}}{{> a}}{{/inline}}", &[("a", "{{> b}}")]),
        ] {
            assert!(matches!(check(source, outside), Err((_, (_, Problem::Recursive(_))))), "{source}");
        }
        assert!(check("{{#*inline \"a\"}}x{{/inline}}{{> a}}{{> a}}{{> b}}", &[("b", "{{> a}}")]).is_ok());
    }

    #[test]
    fn chains_of_partials_are_bounded() {
        let chain = |n: usize| {
            let links: String = (1..n).map(|i| format!("{{{{#*inline \"p{i}\"}}}}{{{{> p{}}}}}{{{{/inline}}}}", i - 1)).collect();
            format!("{{{{#*inline \"p0\"}}}}x{{{{/inline}}}}{links}{{{{> p{}}}}}", n - 1)
        };
        assert!(check(&chain(200), &[]).is_ok());
        assert!(matches!(check(&chain(300), &[]), Err((None, (_, Problem::TooNested(_))))));
    }

    #[test]
    fn an_unknown_partial_is_named_with_the_text_that_includes_it() {
        let (owner, (place, problem)) = check("x\n{{> intro}}", &[("intro", "a\n\n{{> introo}}")]).expect_err("unknown");
        assert_eq!((owner.as_deref(), place.line), (Some("intro"), 3));
        assert!(problem.to_string().contains("did you mean \"intro\"?"), "{problem}");
    }
}
