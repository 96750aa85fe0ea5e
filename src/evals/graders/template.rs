//! Texts with `{{item.…}}` and `{{sample.…}}` in them, as OpenAI's Evals API has them: paths of names and positions, nothing else.

use serde_json::Value;

/// A template's text and its places, in order.
enum Piece<'t> {
    Text(&'t str),
    Path(&'t str),
}

/// Fills in the values of a space (`{"item": …, "sample": …}`): texts as they are, everything else as JSON.
///
/// # Errors
/// The path that has no value.
pub fn render(template: &str, space: &Value) -> Result<String, String> {
    let mut text = String::with_capacity(template.len());
    for piece in pieces(template) {
        match piece {
            Piece::Text(part) => text.push_str(part),
            Piece::Path(path) => match look_up(path, space)? {
                Value::String(value) => text.push_str(value),
                other => text.push_str(&other.to_string()),
            },
        }
    }
    Ok(text)
}

/// The value at a path such as `item.messages`, with or without braces around it.
///
/// # Errors
/// When there is none.
pub fn value<'s>(path: &str, space: &'s Value) -> Result<&'s Value, String> {
    let inside = path.trim().strip_prefix("{{").and_then(|rest| rest.strip_suffix("}}")).unwrap_or(path);
    look_up(inside.trim(), space)
}

/// Checks that a template's paths begin with `item`, or with `sample` where there is one.
///
/// # Errors
/// The path that does not.
pub fn check(template: &str, has_sample: bool) -> Result<(), String> {
    for piece in pieces(template) {
        let Piece::Path(path) = piece else { continue };
        match path.split(['.', '[']).next().unwrap_or_default() {
            "item" => {}
            "sample" if has_sample => {}
            "sample" => {
                return Err(format!(
                    "{{{{{path}}}}}: there is no sample; set data_source_config.include_sample_schema to true where models are asked"
                ));
            }
            _ => return Err(format!("{{{{{path}}}}}: expected a path that begins with item or sample, such as {{{{item.question}}}}")),
        }
    }
    Ok(())
}

fn pieces(template: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = template;
    while let Some(open) = rest.find("{{") {
        let Some(close) = rest[open + 2..].find("}}") else { break };
        pieces.push(Piece::Text(&rest[..open]));
        pieces.push(Piece::Path(rest[open + 2..open + 2 + close].trim()));
        rest = &rest[open + close + 4..];
    }
    pieces.push(Piece::Text(rest));
    pieces
}

fn look_up<'s>(path: &str, space: &'s Value) -> Result<&'s Value, String> {
    let names = path.split(['.', '[', ']']).map(str::trim).filter(|name| !name.is_empty());
    let step = |found: Option<&'s Value>, name: &str| match found? {
        Value::Array(list) => list.get(name.parse::<usize>().ok()?),
        other => other.get(name),
    };
    names.fold(Some(space), step).ok_or_else(|| format!("{{{{{path}}}}}: there is no such value here"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_are_filled_in() {
        let space = json!({"item": {"q": "Hi", "n": 3, "list": [{"x": "y"}]}, "sample": {"output_text": "{{item.q}}"}});
        assert_eq!(render("{{item.q}} {{ item.n }}, {{item.list[0].x}}{{item.list.0.x}}", &space).as_deref(), Ok("Hi 3, yy"));
        // What is filled in is no template.
        assert_eq!(render("<{{sample.output_text}}>", &space).as_deref(), Ok("<{{item.q}}>"));
        assert_eq!(render("{{item.list}} {{", &space).as_deref(), Ok("[{\"x\":\"y\"}] {{"));
        assert_eq!(value("item.list", &space).map(|found| found[0]["x"].clone()), Ok(json!("y")));
        assert!(render("{{item.gone}}", &space).is_err_and(|error| error.contains("item.gone")));
    }

    #[test]
    fn paths_begin_where_there_is_something() {
        assert!(check("{{item.a}} {{sample.b}}", true).is_ok() && check("no braces", false).is_ok());
        assert!(check("{{sample.b}}", false).is_err_and(|error| error.contains("include_sample_schema")));
        assert!(check("{{items.b}}", true).is_err());
    }
}
