//! The helpers that a template can call: dotprompt's, handlebars.js's own, and a few for conditions. One table says how each is called;
//! a call that does not fit is refused when the prompt is read, with what to write instead.

use crate::types::error::did_you_mean;

/// A helper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Helper {
    /// Begins a message.
    Role,
    /// Puts the earlier messages here.
    History,
    /// Marks a place that an application fills.
    Section,
    /// An image or another file.
    Media,
    /// A value as JSON.
    Json,
    /// A condition: two values are the same.
    IfEquals,
    /// Its opposite.
    UnlessEquals,
    /// A condition.
    If,
    /// Its opposite.
    Unless,
    /// A loop.
    Each,
    /// Another `this`.
    With,
    /// A field whose name is a value.
    Lookup,
    /// Text that no tag is looked for in.
    Raw,
    /// Comparisons and logic, for use in parentheses.
    Test(Test),
    /// Length of a list, an object or a text.
    Len,
}

/// A comparison or a piece of logic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    /// The same.
    Eq,
    /// Not the same.
    Ne,
    /// Greater.
    Gt,
    /// Greater or the same.
    Gte,
    /// Less.
    Lt,
    /// Less or the same.
    Lte,
    /// All count as yes.
    And,
    /// One counts as yes.
    Or,
    /// Does not count as yes.
    Not,
}

/// Roles that a message can have.
pub const ROLES: &[&str] = &["system", "user", "model", "assistant", "tool", "developer"];

/// Where a call stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// `{{helper …}}`.
    Tag,
    /// `{{#helper …}}`.
    Block,
    /// `(helper …)`.
    Inside,
    /// `{{{{helper}}}}`.
    RawBlock,
}

/// How a helper is written.
struct Spec {
    name: &'static str,
    helper: Helper,
    form: Form,
    /// Fewest and most values by position.
    params: (usize, usize),
    /// Values by name.
    hash: &'static [&'static str],
    /// For messages.
    example: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Writes structure; a tag by itself.
    Structure,
    /// Has a value: a tag, or in parentheses.
    Value,
    /// As `Value`, and without values by position or name it is a variable's name (handlebars.js has no such helper).
    Test,
    /// Has a body.
    Block,
    /// Has a body that is plain text.
    Raw,
}

const SPECS: &[Spec] = &[
    spec("role", Helper::Role, Form::Structure, (1, 1), &[], "{{role \"system\"}}"),
    spec("history", Helper::History, Form::Structure, (0, 0), &[], "{{history}}"),
    spec("section", Helper::Section, Form::Structure, (1, 1), &[], "{{section \"examples\"}}"),
    spec("media", Helper::Media, Form::Structure, (0, 0), &["url", "contentType"], "{{media url=photo}}"),
    spec("json", Helper::Json, Form::Value, (1, 1), &["indent"], "{{json order}}"),
    spec("lookup", Helper::Lookup, Form::Value, (2, 2), &[], "{{lookup prices product}}"),
    spec("ifEquals", Helper::IfEquals, Form::Block, (2, 2), &[], "{{#ifEquals tone \"formal\"}}…{{/ifEquals}}"),
    spec("unlessEquals", Helper::UnlessEquals, Form::Block, (2, 2), &[], "{{#unlessEquals tone \"formal\"}}…{{/unlessEquals}}"),
    spec("if", Helper::If, Form::Block, (1, 1), &["includeZero"], "{{#if name}}…{{/if}}"),
    spec("unless", Helper::Unless, Form::Block, (1, 1), &["includeZero"], "{{#unless name}}…{{/unless}}"),
    spec("each", Helper::Each, Form::Block, (1, 1), &[], "{{#each items}}{{this}}{{/each}}"),
    spec("with", Helper::With, Form::Block, (1, 1), &[], "{{#with customer}}{{name}}{{/with}}"),
    spec("raw", Helper::Raw, Form::Raw, (0, 0), &[], "{{{{raw}}}}…{{{{/raw}}}}"),
    spec("eq", Helper::Test(Test::Eq), Form::Test, (2, 2), &[], "{{#if (eq tone \"formal\")}}…{{/if}}"),
    spec("ne", Helper::Test(Test::Ne), Form::Test, (2, 2), &[], "{{#if (ne tone \"formal\")}}…{{/if}}"),
    spec("gt", Helper::Test(Test::Gt), Form::Test, (2, 2), &[], "{{#if (gt count 3)}}…{{/if}}"),
    spec("gte", Helper::Test(Test::Gte), Form::Test, (2, 2), &[], "{{#if (gte count 3)}}…{{/if}}"),
    spec("lt", Helper::Test(Test::Lt), Form::Test, (2, 2), &[], "{{#if (lt count 3)}}…{{/if}}"),
    spec("lte", Helper::Test(Test::Lte), Form::Test, (2, 2), &[], "{{#if (lte count 3)}}…{{/if}}"),
    spec("and", Helper::Test(Test::And), Form::Test, (1, usize::MAX), &[], "{{#if (and name email)}}…{{/if}}"),
    spec("or", Helper::Test(Test::Or), Form::Test, (1, usize::MAX), &[], "{{#if (or name email)}}…{{/if}}"),
    spec("not", Helper::Test(Test::Not), Form::Test, (1, 1), &[], "{{#if (not name)}}…{{/if}}"),
    spec("len", Helper::Len, Form::Test, (1, 1), &[], "{{len items}}"),
];

const fn spec(
    name: &'static str,
    helper: Helper,
    form: Form,
    params: (usize, usize),
    hash: &'static [&'static str],
    example: &'static str,
) -> Spec {
    Spec { name, helper, form, params, hash, example }
}

/// A call as it was read.
pub(super) struct Asked<'a> {
    pub(super) name: &'a str,
    pub(super) position: Position,
    pub(super) params: usize,
    pub(super) hash: Vec<&'a str>,
}

/// The helper of a call; none where the name stands for a variable.
///
/// # Errors
/// What is wrong with the call, and what to write instead.
pub(super) fn resolve(asked: &Asked<'_>) -> Result<Option<Helper>, String> {
    let name = asked.name;
    let is_bare = asked.params == 0 && asked.hash.is_empty();
    let Some(spec) = SPECS.iter().find(|spec| spec.name == name) else {
        return match (is_bare, asked.position) {
            (true, Position::Tag | Position::Block) => Ok(None),
            (_, position) => Err(unknown(name, position)),
        };
    };
    if is_bare && matches!(asked.position, Position::Tag | Position::Block) && matches!(spec.form, Form::Test | Form::Raw) {
        return Ok(None);
    }
    let example = spec.example;
    match (spec.form, asked.position) {
        (Form::Structure, Position::Block) => return Err(format!("{{{{#{name} …}}}} has no closing tag: write {example}, without #")),
        (Form::Structure, Position::Inside) => return Err(format!("{name} stands in a tag of its own: {example}")),
        (Form::Block, Position::Tag) if is_bare => {
            return Err(format!("{name} is a block: write {example}; for a variable of that name write {{{{this.{name}}}}}"));
        }
        (Form::Block, Position::Tag) => return Err(format!("{name} is a block: write {example}")),
        (Form::Block, Position::Inside) => {
            let instead = if spec.params.1 == 2 { "eq or ne" } else { "eq, and, or, not" };
            return Err(format!("{name} is a block: {example}; inside parentheses use {instead}, such as (eq tone \"formal\")"));
        }
        (Form::Value | Form::Test, Position::Block) => return Err(format!("{name} is no block: write {example}")),
        (Form::Raw, position) if position != Position::RawBlock => return Err(format!("write {example}")),
        (form, Position::RawBlock) if form != Form::Raw => return Err("four braces are for {{{{raw}}}}…{{{{/raw}}}} only".into()),
        _ => {}
    }
    if let Some(key) = asked.hash.iter().find(|key| !spec.hash.contains(*key)) {
        let nearest = did_you_mean(key, spec.hash.iter().copied());
        return Err(format!("{name} takes no \"{key}\"{nearest} (write {example})"));
    }
    if asked.params < spec.params.0 || asked.params > spec.params.1 {
        let wanted = match spec.params {
            (0, 0) => "no value".to_string(),
            (1, 1) => "one value".to_string(),
            (2, 2) => "two values".to_string(),
            (least, _) => format!("at least {least} value"),
        };
        let bare = if is_bare { format!("; for a variable of that name write {{{{this.{name}}}}}") } else { String::new() };
        return Err(format!("{name} takes {wanted}, not {}: write {example}{bare}", asked.params));
    }
    if spec.helper == Helper::Media && !asked.hash.contains(&"url") {
        return Err(format!("media needs a url: write {example}"));
    }
    Ok(Some(spec.helper))
}

fn unknown(name: &str, position: Position) -> String {
    match name {
        "log" => "log is left out, because it would write variables to the program's log: take the tag away".into(),
        "helperMissing" | "blockHelperMissing" => format!("{name} cannot be called"),
        _ if position == Position::RawBlock => "four braces are for {{{{raw}}}}…{{{{/raw}}}} only".into(),
        _ => {
            let nearest = did_you_mean(name, SPECS.iter().map(|spec| spec.name));
            format!("there is no helper \"{name}\"{nearest}")
        }
    }
}

/// Checks a role's name.
///
/// # Errors
/// What to write instead.
pub(super) fn role(name: &str) -> Result<(), String> {
    if ROLES.contains(&name) {
        return Ok(());
    }
    Err(format!("\"{name}\" is not a role{} (roles: {})", did_you_mean(name, ROLES.iter().copied()), ROLES.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(name: &str, position: Position, params: usize, hash: &[&'static str]) -> Result<Option<Helper>, String> {
        resolve(&Asked { name, position, params, hash: hash.to_vec() })
    }

    #[test]
    fn wrong_calls_say_what_to_write() {
        for (name, position, params, hash, instead) in [
            ("role", Position::Block, 1, &[][..], "write {{role \"system\"}}, without #"),
            ("role", Position::Tag, 0, &[], "{{this.role}}"),
            ("if", Position::Tag, 1, &[], "{{#if name}}"),
            ("media", Position::Tag, 0, &["uri"], "did you mean \"url\"?"),
            ("media", Position::Tag, 0, &[], "media needs a url"),
            ("jsn", Position::Tag, 1, &[], "did you mean \"json\"?"),
            ("ifEquals", Position::Inside, 2, &[], "(eq tone \"formal\")"),
            ("log", Position::Tag, 1, &[], "take the tag away"),
        ] {
            let message = ask(name, position, params, hash).expect_err(name);
            assert!(message.contains(instead), "{message}");
        }
    }

    #[test]
    fn names_that_handlebars_js_does_not_know_stay_variables() {
        assert_eq!(ask("len", Position::Tag, 0, &[]), Ok(None));
        assert_eq!(ask("not", Position::Block, 0, &[]), Ok(None));
        assert_eq!(ask("len", Position::Tag, 1, &[]), Ok(Some(Helper::Len)));
        assert_eq!(ask("name", Position::Tag, 0, &[]), Ok(None));
    }
}
