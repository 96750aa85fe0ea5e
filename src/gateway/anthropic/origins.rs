//! Where the fields of a chat request stood in the message request that it was made of, so that an error names the field that the
//! caller wrote.

use crate::types::Failure;

/// Fields that stand alone, by their names as a chat request has them.
const NAMES: &[(&str, &str)] = &[
    ("max_completion_tokens", "max_tokens"),
    ("stop", "stop_sequences"),
    ("reasoning_effort", "output_config.effort"),
    ("response_format.json_schema", "output_config.format"),
    ("response_format", "output_config.format"),
    ("parallel_tool_calls", "tool_choice.disable_parallel_tool_use"),
    ("user", "metadata.user_id"),
];
/// Ends of paths below a tool.
const OF_TOOL: &[(&str, &str)] =
    &[(".function.name", ".name"), (".function.parameters", ".input_schema"), (".function.description", ".description"), (".function", "")];

/// All of a request.
#[derive(Debug, Clone, Default)]
pub(super) struct Origins {
    pub(super) messages: Vec<Origin>,
    /// A prompt puts its own messages before, so that the provider counts others than the caller.
    pub(super) moved: bool,
}

/// Of one chat message.
#[derive(Debug, Clone, Default)]
pub(super) struct Origin {
    /// Path of what it was made of.
    pub(super) path: String,
    /// Path of the list that its parts come from.
    pub(super) content: String,
    /// Position in that list, a part.
    pub(super) parts: Vec<usize>,
    /// Position in that list, a call.
    pub(super) calls: Vec<usize>,
}

impl Origin {
    /// A message's path in the caller's request, `rest` being the path below the chat message.
    fn name(&self, rest: &str) -> Option<String> {
        if let Some((part, below)) = rest.strip_prefix(".content").and_then(indexed) {
            // Both kinds of data come from the block's source.
            let below = below.replace(".image_url.url", ".source").replace(".file.file_data", ".source");
            return Some(format!("{}[{}]{below}", self.content, self.parts.get(part)?));
        }
        if let Some((call, below)) = rest.strip_prefix(".tool_calls").and_then(indexed) {
            let below = below.replace(".function.arguments", ".input").replace(".function.name", ".name");
            return Some(format!("{}[{}]{below}", self.content, self.calls.get(call)?));
        }
        Some(match rest {
            ".content" => self.content.clone(),
            ".tool_call_id" => format!("{}.tool_use_id", self.path),
            rest => format!("{}{rest}", self.path),
        })
    }
}

impl Origins {
    /// The failure with its field named as the caller wrote it, also in its text.
    pub(super) fn told(&self, failure: Failure) -> Failure {
        let Some((name, text)) = self.renamed(&failure) else { return failure };
        let told = Failure::on(failure.code(), name, text);
        let told = match failure.hint() {
            Some(hint) => told.with_hint(hint),
            None => told,
        };
        told.of_call_of(&failure)
    }

    /// The text of [`Origins::told`], for an event.
    pub(super) fn text(&self, failure: &Failure) -> String {
        let Some((_, text)) = self.renamed(failure) else { return failure.told() };
        match failure.hint() {
            Some(hint) => format!("{text} ({hint})"),
            None => text,
        }
    }

    fn renamed(&self, failure: &Failure) -> Option<(String, String)> {
        let param = failure.param().filter(|_| failure.retry_after_s().is_none())?;
        let name = self.name(&param).filter(|name| *name != param)?;
        let text = failure.to_string();
        // A short name may be a word of the text.
        let text = match param.contains(['[', '.', '_']) {
            true => text.replace(&param, &name),
            false => text.replace(&format!("\"{param}\""), &format!("\"{name}\"")).replace(&format!("{param}:"), &format!("{name}:")),
        };
        Some((name, text))
    }

    fn name(&self, param: &str) -> Option<String> {
        if let Some((message, rest)) = param.strip_prefix("messages").and_then(indexed) {
            return self.messages.get(message).filter(|_| !self.moved)?.name(rest);
        }
        if let Some((tool, rest)) = param.strip_prefix("tools").and_then(indexed) {
            let (_, rest) = OF_TOOL.iter().find(|(end, _)| rest == *end)?;
            return Some(format!("tools[{tool}]{rest}"));
        }
        let below = |name: &str| param.strip_prefix(name).filter(|rest| rest.is_empty() || rest.starts_with('.'));
        NAMES.iter().find_map(|(chat, own)| below(chat).map(|rest| format!("{own}{rest}")))
    }
}

/// `[3].x` as 3 and `.x`.
fn indexed(path: &str) -> Option<(usize, &str)> {
    let (index, rest) = path.strip_prefix('[')?.split_once(']')?;
    Some((index.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Code;

    #[test]
    fn a_field_is_named_as_the_caller_wrote_it() {
        let turn = Origin { path: "messages[1]".into(), content: "messages[1].content".into(), parts: vec![2], calls: vec![3] };
        let result = Origin { path: "messages[2].content[0]".into(), content: "messages[2].content[0].content".into(), ..turn.clone() };
        let origins = Origins { messages: vec![Origin::default(), turn, result], moved: false };
        let told = |param: &str| origins.told(Failure::on(Code::INVALID_VALUE, param, format!("p/m: {param}: no"))).to_string();
        assert_eq!(told("messages[1].content[0].image_url.url"), "p/m: messages[1].content[2].source: no");
        assert_eq!(told("messages[1].tool_calls[0].function.arguments"), "p/m: messages[1].content[3].input: no");
        assert_eq!(told("messages[2].tool_call_id"), "p/m: messages[2].content[0].tool_use_id: no");
        assert_eq!(told("tools[4].function.parameters"), "p/m: tools[4].input_schema: no");
        assert_eq!(told("response_format.json_schema.schema"), "p/m: output_config.format.schema: no");
        assert_eq!(told("stop"), "p/m: stop_sequences: no");
        assert_eq!(told("top_k"), "p/m: top_k: no");
        assert_eq!(told("messages[9].content"), "p/m: messages[9].content: no");
    }
}
