//! Small questions about a prompt's tree and its source.

use super::helpers::Helper;
use super::parse::Prompt;
use super::template::tree::{Expr, Node, Program};

/// Visits every node of a program, those inside of blocks and of inline partials too.
fn each<'t>(program: &'t Program, visit: &mut dyn FnMut(&'t Node)) {
    for node in &program.body {
        visit(node);
        if let Node::Block(block) = node {
            block.bodies().for_each(|body| each(body, visit));
        }
    }
    program.inlines.values().for_each(|inline| each(&inline.program, visit));
}

impl Prompt {
    /// Whether the template says where earlier messages stand (`{{history}}`).
    pub fn places_history(&self) -> bool {
        let mut found = false;
        let mut look = |node: &Node| {
            if let Node::Print(print) = node {
                found |= matches!(&print.value, Expr::Call(call) if call.helper == Helper::History);
            }
        };
        each(&self.body, &mut look);
        self.outside.values().for_each(|partial| each(partial, &mut look));
        found
    }
}

/// A source's front matter with everything above it, and its body.
pub fn halves(source: &str) -> (&str, &str) {
    let (mut at, mut opened) = (0, false);
    for line in source.split_inclusive('\n') {
        let text = line.trim_end();
        at += line.len();
        match opened {
            false if text == "---" => opened = true,
            false if text.is_empty() || text.starts_with('#') => {}
            false => return ("", source),
            true if text == "---" => return source.split_at(at),
            true => {}
        }
    }
    ("", source)
}
