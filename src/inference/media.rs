//! Variables that are images or files. Such a variable stands in the rendered text as a mark that is random per render, which no text
//! can contain, and becomes a part of its message where the template put it: as `{{picture}}` or `{{media url=picture}}`.

use crate::types::chat::{Content, Message};
use serde_json::{Map, Value, json};

/// Parts with the marks that stand for them.
pub(super) struct Media(Vec<(String, Value)>);

impl Media {
    /// Gives each part, by the name of its variable, a mark.
    pub(super) fn mark(parts: Map<String, Value>, variables: &mut Map<String, Value>) -> Self {
        let one = |(name, part): (String, Value)| {
            let mark = format!("media-{:032x}", rand::random::<u128>());
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
        if let Some(url) = part.pointer("/image_url/url").and_then(Value::as_str) {
            let found = self.0.iter().find(|(mark, _)| mark == url);
            return vec![found.map_or(part.clone(), |(_, own)| own.clone())];
        }
        match part.get("text").and_then(Value::as_str) {
            Some(text) => self.split(text),
            None => vec![part],
        }
    }

    /// The text with its marks as parts of their own.
    fn split(&self, text: &str) -> Vec<Value> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((at, mark, part)) =
            self.0.iter().filter_map(|(mark, part)| Some((rest.find(mark)?, mark, part))).min_by_key(|found| found.0)
        {
            if at > 0 {
                parts.push(json!({"type": "text", "text": rest[..at]}));
            }
            parts.push(part.clone());
            rest = &rest[at + mark.len()..];
        }
        if !rest.is_empty() || parts.is_empty() {
            parts.push(json!({"type": "text", "text": rest}));
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
        let parts = vec![json!({"type": "image_url", "image_url": {"url": mark("file")}}), json!({"type": "text", "text": "c"})];
        let with_parts = Message { content: Some(Content::Parts(parts)), ..Message::text("user", "") };
        let mut messages = [Message::text("user", text), Message::text("user", "media-0"), with_parts];
        media.place(&mut messages);
        let placed = serde_json::to_value(&messages).expect("JSON");
        assert_eq!(placed[0]["content"], json!([{"type": "text", "text": "a "}, picture, {"type": "text", "text": " b "}, file]));
        assert_eq!(placed[1]["content"], "media-0", "what is no mark stays text");
        assert_eq!(placed[2]["content"], json!([file, {"type": "text", "text": "c"}]));
    }
}
