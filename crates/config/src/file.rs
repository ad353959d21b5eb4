//! Files: read, checked, brought to the newest version, and merged with what they import.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::path::{Path, PathBuf};

use corten_types::{Error, ErrorClass, Result, ResultExt};
use toml::de::DeTable;
use toml::{Table, Value};

use crate::{Config, VERSION, Warning, merge, migrate, schema};

/// What a file may be long, in bytes.
const LONGEST: u64 = 16 << 20;

/// Reads a file and what it imports.
///
/// # Errors
/// NotFound for the file itself; what is wrong in any of them.
pub fn load(path: &Path) -> Result<Config> {
    let mut merged = Table::new();
    let mut warnings = Vec::new();
    let mut seen = HashSet::new();
    let mut pending = VecDeque::from([path.to_owned()]);
    while let Some(path) = pending.pop_front() {
        if !seen.insert(std::fs::canonicalize(&path).unwrap_or_else(|_| path.clone())) {
            continue;
        }
        let document = read(&path)
            .and_then(|text| document(&text, &path, &mut warnings))
            .map_err(|error| error.with_hint(format!("it is in {}", path.display())))?;
        pending.extend(imports(&document, &path));
        merge::document(&mut merged, document);
    }
    // So that even an empty file counts as one.
    merged.insert("version".into(), VERSION.into());
    let mut config = Config::over_defaults(merged)?;
    warnings.append(&mut config.warnings);
    config.warnings = warnings;
    Ok(config)
}

fn read(path: &Path) -> Result<String> {
    let failed = |error: std::io::Error| {
        let text = match error.kind() {
            std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
            _ => error.to_string(),
        };
        let text = format!("open {}: {text}", path.display());
        let missing = error.kind() == std::io::ErrorKind::NotFound;
        Error::bare(if missing { ErrorClass::NotFound } else { ErrorClass::Unknown }, text)
    };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if metadata.len() > LONGEST {
        return Err(Error::unknown(format!("{}: larger than {LONGEST} bytes", path.display())));
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    String::from_utf8(bytes).map_err(|error| {
        let (row, column) = place(error.as_bytes(), error.utf8_error().valid_up_to());
        malformed(row, column, "invalid UTF-8")
    })
}

/// A file's text as a document of the newest version. Imports stay what they are.
///
/// # Errors
/// What is no TOML or has wrong types; versions and plugins that cannot be.
pub fn document(text: &str, path: &Path, warnings: &mut Vec<Warning>) -> Result<Table> {
    let spans = DeTable::parse(text).map_err(|error| {
        let at = error.span().unwrap_or(Range { start: 0, end: 0 }).start;
        let (row, column) = place(text.as_bytes(), at);
        malformed(row, column, error.message())
    })?;
    let mut table: Table = text.parse().map_err(|error: toml::de::Error| malformed(1, 1, error.message()))?;
    let version = schema::check_file(&mut table, spans.get_ref(), text, path, warnings)?;
    let failed = || format!("failed to load TOML from {}", path.display());
    if version > VERSION {
        let text =
            format!("expected containerd config version equal to or less than `{VERSION}`, got `{version}`");
        return Err(Error::unknown(text)).with_context(failed);
    }
    let table = migrate::to_newest(table, version, warnings);
    for (key, name) in [("disabled_plugins", "disabled"), ("required_plugins", "required")] {
        for uri in table.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            if !uri.contains('.') {
                let text = format!("invalid {name} plugin URI {uri:?} expect io.containerd.x.vx");
                return Err(Error::unknown(text)).with_context(failed);
            }
        }
    }
    Ok(table)
}

/// Files that a document wants merged: patterns relative to it, matches in order.
fn imports(document: &Table, path: &Path) -> Vec<PathBuf> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let patterns = document.get("imports").and_then(Value::as_array).into_iter().flatten();
    patterns
        .filter_map(Value::as_str)
        .flat_map(|pattern| {
            let whole = folder.join(pattern);
            if pattern.contains(['*', '?', '[', '\\']) {
                matches(&whole)
            } else {
                Vec::from_iter(whole.exists().then_some(whole))
            }
        })
        .collect()
}

/// What is on disk for a pattern, whose `*`, `?` and `[…]` do not cross folders; in order.
fn matches(pattern: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::new()];
    for part in pattern.components() {
        let name = part.as_os_str().to_string_lossy();
        let mut next = Vec::new();
        for folder in found {
            if !name.contains(['*', '?', '[', '\\']) {
                next.push(folder.join(part));
                continue;
            }
            let listed = if folder.as_os_str().is_empty() { Path::new(".") } else { &folder };
            let entries = std::fs::read_dir(listed).into_iter().flatten().flatten();
            let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
            names.retain(|entry| crate::glob::matches(&name, &entry.to_string_lossy()));
            names.sort();
            next.extend(names.into_iter().map(|name| folder.join(name)));
        }
        found = next;
    }
    found.retain(|path| path.exists());
    found
}

/// Row and column of a byte, both from 1; columns in bytes.
pub fn place(text: &[u8], at: usize) -> (usize, usize) {
    let before = text.get(..at.min(text.len())).unwrap_or_default();
    let row = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
    (row, column)
}

/// The error about text that is not what it should be.
pub fn malformed(row: usize, column: usize, reason: &str) -> Error {
    let reason = reason.trim().replace('\n', ", ");
    Error::unknown(format!("failed to unmarshal TOML at row {row} column {column}: toml: {reason}"))
}
