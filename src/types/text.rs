//! Texts in JSON that are looked at but not kept.

use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};
use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

/// A text, borrowed where it stands as it is, which it does unless something in it is escaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text<'a>(pub Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Borrowed;
        impl<'de> Visitor<'de> for Borrowed {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_string())))
            }
        }
        deserializer.deserialize_str(Borrowed)
    }
}

/// A text, whatever it says: how many bytes it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IsText(pub u64);

impl<'de> Deserialize<'de> for IsText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Length;
        impl Visitor<'_> for Length {
            type Value = IsText;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<IsText, E> {
                Ok(IsText(text.len() as u64))
            }
        }
        deserializer.deserialize_str(Length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_borrowed_unless_something_in_it_is_escaped() {
        let read = |json: &'static str| serde_json::from_str::<Text<'_>>(json).expect("a text").0;
        assert!(matches!(read(r#""plain""#), Cow::Borrowed("plain")));
        assert_eq!(read(r#""a\nb""#), Cow::<str>::Owned("a\nb".to_string()));
        assert_eq!(serde_json::from_str::<IsText>(r#""a\nb\u00e9""#).expect("a text"), IsText(5));
        assert!(serde_json::from_str::<IsText>("7").is_err() && serde_json::from_str::<Text<'_>>("null").is_err());
    }
}
