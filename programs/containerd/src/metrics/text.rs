//! Prometheus' text format.

use std::fmt::Write;

/// What a family's values are.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// All families of one answer.
#[derive(Debug, Default)]
pub struct Page {
    families: Vec<Family>,
}

/// Values with one name and different labels.
#[derive(Debug)]
pub struct Family {
    name: String,
    head: String,
    lines: String,
}

impl Page {
    /// A new family; one that gets no values is not shown.
    pub fn family(&mut self, name: &str, help: &str, kind: Kind) -> &mut Family {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let head = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
        self.families.push(Family { name: name.to_owned(), head, lines: String::new() });
        let last = self.families.len() - 1;
        &mut self.families[last]
    }

    /// The page, families by name.
    pub fn finish(mut self) -> String {
        self.families.sort_by(|a, b| a.name.cmp(&b.name));
        self.families.retain(|family| !family.lines.is_empty());
        self.families.into_iter().flat_map(|family| [family.head, family.lines]).collect()
    }
}

impl Family {
    /// A value.
    pub fn value(&mut self, labels: &[(&str, &str)], value: f64) -> &mut Self {
        self.line("", labels, value)
    }

    /// A value whose name has an ending, as those of histograms have.
    pub fn line(&mut self, ending: &str, labels: &[(&str, &str)], value: f64) -> &mut Self {
        self.lines.push_str(&self.name);
        self.lines.push_str(ending);
        for (index, (key, text)) in labels.iter().enumerate() {
            self.lines.push_str(if index == 0 { "{" } else { "," });
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            // Writing to a string cannot fail.
            let _ = write!(self.lines, "{key}=\"{text}\"");
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.lines, "{end} {}", number(value));
        self
    }
}

/// As Go's client writes it: shortest, with an exponent from a million on.
pub fn number(value: f64) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "+Inf".into() } else { "-Inf".into() };
    }
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return value.to_string() };
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..6).contains(&exponent) => exponential(digits, exponent),
        _ => value.to_string(),
    }
}

fn exponential(digits: &str, exponent: i32) -> String {
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_go_writes_them() {
        for (value, text) in [
            (0.0, "0"),
            (1.0, "1"),
            (739.0, "739"),
            (606_208.0, "606208"),
            (2_514_944.0, "2.514944e+06"),
            (1_000_000.0, "1e+06"),
            (9_223_372_036_854_771_712.0, "9.223372036854772e+18"),
            (0.001_686_843, "0.001686843"),
            (0.000_01, "1e-05"),
            (0.025, "0.025"),
            (f64::INFINITY, "+Inf"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn a_page_has_families_by_name_and_escaped_labels() {
        let mut page = Page::default();
        page.family("b", "second", Kind::Gauge).value(&[("x", "a\"b\\c\n"), ("y", "")], 2.0);
        page.family("a", "first", Kind::Counter).value(&[], 1.0);
        page.family("c", "empty", Kind::Counter);
        let expected = "# HELP a first\n# TYPE a counter\na 1\n# HELP b second\n# TYPE b gauge\n\
                        b{x=\"a\\\"b\\\\c\\n\",y=\"\"} 2\n";
        assert_eq!(page.finish(), expected);
    }
}
