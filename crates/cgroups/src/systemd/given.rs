//! Properties of a unit that a container's annotations name: `org.systemd.property.<Name>`, with a value in GVariant's
//! text form (`uint64 1000`, `'text'`, `['a', 'b']`, `true`).

use std::collections::BTreeMap;

use corten_types::{Error, Result};

use super::SECOND;
use super::bus::Value;

const PREFIX: &str = "org.systemd.property.";
/// How deep lists may be nested.
const DEEPEST: usize = 8;

/// Those of all annotations. Names that end with `Sec` are told in microseconds, as systemd has them on its bus.
pub(super) fn properties(annotations: &BTreeMap<String, String>) -> Result<Vec<(String, Value)>> {
    let mut found = Vec::new();
    for (key, text) in annotations {
        let Some(name) = key.strip_prefix(PREFIX) else { continue };
        if name.len() < 3 || !name.bytes().all(|letter| letter.is_ascii_alphabetic()) {
            return Err(Error::invalid_argument(format!("annotation {key} name incorrect")));
        }
        let failed = || Error::invalid_argument(format!("annotation {key}={text} value parse error"));
        let value = parse(text).ok_or_else(failed)?;
        found.push(match name.strip_suffix("Sec").filter(|before| !before.ends_with('U')) {
            Some(before) => (format!("{before}USec"), microseconds(&value).ok_or_else(failed)?),
            None => (name.to_owned(), value),
        });
    }
    Ok(found)
}

fn microseconds(value: &Value) -> Option<Value> {
    let number = match *value {
        Value::Number(seconds) => seconds.checked_mul(SECOND)?,
        Value::Integer(_, seconds) => u64::try_from(seconds).ok()?.checked_mul(SECOND)?,
        Value::Real(seconds) if (0.0..1e12).contains(&seconds) => (seconds * SECOND as f64) as u64,
        _ => return None,
    };
    Some(Value::Number(number))
}

fn parse(text: &str) -> Option<Value> {
    let mut parser = Parser { rest: text };
    let value = parser.value(DEEPEST)?;
    parser.skip();
    parser.rest.is_empty().then_some(value)
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn skip(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// Whether this comes next; it is passed over then.
    fn take(&mut self, mark: char) -> bool {
        self.skip();
        let rest = self.rest.strip_prefix(mark);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn word(&mut self) -> &'a str {
        self.skip();
        let is_part =
            |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '+' | '-' | '.' | '_');
        let end = self.rest.find(|letter| !is_part(letter)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn value(&mut self, deep: usize) -> Option<Value> {
        let deep = deep.checked_sub(1)?;
        self.skip();
        match self.rest.chars().next()? {
            quote @ ('\'' | '"') => self.text(quote).map(Value::Text),
            '[' => self.list(deep),
            '(' => {
                self.take('(');
                self.items(')', deep).map(Value::Tuple)
            }
            '@' => {
                // Only what is empty has to say of what.
                let (kind, rest) = self.rest.strip_prefix('@')?.split_once(' ')?;
                self.rest = rest;
                match (kind.strip_prefix('a'), self.take('[') && self.take(']')) {
                    (Some(of @ ("s" | "b" | "y" | "i" | "u" | "x" | "t" | "d")), true) => {
                        Some(Value::List(of.to_owned(), Vec::new()))
                    }
                    _ => None,
                }
            }
            _ => match self.word() {
                "true" => Some(Value::Switch(true)),
                "false" => Some(Value::Switch(false)),
                word => number(word).or_else(|| {
                    let kind = word;
                    typed(kind, self.word())
                }),
            },
        }
    }

    fn list(&mut self, deep: usize) -> Option<Value> {
        self.take('[');
        let items = self.items(']', deep)?;
        let kind = items.first()?.signature();
        items.iter().all(|item| item.signature() == kind).then_some(Value::List(kind, items))
    }

    fn items(&mut self, end: char, deep: usize) -> Option<Vec<Value>> {
        let mut items = Vec::new();
        while !self.take(end) {
            if !items.is_empty() && !self.take(',') {
                return None;
            }
            // A tuple of one has a comma behind it.
            if items.len() == 1 && end == ')' && self.take(end) {
                break;
            }
            items.push(self.value(deep)?);
        }
        Some(items)
    }

    fn text(&mut self, quote: char) -> Option<String> {
        let mut text = String::new();
        let mut letters = self.rest.char_indices().skip(1);
        while let Some((at, letter)) = letters.next() {
            if letter == quote {
                self.rest = self.rest.get(at + quote.len_utf8()..)?;
                return Some(text);
            }
            text.push(match letter {
                '\\' => match letters.next()?.1 {
                    'n' => '\n',
                    't' => '\t',
                    other @ ('\\' | '\'' | '"') => other,
                    _ => return None,
                },
                other => other,
            });
        }
        None
    }
}

/// A number without a type: whole ones have 32 bits.
fn number(word: &str) -> Option<Value> {
    if !word.starts_with(|letter: char| letter.is_ascii_digit() || matches!(letter, '+' | '-')) {
        return None;
    }
    match word.parse::<i32>() {
        Ok(number) => Some(Value::Integer('i', number.into())),
        Err(_) if word.contains(['.', 'e', 'E']) => word.parse().ok().map(Value::Real),
        Err(_) => None,
    }
}

fn typed(kind: &str, word: &str) -> Option<Value> {
    let (kind, range) = match kind {
        "byte" => ('y', 0..=u8::MAX.into()),
        "int16" => ('n', i16::MIN.into()..=i16::MAX.into()),
        "uint16" => ('q', 0..=u16::MAX.into()),
        "int32" => ('i', i32::MIN.into()..=i32::MAX.into()),
        "uint32" => ('u', 0..=u32::MAX.into()),
        "int64" => ('x', i64::MIN..=i64::MAX),
        "uint64" => return word.parse().ok().map(Value::Number),
        "double" => return word.parse().ok().map(Value::Real),
        _ => return None,
    };
    let number = word.parse::<i64>().ok().filter(|number| range.contains(number));
    number.map(|number| Value::Integer(kind, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_gvariant_writes_them() {
        let text = |text: &str| Value::Text(text.to_owned());
        for (written, expected) in [
            ("true", Value::Switch(true)),
            (" 'it\\'s' ", text("it's")),
            ("\"a\\\\b\"", text("a\\b")),
            ("-7", Value::Integer('i', -7)),
            ("uint64 18446744073709551615", Value::Number(u64::MAX)),
            ("byte 255", Value::Integer('y', 255)),
            ("1.5", Value::Real(1.5)),
            ("['a', 'b']", Value::List("s".into(), vec![text("a"), text("b")])),
            ("@as []", Value::List("s".into(), vec![])),
            (
                "[('x', true)]",
                Value::List("(sb)".into(), vec![Value::Tuple(vec![text("x"), Value::Switch(true)])]),
            ),
            ("(1,)", Value::Tuple(vec![Value::Integer('i', 1)])),
        ] {
            assert_eq!(parse(written), Some(expected), "{written}");
        }
        for bad in [
            "",
            "maybe",
            "'open",
            "[1, 'a']",
            "[]",
            "[1 2]",
            "byte 256",
            "1 2",
            "99999999999",
            "@q []",
            "uint64",
            "'\\x'",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(parse(&"[".repeat(100_000)), None);
    }

    #[test]
    fn annotations_become_properties_and_seconds_microseconds() {
        let annotations = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(key, value)| (format!("{PREFIX}{key}"), (*value).to_owned())).collect()
        };
        let given = annotations(&[
            ("CollectMode", "'inactive-or-failed'"),
            ("TimeoutStopSec", "1.5"),
            ("CPUWeight", "uint64 7"),
        ]);
        let found = properties(&given).unwrap();
        let named = |name: &str| found.iter().find(|one| one.0 == name).map(|one| one.1.clone());
        assert_eq!(named("TimeoutStopUSec"), Some(Value::Number(1_500_000)));
        assert_eq!(named("CPUWeight"), Some(Value::Number(7)));
        assert_eq!(found.len(), 3);
        for (key, value, text) in [
            ("x", "1", "name incorrect"),
            ("Not-A-Name", "1", "name incorrect"),
            ("Name", "what", "value parse error"),
            ("TimeoutStopSec", "'long'", "value parse error"),
        ] {
            let error = properties(&annotations(&[(key, value)])).unwrap_err();
            assert!(error.to_string().contains(text), "{key}: {error}");
        }
        assert!(properties(&BTreeMap::from([("other".into(), "?".into())])).unwrap().is_empty());
    }
}
