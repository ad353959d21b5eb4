//! Configuration as text, in the form that tools know: tables indented, texts in single quotes, lists in lines.

use std::fmt::Write;

use toml::{Table, Value};

use crate::Config;

/// The whole, in the order of the type's fields.
pub fn config(config: &Config) -> String {
    let whole = Table::try_from(config).unwrap_or_default();
    let mut out = Output::default();
    out.table(&whole, &mut Vec::new());
    out.text
}

#[derive(Default)]
struct Output {
    text: String,
    /// Whether the last line was a key with its value; tables stand apart from these.
    after_value: bool,
}

impl Output {
    fn table(&mut self, table: &Table, path: &mut Vec<String>) {
        let depth = path.len();
        for (name, value) in table.iter().filter(|(_, value)| !is_section(value)) {
            let _ = writeln!(self.text, "{}{} = {}", "  ".repeat(depth), key(name), inline(value));
            self.after_value = true;
        }
        for (name, value) in table.iter().filter(|(_, value)| is_section(value)) {
            path.push(key(name));
            match value {
                Value::Table(within) if depth == 0 && within.is_empty() => {}
                Value::Table(within) => self.section(within, path, ("[", "]")),
                Value::Array(list) => {
                    for within in list.iter().filter_map(Value::as_table) {
                        self.section(within, path, ("[[", "]]"));
                    }
                }
                _ => {}
            }
            path.pop();
        }
    }

    fn section(&mut self, table: &Table, path: &mut Vec<String>, (open, close): (&str, &str)) {
        if std::mem::take(&mut self.after_value) {
            self.text.push('\n');
        }
        let indent = "  ".repeat(path.len() - 1);
        let _ = writeln!(self.text, "{indent}{open}{}{close}", path.join("."));
        self.table(table, path);
    }
}

/// Whether a value is written with a header of its own.
fn is_section(value: &Value) -> bool {
    match value {
        Value::Table(_) => true,
        Value::Array(list) => !list.is_empty() && list.iter().all(Value::is_table),
        _ => false,
    }
}

fn key(name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if bare { name.to_owned() } else { quoted(name) }
}

fn inline(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Array(list) => {
            let items: Vec<String> = list.iter().map(inline).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Table(table) => {
            let items: Vec<String> =
                table.iter().map(|(name, value)| format!("{} = {}", key(name), inline(value))).collect();
            format!("{{{}}}", items.join(", "))
        }
        other => other.to_string(),
    }
}

/// A text in one line: in single quotes where it can be.
fn quoted(text: &str) -> String {
    if !text.chars().any(|c| c == '\'' || c.is_control()) {
        return format!("'{text}'");
    }
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out + "\""
}
