//! What a container uses, once or again and again, and memory that runs out.

use std::path::Path;
use std::time::{Duration, Instant};

use corten_cgroups::{Cgroups, OomWatch};
use corten_oci::runtime::embedded;
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::{Value, json};

use super::arguments::Arguments;
use super::{Global, Result, say};

const USUAL: Duration = Duration::from_secs(5);

pub fn events(global: &Global, words: Vec<String>) -> Result<i32> {
    let mut arguments = Arguments::parse("events", words, &["interval"], &["stats"], 1..=1)?;
    let interval = arguments.value("interval").map_or(Ok(USUAL), |text| duration(&text))?;
    if interval.is_zero() {
        return Err("duration interval must be greater than 0".into());
    }
    let id = arguments.take();
    let target = global.existing(&id)?;
    if embedded::status(&target)?.0 == embedded::Status::Stopped {
        return Err(format!("container with id {id} is not running"));
    }
    let cgroups = embedded::cgroups(&target)?;
    if arguments.has("stats") {
        print("stats", &id, Some(stats(&cgroups)));
        return Ok(0);
    }
    let mut memory = OomWatch::new(&cgroups).map_err(|error| error.to_string())?;
    let mut next = Instant::now() + interval;
    loop {
        let left = next.saturating_duration_since(Instant::now());
        let happened = match &mut memory {
            Some(watch) => {
                let timeout = left.try_into().ok();
                poll(&mut [PollFd::new(watch, PollFlags::IN)], timeout.as_ref())
                    .map_err(|error| error.to_string())?;
                watch.check().map_err(|error| error.to_string())?
            }
            None => {
                std::thread::sleep(left);
                Some(false)
            }
        };
        if embedded::status(&target).is_ok_and(|(status, _)| status == embedded::Status::Stopped) {
            return Ok(0);
        }
        match happened {
            // The cgroup is gone, and the container with it.
            None => return Ok(0),
            Some(true) => print("oom", &id, None),
            Some(false) => {}
        }
        if Instant::now() >= next {
            print("stats", &id, Some(stats(&cgroups)));
            next += interval;
        }
    }
}

fn print(kind: &str, id: &str, data: Option<Value>) {
    let mut event = json!({"type": kind, "id": id});
    if let Some(data) = data {
        event["data"] = data;
    }
    say(&event);
}

/// As Go writes durations, in one unit.
fn duration(text: &str) -> Result<Duration> {
    let bad = || format!("invalid duration {text:?}");
    let at = text.find(|letter: char| letter.is_ascii_alphabetic()).ok_or_else(bad)?;
    let (number, unit) = text.split_at(at);
    let number: f64 = number.parse().map_err(|_| bad())?;
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(bad()),
    };
    Duration::try_from_secs_f64(number * seconds).map_err(|_| bad())
}

fn stats(cgroups: &Cgroups) -> Value {
    let v1 = |controller: &str| cgroups.controller(controller);
    let read = |controller: &str, v1_file: &str, v2_file: &str| -> u64 {
        let path = v1(controller).map(|folder| folder.join(v1_file));
        let path = path.or_else(|| cgroups.unified().map(|folder| folder.join(v2_file)));
        path.map_or(0, |path| number(&path))
    };
    let cpu = match (v1("cpuacct"), cgroups.unified()) {
        (Some(folder), _) => {
            let each: Vec<u64> = text(&folder.join("cpuacct.usage_percpu"))
                .split_whitespace()
                .filter_map(|number| number.parse().ok())
                .collect();
            // Ticks of 1/100 s.
            let ticks = |key: &str| line(&folder.join("cpuacct.stat"), key) * 10_000_000;
            json!({"usage": {"total": number(&folder.join("cpuacct.usage")), "percpu": each,
                "kernel": ticks("system"), "user": ticks("user")}})
        }
        (None, Some(folder)) => {
            let nanos = |key: &str| line(&folder.join("cpu.stat"), key) * 1000;
            json!({"usage": {"total": nanos("usage_usec"), "kernel": nanos("system_usec"), "user": nanos("user_usec")},
                "throttling": {"periods": line(&folder.join("cpu.stat"), "nr_periods"),
                    "throttledPeriods": line(&folder.join("cpu.stat"), "nr_throttled"),
                    "throttledTime": nanos("throttled_usec")}})
        }
        _ => json!({}),
    };
    let raw = v1("memory").or_else(|| cgroups.unified()).map(|folder| text(&folder.join("memory.stat")));
    let raw: serde_json::Map<String, Value> = raw
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(key, value)| Some((key.to_owned(), value.trim().parse::<u64>().ok()?.into())))
        .collect();
    json!({
        "cpu": cpu,
        "memory": {
            "usage": {
                "usage": read("memory", "memory.usage_in_bytes", "memory.current"),
                "limit": read("memory", "memory.limit_in_bytes", "memory.max"),
                "max": read("memory", "memory.max_usage_in_bytes", "memory.peak"),
                "failcnt": read("memory", "memory.failcnt", "no.such.file"),
            },
            "swap": {
                "usage": read("memory", "memory.memsw.usage_in_bytes", "memory.swap.current"),
                "limit": read("memory", "memory.memsw.limit_in_bytes", "memory.swap.max"),
            },
            "raw": raw,
        },
        "pids": {
            "current": read("pids", "pids.current", "pids.current"),
            "limit": read("pids", "pids.max", "pids.max"),
        },
    })
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// A file's number; no limit is 0.
fn number(path: &Path) -> u64 {
    text(path).trim().parse().unwrap_or(0)
}

/// The number in a line `key number`.
fn line(path: &Path, key: &str) -> u64 {
    let text = text(path);
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("20ms"), Ok(Duration::from_millis(20)));
        assert!(duration("5").is_err() && duration("-1s").is_err() && duration("1d").is_err());
    }
}
