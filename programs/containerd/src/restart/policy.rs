//! Labels of a container that say whether it is to run, and the rule when it does not (spec 00 §7).

use std::num::IntErrorKind;

use corten_types::{Error, Labels, Result};

pub(super) const STATUS: &str = "containerd.io/restart.status";
pub(super) const COUNT: &str = "containerd.io/restart.count";
pub(super) const LOG_URI: &str = "containerd.io/restart.loguri";
pub(super) const LOG_PATH: &str = "containerd.io/restart.logpath";
const POLICY: &str = "containerd.io/restart.policy";
const EXPLICITLY_STOPPED: &str = "containerd.io/restart.explicitly-stopped";

/// What is done about a container whose process does not run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Policy {
    Always,
    /// After an exit code that is not 0, so many times; 0 for no limit.
    OnFailure(i64),
    /// Unless somebody said so.
    UnlessStopped,
    Never,
}

impl Policy {
    /// The policy that the labels name; `always` without one.
    ///
    /// # Errors
    /// Unknown, with the words of the original, for a policy that is none.
    pub fn of(labels: &Labels) -> Result<Self> {
        let text = labels.get(POLICY).map_or("", String::as_str);
        let (name, limit) = text.split_once(':').map_or((text, None), |(name, limit)| (name, Some(limit)));
        match (name, limit) {
            ("" | "always", _) => Ok(Self::Always),
            ("unless-stopped", _) => Ok(Self::UnlessStopped),
            ("no", _) => Ok(Self::Never),
            ("on-failure", None) => Ok(Self::OnFailure(0)),
            ("on-failure", Some(limit)) => limit
                .parse()
                .map(Self::OnFailure)
                .map_err(|_| Error::unknown(format!("invalid max retry count: {limit}"))),
            _ => Err(Error::unknown(format!("restart policy {name:?} not supported"))),
        }
    }

    /// Whether a process that ended so is to be started again. One that never ran counts as ended with 0.
    ///
    /// # Errors
    /// Unknown for a count of restarts that is no number, where the policy asks for it.
    pub fn restarts(self, exit: u32, labels: &Labels) -> Result<bool> {
        Ok(match self {
            Self::Always => true,
            Self::Never => false,
            Self::UnlessStopped => !labels.get(EXPLICITLY_STOPPED).is_some_and(|text| is_true(text)),
            Self::OnFailure(limit) => {
                let count = labels.get(COUNT).map_or(Ok(0), |text| number(text))?;
                exit != 0 && (limit <= 0 || count < limit)
            }
        })
    }
}

/// The count that the next restart gets.
pub(super) fn next_count(labels: &Labels) -> i64 {
    labels.get(COUNT).and_then(|text| number(text).ok()).unwrap_or(0).saturating_add(1)
}

fn number(text: &str) -> Result<i64> {
    text.parse().map_err(|error: std::num::ParseIntError| {
        let why = match error.kind() {
            IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "value out of range",
            _ => "invalid syntax",
        };
        Error::unknown(format!("strconv.Atoi: parsing {text:?}: {why}"))
    })
}

/// The spellings of truth that the original takes.
fn is_true(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn restarts(pairs: &[(&str, &str)], exit: u32) -> Result<bool> {
        let labels = labels(pairs);
        Policy::of(&labels)?.restarts(exit, &labels)
    }

    #[test]
    fn each_policy_has_its_rule() {
        for (policy, after_0, after_3) in [
            ("", true, true),
            ("always", true, true),
            ("unless-stopped", true, true),
            ("no", false, false),
            ("on-failure", false, true),
            ("on-failure:0", false, true),
            ("on-failure:2", false, true),
        ] {
            assert_eq!(restarts(&[(POLICY, policy)], 0).unwrap(), after_0, "{policy}");
            assert_eq!(restarts(&[(POLICY, policy)], 3).unwrap(), after_3, "{policy}");
        }
        assert!(restarts(&[], 0).unwrap());
        assert!(!restarts(&[(POLICY, "on-failure:2"), (COUNT, "2")], 3).unwrap());
        assert!(restarts(&[(POLICY, "on-failure:2"), (COUNT, "1")], 3).unwrap());
        assert!(!restarts(&[(POLICY, "unless-stopped"), (EXPLICITLY_STOPPED, "true")], 3).unwrap());
        assert!(restarts(&[(POLICY, "unless-stopped"), (EXPLICITLY_STOPPED, "no")], 3).unwrap());
    }

    #[test]
    fn what_cannot_be_read_is_said_in_the_words_of_the_original() {
        let text = |pairs: &[(&str, &str)]| restarts(pairs, 3).unwrap_err().to_string();
        assert_eq!(text(&[(POLICY, "bogus")]), "restart policy \"bogus\" not supported");
        assert_eq!(text(&[(POLICY, "on-failure:x")]), "invalid max retry count: x");
        let counted = [(POLICY, "on-failure:3"), (COUNT, "abc")];
        assert_eq!(text(&counted), "strconv.Atoi: parsing \"abc\": invalid syntax");
        // The count matters to that policy alone; the others begin again.
        assert!(restarts(&[(COUNT, "abc")], 3).unwrap());
        assert_eq!(next_count(&labels(&[(COUNT, "abc")])), 1);
        assert_eq!(next_count(&labels(&[(COUNT, "41")])), 42);
    }
}
