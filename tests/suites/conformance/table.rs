//! Tables of requests and answers, as text (see `README.md` beside them).

use std::collections::BTreeMap;

use corten_tests::Digest;

/// For which daemon a line holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    Both,
    Debian,
}

/// One line below a call.
#[derive(Clone, Debug)]
pub enum Step {
    /// A message is sent.
    Send(String),
    /// A message comes; `None` means whatever it says, `true` that other fields may be set too.
    Message(Option<(String, bool)>),
    /// The call ends: code and text; an empty text stands for any.
    End { code: String, text: String },
    /// No more is sent.
    Close,
    /// The client goes away.
    Cancel,
}

/// A call and what comes of it.
#[derive(Clone, Debug)]
pub struct Row {
    pub line: usize,
    /// As it stands in the file.
    pub source: String,
    /// The stream's name, when it stays open.
    pub name: Option<String>,
    /// `Service.Method`; empty when a named stream goes on.
    pub method: String,
    pub namespace: Option<String>,
    pub lease: Option<String>,
    /// Why Debian's is not asked.
    pub ours_alone: bool,
    pub steps: Vec<(Side, Step)>,
}

const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The name of a status code.
pub fn code(number: i32) -> &'static str {
    CODES.get(usize::try_from(number).unwrap_or(2)).copied().unwrap_or("UNKNOWN")
}

/// Values that stand for `$name`.
#[derive(Clone, Debug, Default)]
pub struct Values(BTreeMap<String, String>);

impl Values {
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.0.insert(name.into(), value.into());
    }

    /// The text with values in it; the longest name that fits counts.
    pub fn fill(&self, text: &str) -> String {
        let mut parts = text.split('$');
        let mut out = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let known = self.0.iter().filter(|(name, _)| part.starts_with(name.as_str()));
            match known.max_by_key(|(name, _)| name.len()) {
                Some((name, value)) => {
                    out.push_str(value);
                    out.push_str(&part[name.len()..]);
                }
                None => {
                    out.push('$');
                    out.push_str(part);
                }
            }
        }
        out
    }

    /// `sha256 TEXT` or `repeat TEXT COUNT`.
    fn evaluate(&self, text: &str) -> String {
        let text = self.fill(text);
        let (function, argument) = text.split_once(' ').unwrap_or((&text, ""));
        match function {
            "sha256" => Digest::sha256(argument.as_bytes()).to_string(),
            "repeat" => {
                let (text, count) = argument.rsplit_once(' ').unwrap();
                text.repeat(count.parse().unwrap())
            }
            _ => text,
        }
    }
}

/// Reads a table. `let NAME = …`, `lease NAME` and `for COUNT ROW` are worked out here.
///
/// # Panics
/// With the line that cannot be read.
pub fn read(text: &str, values: &mut Values) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut lease = None;
    for (at, line) in text.lines().enumerate() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        if line.starts_with(' ') {
            let row = rows.last_mut().unwrap_or_else(|| panic!("line {}: no call above", at + 1));
            row.source.push_str(line);
            row.source.push('\n');
            let (side, rest) = match trimmed.strip_prefix("2.1: ") {
                Some(rest) => (Side::Debian, rest),
                None => (Side::Both, trimmed),
            };
            row.steps.push((side, step(&values.fill(rest))));
        } else if let Some(rest) = line.strip_prefix("let ") {
            let (name, value) = rest.split_once(" = ").unwrap_or_else(|| panic!("line {}: {line}", at + 1));
            let value = values.evaluate(value);
            values.set(name, value);
        } else if let Some(name) = line.strip_prefix("lease ") {
            lease = Some(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("for ") {
            let (count, rest) = rest.split_once(' ').unwrap();
            for number in 0..count.parse().unwrap() {
                values.set("N", format!("{number:04}"));
                rows.push(row(at + 1, rest, values, lease.clone()));
            }
        } else {
            rows.push(row(at + 1, line, values, lease.clone()));
        }
    }
    rows
}

/// `[namespace: a, lease: b, not 2.1: why] @stream Service.Method {request}`
fn row(line: usize, source: &str, values: &Values, lease: Option<String>) -> Row {
    let mut row = Row {
        line,
        source: format!("{source}\n"),
        name: None,
        method: String::new(),
        namespace: Some("lab".into()),
        lease,
        ours_alone: false,
        steps: Vec::new(),
    };
    let filled = values.fill(source);
    let mut rest = filled.as_str();
    if let Some((options, after)) = rest.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        rest = after;
        for option in options.split(", ") {
            match option.split_once(": ") {
                Some(("namespace", name)) => row.namespace = Some(name.into()),
                Some(("lease", name)) => row.lease = Some(name.into()),
                Some(("not 2.1", _)) => row.ours_alone = true,
                _ if option == "no namespace" => row.namespace = None,
                _ if option == "no lease" => row.lease = None,
                _ => panic!("line {line}: unknown option {option}"),
            }
        }
    }
    if let Some(after) = rest.strip_prefix('@') {
        let (name, after) = after.split_once(' ').unwrap_or((after, ""));
        row.name = Some(name.into());
        rest = after;
    }
    let (method, request) = rest.split_once(' ').unwrap_or((rest, ""));
    row.method = method.into();
    if !request.is_empty() {
        row.steps.push((Side::Both, Step::Send(request.into())));
    }
    row
}

fn step(line: &str) -> Step {
    if let Some(message) = line.strip_prefix('>') {
        return Step::Send(message.trim().into());
    }
    if let Some(message) = line.strip_prefix("<~") {
        return Step::Message(Some((message.trim().into(), true)));
    }
    if let Some(message) = line.strip_prefix('<') {
        let message = message.trim();
        return Step::Message((!message.is_empty()).then(|| (message.into(), false)));
    }
    match line {
        "close" => Step::Close,
        "cancel" => Step::Cancel,
        _ => {
            let (code, text) = line.split_once(" | ").unwrap_or((line, ""));
            assert!(CODES.contains(&code), "no such line: {line}");
            Step::End { code: code.into(), text: text.into() }
        }
    }
}
