//! Tool calls as text: how tools are described to a model whose template knows none, what a reply that calls them must look like, and
//! how calls are read out of a reply as it grows. The notation is that of the Hermes and Qwen families, one block for each call:
//!
//! ```text
//! <tool_call>
//! {"name": "get_weather", "arguments": {"city": "Ulm"}}
//! </tool_call>
//! ```

use super::grammar::with_layout;
use serde_json::{Value, json};

/// Begins a call.
pub const BEGIN: &str = "<tool_call>";
/// Ends a call.
pub const END: &str = "</tool_call>";
/// Calls of one reply, where several are allowed.
pub const MAX_CALLS: usize = 16;

/// A function that a model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Letters, digits, `_` and `-`.
    pub name: String,
    /// JSON Schema of its arguments, an object's.
    pub parameters: Value,
    /// As the caller wrote it: `{"type": "function", "function": {…}}`.
    pub written: Value,
}

/// Which part of a reply a grammar is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// From [`BEGIN`] on.
    Whole,
    /// What follows the first [`BEGIN`].
    AfterBegin,
}

/// A grammar (llguidance's Lark) of one call, or of up to `calls`, of any of the tools; or JSON of the schema `or`.
pub fn grammar(tools: &[Tool], calls: usize, span: Span, or: Option<&Value>) -> String {
    let first = if span == Span::Whole { "call" } else { "rest" };
    let more = if calls > 1 { format!(" more{{0,{}}}", calls - 1) } else { String::new() };
    let format = if or.is_some() { " | format" } else { "" };
    let body: Vec<String> = (0..tools.len()).map(|i| format!("tool_{i}")).collect();
    let mut lines = vec![
        format!("start: {first}{more}{format}"),
        "more: \"\\n\"? call".into(),
        format!("call: \"{BEGIN}\" rest"),
        format!("rest: \"\\n\"? body \"\\n\"? \"{END}\""),
        format!("body: {}", body.join(" | ")),
    ];
    for (i, tool) in tools.iter().enumerate() {
        let head = Value::from(head(&tool.name));
        lines.push(format!("tool_{i}: {head} args_{i} \"}}\""));
        lines.push(format!("args_{i}: %json {}", with_layout(&tool.parameters)));
    }
    if let Some(schema) = or {
        lines.push(format!("format: %json {}", with_layout(schema)));
    }
    lines.join("\n")
}

/// What stands before a call's arguments.
fn head(name: &str) -> String {
    format!("{{\"name\": \"{name}\", \"arguments\": ")
}

/// Tells a model of its tools, for the system message.
pub fn described(tools: &[Value]) -> String {
    let tools: Vec<String> = tools.iter().map(|tool| tool.get("function").unwrap_or(tool).to_string()).collect();
    let example = format!("{BEGIN}\n{}\"argument\": \"value\"}}}}\n{END}", head("function_name").to_owned() + "{");
    format!(
        "You can call these functions:\n{}\nTo call one, answer with nothing but\n{example}\nand you are told what it returned.",
        tools.join("\n")
    )
}

/// A call of an earlier turn, as the model would have written it.
pub fn written(call: &Value) -> String {
    let function = call.get("function").unwrap_or(call);
    let name = function.get("name").and_then(Value::as_str).unwrap_or_default();
    format!("{BEGIN}\n{}{}}}\n{END}", head(name), arguments(function))
}

/// A call's arguments as a value: callers send them as a text that holds JSON.
pub fn arguments(function: &Value) -> Value {
    match function.get("arguments") {
        Some(Value::String(text)) => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
        Some(other) => other.clone(),
        None => json!({}),
    }
}

/// What a reply says, read as it grows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Text for the reader.
    Text(String),
    /// The next call begins; its function.
    Call(String),
    /// More of the arguments of the last call, JSON.
    Arguments(String),
}

/// Reads calls out of a reply.
#[derive(Debug)]
pub struct Reader {
    /// What begins a call of each tool, and its name.
    heads: Vec<(String, String)>,
    state: State,
    /// Read, but what it means depends on what follows.
    held: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Text,
    /// After [`END`]: white space says nothing.
    Between,
    /// After [`BEGIN`].
    Head,
    /// In the arguments: brackets that are open, whether in a text, whether after a backslash.
    Arguments {
        depth: usize,
        quoted: bool,
        escaped: bool,
    },
    /// After the arguments.
    Tail,
}

impl Reader {
    /// A reader of calls of these tools; without any, everything is text.
    pub fn new(tools: &[Tool]) -> Self {
        let heads = tools.iter().map(|tool| (head(&tool.name), tool.name.clone())).collect();
        Reader { heads, state: State::Text, held: String::new() }
    }

    /// Takes more of the reply.
    pub fn push(&mut self, text: &str) -> Vec<Said> {
        self.held.push_str(text);
        let mut said = Vec::new();
        while self.step(&mut said) {}
        said
    }

    /// The reply is over: what is held was text after all, or a call that was cut off before its arguments.
    pub fn finish(&mut self) -> Vec<Said> {
        let held = std::mem::take(&mut self.held);
        if self.state == State::Text && !held.is_empty() { vec![Said::Text(held)] } else { Vec::new() }
    }

    /// Reads on from `held`; returns whether something changed.
    fn step(&mut self, said: &mut Vec<Said>) -> bool {
        match self.state {
            State::Text if self.heads.is_empty() => self.give(self.held.len(), said, Said::Text),
            State::Text => match self.held.find(BEGIN) {
                Some(at) => {
                    self.give(at, said, Said::Text);
                    self.held.drain(..BEGIN.len());
                    self.state = State::Head;
                    true
                }
                None => self.give(self.held.len() - begun(&self.held, BEGIN), said, Said::Text),
            },
            State::Between => {
                let space = self.held.len() - self.held.trim_start().len();
                self.held.drain(..space);
                let goes_on = !self.held.is_empty();
                if goes_on {
                    self.state = State::Text;
                }
                goes_on
            }
            State::Head => self.head(said),
            State::Arguments { .. } => self.arguments(said),
            State::Tail => match self.held.find(END) {
                Some(at) => {
                    self.held.drain(..at + END.len());
                    self.state = State::Between;
                    true
                }
                None => false,
            },
        }
    }

    fn give(&mut self, bytes: usize, said: &mut Vec<Said>, of: fn(String) -> Said) -> bool {
        if bytes > 0 {
            said.push(of(self.held.drain(..bytes).collect()));
        }
        false
    }

    fn head(&mut self, said: &mut Vec<Said>) -> bool {
        let line = usize::from(self.held.starts_with('\n'));
        let written = &self.held[line..];
        if let Some((head, name)) = self.heads.iter().find(|(head, _)| written.starts_with(head.as_str())) {
            said.push(Said::Call(name.clone()));
            let read = line + head.len();
            self.held.drain(..read);
            self.state = State::Arguments { depth: 0, quoted: false, escaped: false };
            return true;
        }
        if !self.heads.iter().any(|(head, _)| head.starts_with(written)) {
            // It was just a word.
            said.push(Said::Text(BEGIN.into()));
            self.state = State::Text;
            return true;
        }
        false
    }

    fn arguments(&mut self, said: &mut Vec<Said>) -> bool {
        let State::Arguments { mut depth, mut quoted, mut escaped } = self.state else { return false };
        for (at, c) in self.held.char_indices() {
            match c {
                _ if escaped => escaped = false,
                '\\' if quoted => escaped = true,
                '"' => quoted = !quoted,
                '{' | '[' if !quoted => depth += 1,
                '}' | ']' if !quoted => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        self.give(at + 1, said, Said::Arguments);
                        self.state = State::Tail;
                        return true;
                    }
                }
                _ => {}
            }
        }
        self.state = State::Arguments { depth, quoted, escaped };
        self.give(self.held.len(), said, Said::Arguments)
    }
}

/// Length of the longest end of a text that begins a word.
fn begun(text: &str, word: &str) -> usize {
    (1..word.len()).rev().find(|n| text.ends_with(&word[..*n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(name: &str) -> Tool {
        Tool { name: name.into(), parameters: json!({"type": "object"}), written: json!({}) }
    }

    /// What is said when a reply comes in pieces of so many characters, neighbours of one kind joined.
    fn read(reply: &str, size: usize) -> Vec<Said> {
        let mut reader = Reader::new(&[tool("get_weather"), tool("get")]);
        let characters: Vec<char> = reply.chars().collect();
        let mut said: Vec<Said> = characters.chunks(size).flat_map(|piece| reader.push(&piece.iter().collect::<String>())).collect();
        said.extend(reader.finish());
        let mut joined: Vec<Said> = Vec::new();
        for one in said {
            match (joined.last_mut(), one) {
                (Some(Said::Text(a)), Said::Text(b)) | (Some(Said::Arguments(a)), Said::Arguments(b)) => a.push_str(&b),
                (_, one) => joined.push(one),
            }
        }
        joined
    }

    #[test]
    fn calls_are_read_alike_however_they_come() {
        let arguments = r#"{"city": "a}\"<tool_call>\\", "days": [1, {"x": 2}]}"#;
        let reply = format!(
            "Well.\n{BEGIN}\n{{\"name\": \"get_weather\", \"arguments\": {arguments}}}\n{END}\n{BEGIN}{{\"name\": \"get\", \"arguments\": {{}}}}{END}"
        );
        let expected = vec![
            Said::Text("Well.\n".into()),
            Said::Call("get_weather".into()),
            Said::Arguments(arguments.into()),
            Said::Call("get".into()),
            Said::Arguments("{}".into()),
        ];
        for size in [1, 2, 3, 7, 1000] {
            assert_eq!(read(&reply, size), expected, "pieces of {size}");
        }
    }

    #[test]
    fn what_only_looks_like_a_call_is_text() {
        for reply in ["a < b <tool", "say <tool_call> to call", "<tool_call>{\"name\": \"other\", \"arguments\": {}}"] {
            for size in [1, 5, 1000] {
                assert_eq!(read(reply, size), [Said::Text(reply.into())], "{reply}");
            }
        }
    }

    #[test]
    fn a_call_that_is_cut_off_keeps_what_was_said() {
        let reply = format!("{BEGIN}\n{{\"name\": \"get\", \"arguments\": {{\"a\": \"b");
        assert_eq!(read(&reply, 4), [Said::Call("get".into()), Said::Arguments("{\"a\": \"b".into())]);
        assert_eq!(read("<tool_call>\n{\"na", 4), []);
    }
}
