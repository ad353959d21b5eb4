//! The filter language of every `filters` field (spec 01 §0.5).

use std::borrow::Cow;
use std::collections::BTreeSet;

use regex::Regex;

use crate::error::{Error, Result};

/// What a filter is evaluated against.
pub trait Fields {
    /// Value of the field at `path`, or nothing when the field is absent.
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>>;
}

/// Any of several alternatives, each a conjunction of selectors.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    alternatives: Vec<Vec<Selector>>,
    everything: bool,
}

#[derive(Clone, Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    /// Nothing for a pattern that is none: it matches nothing.
    Matches(Option<Regex>),
}

impl Filter {
    /// Parses the entries of a `filters` request field: entries are alternatives, no entry or an
    /// empty one passes everything.
    ///
    /// # Errors
    /// InvalidArgument `filters: parse error: …`.
    pub fn parse<S: AsRef<str>>(entries: &[S]) -> Result<Self> {
        let mut filter = Self { alternatives: Vec::new(), everything: entries.is_empty() };
        for entry in entries {
            let entry = entry.as_ref();
            if entry.is_empty() {
                filter.everything = true;
            } else {
                filter.alternatives.push(Parser::new(entry).parse()?);
            }
        }
        Ok(filter)
    }

    /// The values that a field must have, when nothing passes with another one: what an index can look up.
    #[must_use]
    pub fn values(&self, field: &str) -> Option<BTreeSet<&str>> {
        if self.everything {
            return None;
        }
        // Of two different values in one alternative either may be looked up: nothing passes both.
        self.alternatives.iter().map(|all| all.iter().find_map(|selector| selector.value(field))).collect()
    }

    /// Whether the object passes.
    pub fn matches(&self, object: &dyn Fields) -> bool {
        self.everything
            || self.alternatives.iter().any(|all| all.iter().all(|selector| selector.matches(object)))
    }
}

impl Selector {
    /// What the field must be equal to.
    fn value(&self, field: &str) -> Option<&str> {
        match &self.test {
            Test::Equal(value) if self.path == [field] => Some(value),
            _ => None,
        }
    }

    fn matches(&self, object: &dyn Fields) -> bool {
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let value = object.field(&path);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value.is_some_and(|value| value == wanted.as_str()),
            Test::NotEqual(unwanted) => value.unwrap_or_default() != unwanted.as_str(),
            Test::Matches(pattern) => {
                pattern.as_ref().is_some_and(|pattern| pattern.is_match(&value.unwrap_or_default()))
            }
        }
    }
}

/// The field that a path names in an object with string fields and a map under `labels`.
pub fn label<'a>(
    path: &[&str],
    labels: &'a std::collections::BTreeMap<String, String>,
) -> Option<Cow<'a, str>> {
    labels.get(&path.join(".")).map(|value| Cow::Borrowed(value.as_str()))
}

/// A string field counts as present only when it is not empty.
pub fn text(value: &str) -> Option<Cow<'_, str>> {
    (!value.is_empty()).then_some(Cow::Borrowed(value))
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    End,
    Quoted(String),
    Word(String),
    Separator(char),
    Operator(String),
    /// What is no token at all.
    Other(char),
    /// What is no token, and why.
    Illegal(&'static str),
}

struct Parser<'a> {
    text: &'a str,
    position: usize,
    /// Where the token that was read last begins.
    start: usize,
    /// A value follows: everything up to white space or a comma.
    value: bool,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, position: 0, start: 0, value: false }
    }

    fn parse(mut self) -> Result<Vec<Selector>> {
        let mut selectors = vec![self.selector()?];
        loop {
            match self.next() {
                Token::End => return Ok(selectors),
                Token::Separator(',') => selectors.push(self.selector()?),
                other => return Err(self.error(&format!("unexpected input: {}", shown(&other)))),
            }
        }
    }

    fn selector(&mut self) -> Result<Selector> {
        self.skip_space();
        let mut path = vec![self.field()?];
        while self.peek() == Token::Separator('.') {
            self.next();
            path.push(self.field()?);
        }
        if matches!(self.peek(), Token::End | Token::Separator(',')) {
            return Ok(Selector { path, test: Test::Present });
        }
        self.skip_space();
        let operator = match self.next() {
            Token::Operator(operator) => operator,
            Token::Illegal(why) => return Err(self.error(why)),
            _ => return Err(self.error("expected an operator (\"==\"|\"!=\"|\"~=\")")),
        };
        if !matches!(operator.as_str(), "==" | "!=" | "~=") {
            return Err(self.error(&format!("unsupported operator {operator:?}")));
        }
        self.skip_space();
        self.value = true;
        let token = self.next();
        self.value = false;
        let value = match token {
            Token::Word(value) => value,
            Token::Quoted(quoted) => self.unquote(&quoted, operator == "~=")?,
            Token::Illegal(why) => return Err(self.error(why)),
            Token::Other(c) => return Err(self.error(&format!("unexpected input: {c}"))),
            _ => return Err(self.error("expected value or quoted")),
        };
        let test = match operator.as_str() {
            "==" => Test::Equal(value),
            "!=" => Test::NotEqual(value),
            _ => Test::Matches(Regex::new(&value).ok()),
        };
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Result<String> {
        match self.next() {
            Token::Word(word) => Ok(word),
            Token::Quoted(quoted) => self.unquote(&quoted, false),
            Token::Illegal(why) => Err(self.error(why)),
            _ => Err(self.error("expected field or quoted")),
        }
    }

    /// The text inside of a quoted token. Slashes and bars quote only patterns.
    fn unquote(&self, quoted: &str, pattern: bool) -> Result<String> {
        let quote = quoted.chars().next().unwrap_or('"');
        if quote != '"' && !pattern {
            return Err(self.error("invalid quote encountered"));
        }
        let inner = quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default();
        unescape(inner, quote).map_err(|why| self.error(why))
    }

    fn peek(&mut self) -> Token {
        let (position, start) = (self.position, self.start);
        let token = self.next();
        (self.position, self.start) = (position, start);
        token
    }

    fn next(&mut self) -> Token {
        self.start = self.position;
        let Some(first) = self.rest().chars().next() else { return Token::End };
        match first {
            ',' | '.' => {
                self.position += 1;
                Token::Separator(first)
            }
            '"' | '/' | '|' => self.quoted(first),
            '=' | '!' | '~' => Token::Operator(self.take(|c| matches!(c, '=' | '!' | '~'))),
            _ if self.value => match self.take(|c| !c.is_whitespace() && !c.is_control() && c != ',') {
                word if word.is_empty() => self.unexpected(first),
                word => Token::Word(word),
            },
            c if c.is_ascii_alphanumeric() || c == '_' => {
                Token::Word(self.take(|c| c.is_ascii_alphanumeric() || c == '_'))
            }
            _ => self.unexpected(first),
        }
    }

    fn unexpected(&mut self, c: char) -> Token {
        self.position += c.len_utf8();
        Token::Other(c)
    }

    fn quoted(&mut self, quote: char) -> Token {
        let mut escaped = false;
        for (at, c) in self.rest().char_indices().skip(1) {
            match c {
                '\n' => break,
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                _ if c == quote => {
                    let token = self.rest().get(..=at).unwrap_or_default().to_owned();
                    self.position += token.len();
                    return Token::Quoted(token);
                }
                _ => {}
            }
        }
        self.position = self.text.len();
        Token::Illegal("quoted literal not terminated")
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.position..).unwrap_or_default()
    }

    fn take(&mut self, belongs: impl Fn(char) -> bool) -> String {
        let rest = self.rest();
        let end = rest.find(|c| !belongs(c)).unwrap_or(rest.len());
        self.position += end;
        rest.get(..end).unwrap_or_default().to_owned()
    }

    fn skip_space(&mut self) {
        self.take(char::is_whitespace);
    }

    fn error(&self, why: &str) -> Error {
        // The original points at a byte, also in the middle of a letter.
        let (before, rest) = self.text.as_bytes().split_at(self.start.min(self.text.len()));
        let before = String::from_utf8_lossy(before);
        let place = match rest.split_at_checked(1) {
            Some((at, rest)) => {
                let (at, rest) = (String::from_utf8_lossy(at), String::from_utf8_lossy(rest));
                format!("[{before} >|{at}|< {rest}]")
            }
            None => format!("[{before}]"),
        };
        Error::invalid_argument(format!("filters: parse error: {place}: {why}"))
    }
}

fn shown(token: &Token) -> String {
    match token {
        Token::Quoted(text) | Token::Word(text) | Token::Operator(text) => text.clone(),
        Token::Separator(c) | Token::Other(c) => c.to_string(),
        Token::Illegal(why) => (*why).to_owned(),
        Token::End => String::new(),
    }
}

/// Resolves the escapes of Go's strings; says why it cannot.
fn unescape(text: &str, quote: char) -> Result<String, &'static str> {
    const ESCAPE: &str = "illegal escape sequence";
    const NUMBER: &str = "illegal numeric escape sequence";
    const RANGE: &str = "unquoting failed: quote syntax error";
    let mut out = Vec::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        let escape = chars.next().ok_or(ESCAPE)?;
        let simple = match escape {
            'a' => Some(7),
            'b' => Some(8),
            'f' => Some(12),
            'n' => Some(b'\n'),
            'r' => Some(b'\r'),
            't' => Some(b'\t'),
            'v' => Some(11),
            '\\' => Some(b'\\'),
            _ => None,
        };
        if let Some(byte) = simple {
            out.push(byte);
        } else if escape == quote {
            out.extend_from_slice(escape.encode_utf8(&mut [0; 4]).as_bytes());
        } else {
            let (length, radix, given) = match escape {
                'x' => (2, 16, None),
                'u' => (4, 16, None),
                'U' => (8, 16, None),
                '0'..='7' => (2, 8, Some(escape)),
                // A pattern keeps the escapes that are its own.
                _ if quote != '"' => {
                    out.push(b'\\');
                    out.extend_from_slice(escape.encode_utf8(&mut [0; 4]).as_bytes());
                    continue;
                }
                _ => return Err(ESCAPE),
            };
            let digits: Vec<char> = given.into_iter().chain(chars.by_ref().take(length)).collect();
            if digits.len() != length + usize::from(given.is_some())
                || !digits.iter().all(|c| c.is_digit(radix))
            {
                return Err(NUMBER);
            }
            let code = digits.iter().collect::<String>();
            let code = u32::from_str_radix(&code, radix).map_err(|_| RANGE)?;
            match escape {
                'u' | 'U' if code > u32::from(char::MAX) => return Err(RANGE),
                'u' | 'U' => {
                    let c = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
                    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
                _ => out.push(u8::try_from(code).map_err(|_| RANGE)?),
            }
        }
    }
    // Single bytes that are no text match nothing that is.
    Ok(String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Labels;

    struct Object(Labels);

    impl Fields for Object {
        fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
            match path {
                ["name"] => text("foo/bar:1.0"),
                ["labels", rest @ ..] => label(rest, &self.0),
                _ => None,
            }
        }
    }

    fn matches(filter: &str) -> bool {
        let labels = [("containerd.io/gc.root", "now"), ("a.b", "x"), ("empty", "")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        Filter::parse(&[filter]).unwrap().matches(&Object(labels))
    }

    #[test]
    fn names_that_are_wanted_are_known_before_anything_is_read() {
        for (filters, values) in [
            (&["name==b", "name==a,labels.x"][..], Some(&["a", "b"][..])),
            (&["labels.x==1,name==\"a\""], Some(&["a"])),
            (&["name==a,name==b"], Some(&["a"])),
            (&["name==a", "labels.x"], None),
            (&["name==a", ""], None),
            (&[], None),
            (&["name.x==a"], None),
            (&["name!=a"], None),
            (&["name~=a"], None),
        ] {
            let filter = Filter::parse(filters).unwrap();
            let values = values.map(|values| values.iter().copied().collect());
            assert_eq!(filter.values("name"), values, "{filters:?}");
        }
    }

    #[test]
    fn filters_select() {
        for yes in [
            "",
            "name",
            "name==foo/bar:1.0",
            "name == foo/bar:1.0",
            "name!=x",
            "absent!=x",
            "labels.a.b==x",
            "labels.\"containerd.io/gc.root\"",
            "name~=^foo",
            "name~=/^foo\\/b/",
            "name~=|^foo/|",
            "name==foo/bar:1.0, labels.a.b==x",
            "labels.empty==\"\"",
            "name==\"foo\\x2fbar:1.0\"",
        ] {
            assert!(matches(yes), "{yes}");
        }
        for no in ["absent", "name==x", "name==foo/bar:1.0,absent", "name~=[", "labels.none==x"] {
            assert!(!matches(no), "{no}");
        }
        assert!(Filter::parse::<&str>(&[]).unwrap().matches(&Object(Labels::new())));
    }

    #[test]
    fn malformed_filters_are_refused_and_nothing_panics() {
        for bad in [
            "=",
            "id=x",
            "id===x",
            "id==",
            "id==x2 ",
            "id==x,",
            "topic==/a/b",
            "\"open",
            "id==\"\\q\"",
            "é",
            ".",
            "a.",
        ] {
            let error = Filter::parse(&[bad]).unwrap_err().to_string();
            assert!(error.starts_with("filters: parse error: ["), "{bad}: {error}");
        }
        assert_eq!(
            Filter::parse(&["bad=="]).unwrap_err().to_string(),
            "filters: parse error: [bad==]: expected value or quoted: invalid argument"
        );
    }
}
