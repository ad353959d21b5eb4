//! Durations as configuration files write them: `1h2m3.5s`, `100ms`, `0s`.

use std::time::Duration;

use corten_types::{Error, Result};
use serde::{Deserialize, Deserializer, Serializer};

/// Units and their nanoseconds, the longer name of two with the same start first.
const UNITS: [(&str, u128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads a duration. What is below zero counts as none.
///
/// # Errors
/// InvalidArgument for anything else.
pub fn parse(text: &str) -> Result<Duration> {
    let invalid = || Error::invalid_argument(format!("time: invalid duration {text:?}"));
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut nanoseconds: u128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
        let (number, tail) = rest.split_at(digits);
        let unit = UNITS.iter().find(|(name, _)| tail.starts_with(name)).ok_or_else(invalid)?;
        nanoseconds = nanoseconds.saturating_add(scaled(number, unit.1).ok_or_else(invalid)?);
        rest = tail.get(unit.0.len()..).unwrap_or_default();
    }
    if nanoseconds > i64::MAX as u128 {
        return Err(invalid());
    }
    Ok(if negative { Duration::ZERO } else { Duration::from_nanos(nanoseconds as u64) })
}

/// A decimal number times a unit, less than a nanosecond dropped.
fn scaled(number: &str, unit: u128) -> Option<u128> {
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && part.is_empty() || part.contains('.') {
        return None;
    }
    let mut total = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()? as u128 * unit };
    let mut place = unit;
    for digit in part.bytes() {
        place /= 10;
        total += u128::from(digit - b'0') * place;
    }
    Some(total)
}

/// Writes a duration: `1m0s`, `100ms`, `0s`.
#[must_use]
pub fn format(duration: Duration) -> String {
    let nanoseconds = duration.as_nanos();
    let fraction = |unit: u128, name: &str| {
        let text = format!("{}.{:0width$}", nanoseconds / unit, nanoseconds % unit, width = digits(unit));
        format!("{}{name}", text.trim_end_matches('0').trim_end_matches('.'))
    };
    match nanoseconds {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanoseconds}ns"),
        1_000..1_000_000 => fraction(1_000, "µs"),
        1_000_000..1_000_000_000 => fraction(1_000_000, "ms"),
        _ => {
            let (hours, minutes) = (duration.as_secs() / 3600, duration.as_secs() / 60 % 60);
            let seconds = format!("{}.{:09}", duration.as_secs() % 60, duration.subsec_nanos());
            let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
            match (hours, minutes) {
                (0, 0) => format!("{seconds}s"),
                (0, _) => format!("{minutes}m{seconds}s"),
                _ => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

fn digits(unit: u128) -> usize {
    unit.ilog10() as usize
}

/// For fields with `#[serde(with = "corten_config::duration")]`.
///
/// # Errors
/// What is no duration.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Duration, D::Error> {
    parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

/// The counterpart of [`deserialize`].
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*duration))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, nanoseconds) in [
            ("0", 0),
            ("0s", 0),
            ("10s", 10_000_000_000),
            ("1m0s", 60_000_000_000),
            ("1h2m3.5s", 3_723_500_000_000),
            ("1.5h", 5_400_000_000_000),
            (".5s", 500_000_000),
            ("100ms", 100_000_000),
            ("3us4ns", 3_004),
            ("2µs", 2_000),
            ("-3s", 0),
            ("+3s", 3_000_000_000),
        ] {
            assert_eq!(parse(text).unwrap(), Duration::from_nanos(nanoseconds), "{text}");
        }
        for text in ["", "3", "s", "3 apples", "3x", ".s", "1.2.3s", "-", "99999999999999999999h", "9999999h"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_written_in_the_shortest_units() {
        for (text, nanoseconds) in [
            ("0s", 0),
            ("3ns", 3),
            ("1.5µs", 1_500),
            ("100ms", 100_000_000),
            ("1.5s", 1_500_000_000),
            ("1m0s", 60_000_000_000),
            ("5m0s", 300_000_000_000),
            ("4h0m0s", 14_400_000_000_000),
        ] {
            assert_eq!(format(Duration::from_nanos(nanoseconds)), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(nanoseconds in 0..i64::MAX as u64) {
            let duration = Duration::from_nanos(nanoseconds);
            prop_assert_eq!(parse(&format(duration)).unwrap(), duration);
        }

        #[test]
        fn no_text_breaks_the_reader(text in "\\PC*") {
            drop(parse(&text));
        }
    }
}
