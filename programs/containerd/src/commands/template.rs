//! Texts with `{{function "argument"}}` in them. Of Go's templates: calls of functions, texts in quotes or
//! backquotes, comments, and `{{-`, `-}}`, which take the white space beside them away.

/// What can be called.
pub trait Functions {
    /// The text that a function gives. Nothing for an unknown one; as an error how many arguments it wants.
    fn call(&self, name: &str, arguments: &[String]) -> Option<Result<String, usize>>;
}

/// Fills in.
///
/// # Errors
/// What is wrong with the template.
pub fn expand(template: &str, functions: &impl Functions) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = template;
    let mut trim = false;
    while let Some((before, action)) = rest.split_once("{{") {
        let (before, action) = match action.strip_prefix("- ") {
            Some(action) => (before.trim_end(), action),
            None => (before, action),
        };
        out.push_str(if trim { before.trim_start() } else { before });
        let end = end_of(action).ok_or("template: oci-hook:1: unclosed action")?;
        let (inner, after) =
            (action.get(..end).unwrap_or_default(), action.get(end + 2..).unwrap_or_default());
        let inner = match inner.strip_suffix(" -") {
            Some(inner) => {
                trim = true;
                inner
            }
            None => {
                trim = false;
                inner
            }
        };
        out.push_str(&evaluate(inner.trim(), functions)?);
        rest = after;
    }
    out.push_str(if trim { rest.trim_start() } else { rest });
    Ok(out)
}

/// Where an action ends: `}}` outside of quotes and comments.
fn end_of(action: &str) -> Option<usize> {
    let bytes = action.as_bytes();
    let mut at = 0;
    let mut quote = None;
    if let Some(comment) = action.trim_start().strip_prefix("/*") {
        at = action.len() - comment.len() + comment.find("*/")? + 2;
    }
    while let Some(byte) = bytes.get(at) {
        match (quote, byte) {
            (Some(b'"'), b'\\') => at += 1,
            (Some(open), byte) if open == *byte => quote = None,
            (None, b'"' | b'`') => quote = Some(*byte),
            (None, b'}') if bytes.get(at + 1) == Some(&b'}') => return Some(at),
            _ => {}
        }
        at += 1;
    }
    None
}

fn evaluate(action: &str, functions: &impl Functions) -> Result<String, String> {
    if action.starts_with("/*") {
        return Ok(String::new());
    }
    let words = words(action)?;
    let Some((first, arguments)) = words.split_first() else {
        return Err("template: oci-hook:1: missing value for command".into());
    };
    let name = match first {
        Word::Text(text) if arguments.is_empty() => return Ok(text.clone()),
        Word::Text(text) => return Err(format!("template: oci-hook:1: can't give argument to {text:?}")),
        Word::Name(name) => name,
    };
    let undefined = |name: &str| format!("template: oci-hook:1: function {name:?} not defined");
    let mut texts = Vec::new();
    for argument in arguments {
        texts.push(match argument {
            Word::Text(text) => text.clone(),
            Word::Name(name) => {
                let called = functions.call(name, &[]).ok_or_else(|| undefined(name))?;
                called.map_err(|want| wrong_number(name, want, 0))?
            }
        });
    }
    let called = functions.call(name, &texts).ok_or_else(|| undefined(name))?;
    called.map_err(|want| wrong_number(name, want, texts.len()))
}

fn wrong_number(name: &str, want: usize, got: usize) -> String {
    format!(
        "template: oci-hook:1:2: executing \"oci-hook\" at <{name}>: wrong number of args for {name}: want {want} got {got}"
    )
}

enum Word {
    Name(String),
    Text(String),
}

fn words(action: &str) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    let mut rest = action.trim_start();
    while let Some(first) = rest.chars().next() {
        let (word, length) = match first {
            '"' => quoted(rest)?,
            '`' => {
                let text = rest.get(1..).and_then(|rest| rest.split_once('`')).map(|(text, _)| text);
                let text = text.ok_or("template: oci-hook:1: unterminated raw quoted string")?;
                (Word::Text(text.into()), text.len() + 2)
            }
            c if c.is_alphabetic() || c == '_' => {
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
                (Word::Name(rest.get(..end).unwrap_or_default().into()), end)
            }
            other => return Err(format!("template: oci-hook:1: unexpected {other:?} in command")),
        };
        words.push(word);
        rest = rest.get(length..).unwrap_or_default().trim_start();
    }
    Ok(words)
}

/// A text in quotes at the start, and its length with them.
fn quoted(rest: &str) -> Result<(Word, usize), String> {
    let mut text = String::new();
    let mut characters = rest.char_indices().skip(1);
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Ok((Word::Text(text), at + 1)),
            '\\' => match characters.next() {
                Some((_, 'n')) => text.push('\n'),
                Some((_, 't')) => text.push('\t'),
                Some((_, c @ ('"' | '\\'))) => text.push(c),
                _ => return Err("template: oci-hook:1: malformed string".into()),
            },
            c => text.push(c),
        }
    }
    Err("template: oci-hook:1: unterminated quoted string".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Two;

    impl Functions for Two {
        fn call(&self, name: &str, arguments: &[String]) -> Option<Result<String, usize>> {
            Some(match (name, arguments) {
                ("id", []) => Ok("c1".into()),
                ("id", _) => Err(0),
                ("of", [key]) => Ok(format!("<{key}>")),
                ("of", _) => Err(1),
                _ => return None,
            })
        }
    }

    #[test]
    fn functions_are_filled_in() {
        for (template, text) in [
            ("", ""),
            ("a } b", "a } b"),
            ("{{id}}", "c1"),
            ("x{{ id }}y{{id}}", "xc1yc1"),
            ("x {{- id -}} y", "xc1y"),
            ("{{of \"a}}\\\"b\"}}", "<a}}\"b>"),
            ("{{of `k`}}{{of id}}", "<k><c1>"),
            ("{{\"lit\"}}{{/* }} */}}z", "litz"),
        ] {
            assert_eq!(expand(template, &Two).as_deref(), Ok(text), "{template}");
        }
    }

    #[test]
    fn mistakes_are_told() {
        for (template, message) in [
            ("{{no}}", "template: oci-hook:1: function \"no\" not defined"),
            ("{{id", "template: oci-hook:1: unclosed action"),
            (
                "{{of}}",
                "template: oci-hook:1:2: executing \"oci-hook\" at <of>: wrong number of args for of: want 1 got 0",
            ),
            ("{{}}", "template: oci-hook:1: missing value for command"),
        ] {
            assert_eq!(expand(template, &Two).unwrap_err(), message, "{template}");
        }
        for template in ["{{id \"x\"}}", "{{\"x}}", "{{.ID}}", "{{id | of}}", "{{of \"\\q\"}}"] {
            assert!(expand(template, &Two).is_err(), "{template}");
        }
    }
}
