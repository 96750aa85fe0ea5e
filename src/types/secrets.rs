//! What both guardrails and the request log look for, so that neither knows less than the other: card numbers, and the shapes of keys.
//! Not here: what is done about a find, and the detectors that only one of them has.

use std::ops::Range;

/// Keys by the shapes that their services give them, as patterns without look-around.
pub const KEY_SHAPES: [&str; 14] = [
    // A private key without its end is one all the same: up to the end of the text.
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?s:.)*?(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\z)",
    r"\bsk-[A-Za-z0-9_-]{20,}",
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    r"\bgh[pousr]_[A-Za-z0-9]{36,}",
    r"\bgithub_pat_[A-Za-z0-9_]{22,}",
    r"\bglpat-[A-Za-z0-9_-]{20,}",
    r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}",
    r"\bAIza[A-Za-z0-9_-]{35}",
    r"\b[srp]k_(?:live|test)_[A-Za-z0-9]{16,}",
    r"\brk_[A-Za-z0-9_-]{43}",
    r"\bhf_[A-Za-z0-9]{30,}",
    r"\bnpm_[A-Za-z0-9]{36}",
    r"\bgsk_[A-Za-z0-9]{40,}",
    r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
];

/// Whether a place has no letter or digit of the same word beside it.
pub fn stands_alone(text: &str, place: &Range<usize>) -> bool {
    let of_word = |c: char| c.is_alphanumeric() || c == '_';
    !text[..place.start].ends_with(of_word) && !text[place.end..].starts_with(of_word)
}

/// Whether a number goes on beyond a place: `1.` before it or `.1` after it.
pub fn in_decimal(text: &str, place: &Range<usize>) -> bool {
    let bytes = text.as_bytes();
    let digit = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_digit);
    let before = text[..place.start].ends_with('.') && digit(place.start.checked_sub(2));
    before || (text[place.end..].starts_with('.') && digit(Some(place.end + 1)))
}

/// Adds the card numbers of a text: 13 to 19 digits that begin as a card's do (ISO/IEC 7812: 2 to 6) and satisfy the Luhn formula,
/// together or in groups. Takes time linear in the text.
pub fn cards(text: &str, found: &mut Vec<Range<usize>>) {
    let groups = groups(text);
    let mut first = 0;
    while first < groups.len() {
        match card_at(text, &groups[first..]) {
            Some(taken) => {
                found.push(groups[first].at.start..groups[first + taken - 1].at.end);
                first += taken;
            }
            None => first += 1,
        }
    }
}

/// A stretch of digits that no digit touches.
struct Group {
    at: Range<usize>,
    /// One separator, and then the next group.
    goes_on: bool,
}

/// Groups of digits, with whether a space or a hyphen alone is between one and the next.
fn groups(text: &str) -> Vec<Group> {
    let bytes = text.as_bytes();
    let mut groups: Vec<Group> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let length = bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if length == 0 {
            at += 1;
            continue;
        }
        if let Some(last) = groups.last_mut() {
            last.goes_on = last.at.end + 1 == at && matches!(bytes[at - 1], b' ' | b'-');
        }
        groups.push(Group { at: at..at + length, goes_on: false });
        at += length;
    }
    groups
}

/// How many groups from the first one on are a card number; the longest wins.
fn card_at(text: &str, groups: &[Group]) -> Option<usize> {
    let start = groups.first()?.at.start;
    if !matches!(text.as_bytes()[start], b'2'..=b'6') {
        return None;
    }
    let (mut digits, mut longest) = (Vec::with_capacity(19), None);
    for (place, group) in groups.iter().enumerate() {
        if digits.len() + group.at.len() > 19 {
            break;
        }
        digits.extend(text.as_bytes()[group.at.clone()].iter().map(|byte| byte - b'0'));
        let whole = start..group.at.end;
        if digits.len() >= 13 && luhn(&digits) && stands_alone(text, &whole) && !in_decimal(text, &whole) {
            longest = Some(place + 1);
        }
        if !group.goes_on {
            break;
        }
    }
    longest
}

/// The Luhn formula (ISO/IEC 7812-1, annex B).
fn luhn(digits: &[u8]) -> bool {
    let doubled = |digit: u8| if digit > 4 { digit * 2 - 9 } else { digit * 2 };
    let sum: u32 =
        digits.iter().rev().enumerate().map(|(place, digit)| u32::from(if place % 2 == 1 { doubled(*digit) } else { *digit })).sum();
    sum.is_multiple_of(10)
}
