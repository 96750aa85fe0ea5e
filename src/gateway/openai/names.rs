//! What the parts of a chat request are called in the request that it was made of. Errors are raised about `messages[1].content`, by
//! our own checks, by a provider's translation and by the provider; their caller wrote `input[0].content` or `prompt`.

use crate::types::{Code, Coded, Failure};

/// Pairs of a path in the chat request and the caller's own.
#[derive(Debug, Clone, Default)]
pub struct Names(Vec<(String, String)>);

impl Names {
    /// What is at `chat` came from `own`, and so did everything below it.
    pub fn add(&mut self, chat: impl Into<String>, own: impl Into<String>) {
        self.0.push((chat.into(), own.into()));
    }

    /// The same failure in the caller's names.
    pub fn told(&self, failure: Failure) -> Failure {
        let Some(param) = self.own_param(&failure) else { return failure };
        let message = renamed(&failure, failure.to_string(), &param);
        let (code, hint, retry_after_s) = (failure.code(), failure.hint(), failure.retry_after_s());
        Failure::from(Renamed { code, message, param, hint, retry_after_s }).of_call_of(&failure)
    }

    /// Field at fault and whole message of a failure, in the caller's names.
    pub fn words(&self, failure: &Failure) -> (Option<String>, String) {
        match self.own_param(failure) {
            Some(param) => {
                let message = renamed(failure, failure.told(), &param);
                (Some(param), message)
            }
            None => (failure.param(), failure.told()),
        }
    }

    fn own_param(&self, failure: &Failure) -> Option<String> {
        self.own(&failure.param()?)
    }

    /// The caller's path, by the longest of the known ones that it is or lies below.
    fn own(&self, param: &str) -> Option<String> {
        let below = |(chat, own): &(String, String)| {
            let rest = param.strip_prefix(chat.as_str())?;
            (rest.is_empty() || rest.starts_with(['.', '['])).then(|| (chat.len(), format!("{own}{rest}")))
        };
        self.0.iter().filter_map(below).max_by_key(|(length, _)| *length).map(|(_, own)| own)
    }
}

/// Once: a message begins with the field or quotes it, and may use the word for other things after that.
fn renamed(failure: &Failure, message: String, own: &str) -> String {
    failure.param().map_or(message.clone(), |param| message.replacen(&param, own, 1))
}

#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Renamed {
    code: Code,
    message: String,
    param: String,
    hint: Option<String>,
    retry_after_s: Option<u64>,
}

impl Coded for Renamed {
    fn code(&self) -> Code {
        self.code
    }
    fn param(&self) -> Option<String> {
        Some(self.param.clone())
    }
    fn hint(&self) -> Option<String> {
        self.hint.clone()
    }
    fn retry_after_s(&self) -> Option<u64> {
        self.retry_after_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_known_path_gives_the_name() {
        let mut names = Names::default();
        names.add("messages", "input");
        names.add("messages[1]", "input[0]");
        names.add("messages[1].content[0].file", "input[0].content[0]");
        let told = |param: &str| {
            let failure = names.told(Failure::on(Code::INVALID_VALUE, param, format!("{param}: not in {param}")).with_hint("h"));
            (failure.param().unwrap_or_default(), failure.told())
        };
        assert_eq!(told("messages[1].role"), ("input[0].role".into(), "input[0].role: not in messages[1].role (h)".into()));
        assert_eq!(told("messages[1].content[0].file.file_data").0, "input[0].content[0].file_data");
        assert_eq!(told("messages[12].role").0, "input[12].role");
        assert_eq!(told("messages_of_another_kind").0, "messages_of_another_kind");
    }
}
