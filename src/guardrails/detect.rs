//! The detectors: where in a text something stands that should not travel. Each takes time linear in the text, whatever the text says;
//! what a pattern finds is checked by its own rules (check digits, ranges) before it counts. Digits are ASCII digits.

use crate::config::guardrails::Detector;
use crate::types::secrets::{KEY_SHAPES, cards, in_decimal, stands_alone};
use regex::Regex;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::sync::LazyLock;

/// Adds the places where a detector finds something, in order, none overlapping another.
pub fn find(detector: Detector, text: &str, found: &mut Vec<Range<usize>>) {
    match detector {
        Detector::ApiKey => api_keys(text, found),
        Detector::Iban => ibans(text, found),
        Detector::CreditCard => cards(text, found),
        Detector::Email => emails(text, found),
        Detector::UsSsn => ssns(text, found),
        Detector::IpAddress => addresses(text, found),
        Detector::Phone => phones(text, found),
    }
}

fn pattern(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a pattern that the tests compile")
}

fn emails(text: &str, found: &mut Vec<Range<usize>>) {
    static EMAIL: LazyLock<Regex> = LazyLock::new(|| {
        // RFC 5321 without quoted local parts; letters of any script, as internationalised addresses have.
        pattern(r"[\p{L}\p{N}!#$%&'*+/=?^_`{|}~.-]+@(?:[\p{L}\p{N}](?:[\p{L}\p{N}-]{0,61}[\p{L}\p{N}])?\.)+\p{L}[\p{L}\p{N}-]*[\p{L}\p{N}]")
    });
    if memchr::memchr(b'@', text.as_bytes()).is_none() {
        return;
    }
    for place in EMAIL.find_iter(text) {
        // Quotes and slashes in front are the sentence's.
        let local = place.as_str().trim_start_matches(['.', '\'', '`', '/', '=', '{', '|', '*', '?', '&', '-']);
        if !local.starts_with('@') {
            found.push(place.end() - local.len()..place.end());
        }
    }
}

/// Lengths of account numbers by country (ISO 13616, IBAN registry).
const IBAN_LENGTHS: &str = "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 \
    ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 \
    LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 \
    SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30";

fn ibans(text: &str, found: &mut Vec<Range<usize>>) {
    static START: LazyLock<Regex> = LazyLock::new(|| pattern(r"[A-Za-z]{2}[0-9]{2}"));
    let mut at = 0;
    while let Some(start) = START.find_at(text, at) {
        match iban_at(text, start.start()) {
            Some(place) => {
                at = place.end;
                found.push(place);
            }
            None => at = start.start() + 1,
        }
    }
}

/// The account number that begins here: as long as its country's are, its check digits right (ISO 7064, mod 97-10).
fn iban_at(text: &str, start: usize) -> Option<Range<usize>> {
    let bytes = &text.as_bytes()[start..];
    let country = text[start..start + 2].to_ascii_uppercase();
    let length: usize = IBAN_LENGTHS.split_ascii_whitespace().find_map(|entry| entry.strip_prefix(country.as_str()))?.parse().ok()?;
    let (mut characters, mut end) = (Vec::with_capacity(length), 0);
    while characters.len() < length {
        match bytes.get(end)? {
            byte if byte.is_ascii_alphanumeric() => characters.push(byte.to_ascii_uppercase()),
            b' ' | b'-' if bytes.get(end + 1).is_some_and(u8::is_ascii_alphanumeric) => {}
            _ => return None,
        }
        end += 1;
    }
    let place = start..start + end;
    characters.rotate_left(4);
    let step = |rest: u32, character: &u8| match character {
        b'0'..=b'9' => (rest * 10 + u32::from(character - b'0')) % 97,
        _ => (rest * 100 + u32::from(character - b'A') + 10) % 97,
    };
    (stands_alone(text, &place) && characters.iter().fold(0, step) == 1).then_some(place)
}

fn ssns(text: &str, found: &mut Vec<Range<usize>>) {
    static SSN: LazyLock<Regex> = LazyLock::new(|| pattern(r"([0-9]{3})(?:-([0-9]{2})-| ([0-9]{2}) )([0-9]{4})"));
    let mut at = 0;
    while let Some(parts) = SSN.captures_at(text, at) {
        let (whole, part) = (parts.get_match().range(), |number| parts.get(number).map_or("", |part| part.as_str()));
        let group = if part(2).is_empty() { part(3) } else { part(2) };
        // What the Social Security Administration never assigns.
        let assigned = part(1) != "000" && part(1) != "666" && !part(1).starts_with('9') && group != "00" && part(4) != "0000";
        let bounded = stands_alone(text, &whole) && !text[..whole.start].ends_with('-') && !text[whole.end..].starts_with('-');
        at = whole.end;
        if assigned && bounded {
            found.push(whole);
        }
    }
}

fn addresses(text: &str, found: &mut Vec<Range<usize>>) {
    static CANDIDATE: LazyLock<Regex> = LazyLock::new(|| pattern(r"[0-9A-Fa-f:]*[.:][0-9A-Fa-f:.]+"));
    for place in CANDIDATE.find_iter(text) {
        let trimmed = place.as_str().trim_end_matches('.');
        // A colon alone at the end is the sentence's; a double one may be the address's.
        let trimmed = if trimmed.ends_with("::") { trimmed } else { trimmed.trim_end_matches(':') };
        let start = place.start();
        // An IPv4 address with a port.
        let host =
            trimmed.split_once(':').filter(|(host, port)| host.contains('.') && !port.contains(':')).map_or(trimmed, |(host, _)| host);
        let whole = start..start + host.len();
        if stands_alone(text, &whole) && (host.parse::<Ipv4Addr>().is_ok() || is_v6(host)) {
            found.push(whole);
        }
    }
}

/// Whether a text is an IPv6 address, and not a path of a programming language (`a::b`).
fn is_v6(text: &str) -> bool {
    let says_something = text.bytes().any(|byte| byte.is_ascii_digit()) || text.bytes().filter(|byte| *byte == b':').count() > 3;
    says_something && text.parse::<Ipv6Addr>().is_ok()
}

/// Phone numbers: international ones with a plus and 8 to 15 digits (E.164), and North American ones in three groups.
fn phones(text: &str, found: &mut Vec<Range<usize>>) {
    static PHONE: LazyLock<Regex> = LazyLock::new(|| {
        let international = r"\+[1-9](?:[ .\-/]?(?:\(0?[0-9]{1,4}\)|[0-9])){7,14}";
        let american = r"(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[ .-])[2-9][0-9]{2}[ .-][0-9]{4}";
        pattern(&format!("{international}|{american}"))
    });
    for place in PHONE.find_iter(text) {
        let place = place.range();
        let digits = text[place.clone()].bytes().filter(u8::is_ascii_digit).count();
        if stands_alone(text, &place) && !in_decimal(text, &place) && (8..=15).contains(&digits) {
            found.push(place);
        }
    }
}

/// Keys by the shapes that their services give them.
fn api_keys(text: &str, found: &mut Vec<Range<usize>>) {
    static KEY: LazyLock<Regex> = LazyLock::new(|| pattern(&KEY_SHAPES.join("|")));
    found.extend(KEY.find_iter(text).map(|place| place.range()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(detector: Detector, text: &str) -> Vec<&str> {
        let mut found = Vec::new();
        find(detector, text, &mut found);
        found.into_iter().map(|place| &text[place]).collect()
    }

    fn finds(detector: Detector, texts: &[&str]) {
        for text in texts {
            for around in [(*text).to_string(), format!("it is {text}, I think"), format!("({text})"), format!("\"{text}\".")] {
                assert_eq!(all(detector, &around), [*text], "{around}");
            }
        }
    }

    fn passes(detector: Detector, texts: &[&str]) {
        for text in texts {
            assert_eq!(all(detector, text), [""; 0], "{text}");
        }
    }

    #[test]
    fn email_addresses() {
        finds(
            Detector::Email,
            &["ann@example.com", "a.b+c@sub.example.co.uk", "jörg@müller.example", "o'neil@x-y.org", "A_1%z@EXAMPLE.IO"],
        );
        passes(Detector::Email, &["@handle", "a@b", "a@", "3 @ 4.50", "user@localhost", "x@1.2", "foo @example.com"]);
        assert_eq!(all(Detector::Email, "mailto:a@b.de?x=c@d.fr,e@f.it"), ["a@b.de", "x=c@d.fr", "e@f.it"]);
    }

    /// Numbers that card schemes publish for tests.
    #[test]
    fn card_numbers_by_luhn() {
        let numbers =
            ["4111111111111111", "4111 1111 1111 1111", "5555-5555-5555-4444", "378282246310005", "3782 822463 10005", "6011000990139424"];
        finds(Detector::CreditCard, &numbers);
        finds(Detector::CreditCard, &["2223003122003222", "30569309025904", "4222222222222"]);
        passes(
            Detector::CreditCard,
            &["4111111111111112", "0000000000000000", "1700000000000000", "0.4111111111111111", "a4111111111111111"],
        );
        passes(Detector::CreditCard, &["550e8400-e29b-41d4-a716-446655440000", "411111111111111111111111", "4111  1111  1111  1111"]);
        // What stands behind a number is not part of it.
        assert_eq!(all(Detector::CreditCard, "4111 1111 1111 1111 12 27"), ["4111 1111 1111 1111"]);
        assert_eq!(all(Detector::CreditCard, "2026 4111 1111 1111 1111"), ["4111 1111 1111 1111"]);
    }

    /// Examples of the IBAN registry.
    #[test]
    fn account_numbers_by_country_and_check_digits() {
        finds(Detector::Iban, &["DE89370400440532013000", "DE89 3704 0044 0532 0130 00", "GB29 NWBK 6016 1331 9268 19", "NO9386011117947"]);
        finds(Detector::Iban, &["FR1420041010050500013M02606", "gb29nwbk60161331926819", "MT84MALT011000012345MTLCAST001S"]);
        passes(
            Detector::Iban,
            &["DE88370400440532013000", "DE8937040044053201300", "XX89370400440532013000", "DE893704004405320130001", "AB12 is a room"],
        );
        assert_eq!(all(Detector::Iban, "DE89 3704 0044 0532 0130 00 is mine"), ["DE89 3704 0044 0532 0130 00"]);
        assert!(IBAN_LENGTHS.split_ascii_whitespace().all(|entry| entry.len() == 4));
    }

    #[test]
    fn phone_numbers_with_a_plus_or_in_three_groups() {
        finds(Detector::Phone, &["+49 30 901820", "+442071838750", "+1-555-234-5678", "+33 (0)1 23 45 67 89", "+41.44.668.18.00"]);
        finds(Detector::Phone, &["555-234-5678", "(555) 234-5678", "1 555 234 5678", "555.234.5678"]);
        passes(Detector::Phone, &["5552345678", "+12", "1+2345678901", "123-456-7890", "2026-11-25", "+1234567890123456", "555-2345"]);
    }

    #[test]
    fn addresses_of_both_families() {
        finds(Detector::IpAddress, &["10.0.0.1", "255.255.255.255", "2001:db8::1", "fe80::1ff:fe23:4567:890a", "::1", "::ffff:10.0.0.1"]);
        assert_eq!(all(Detector::IpAddress, "at 10.0.0.1:8080: down"), ["10.0.0.1"]);
        passes(Detector::IpAddress, &["1.2.3", "1.2.3.4.5", "256.1.1.1", "12:30:45", "std::vec", "a::b", "v1.2.3.4", "::", "3.14", "f: e"]);
    }

    #[test]
    fn social_security_numbers_that_are_assigned() {
        finds(Detector::UsSsn, &["123-45-6789", "078 05 1120"]);
        passes(
            Detector::UsSsn,
            &["000-12-3456", "666-12-3456", "900-12-3456", "123-00-4567", "123-45-0000", "123456789", "123-45 6789", "1123-45-6789"],
        );
    }

    /// Put together here, so that no scanner takes this file for a leak.
    #[test]
    fn keys_of_services() {
        let keys = [
            ["sk-", "proj-abcdefghij0123456789"].concat(),
            ["sk-", "ant-api03-abcdefghij0123456789_-x"].concat(),
            ["AK", "IAIOSFODNN7EXAMPLE"].concat(),
            ["gh", "p_", &"a1".repeat(18)].concat(),
            ["AI", "za", &"b2_-x".repeat(7)].concat(),
            ["xo", "xb-1234567890-abcdef"].concat(),
            ["rk", "_", &"c".repeat(43)].concat(),
            ["-----BEGIN RSA PRIVATE ", "KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----"].concat(),
            ["ey", "JhbGciOiJIUzI1NiJ9.ey", "JzdWIiOiIxMjM0In0.abcdefghij_-"].concat(),
        ];
        finds(Detector::ApiKey, &keys.each_ref().map(String::as_str));
        passes(
            Detector::ApiKey,
            &["sk-short", "risk-averse-and-a-long-hyphenated-word", "AKIAIOSFODNN7", "ghp_abc", "-----BEGIN PUBLIC KEY-----"],
        );
        let open = ["x -----BEGIN PRIVATE ", "KEY-----\nMIIE"].concat();
        assert_eq!(all(Detector::ApiKey, &open), [&open[2..]]);
    }

    #[test]
    fn texts_made_to_be_slow_are_not() {
        let n = 200_000;
        let evil = ["a@".repeat(n), "a.".repeat(n), "1 ".repeat(n), "4-".repeat(n), "DE12".repeat(n), ":".repeat(n), "+1(".repeat(n)];
        let begin = ["-----BEGIN PRIVATE ", "KEY-----"].concat();
        let began = std::time::Instant::now();
        for text in evil.iter().chain([&begin.repeat(20_000), &"eyJaaaaaaaaaa.".repeat(30_000), &"a@b.cc.".repeat(50_000)]) {
            for detector in Detector::ALL {
                all(detector, text);
            }
        }
        // 70 passes over some 500 KB each, in an unoptimised build.
        assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
    }
}
