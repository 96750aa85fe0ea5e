//! The house rules, checked on the sources as text: no dependencies, a second to run. Every rule is a function from (path, source) to
//! complaints and has a self-test on a made-up offending snippet, so that it is known to be able to fail.

use std::fs;
use std::path::{Path, PathBuf};

/// Rooms and their ranks; a file of the crate root that is not listed (`lib.rs`, `main.rs`) may import everything.
const RANKS: &[(&str, u32)] = &[
    ("types", 0),
    ("stats", 1),
    ("config", 1),
    ("store", 1),
    ("access", 2),
    ("models", 2),
    ("guardrails", 2),
    ("prompts", 2),
    ("datasets", 2),
    ("releases", 2),
    ("monitor", 2),
    ("engine", 2),
    ("providers", 3),
    ("tuning", 3),
    ("inference", 4),
    ("evals", 5),
    ("jobs", 6),
    ("app", 7),
    ("ui", 8),
    ("gateway", 9),
    ("cli", 10),
];
const MAX_FILE_LINES: usize = 800;
const MAX_FUNCTION_LINES: usize = 100;
const MAX_PARAMETERS: usize = 5;

#[test]
fn sources_keep_the_house_rules() {
    let files = sources();
    assert!(files.len() > 20, "found only {} sources", files.len());
    let mut complaints = Vec::new();
    for (path, text) in &files {
        for rule in [imports, engine_is_private, sql_in_store, statuses_in_gateway, sizes, features, opens_with_docs] {
            complaints.extend(rule(path, text));
        }
    }
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn every_room_has_a_rank() {
    let rooms = fs::read_dir(root().join("src")).expect("src").map(|entry| entry.expect("an entry").path());
    for room in rooms.filter(|path| path.is_dir() && !path.ends_with("docs")) {
        let name = room.file_name().and_then(|name| name.to_str()).expect("a name");
        assert!(rank(name).is_some(), "room {name} has no rank in tests/architecture.rs");
    }
}

// ---- rules -------------------------------------------------------------------------------------------------------------------

/// A room imports only from lower ranks.
fn imports(path: &str, text: &str) -> Vec<String> {
    let room = room_of(path);
    let Some(own) = rank(&room) else { return Vec::new() };
    let complain = |(line, named): (usize, String)| {
        let other = rank(&named)?;
        (named != room && other >= own).then(|| format!("{path}:{line}: {room} (rank {own}) imports {named} (rank {other})"))
    };
    rooms_named(path, text).into_iter().filter_map(complain).collect()
}

/// `engine` is named only by itself, `tuning` and `providers/local.rs` with its parts.
fn engine_is_private(path: &str, text: &str) -> Vec<String> {
    let room = room_of(path);
    if ["engine", "tuning", "lib.rs"].contains(&room.as_str()) || path == "providers/local.rs" || path.starts_with("providers/local/") {
        return Vec::new();
    }
    let named = rooms_named(path, text).into_iter().filter(|(_, named)| named == "engine");
    named.map(|(line, _)| format!("{path}:{line}: only tuning and providers/local.rs may name engine")).collect()
}

/// SQL statements stand only in the store.
fn sql_in_store(path: &str, text: &str) -> Vec<String> {
    if room_of(path) == "store" {
        return Vec::new();
    }
    let starts = ["SELECT ", "INSERT INTO ", "DELETE FROM ", "CREATE TABLE ", "ALTER TABLE ", "DROP TABLE ", "PRAGMA "];
    let is_sql = |literal: &str| {
        let literal = literal.trim_start();
        starts.iter().any(|start| literal.starts_with(start)) || (literal.starts_with("UPDATE ") && literal.contains(" SET "))
    };
    let lines = production(text).into_iter();
    lines
        .filter(|(_, line)| line.split('"').skip(1).step_by(2).any(is_sql))
        .map(|(number, _)| format!("{path}:{number}: SQL outside store/"))
        .collect()
}

/// HTTP statuses are emitted through the error table: only `types/error.rs`, `gateway/error.rs` and the providers name them.
fn statuses_in_gateway(path: &str, text: &str) -> Vec<String> {
    if path == "types/error.rs" || path == "gateway/error.rs" || room_of(path) == "providers" {
        return Vec::new();
    }
    let lines = production(text).into_iter();
    lines
        .filter(|(_, line)| line.contains("StatusCode") || line.contains(".status(4") || line.contains(".status(5"))
        .filter(|(_, line)| !["StatusCode::OK", "StatusCode::PARTIAL_CONTENT"].iter().any(|fine| line.contains(fine)))
        .map(|(number, _)| format!("{path}:{number}: HTTP statuses come from the error table (types/error.rs), through gateway/error.rs"))
        .collect()
}

/// Files, functions and parameter lists stay small.
fn sizes(path: &str, text: &str) -> Vec<String> {
    let lines = production(text);
    let mut complaints = Vec::new();
    if lines.len() > MAX_FILE_LINES {
        complaints.push(format!("{path}: {} production lines, more than {MAX_FILE_LINES}", lines.len()));
    }
    for function in functions(&lines) {
        if function.lines > MAX_FUNCTION_LINES {
            complaints.push(format!("{path}:{}: a function of {} lines", function.starts_at, function.lines));
        }
        // Numeric kernels take slices and their sizes; a struct around them hides what is read.
        if function.parameters > MAX_PARAMETERS && !path.starts_with("engine/nn/") {
            complaints.push(format!("{path}:{}: {} parameters; use a struct", function.starts_at, function.parameters));
        }
    }
    complaints
}

/// `#[cfg(feature = …)]` stands only on module declarations and registry lines (one line of a list or a `use`).
fn features(path: &str, text: &str) -> Vec<String> {
    let lines = production(text);
    let mut complaints = Vec::new();
    for (index, (number, line)) in lines.iter().enumerate() {
        if !line.contains("cfg") || !line.contains("feature =") {
            continue;
        }
        let next = lines[index + 1..].iter().map(|(_, next)| next.trim()).find(|next| !next.is_empty() && !next.starts_with("#["));
        let fine = next.is_some_and(|next| {
            let declares = ["pub mod ", "mod ", "use ", "pub use "].iter().any(|start| next.starts_with(start)) && next.ends_with(';');
            declares || next.ends_with(',') || (next.ends_with(';') && next.contains('('))
        });
        if !line.trim_start().starts_with("#[cfg(") || !fine {
            complaints.push(format!("{path}:{number}: cfg(feature) only at module declarations and registry lines"));
        }
    }
    complaints
}

/// Every file says first what it is.
fn opens_with_docs(path: &str, text: &str) -> Vec<String> {
    if text.starts_with("//! ") { Vec::new() } else { vec![format!("{path}:1: the file does not open with `//!`")] }
}

// ---- reading sources ---------------------------------------------------------------------------------------------------------

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every `.rs` file below `src`, by its path there.
fn sources() -> Vec<(String, String)> {
    let mut files = Vec::new();
    collect(&root().join("src"), &mut files);
    files.sort();
    files
}

fn collect(directory: &Path, files: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(directory).expect("a readable directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root().join("src")).expect("below src").to_string_lossy().into_owned();
            files.push((name, fs::read_to_string(&path).expect("UTF-8")));
        }
    }
}

/// First part of the path: a room's folder, `app` for `app.rs`, the file's own name for `lib.rs` and `main.rs`.
fn room_of(path: &str) -> String {
    match path.split_once('/') {
        Some((room, _)) => room.to_string(),
        None => path.strip_suffix(".rs").filter(|name| rank(name).is_some()).unwrap_or(path).to_string(),
    }
}

fn rank(room: &str) -> Option<u32> {
    RANKS.iter().find(|(name, _)| *name == room).map(|(_, rank)| *rank)
}

/// Numbered lines up to the unit tests (`#[cfg(test)]` before `mod tests`), comments blanked.
fn production(text: &str) -> Vec<(usize, String)> {
    let end = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    let blank = |line: &str| if line.trim_start().starts_with("//") { String::new() } else { line.to_string() };
    text[..end].lines().enumerate().map(|(index, line)| (index + 1, blank(line))).collect()
}

/// Rooms a file names: `crate::room…`, the heads of `use crate::{a::…, b}`, and `super::` chains that leave the room.
fn rooms_named(path: &str, text: &str) -> Vec<(usize, String)> {
    let lines = production(text);
    let whole: String = lines.iter().map(|(_, line)| format!("{line}\n")).collect();
    let line_at = |offset: usize| whole[..offset].matches('\n').count() + 1;
    let mut found = Vec::new();
    for (offset, prefix) in whole.match_indices("crate::") {
        if whole[..offset].ends_with('$') || ends_in_identifier(&whole[..offset]) {
            continue;
        }
        let after = &whole[offset + prefix.len()..];
        found.extend(heads(after).into_iter().map(|head| (line_at(offset), head)));
    }
    let depth = path.split('/').count() - usize::from(path.ends_with("/mod.rs"));
    for (offset, _) in whole.match_indices("super::") {
        if whole[..offset].ends_with("super::") {
            continue;
        }
        let chain = &whole[offset..];
        let ups = chain.split("super::").take_while(|part| part.is_empty()).count();
        if ups >= depth {
            found.extend(heads(&chain[ups * "super::".len()..]).into_iter().map(|head| (line_at(offset), head)));
        }
    }
    found
}

/// First segments after `crate::`: one name, or each name of a group.
fn heads(after: &str) -> Vec<String> {
    let identifier = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let Some(group) = after.strip_prefix('{') else { return vec![identifier(after)] };
    let mut depth = 0;
    let mut current = String::new();
    let mut found = Vec::new();
    for c in group.chars() {
        match c {
            '}' if depth == 0 => break,
            ',' if depth == 0 => found.push(std::mem::take(&mut current)),
            _ => {
                depth += i32::from(c == '{') - i32::from(c == '}');
                current.push(c);
            }
        }
    }
    found.push(current);
    found.iter().map(|path| identifier(path.trim())).filter(|name| !name.is_empty()).collect()
}

fn ends_in_identifier(text: &str) -> bool {
    text.chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
}

struct Function {
    starts_at: usize,
    lines: usize,
    parameters: usize,
}

/// Functions with a body, by indentation: from the line with `fn` to the closing brace at the same depth.
fn functions(lines: &[(usize, String)]) -> Vec<Function> {
    let mut found = Vec::new();
    for (index, (number, line)) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let is_function =
            trimmed.starts_with("fn ") || (trimmed.starts_with("pub") || trimmed.starts_with("async ")) && trimmed.contains(" fn ");
        if !is_function {
            continue;
        }
        let indent = &line[..line.len() - trimmed.len()];
        let closing = format!("{indent}}}");
        let one_line = trimmed.ends_with('}') || trimmed.ends_with(';');
        let length = if one_line { 1 } else { lines[index..].iter().position(|(_, end)| *end == closing).map_or(1, |end| end + 1) };
        let signature: String = lines[index..lines.len().min(index + 30)].iter().map(|(_, line)| line.as_str()).collect();
        found.push(Function { starts_at: *number, lines: length, parameters: parameters(&signature) });
    }
    found
}

/// Parameters of a signature other than `self`.
fn parameters(signature: &str) -> usize {
    let Some(name) = signature.find("fn ") else { return 0 };
    let (mut depth, mut angle, mut count, mut current) = (0, 0, 0, String::new());
    let mut last = ' ';
    for c in signature[name..].chars() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            '<' => angle += 1,
            '>' if last != '-' => angle -= 1,
            _ => {}
        }
        let opened = depth == 1 && c == '(' && angle == 0;
        let ended = depth == 0 && c == ')' && angle == 0;
        if ended || (depth == 1 && angle == 0 && c == ',') {
            let text = current.trim();
            count += usize::from(!text.is_empty() && !["self", "&self", "&mut self", "mut self"].contains(&text));
            current.clear();
        } else if !opened && depth > 0 {
            current.push(c);
        }
        if ended {
            return count;
        }
        last = c;
    }
    count
}

// ---- each rule can fail ------------------------------------------------------------------------------------------------------

#[test]
fn rule_imports_catches_higher_and_equal_ranks_in_every_form() {
    assert_eq!(imports("store/x.rs", "use crate::app::App;\n").len(), 1);
    assert_eq!(imports("models/x.rs", "use crate::{store::Store, prompts::{Prompt, other}, types};\n").len(), 1);
    assert_eq!(imports("models/x.rs", "use crate::{\n    gateway,\n    cli::{a, b},\n};\n").len(), 2);
    assert_eq!(imports("models/x.rs", "fn f() { crate::releases::go() }\n").len(), 1);
    assert_eq!(imports("models/mod.rs", "use super::releases;\n").len(), 1);
    assert_eq!(imports("models/x.rs", "use super::super::releases::Gate;\n").len(), 1);
    assert_eq!(imports("evals/scorers/x.rs", "use super::super::super::cli;\n").len(), 1);
    assert_eq!(imports("app.rs", "use crate::gateway;\n").len(), 1);
    assert!(imports("models/x.rs", "use super::releases;\nuse crate::models::y;\nuse crate::store::Db;\n").is_empty());
    assert!(imports("evals/scorers/x.rs", "use super::super::runner;\n// crate::cli is not named\n").is_empty());
}

#[test]
fn rule_engine_is_private_catches_other_rooms() {
    assert_eq!(engine_is_private("cli/demo.rs", "use crate::engine::Engine;\n").len(), 1);
    assert_eq!(engine_is_private("app.rs", "use crate::{engine, config};\n").len(), 1);
    assert_eq!(engine_is_private("providers/mock.rs", "use crate::engine;\n").len(), 1);
    assert!(engine_is_private("providers/local.rs", "use crate::engine;\n").is_empty());
    assert!(engine_is_private("providers/local/embed.rs", "use crate::engine;\n").is_empty());
    assert!(!engine_is_private("providers/locale.rs", "use crate::engine;\n").is_empty());
}

#[test]
fn rule_sql_catches_statements_outside_the_store() {
    assert_eq!(sql_in_store("models/x.rs", "db.query(\"SELECT a FROM b\", &[])\n").len(), 1);
    assert_eq!(sql_in_store("models/x.rs", "db.execute(\"UPDATE a SET b = 1\")\n").len(), 1);
    assert!(sql_in_store("store/x.rs", "db.query(\"SELECT a FROM b\", &[])\n").is_empty());
    assert!(sql_in_store("cli/x.rs", "note(\"SELECTED text\"); note(\"UPDATE the model\")\n").is_empty());
}

#[test]
fn rule_statuses_catches_numbers_outside_the_table() {
    assert_eq!(statuses_in_gateway("gateway/openai/chat.rs", "return StatusCode::BAD_REQUEST;\n").len(), 1);
    assert_eq!(statuses_in_gateway("inference/x.rs", "Response::builder().status(404)\n").len(), 1);
    assert!(statuses_in_gateway("providers/x.rs", "if status == StatusCode::TOO_MANY_REQUESTS {\n").is_empty());
}

#[test]
fn rule_sizes_catches_long_files_long_functions_and_many_parameters() {
    assert_eq!(sizes("a.rs", &"let x = 1;\n".repeat(801)).len(), 1);
    let long = format!("impl A {{\n    pub async fn f(&self) {{\n{}    }}\n}}\n", "        x();\n".repeat(100));
    assert_eq!(sizes("a.rs", &long).len(), 1);
    assert_eq!(sizes("a.rs", "fn f(a: u8, b: fn(u8) -> u8, c: (u8, u8), d: Map<u8, u8>, e: u8, f: u8) {}\n").len(), 1);
    assert!(sizes("a.rs", "fn f(&self, a: u8, b: fn(u8, u8) -> u8, c: (u8, u8), d: Map<u8, u8>, e: u8) {}\n").is_empty());
    let tests = format!("fn f() {{}}\n#[cfg(test)]\nmod tests {{\n{}}}\n", "    x();\n".repeat(900));
    assert!(sizes("a.rs", &tests).is_empty());
}

#[test]
fn rule_features_catches_code_behind_a_feature() {
    assert_eq!(features("a.rs", "#[cfg(feature = \"local\")]\nfn f() {\n}\n").len(), 1);
    assert_eq!(features("a.rs", "    if cfg!(feature = \"local\") {\n").len(), 1);
    assert_eq!(features("a.rs", "#[cfg(feature = \"local\")]\nimpl A {\n}\n").len(), 1);
    assert!(features("a.rs", "#[cfg(feature = \"local\")]\npub mod engine;\n").is_empty());
    assert!(features("a.rs", "    #[cfg(feature = \"local\")]\n    (\"local\", local::build),\n").is_empty());
}

#[test]
fn rule_docs_catches_a_silent_file() {
    assert_eq!(opens_with_docs("a.rs", "use std::fs;\n").len(), 1);
    assert!(opens_with_docs("a.rs", "//! Says what it is.\n").is_empty());
}
