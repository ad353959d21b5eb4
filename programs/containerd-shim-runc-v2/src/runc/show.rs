//! Commands that only tell.

use std::path::Path;

use corten_oci::runtime::embedded;
use corten_types::timestamp;
use serde_json::{Value, json};

use super::arguments::Arguments;
use super::{Global, Result, say};

pub fn state(global: &Global, words: Vec<String>) -> Result<i32> {
    let mut arguments = Arguments::parse("state", words, &[], &[], 1..=1)?;
    let state = described(embedded::state(&global.target(&arguments.take(), Path::new(""))?)?);
    say(&serde_json::to_string_pretty(&state).unwrap_or_default());
    Ok(0)
}

/// Times as people and scripts read them.
fn described(mut state: Value) -> Value {
    let created =
        std::time::UNIX_EPOCH + std::time::Duration::from_secs(state["created"].as_u64().unwrap_or(0));
    state["created"] = timestamp::rfc3339(created).into();
    state["owner"] = "".into();
    state
}

pub fn list(global: &Global, words: Vec<String>) -> Result<i32> {
    let arguments = Arguments::parse("list", words, &["format", "f"], &["quiet", "q"], 0..=0)?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&global.root).into_iter().flatten().flatten() {
        let id = entry.file_name().to_string_lossy().into_owned();
        // One that cannot be read must not hide the others.
        if let Ok(state) = global.target(&id, Path::new("")).and_then(|target| embedded::state(&target)) {
            found.push(described(state));
        }
    }
    found.sort_by_key(|state| state["id"].as_str().unwrap_or_default().to_owned());
    let text = |state: &Value, key: &str| state[key].as_str().unwrap_or_default().to_owned();
    let format = arguments.value("format").or_else(|| arguments.value("f")).unwrap_or_else(|| "table".into());
    if arguments.has("quiet") || arguments.has("q") {
        found.iter().for_each(|state| say(&text(state, "id")));
    } else if format == "json" {
        say(&Value::from(found));
    } else if format == "table" {
        let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
        rows.extend(found.iter().map(|state| {
            let pid = state["pid"].to_string();
            [
                text(state, "id"),
                pid,
                text(state, "status"),
                text(state, "bundle"),
                text(state, "created"),
                "root".into(),
            ]
        }));
        print_table(&rows);
    } else {
        return Err("invalid format option".into());
    }
    Ok(0)
}

fn print_table<const N: usize>(rows: &[[String; N]]) {
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.len()).max().unwrap_or(0)
    };
    for row in rows {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = if column + 1 == N { 0 } else { width(column).max(9) + 3 };
            format!("{cell:width$}")
        });
        say(&cells.collect::<String>());
    }
}

pub fn ps(global: &Global, words: Vec<String>) -> Result<i32> {
    let mut arguments = Arguments::parse("ps", words, &["format", "f"], &[], 1..=usize::MAX)?;
    let target = global.existing(&arguments.take())?;
    let pids = embedded::cgroups(&target)?.processes().map_err(|error| error.to_string())?;
    let format = arguments.value("format").or_else(|| arguments.value("f")).unwrap_or_else(|| "table".into());
    if format == "json" {
        say(&json!(pids));
        return Ok(0);
    }
    let options = if arguments.rest.is_empty() { vec!["-ef".to_owned()] } else { arguments.rest };
    let output =
        std::process::Command::new("ps").args(options).output().map_err(|error| format!("ps: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    let column = header
        .split_whitespace()
        .position(|name| name == "PID")
        .ok_or("couldn't find PID field in ps output")?;
    say(&header);
    for line in lines {
        let pid = line.split_whitespace().nth(column).and_then(|pid| pid.parse::<i32>().ok());
        if pid.is_some_and(|pid| pids.contains(&pid)) {
            say(&line);
        }
    }
    Ok(0)
}

/// Writes a specification to begin with.
pub fn spec(words: Vec<String>) -> Result<i32> {
    let arguments = Arguments::parse("spec", words, &["bundle", "b"], &["rootless"], 0..=0)?;
    let bundle = arguments.value("bundle").or_else(|| arguments.value("b")).unwrap_or_else(|| ".".into());
    let file = Path::new(&bundle).join("config.json");
    if file.exists() {
        return Err(format!("File {} exists. Remove it first", file.display()));
    }
    let text = serde_json::to_string_pretty(&default_spec()).unwrap_or_default();
    std::fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(0)
}

fn default_spec() -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    let closed = ["nosuid", "noexec", "nodev"];
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": true, "user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/",
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "runc",
        "mounts": [
            mount("/proc", "proc", "proc", &[]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &closed),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}],
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

pub fn features() -> Result<i32> {
    say(&serde_json::to_string_pretty(&embedded::features()).unwrap_or_default());
    Ok(0)
}
