//! What goes to standard output and standard error: lines, tables, JSON, sizes and times.
//!
//! A reader that has gone ends the program silently with the code of SIGPIPE; a full disk ends it with an error.

use std::fmt::Arguments;
use std::io::{ErrorKind, IsTerminal, Write};
use std::time::{Duration, SystemTime};

use clap::ValueEnum;
use corten_types::{Error, Labels, Result};

use crate::commands::Shown;
use crate::json::Document;

/// Exit code of a program whose reader has gone: 128 and SIGPIPE.
pub const READER_GONE: i32 = 141;

/// Writes to standard output, or ends the program: whoever prints has nobody left to tell.
pub fn say(text: Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_fmt(text).and_then(|()| out.flush()) {
        lost(error);
    }
}

/// Writes bytes to standard output, or ends the program.
pub fn bytes(data: &[u8]) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_all(data).and_then(|()| out.flush()) {
        lost(error);
    }
}

fn lost(error: std::io::Error) -> ! {
    if error.kind() == ErrorKind::BrokenPipe {
        std::process::exit(READER_GONE);
    }
    tell(format_args!("ctr: write /dev/stdout: {}\n", Error::from(error)));
    std::process::exit(1)
}

/// Writes to standard error, if there is one.
pub fn tell(text: Arguments<'_>) {
    // In one piece: lines of several writers stay whole.
    let _ = std::io::stderr().lock().write_all(text.to_string().as_bytes());
}

/// How a list is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns that line up; on a terminal with colours, and made for people.
    #[default]
    Table,
    /// An array of objects.
    Json,
    /// The same as YAML.
    Yaml,
    /// Columns as the original has them, on a terminal too.
    Plain,
}

impl Format {
    /// Whether a person looks, who is better served by ages than by dates.
    pub fn is_for_people(self) -> bool {
        self == Self::Table && is_terminal()
    }

    /// Shows a document: as YAML if asked for, else as the original's JSON.
    pub fn show(self, document: &Document) {
        match self {
            Self::Yaml => say(format_args!("{}", document.yaml())),
            _ => crate::json::print(document),
        }
    }
}

/// What rows of a table end with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Spaces up to the width of the last column, as most tables have it.
    Padded,
    /// Only the header is padded.
    PaddedHeader,
    /// Nothing.
    Bare,
}

/// A table whose columns line up.
pub struct Table {
    padding: usize,
    minimum: usize,
    ends: Ends,
    /// Filled up with tabs to multiples of eight.
    tabs: bool,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Columns four spaces apart, at least four wide.
    pub fn wide(header: &[&str]) -> Self {
        let rows = vec![header.iter().map(ToString::to_string).collect()];
        Self { padding: 4, minimum: 4, ends: Ends::Padded, tabs: false, rows }
    }

    /// Columns one space apart.
    pub fn tight(header: &[&str]) -> Self {
        Self { padding: 1, minimum: 1, ..Self::wide(header) }
    }

    /// Columns with tabs between them.
    pub fn tabbed(header: &[&str]) -> Self {
        Self { padding: 1, minimum: 1, tabs: true, ..Self::wide(header) }
    }

    /// The same with other ends of rows.
    pub fn ends(self, ends: Ends) -> Self {
        Self { ends, ..self }
    }

    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    pub fn print(self) -> Result<()> {
        self.show(Format::Table)
    }

    /// Only the first column, if that was asked for.
    pub fn show_as(self, shown: &Shown) -> Result<()> {
        if !shown.quiet {
            return self.show(shown.format);
        }
        let names = self.rows.iter().skip(1).filter_map(|row| row.first());
        names.for_each(|name| say(format_args!("{name}\n")));
        Ok(())
    }

    pub fn show(self, format: Format) -> Result<()> {
        match format {
            Format::Table if is_terminal() => {
                let text = self.aligned();
                let (header, rows) = text.split_once('\n').unwrap_or_default();
                say(format_args!("{}\n{}", painted(header, BOLD), self.coloured(rows)));
            }
            Format::Table | Format::Plain => say(format_args!("{}", self.aligned())),
            Format::Json | Format::Yaml => format.show(&self.objects().into()),
        }
        Ok(())
    }

    /// Rows whose states have the colours of states.
    fn coloured(&self, rows: &str) -> String {
        let Some(column) = self.rows.first().and_then(|header| header.iter().position(|name| is_state(name)))
        else {
            return rows.to_owned();
        };
        let states = self.rows.iter().skip(1).map(|row| row.get(column).map_or("", String::as_str));
        let line = |(line, state): (&str, &str)| match colour_of(state) {
            // The state is the last such word: ids stand before it.
            Some(colour) => match line.rsplit_once(state) {
                Some((before, after)) => format!("{before}{}{after}\n", painted(state, colour)),
                None => format!("{line}\n"),
            },
            None => format!("{line}\n"),
        };
        rows.lines().zip(states).map(line).collect()
    }

    fn aligned(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            // A last cell that is not padded does not widen its column.
            let padded = |row: usize| column + 1 < columns || self.is_padded(row);
            let cells = self.rows.iter().enumerate().filter(|(row, _)| padded(*row));
            let widest = cells.filter_map(|(_, row)| row.get(column)).map(|cell| cell.chars().count()).max();
            (widest.unwrap_or(0) + self.padding).max(self.minimum)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for (at, row) in self.rows.iter().enumerate() {
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let width = if column + 1 == columns && !self.is_padded(at) { 0 } else { *width };
                if !self.tabs {
                    text.push_str(&format!("{cell:<width$}"));
                    continue;
                }
                text.push_str(cell);
                let missing = width.next_multiple_of(TAB).saturating_sub(cell.chars().count());
                text.extend(std::iter::repeat_n('\t', missing.div_ceil(TAB)));
            }
            text.push('\n');
        }
        text
    }

    fn is_padded(&self, row: usize) -> bool {
        self.ends == Ends::Padded || (self.ends == Ends::PaddedHeader && row == 0)
    }

    /// Each row as an object whose keys are the header's words.
    fn objects(&self) -> serde_json::Value {
        let key = |name: &String| name.to_lowercase().replace(' ', "_");
        let header: Vec<String> = self.rows.first().into_iter().flatten().map(key).collect();
        let object = |row: &Vec<String>| header.iter().cloned().zip(row.iter().cloned()).collect::<Labels>();
        serde_json::json!(self.rows.iter().skip(1).map(object).collect::<Vec<_>>())
    }
}

/// Columns that a tab is wide.
const TAB: usize = 8;
const BOLD: u8 = 1;
/// Colours of what is well, of what wants a look, of what is wrong, and of what is over.
const GREEN: u8 = 32;
const YELLOW: u8 = 33;
const RED: u8 = 31;
const DIM: u8 = 2;

/// Text in a colour of terminals.
pub fn painted(text: &str, colour: u8) -> String {
    format!("\u{1b}[{colour}m{text}\u{1b}[0m")
}

fn is_state(column: &str) -> bool {
    column == "STATUS" || column == "STATE"
}

fn colour_of(state: &str) -> Option<u8> {
    let word = state.split([' ', '(']).next().unwrap_or_default();
    match word.to_lowercase().as_str() {
        "running" | "ok" | "up" | "complete" => Some(GREEN),
        "paused" | "pausing" | "created" | "incomplete" | "absent" => Some(YELLOW),
        "error" | "missing" | "unavailable" => Some(RED),
        "stopped" | "skip" | "down" => Some(DIM),
        _ => None,
    }
}

/// Lines whose cells end with tabs: a column is as wide as the widest of its cells in neighbouring lines, and four more.
pub fn elastic(lines: &[String]) -> String {
    let cells: Vec<Vec<&str>> = lines.iter().map(|line| line.split('\t').collect()).collect();
    // The text behind the last tab is no cell.
    let has = |line: usize, column: usize| cells.get(line).is_some_and(|line| column + 1 < line.len());
    let width = |line: usize, column: usize| {
        let first = (0..=line).rev().take_while(|at| has(*at, column)).last().unwrap_or(line);
        let block = cells.iter().skip(first).take_while(|line| column + 1 < line.len());
        block.filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0) + 4
    };
    let mut text = String::new();
    for (at, line) in cells.iter().enumerate() {
        for (column, cell) in line.iter().enumerate() {
            let width = if has(at, column) { width(at, column) } else { 0 };
            text.push_str(&format!("{cell:<width$}"));
        }
        text.push('\n');
    }
    text
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

/// As [`binary_size`], of a count that cannot be negative.
pub fn bytes_of(count: u64) -> String {
    binary_size(i64::try_from(count).unwrap_or(i64::MAX))
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

/// As much of a digest as tells one from others.
pub fn short_digest(digest: &str) -> &str {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    hex.get(..12).unwrap_or(hex)
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

/// A time of day here, as RFC 3339 without fractions.
pub fn local_time(time: SystemTime) -> String {
    let now = jiff::Timestamp::try_from(time).unwrap_or_default();
    let zoned = now.to_zoned_datetime(jiff::tz::TimeZone::system());
    let format = if zoned.offset().seconds() == 0 { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S%:z" };
    zoned.strftime(format).to_string()
}

/// A time as Go prints it.
pub fn go_time(time: SystemTime) -> String {
    corten_types::timestamp::rfc3339(time).replace('T', " ").replace('Z', " +0000 UTC")
}

/// Base64 with padding.
pub fn base64(data: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(data.len().div_ceil(3) * 4);
    for chunk in data.chunks(3) {
        let word =
            chunk.iter().fold(0_u32, |word, byte| (word << 8) | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let at = (word >> (18 - 6 * digit)) & 63;
            text.push(if digit > chunk.len() { '=' } else { char::from(DIGITS[at as usize]) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_end_as_the_originals() {
        let table = |ends| {
            let mut table = Table::wide(&["TASK", "STATUS"]).ends(ends);
            table.row(["a".into(), "RUNNING-LONG".into()]);
            table.aligned()
        };
        assert_eq!(table(Ends::Padded), "TASK    STATUS          \na       RUNNING-LONG    \n");
        assert_eq!(table(Ends::PaddedHeader), "TASK    STATUS    \na       RUNNING-LONG\n");
        assert_eq!(table(Ends::Bare), "TASK    STATUS\na       RUNNING-LONG\n");
    }

    #[test]
    fn columns_end_where_a_line_does_not_have_them() {
        let lines = ["a\tb\tc", "long\tb", "x\tlonger\tc"].map(str::to_owned);
        assert_eq!(elastic(&lines), "a       b    c\nlong    b\nx       longer    c\n");
    }

    #[test]
    fn tabs_fill_columns_up() {
        let mut table = Table::tabbed(&["REF", "SIZE"]);
        table.row(["a-long-name".into(), "1B".into()]);
        assert_eq!(table.aligned(), "REF\t\tSIZE\t\na-long-name\t1B\t\n");
        let table = Table::tabbed(&["DIGEST", "LABELS"]).ends(Ends::Bare);
        assert_eq!(table.aligned(), "DIGEST\tLABELS\n");
    }

    #[test]
    fn states_have_colours_and_ids_of_the_same_name_have_none() {
        let mut table = Table::wide(&["TASK", "STATUS"]).ends(Ends::PaddedHeader);
        table.row(["RUNNING".into(), "RUNNING".into()]);
        table.row(["a".into(), "UNKNOWN".into()]);
        let text = table.aligned();
        let (_, rows) = text.split_once('\n').unwrap();
        assert_eq!(table.coloured(rows), "RUNNING    \u{1b}[32mRUNNING\u{1b}[0m\na          UNKNOWN\n");
    }

    #[test]
    fn bytes_read_as_base64() {
        let texts = [&b""[..], b"f", b"fo", b"foo", b"foob"].map(base64);
        assert_eq!(texts, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]);
    }

    #[test]
    fn sizes_read_as_the_originals() {
        assert_eq!([binary_size(0), binary_size(3_355_443)], ["0.0 B", "3.2 MiB"]);
        assert_eq!([decimal_size(528), decimal_size(1_457_000)], ["528B", "1.457MB"]);
    }
}
