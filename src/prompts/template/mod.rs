//! The language of a prompt's body: Handlebars as handlebars.js 4 defines it, read once into a tree and evaluated from there.
//!
//! [`read`] makes the tree, [`space`] takes away the white space that tags swallow, [`eval`] walks the tree with variables, [`value`] is
//! what JavaScript does with values. Left out on purpose, and refused when a prompt is read: partials with a block, names that are
//! computed, helpers of one's own. What a helper does stands in [`super::helpers`].

pub mod eval;
pub mod read;
mod scan;
pub mod space;
pub mod tree;
pub mod value;

/// Deepest nesting of blocks.
pub const MAX_DEPTH: usize = 64;
/// Deepest nesting of everything that a render enters: blocks, branches after `else`, and partials with what is inside them.
pub const MAX_LEVELS: usize = 256;
/// Deepest nesting of parentheses.
pub const MAX_PARENTHESES: usize = 32;
