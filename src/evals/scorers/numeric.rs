//! `numeric`: the number in the answer is the number in the target. Options:
//! - `pick`: `last` (the default) or `first` number of the text, or `only`, when there must be one;
//! - `marker`: a text such as `####` or `A:` that the number follows, after its last occurrence;
//! - `pattern`: a regular expression whose first group holds the number (its last match);
//! - `tolerance` and `relative`: how far it may be off, in the unit of the number and as a share of the target; the wider one counts;
//! - `decimal`: `point` (the default) or `comma`.
//!
//! Thousands separators, currency signs and units around the number are passed over. `12 %` equals `12 %`, `12` and `0.12`.

use super::{Case, Options, Pure, Scale, Scored, Scorer};
use regex::Regex;
use serde_json::Value;
use std::sync::LazyLock;

struct Numeric {
    name: String,
    place: Place,
    pick: &'static str,
    tolerance: f64,
    relative: f64,
    comma: bool,
}

/// Where in a text the number is.
enum Place {
    Anywhere,
    Marker(String),
    Pattern(Regex),
}

pub(super) fn build(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    let place = match (options.text("marker")?, options.pattern("pattern")?) {
        (None, None) => Place::Anywhere,
        (Some(marker), None) if marker.is_empty() => return Err("marker is empty".into()),
        (Some(marker), None) => Place::Marker(marker),
        (None, Some(pattern)) => Place::Pattern(pattern),
        _ => return Err("give one of marker and pattern".into()),
    };
    let first = ["last", "first", "only"];
    let pick = match place {
        // What follows a marker is the number next to it.
        Place::Marker(_) => options.choice("pick", &["first", "last", "only"])?,
        _ => options.choice("pick", &first)?,
    };
    let tolerance = options.number("tolerance", 0.0)?.unwrap_or(0.0);
    let relative = options.number("relative", 0.0)?.unwrap_or(0.0);
    let comma = options.choice("decimal", &["point", "comma"])? == "comma";
    options.finish()?;
    Ok(Box::new(Numeric { name, place, pick, tolerance, relative, comma }))
}

impl Pure for Numeric {
    fn metrics(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn scale(&self, _metric: &str) -> Scale {
        Scale::Pass
    }

    fn look(&self, case: &Case<'_>) -> Result<Scored, String> {
        let wanted = match case.target {
            Value::Number(number) => Number::read(&number.to_string(), false),
            Value::Null => return Err("the sample has no target".into()),
            // A target is the number itself, or a text that is read as the answer is; one that lacks the marker may be just the number.
            other => {
                let text = super::case::text_of(other);
                self.find(&text).or_else(|| last(&text, self.comma))
            }
        };
        let wanted = wanted.ok_or("the target has no number")?;
        let Some(found) = self.find(case.output()) else { return Ok(Scored::from(false).because("no number in the answer")) };
        let passed = self.equal(&found, &wanted);
        let scored = Scored::from(passed);
        Ok(if passed { scored } else { scored.because(format!("found {}, expected {}", found.shown(), wanted.shown())) })
    }
}

impl Numeric {
    /// The number of a text; none where there is none at its place.
    fn find(&self, text: &str) -> Option<Number> {
        let part = match &self.place {
            Place::Anywhere => text,
            Place::Marker(marker) => &text[text.rfind(marker.as_str())? + marker.len()..],
            Place::Pattern(pattern) => {
                let last = pattern.captures_iter(text).last()?;
                last.get(1).or_else(|| last.get(0))?.as_str()
            }
        };
        let mut numbers = numbers(part, self.comma);
        match self.pick {
            "first" => numbers.next(),
            "only" => numbers.next().filter(|_| numbers.next().is_none()),
            _ => numbers.last(),
        }
    }

    fn equal(&self, found: &Number, wanted: &Number) -> bool {
        if self.near(found, wanted) {
            return true;
        }
        // Only one of them is written in per cent: they may mean the same.
        match (found.percent, wanted.percent) {
            (true, false) => self.near(&found.hundredth(), wanted),
            (false, true) => self.near(found, &wanted.hundredth()),
            _ => false,
        }
    }

    fn near(&self, found: &Number, wanted: &Number) -> bool {
        let room = self.tolerance.max(self.relative * wanted.value.abs());
        // Without room the digits decide: f64 would make neighbours of large whole numbers equal.
        found.digits == wanted.digits || (room > 0.0 && (found.value - wanted.value).abs() <= room * (1.0 + 1e-12))
    }
}

/// A number as it was written.
#[derive(Debug, Clone, PartialEq)]
struct Number {
    value: f64,
    /// One form for equal numbers: sign, digits without zeros that say nothing.
    digits: String,
    percent: bool,
}

impl Number {
    /// Reads digits with separators; `comma` says that the comma is the decimal sign.
    fn read(text: &str, comma: bool) -> Option<Self> {
        let (decimal, thousands) = if comma { (',', '.') } else { ('.', ',') };
        let plain: String = text
            .chars()
            .filter(|c| *c != thousands && !matches!(c, '\'' | '’' | '_' | ' ' | '\u{a0}' | '\u{202f}'))
            .map(|c| if c == decimal { '.' } else { c })
            .map(|c| if matches!(c, '−' | '–') { '-' } else { c })
            .collect();
        let value: f64 = plain.parse().ok().filter(|value: &f64| value.is_finite())?;
        Some(Number { value, digits: canonical(&plain, value), percent: false })
    }

    fn hundredth(&self) -> Self {
        let value = self.value / 100.0;
        // Rounded to what decimals of this length can say, so that 7 / 100 is 0.07.
        let text = format!("{value:.12}");
        Number { value, digits: canonical(&text, value), percent: false }
    }

    fn shown(&self) -> String {
        format!("{}{}", self.digits, if self.percent { " %" } else { "" })
    }
}

/// One form for equal numbers.
fn canonical(plain: &str, value: f64) -> String {
    if plain.contains(['e', 'E']) {
        return canonical(&format!("{value}"), value);
    }
    let (sign, digits) = plain.strip_prefix('-').map_or(("", plain), |digits| ("-", digits));
    let (whole, fraction) = digits.trim_start_matches('+').split_once('.').unwrap_or((digits.trim_start_matches('+'), ""));
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    match (whole, fraction) {
        ("", "") => "0".into(),
        (whole, "") => format!("{sign}{whole}"),
        (whole, fraction) => format!("{sign}{}.{fraction}", if whole.is_empty() { "0" } else { whole }),
    }
}

/// Digits in groups of three, or any digits; then decimals and an exponent; a sign before, per cent after.
fn pattern(comma: bool) -> &'static Regex {
    static POINT: LazyLock<Regex> = LazyLock::new(|| form(r"\.", r",'’_\u{a0}\u{202f}"));
    static COMMA: LazyLock<Regex> = LazyLock::new(|| form(",", r".'’_\u{a0}\u{202f}"));
    if comma { &COMMA } else { &POINT }
}

fn form(decimal: &str, groups: &str) -> Regex {
    let whole = format!(r"\d{{1,3}}(?:[{groups}]\d{{3}})+\b|\d+");
    let source = format!(r"(?<sign>[-−–])?[$€£¥₹]?(?<number>(?:{whole})?(?:{decimal}\d+)?(?:[eE][-+]?\d+)?)(?<percent>\s?%)?");
    Regex::new(&source).expect("the pattern is a constant")
}

/// The numbers of a text, in order.
fn numbers(text: &str, comma: bool) -> impl Iterator<Item = Number> {
    pattern(comma).captures_iter(text).filter_map(move |found: regex::Captures<'_>| {
        let digits = found.name("number").filter(|digits| digits.as_str().contains(|c: char| c.is_ascii_digit()))?;
        let before = text[..found.get(0)?.start()].chars().next_back();
        // A dash after a word or a number joins or takes away: 3-4, gpt-4, 10 – 12. Only one that stands free is a sign.
        let joins = before.is_some_and(|c| c.is_alphanumeric() || matches!(c, ')' | ']' | '%'));
        let sign = if found.name("sign").is_some() && !joins { "-" } else { "" };
        let mut number = Number::read(&format!("{sign}{}", digits.as_str()), comma)?;
        number.percent = found.name("percent").is_some();
        Some(number)
    })
}

fn last(text: &str, comma: bool) -> Option<Number> {
    numbers(text, comma).last()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{look, refused};
    use super::*;
    use serde_json::json;

    fn passes(options: Value, output: &str, target: Value) -> bool {
        look(&json!({"numeric": options}), output, target).expect("a score").values == [Some(1.0)]
    }

    #[test]
    fn numbers_are_read_as_people_write_them() {
        let read = |text: &str| numbers(text, false).map(|number| number.digits).collect::<Vec<_>>();
        for (text, expected) in [
            ("It costs $1,234.50 in all.", vec!["1234.5"]),
            ("from 3 to -4.0, or −5", vec!["3", "-4", "-5"]),
            ("16-3-4=9", vec!["16", "3", "4", "9"]),
            ("gpt-4 says .5 and 1e3", vec!["4", "0.5", "1000"]),
            ("1'000'000 or 1 000 or 1_000", vec!["1000000", "1", "0", "1000"]),
            ("-$5 and $-7", vec!["-5", "-7"]),
            ("007 and 0.50 and -0", vec!["7", "0.5", "0"]),
            ("1,2,3 and 12,34", vec!["1", "2", "3", "12", "34"]),
            ("version 1.2.3", vec!["1.2", "0.3"]),
            ("none", vec![]),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
        assert_eq!(numbers("1.234,5", true).map(|number| number.digits).collect::<Vec<_>>(), ["1234.5"]);
    }

    #[test]
    fn the_place_of_the_number_can_be_said() {
        assert!(passes(json!({}), "3 plus 4 is 7.", json!(7)) && !passes(json!({}), "7 is 3 plus 4", json!(7)));
        assert!(passes(json!({"pick": "first"}), "7 is 3 plus 4", json!("7")));
        assert!(passes(json!({"marker": "####"}), "9 * 2 = 18\n#### 18 eggs of 20", json!("so 9 * 2\n#### 18")));
        assert!(!passes(json!({"marker": "####"}), "9 * 2 = 18", json!(18)), "no marker is no answer");
        assert!(passes(json!({"pattern": "answer is (\\S+)"}), "the answer is 1,000.", json!(1000)));
        assert!(!passes(json!({"pick": "only"}), "3 or 4", json!(4)) && passes(json!({"pick": "only"}), "it is 4", json!(4)));
        let none = look(&json!("numeric"), "no idea", json!(4)).expect("a score");
        assert_eq!((none.values, none.explanation.as_deref()), (vec![Some(0.0)], Some("no number in the answer")));
    }

    #[test]
    fn tolerance_percent_and_large_numbers() {
        assert!(passes(json!({"tolerance": 0.01}), "3.14", json!(3.15)) && !passes(json!({"tolerance": 0.009}), "3.14", json!(3.15)));
        assert!(passes(json!({"relative": 0.05}), "104", json!(100)) && !passes(json!({"relative": 0.05}), "106", json!(100)));
        for (output, target) in [("12%", json!("12 %")), ("12 %", json!(12)), ("12%", json!(0.12)), ("0.07", json!("7%"))] {
            assert!(passes(json!({}), output, target.clone()), "{output} {target}");
        }
        assert!(!passes(json!({}), "12", json!(0.12)) && !passes(json!({}), "12%", json!("0.12%")));
        assert!(!passes(json!({}), "9007199254740993", json!("9007199254740992")), "neighbours in f64");
        assert!(passes(json!({}), "1e3", json!("1,000.00")) && passes(json!({"decimal": "comma"}), "1.234,50", json!("1234,5")));
    }

    #[test]
    fn what_cannot_be_scored_is_an_error_and_what_cannot_be_meant_is_refused() {
        assert!(look(&json!("numeric"), "4", json!("none")).is_err_and(|problem| problem.contains("the target has no number")));
        assert!(look(&json!("numeric"), "4", json!(null)).is_err_and(|problem| problem.contains("no target")));
        assert!(refused(json!({"numeric": {"tolerance": -1}})).contains("tolerance must be a number of at least 0"));
        assert!(refused(json!({"numeric": {"pick": "lost"}})).contains("did you mean \"last\"?"));
        assert!(refused(json!({"numeric": {"marker": "#", "pattern": "x"}})).contains("give one of marker and pattern"));
        assert!(refused(json!({"numeric": {"pattern": "("}})).contains("pattern: "));
    }
}
