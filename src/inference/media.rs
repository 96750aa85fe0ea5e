//! Variables that are images or files. Such a variable stands in the rendered text as a mark that is random per render, which no text
//! can contain, and becomes a part of its message where the template put it: as `{{picture}}` or `{{media url=picture}}`.

use crate::types::chat::{Content, Message};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// What every mark begins with, and the digits behind it.
const BEGINS: &str = "media-";
const DIGITS: usize = 32;

/// Parts by the marks that stand for them.
pub(super) struct Media(HashMap<String, Value>);

impl Media {
    /// Gives each part, by the name of its variable, a mark.
    pub(super) fn mark(parts: Map<String, Value>, variables: &mut Map<String, Value>) -> Self {
        let one = |(name, part): (String, Value)| {
            let mark = format!("{BEGINS}{:0DIGITS$x}", rand::random::<u128>());
            variables.insert(name, mark.clone().into());
            (mark, part)
        };
        Media(parts.into_iter().map(one).collect())
    }

    /// Puts the parts where their marks stand.
    pub(super) fn place(&self, messages: &mut [Message]) {
        if self.0.is_empty() {
            return;
        }
        for message in messages {
            match &mut message.content {
                Some(Content::Text(text)) => {
                    let parts = self.split(text);
                    if parts.iter().any(|part| part.get("type").is_some_and(|kind| kind != "text")) {
                        message.content = Some(Content::Parts(parts));
                    }
                }
                Some(Content::Parts(parts)) => *parts = parts.drain(..).flat_map(|part| self.of_part(part)).collect(),
                None => {}
            }
        }
    }

    fn of_part(&self, part: Value) -> Vec<Value> {
        let address = part.pointer("/image_url/url").or_else(|| part.pointer("/file/file_data"));
        if let Some(url) = address.and_then(Value::as_str) {
            return vec![self.0.get(url).cloned().unwrap_or(part)];
        }
        match part.get("text").and_then(Value::as_str) {
            Some(text) => self.split(text),
            None => vec![part],
        }
    }

    /// The text with its marks as parts of their own.
    fn split(&self, text: &str) -> Vec<Value> {
        let mut parts = Vec::new();
        let mut done = 0;
        for (at, _) in text.match_indices(BEGINS) {
            let end = at + BEGINS.len() + DIGITS;
            let Some(part) = text.get(at..end).and_then(|mark| self.0.get(mark)) else { continue };
            if at > done {
                parts.push(json!({"type": "text", "text": text[done..at]}));
            }
            parts.push(part.clone());
            done = end;
        }
        if done < text.len() || parts.is_empty() {
            parts.push(json!({"type": "text", "text": text[done..]}));
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_stand_where_their_marks_stood() {
        let (picture, file) = (json!({"type": "image_url", "image_url": {"url": "u"}}), json!({"type": "file", "file": {"file_id": "f"}}));
        let mut variables = Map::new();
        let given = json!({"picture": picture, "file": file}).as_object().expect("an object").clone();
        let media = Media::mark(given, &mut variables);
        let mark = |name: &str| variables[name].as_str().expect("a mark").to_string();
        let text = format!("a {} b {}", mark("picture"), mark("file"));
        let shown = json!({"type": "image_url", "image_url": {"url": mark("file")}});
        let typed = json!({"type": "file", "file": {"filename": "file.png", "file_data": mark("picture")}});
        let parts = vec![shown, typed, json!({"type": "text", "text": "c"})];
        let with_parts = Message { content: Some(Content::Parts(parts)), ..Message::text("user", "") };
        let mut messages = [Message::text("user", text), Message::text("user", "media-0"), with_parts];
        media.place(&mut messages);
        let placed = serde_json::to_value(&messages).expect("JSON");
        assert_eq!(placed[0]["content"], json!([{"type": "text", "text": "a "}, picture, {"type": "text", "text": " b "}, file]));
        assert_eq!(placed[1]["content"], "media-0", "what is no mark stays text");
        assert_eq!(placed[2]["content"], json!([file, picture, {"type": "text", "text": "c"}]));
    }
}
