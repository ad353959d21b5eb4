//! Cgroups that systemd makes: a container is a scope in a slice, which systemd knows of, and which is ours below.
//! What systemd has no property for is written to its cgroup as to any other.

mod bus;
mod given;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use corten_types::{Error, ErrorClass, Result};
use serde::{Deserialize, Serialize};

use crate::resources::{DeviceRule, Resources};
use bus::{Argument, Bus, Value};

/// How long systemd may take to make a scope.
const PATIENCE: Duration = Duration::from_secs(30);
const NO_LIMIT: u64 = u64::MAX;
const SECOND: u64 = 1_000_000;

/// A scope: the unit that holds a container's processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// The slice that it is in.
    pub slice: String,
    /// Its name.
    pub unit: String,
}

impl Scope {
    /// From `slice:prefix:name`, as the OCI runtime specification's `cgroupsPath` has it for systemd; empty is a
    /// scope of the system's slice.
    ///
    /// # Errors
    /// InvalidArgument for what has another form.
    pub fn parse(path: &Path, id: &str) -> Result<Self> {
        let text = path.to_string_lossy();
        let parts: Vec<&str> = text.split(':').collect();
        let (slice, prefix, name) = match parts.as_slice() {
            [""] => ("", "runc", id),
            [slice, prefix, name] => (*slice, *prefix, *name),
            _ => {
                return Err(Error::bare(
                    ErrorClass::InvalidArgument,
                    format!(
                        "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {text:?} \
                         instead"
                    ),
                ));
            }
        };
        let slice = if slice.is_empty() { "system.slice" } else { slice };
        let unit = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
        if unit.contains('/') || name.is_empty() {
            return Err(Error::invalid_argument(format!("{text:?} names no systemd unit")));
        }
        let scope = Self { slice: slice.to_owned(), unit };
        scope.slice_path()?;
        Ok(scope)
    }

    /// Where its cgroup is in each hierarchy.
    ///
    /// # Errors
    /// InvalidArgument for what is no slice.
    pub fn path(&self) -> Result<PathBuf> {
        Ok(self.slice_path()?.join(&self.unit))
    }

    /// A slice lies in those whose names its own begins with, up to each dash.
    fn slice_path(&self) -> Result<PathBuf> {
        let invalid = || Error::invalid_argument(format!("invalid slice name: {}", self.slice));
        let name = self.slice.strip_suffix(".slice").ok_or_else(invalid)?;
        if name == "-" {
            return Ok("/".into());
        }
        if name.contains('/') || name.split('-').any(str::is_empty) {
            return Err(invalid());
        }
        let (mut path, mut prefix) = (PathBuf::from("/"), String::new());
        for part in name.split('-') {
            prefix.push_str(part);
            path.push(format!("{prefix}.slice"));
            prefix.push('-');
        }
        Ok(path)
    }

    /// Makes it, with a process in it, and waits until the process is there. Annotations of the form
    /// `org.systemd.property.<Name>` are properties of it.
    ///
    /// # Errors
    /// FailedPrecondition without systemd; InvalidArgument for such annotations that cannot be read; what systemd says.
    pub fn start(
        &self,
        pid: i32,
        description: &str,
        wanted: &Resources,
        annotations: &BTreeMap<String, String>,
        unified: bool,
    ) -> Result<()> {
        let given = given::properties(annotations)?;
        if !is_running() {
            return Err(Error::bare(
                ErrorClass::FailedPrecondition,
                "systemd not running on this host, cannot use systemd cgroups manager",
            ));
        }
        let mut bus = Bus::connect()?;
        let mut properties = self.properties(pid, description, wanted, unified);
        // What is said last counts.
        properties.extend(given);
        let arguments = [
            Argument::Text(&self.unit),
            Argument::Text("replace"),
            Argument::Properties(&properties),
            Argument::NoUnits,
        ];
        match bus.call("StartTransientUnit", &arguments) {
            // One that failed keeps its name until it is forgotten.
            Err(error) if error.is_already_exists() => {
                bus.call("ResetFailedUnit", &[Argument::Text(&self.unit)]).ok();
                bus.call("StartTransientUnit", &arguments)?;
            }
            other => other?,
        }
        self.wait_for(pid)
    }

    fn wait_for(&self, pid: i32) -> Result<()> {
        let late = Instant::now() + PATIENCE;
        let mark = format!("/{}", self.unit);
        loop {
            let table = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
            if table.lines().any(|line| line.ends_with(&mark)) {
                return Ok(());
            }
            if Instant::now() > late {
                let text = format!("systemd did not start {} in time", self.unit);
                return Err(Error::new(ErrorClass::DeadlineExceeded, text));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn properties(
        &self,
        pid: i32,
        description: &str,
        wanted: &Resources,
        unified: bool,
    ) -> Vec<(String, Value)> {
        let io = if unified { "IOAccounting" } else { "BlockIOAccounting" };
        let properties = [
            ("Description", Value::Text(description.to_owned())),
            ("Slice", Value::Text(self.slice.clone())),
            ("Delegate", Value::Switch(true)),
            ("PIDs", Value::Pids(vec![pid.unsigned_abs()])),
            ("MemoryAccounting", Value::Switch(true)),
            ("CPUAccounting", Value::Switch(true)),
            (io, Value::Switch(true)),
            ("TasksAccounting", Value::Switch(true)),
            ("DefaultDependencies", Value::Switch(false)),
        ];
        properties
            .map(|(name, value)| (name.to_owned(), value))
            .into_iter()
            .chain(limits(wanted, unified))
            .collect()
    }

    /// Tells systemd the limits that it knows; else it would undo them some day.
    ///
    /// # Errors
    /// What systemd says.
    pub fn set(&self, wanted: &Resources, unified: bool) -> Result<()> {
        let limits = limits(wanted, unified);
        if limits.is_empty() {
            return Ok(());
        }
        let arguments = [Argument::Text(&self.unit), Argument::Switch(true), Argument::Properties(&limits)];
        Bus::connect()?.call("SetUnitProperties", &arguments)
    }

    /// Removes it. That there is none, or no systemd, is no error.
    ///
    /// # Errors
    /// What systemd says.
    pub fn stop(&self) -> Result<()> {
        if !is_running() {
            return Ok(());
        }
        let mut bus = Bus::connect()?;
        let stopped = bus.call("StopUnit", &[Argument::Text(&self.unit), Argument::Text("replace")]);
        bus.call("ResetFailedUnit", &[Argument::Text(&self.unit)]).ok();
        match stopped {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }
}

/// Whether systemd manages this host.
fn is_running() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

fn limit(value: i64) -> Value {
    Value::Number(u64::try_from(value).unwrap_or(NO_LIMIT))
}

/// Limits as systemd has them.
fn limits(wanted: &Resources, unified: bool) -> Vec<(String, Value)> {
    let named = |(name, value): (&str, Value)| (name.to_owned(), value);
    known_limits(wanted, unified).into_iter().map(named).collect()
}

fn known_limits(wanted: &Resources, unified: bool) -> Vec<(&'static str, Value)> {
    let mut found = Vec::new();
    let set = |value: Option<i64>| value.filter(|value| *value != 0);
    if let Some(memory) = &wanted.memory {
        let name = if unified { "MemoryMax" } else { "MemoryLimit" };
        found.extend(set(memory.limit).map(|value| (name, limit(value))));
        if unified {
            found.extend(set(memory.reservation).map(|value| ("MemoryLow", limit(value))));
            found.extend(swap(memory).map(|value| ("MemorySwapMax", limit(value))));
        }
    }
    if let Some(cpu) = &wanted.cpu {
        if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
            let weight =
                if unified { ("CPUWeight", crate::limits::weight(shares)) } else { ("CPUShares", shares) };
            found.push((weight.0, Value::Number(weight.1)));
        }
        if cpu.quota.is_some_and(|quota| quota != 0) || cpu.period.is_some_and(|period| period != 0) {
            found.push(("CPUQuotaPerSecUSec", Value::Number(quota_per_second(cpu.quota, cpu.period))));
            found
                .extend(cpu.period.filter(|it| *it != 0).map(|it| ("CPUQuotaPeriodUSec", Value::Number(it))));
        }
        for (name, list) in [("AllowedCPUs", &cpu.cpus), ("AllowedMemoryNodes", &cpu.mems)] {
            let set = list.as_ref().filter(|list| unified && !list.is_empty()).and_then(|list| bits(list));
            found.extend(set.map(|bits| (name, Value::Bytes(bits))));
        }
    }
    let pids = wanted.pids.as_ref().and_then(|pids| set(pids.limit));
    found.extend(pids.map(|value| ("TasksMax", limit(value))));
    if !unified && !wanted.devices.is_empty() {
        found.extend(devices(&wanted.devices));
    }
    found
}

/// What may be swapped alone, out of memory and swap together.
fn swap(memory: &crate::resources::Memory) -> Option<i64> {
    let swap = memory.swap.filter(|swap| *swap != 0)?;
    match memory.limit {
        _ if swap < 0 => Some(-1),
        Some(limit @ 1..) if swap >= limit => Some(swap - limit),
        _ => None,
    }
}

/// Microseconds in each second, which systemd rounds to hundredths.
fn quota_per_second(quota: Option<i64>, period: Option<u64>) -> u64 {
    const USUAL: u64 = 100_000;
    const STEP: u64 = 10_000;
    let period = period.filter(|period| *period != 0).unwrap_or(USUAL);
    match quota.and_then(|quota| u64::try_from(quota).ok()).filter(|quota| *quota > 0) {
        Some(quota) => quota.saturating_mul(SECOND).div_euclid(period).div_ceil(STEP).saturating_mul(STEP),
        None => NO_LIMIT,
    }
}

/// A list like `0-2,5` as a set of bits.
fn bits(list: &str) -> Option<Vec<u8>> {
    const MOST: usize = 8192;
    let mut set = Vec::new();
    for range in list.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if last >= MOST || first > last {
            return None;
        }
        for number in first..=last {
            if set.len() <= number / 8 {
                set.resize(number / 8 + 1, 0);
            }
            if let Some(byte) = set.get_mut(number / 8) {
                *byte |= 1 << (number % 8);
            }
        }
    }
    Some(set)
}

/// Rules for devices, which systemd writes to v1 by itself whenever it is reloaded.
fn devices(rules: &[DeviceRule]) -> Vec<(&'static str, Value)> {
    let is_all = |rule: &&DeviceRule| matches!(rule.kind.as_str(), "" | "a") && rule.major.is_none();
    if rules.iter().rev().find(is_all).is_some_and(|rule| rule.allow) {
        return vec![("DevicePolicy", Value::Text("auto".into())), ("DeviceAllow", Value::Pairs(Vec::new()))];
    }
    let known = |number: Option<i64>| number.filter(|number| *number >= 0);
    let name = |rule: &DeviceRule| {
        let kind = if rule.kind == "b" { "block" } else { "char" };
        match (known(rule.major), known(rule.minor)) {
            (Some(major), Some(minor)) => Some(format!("/dev/{kind}/{major}:{minor}")),
            (None, None) => Some(format!("{kind}-*")),
            // Terminals, by the name that their driver has.
            (Some(136), None) => Some("char-pts".into()),
            _ => None,
        }
    };
    let allowed = rules.iter().filter(|rule| rule.allow && !is_all(rule));
    let access =
        |rule: &DeviceRule| if rule.access.is_empty() { "rwm".to_owned() } else { rule.access.clone() };
    let pairs = allowed.filter_map(|rule| Some((name(rule)?, access(rule)))).collect();
    vec![("DevicePolicy", Value::Text("strict".into())), ("DeviceAllow", Value::Pairs(pairs))]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(path: &str) -> Result<Scope> {
        Scope::parse(Path::new(path), "id")
    }

    #[test]
    fn paths_are_those_that_systemd_makes() {
        for (path, expected) in [
            ("", "/system.slice/runc-id.scope"),
            (":docker:abc", "/system.slice/docker-abc.scope"),
            (
                "kubepods-burstable-pod1.slice:cri-containerd:x",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-x.scope",
            ),
            ("-.slice::x", "/x.scope"),
        ] {
            assert_eq!(scope(path).unwrap().path().unwrap(), Path::new(expected));
        }
        assert!(scope("/a/b").unwrap_err().to_string().contains("slice:prefix:name"));
        for bad in
            ["a:b:c", "a--b.slice:p:n", "a/b.slice:p:n", ".slice:p:n", "a.slice:p:x/../y", "a.slice:p:"]
        {
            assert!(scope(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn limits_are_told_in_systemds_units() {
        let wanted: Resources = serde_json::from_value(serde_json::json!({
            "memory": {"limit": 1000, "swap": 1500, "reservation": 500},
            "cpu": {"shares": 1024, "quota": 50000, "period": 100_000, "cpus": "0-2,9"}, "pids": {"limit": -1},
        }))
        .unwrap();
        let number = Value::Number;
        assert_eq!(
            known_limits(&wanted, true),
            [
                ("MemoryMax", number(1000)),
                ("MemoryLow", number(500)),
                ("MemorySwapMax", number(500)),
                ("CPUWeight", number(39)),
                ("CPUQuotaPerSecUSec", number(500_000)),
                ("CPUQuotaPeriodUSec", number(100_000)),
                ("AllowedCPUs", Value::Bytes(vec![7, 2])),
                ("TasksMax", number(NO_LIMIT)),
            ]
        );
        assert_eq!(quota_per_second(Some(-1), None), NO_LIMIT);
        assert_eq!(quota_per_second(Some(33_333), None), 340_000);
        assert!(bits("x").is_none() && bits("3-1").is_none() && bits("0-99999999").is_none());
    }

    #[test]
    fn devices_are_told_where_systemd_writes_them() {
        let rules: Vec<DeviceRule> = serde_json::from_value(serde_json::json!([
            {"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"},
            {"allow": true, "type": "b", "access": "m"}, {"allow": true, "type": "c", "major": 136, "access": "rwm"},
        ]))
        .unwrap();
        let pair = |one: &str, other: &str| (one.to_owned(), other.to_owned());
        let expected = vec![pair("/dev/char/1:3", "rw"), pair("block-*", "m"), pair("char-pts", "rwm")];
        assert_eq!(devices(&rules)[1].1, Value::Pairs(expected));
        let all = [DeviceRule { allow: true, ..DeviceRule::default() }];
        assert_eq!(devices(&all)[0].1, Value::Text("auto".into()));
    }
}
