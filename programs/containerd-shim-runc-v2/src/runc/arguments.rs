//! Flags as Go's programs read them: one or two dashes, values behind `=` or in the next word.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::Result;

/// A command's flags and the words behind them.
#[derive(Debug, Default)]
pub struct Arguments {
    values: BTreeMap<String, Vec<String>>,
    switches: Vec<String>,
    pub rest: Vec<String>,
}

impl Arguments {
    /// Reads flags up to the first other word.
    pub fn parse_front(words: Vec<String>, values: &[&str], switches: &[&str]) -> Result<Self> {
        let mut parsed = Self::default();
        let mut words = words.into_iter().peekable();
        while let Some(word) = words.next_if(|word| word.starts_with('-') && word != "-") {
            let name = word.trim_start_matches('-');
            if name.is_empty() {
                break;
            }
            let (name, value) =
                name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value)));
            if switches.contains(&name) {
                if value.is_none_or(|value| value == "true") {
                    parsed.switches.push(name.to_owned());
                }
            } else if values.contains(&name) {
                let value = value.map(str::to_owned).or_else(|| words.next());
                let value = value.ok_or_else(|| format!("flag needs an argument: -{name}"))?;
                parsed.values.entry(name.to_owned()).or_default().push(value);
            } else {
                return Err(format!("flag provided but not defined: -{name}"));
            }
        }
        parsed.rest = words.collect();
        Ok(parsed)
    }

    /// The same for a command that takes so many words.
    pub fn parse(
        command: &str,
        words: Vec<String>,
        values: &[&str],
        switches: &[&str],
        count: RangeInclusive<usize>,
    ) -> Result<Self> {
        let parsed = Self::parse_front(words, values, switches)?;
        if count.contains(&parsed.rest.len()) {
            return Ok(parsed);
        }
        let (least, most) = (count.start(), count.end());
        Err(if least == most {
            format!("\"runc {command}\" requires exactly {least} argument(s)")
        } else if parsed.rest.len() < *least {
            format!("\"runc {command}\" requires a minimum of {least} argument(s)")
        } else {
            format!("\"runc {command}\" requires a maximum of {most} argument(s)")
        })
    }

    pub fn has(&self, switch: &str) -> bool {
        self.switches.iter().any(|one| one == switch)
    }

    /// The last value.
    pub fn value(&self, name: &str) -> Option<String> {
        self.values.get(name).and_then(|all| all.last()).cloned()
    }

    /// All values under two names.
    pub fn all(&self, long: &str, short: &str) -> Vec<String> {
        [long, short].iter().filter_map(|name| self.values.get(*name)).flatten().cloned().collect()
    }

    /// The first word, taken out.
    pub fn take(&mut self) -> String {
        if self.rest.is_empty() { String::new() } else { self.rest.remove(0) }
    }
}

/// A signal by number or name.
pub fn signal(text: &str) -> Result<i32> {
    const NAMES: &str = "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP \
        TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS";
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let at = NAMES.split_whitespace().position(|known| known == name);
    at.and_then(|at| i32::try_from(at + 1).ok()).ok_or_else(|| format!("unknown signal {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn flags_are_read_in_all_spellings() {
        let mut read =
            Arguments::parse("x", words("--a=1 -b 2 --b 3 -s id --not-a-flag"), &["a", "b"], &["s"], 1..=9)
                .unwrap();
        assert_eq!((read.value("a").unwrap().as_str(), read.all("b", "c")), ("1", words("2 3")));
        assert!(read.has("s") && read.take() == "id" && read.rest == ["--not-a-flag"]);
        assert!(Arguments::parse("x", words("-z"), &[], &[], 0..=0).unwrap_err().contains("not defined"));
        assert!(
            Arguments::parse("x", words("--a"), &["a"], &[], 0..=0)
                .unwrap_err()
                .contains("needs an argument")
        );
        assert!(Arguments::parse("x", vec![], &[], &[], 1..=1).unwrap_err().contains("exactly 1"));
    }

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!((signal("KILL"), signal("sigterm"), signal("10")), (Ok(9), Ok(15), Ok(10)));
        assert!(signal("NOPE").is_err());
    }
}
