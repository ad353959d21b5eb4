//! Tables, sizes and times.

use std::io::{IsTerminal, Write};
use std::time::{Duration, SystemTime};

use corten_types::{Labels, Result};

/// A table whose columns line up.
pub struct Table {
    padding: usize,
    minimum: usize,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Columns four spaces apart, at least four wide.
    pub fn wide(header: &[&str]) -> Self {
        Self { padding: 4, minimum: 4, rows: vec![header.iter().map(ToString::to_string).collect()] }
    }

    /// Columns one space apart.
    pub fn tight(header: &[&str]) -> Self {
        Self { padding: 1, minimum: 1, ..Self::wide(header) }
    }

    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    pub fn print(self) -> Result<()> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
            (widest + self.padding).max(self.minimum)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = std::io::stdout().lock();
        for row in &self.rows {
            let line: String =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            writeln!(out, "{line}")?;
        }
        Ok(())
    }
}

/// Binary units with a decimal.
pub fn binary_size(bytes: i64) -> String {
    let (mut size, mut unit) = (bytes as f64, "B");
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if size < 1024.0 {
            break;
        }
        size /= 1024.0;
        unit = next;
    }
    format!("{size:.1} {unit}")
}

/// Decimal units with four digits, as docker has them.
pub fn decimal_size(bytes: i64) -> String {
    let (mut size, mut unit) = (bytes as f64, "B");
    for next in ["kB", "MB", "GB", "TB"] {
        if size < 1000.0 {
            break;
        }
        size /= 1000.0;
        unit = next;
    }
    let digits = if size >= 100.0 {
        1
    } else if size >= 10.0 {
        2
    } else {
        3
    };
    let text = format!("{size:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

/// How long ago, in words.
pub fn age(time: SystemTime) -> String {
    let seconds = time.elapsed().unwrap_or(Duration::ZERO).as_secs();
    match seconds {
        0 => "Less than a second".into(),
        1 => "1 second".into(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".into(),
        120..3600 => format!("{} minutes", seconds / 60),
        3600..7200 => "About an hour".into(),
        7200..172_800 => format!("{} hours", seconds / 3600),
        172_800..1_209_600 => format!("{} days", seconds / 86_400),
        _ => format!("{} weeks", seconds / 604_800),
    }
}

/// Labels in one cell.
pub fn labels(labels: &Labels, none: &str) -> String {
    if labels.is_empty() {
        return none.into();
    }
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// Whether somebody looks.
pub fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// JSON as the original indents it.
pub fn json(value: &serde_json::Value) -> Result<()> {
    let mut text = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, format);
    serde::Serialize::serialize(value, &mut serializer)
        .map_err(|error| corten_types::Error::internal(error.to_string()))?;
    text.push(b'\n');
    Ok(std::io::stdout().lock().write_all(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_the_originals() {
        assert_eq!([binary_size(0), binary_size(3_355_443)], ["0.0 B", "3.2 MiB"]);
        assert_eq!([decimal_size(528), decimal_size(1_457_000)], ["528B", "1.457MB"]);
    }
}
