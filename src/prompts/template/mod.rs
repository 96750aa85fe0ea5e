//! The language of a prompt's body: Handlebars as handlebars.js 4 defines it. The crate `handlebars` renders it; we read it.
//!
//! [`read`] makes the tree (`scan`: its characters), [`space`] takes away the white space that tags swallow, [`compile`] makes of the tree
//! what the crate renders, [`eval`] has it rendered, and `mend` holds the helpers that the crate calls, which do as handlebars.js does
//! ([`value`]: what JavaScript does with values). Left out on purpose, and refused when a prompt is read: partials with a block, names
//! that are computed, helpers of one's own. What a helper does stands in [`super::helpers`].

pub mod compile;
pub mod eval;
mod mend;
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
/// Most values in one tag or parenthesis.
pub const MAX_ARGUMENTS: usize = 64;
/// Most parts of one name.
pub const MAX_SEGMENTS: usize = 64;

#[cfg(test)]
mod tests {
    use super::eval::{Data, Limits, Piece, render};
    use super::value::Val;
    use crate::prompts::Prompt;
    use serde_json::Value;
    use std::collections::BTreeMap;

    fn rendered(template: &str, whole: &Value) -> Result<String, String> {
        let pairs = whole["partials"].as_object().into_iter().flatten();
        let partials: BTreeMap<String, String> =
            pairs.map(|(name, text)| (name.clone(), text.as_str().unwrap_or_default().into())).collect();
        let prompt = Prompt::parse_with("case", template, &partials).map_err(|error| error.to_string())?;
        let data = Data { root: Val::Json(&whole["data"]), context: whole["context"].as_object(), metadata: &Value::Null };
        let pieces = render(&prompt.compiled, &data, Limits { steps: 100_000, bytes: 1 << 20 }).map_err(|stop| format!("{stop:?}"))?;
        Ok(pieces.iter().map(|piece| if let Piece::Text(text) = piece { text.as_str() } else { "" }).collect())
    }

    /// Where handlebars.js throws, a refusal is right; otherwise the text is, to the byte.
    #[test]
    fn handlebars_js_gives_the_same() {
        let whole: Value = serde_json::from_str(include_str!("recorded.json")).expect("JSON");
        let cases = whole["cases"].as_array().expect("cases");
        let differs = |case: &&Value| rendered(case[0].as_str().expect("a template"), &whole).ok().as_deref() != case[1].as_str();
        let different: Vec<String> = cases
            .iter()
            .filter(differs)
            .map(|case| format!("{case}: {:?}", rendered(case[0].as_str().unwrap_or_default(), &whole)))
            .collect();
        assert!(cases.len() > 300 && different.is_empty(), "{} of {} differ\n{}", different.len(), cases.len(), different.join("\n"));
    }

    #[test]
    fn what_is_left_out_says_what_to_write() {
        for (template, instead) in [
            ("{{#> card}}x{{/card}}", "{{> card text=summary}}"),
            ("{{> (lookup a \"b\")}}", "use {{#if …}} around several"),
            ("{{../name}}", "take `../` away"),
            ("{{#section \"a\"}}x{{/section}}", "{{section \"examples\"}}, without #"),
            ("{{log name}}", "take the tag away"),
            ("{{#each l as |a b c|}}x{{/each}}", "as |item index|"),
            ("{{* decorate}}", "{{* …}}"),
            ("{{json (role \"system\")}}", "a tag of its own"),
        ] {
            let error = rendered(template, &Value::Null).expect_err(template);
            assert!(error.contains(instead), "{template}: {error}");
        }
    }
}
