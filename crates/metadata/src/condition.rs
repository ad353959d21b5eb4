//! Conditional references: `containerd.io/gc.cond.snapshot.<snapshotter>` = `usedat<24h,…|<key>` on a blob or an
//! image keeps that while the snapshot is kept, if one of the conditions holds for the moment of use that the
//! snapshot's own label tells (spec 01 §16).

use std::time::{Duration, SystemTime};

use corten_types::timestamp;

use crate::graph::Node;

/// The moment at which a snapshot was last used.
pub(crate) const USED_AT: &str = "containerd.io/gc.cond.value-usedat";
const SNAPSHOT: &str = "containerd.io/gc.cond.snapshot";

/// A snapshot, and how long ago its last use may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    pub snapshot: Node,
    ages: Vec<Age>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    Below(Duration),
    Above(Duration),
}

impl Condition {
    /// A label, if it is a condition; what cannot be understood of it never holds.
    pub(crate) fn parse(label: &str, value: &str) -> Option<Self> {
        let snapshotter = label.strip_prefix(SNAPSHOT)?.trim_start_matches(['.', '/']);
        let snapshotter = snapshotter.split('/').next().unwrap_or_default();
        let (conditions, key) = value.split_once('|')?;
        let snapshot = Node::Snapshot(snapshotter.to_owned(), key.to_owned());
        Some(Self { snapshot, ages: conditions.split(',').filter_map(age).collect() })
    }

    /// Whether it holds for a snapshot with this label.
    pub(crate) fn holds(&self, used_at: &str, now: SystemTime) -> bool {
        let Some(used_at) = timestamp::parse_rfc3339(used_at) else { return false };
        self.ages.iter().any(|age| match *age {
            Age::Below(limit) => {
                now.duration_since(used_at).is_ok_and(|passed| passed < limit) || used_at > now
            }
            Age::Above(limit) => now.duration_since(used_at).is_ok_and(|passed| passed > limit),
        })
    }
}

fn age(condition: &str) -> Option<Age> {
    let rest = condition.strip_prefix("usedat")?;
    match rest.split_at_checked(1)? {
        ("<", limit) => duration(limit).map(Age::Below),
        (">", limit) => duration(limit).map(Age::Above),
        _ => None,
    }
}

/// `1h30m`, `1.5s`, `0`: numbers with units, as Go reads them.
fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at_checked(number)?;
        let unit = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at_checked(unit)?;
        let length = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * length;
        rest = tail;
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(seconds).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, seconds) in
            [("0", 0.0), ("24h", 86400.0), ("1h30m", 5400.0), ("1.5s", 1.5), ("10ms", 0.01)]
        {
            assert_eq!(duration(text), Some(Duration::from_secs_f64(seconds)), "{text}");
        }
        for text in ["", "1", "h", "1d", "1h-", "..s", "1e999h"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn conditions_hold_for_recent_or_long_past_use() {
        let now = SystemTime::now();
        let ago = |hours: u64| timestamp::rfc3339(now - Duration::from_secs(hours * 3600));
        let parse = |value: &str| Condition::parse("containerd.io/gc.cond.snapshot.overlayfs/x", value);
        let recent = parse("usedat<2h|key|more").unwrap();
        assert_eq!(recent.snapshot, Node::Snapshot("overlayfs".into(), "key|more".into()));
        assert!(recent.holds(&ago(1), now) && !recent.holds(&ago(3), now) && !recent.holds("nonsense", now));
        let either = parse("usedat>5h,usedat<2h,usedat=1h,other<1h|k").unwrap();
        assert!(either.holds(&ago(1), now) && !either.holds(&ago(3), now) && either.holds(&ago(6), now));
        assert!(parse("usedat<2h").is_none());
        assert!(!parse("|k").unwrap().holds(&ago(1), now));
    }
}
