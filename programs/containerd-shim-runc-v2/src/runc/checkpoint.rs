//! Commands that write containers down and make them again.

use std::path::PathBuf;

use corten_oci::runtime::{Checkpoint, embedded};

use super::arguments::Arguments;
use super::process::{Created, follow_created};
use super::{Global, Result};

const VALUES: &[&str] = &["image-path", "work-path", "parent-path", "manage-cgroups-mode", "empty-ns"];
const SWITCHES: &[&str] = &[
    "leave-running",
    "tcp-established",
    "ext-unix-sk",
    "shell-job",
    "file-locks",
    "lazy-pages",
    "pre-dump",
    "auto-dedup",
];

fn wanted(arguments: &Arguments) -> Checkpoint {
    let path = |name: &str| arguments.value(name).map(PathBuf::from);
    let images = path("image-path").unwrap_or_else(|| "checkpoint".into());
    Checkpoint {
        work: path("work-path").unwrap_or_else(|| images.clone()),
        images,
        parent: path("parent-path"),
        leave_running: arguments.has("leave-running"),
        open_tcp: arguments.has("tcp-established"),
        external_unix_sockets: arguments.has("ext-unix-sk"),
        terminal: arguments.has("shell-job"),
        file_locks: arguments.has("file-locks"),
        empty_namespaces: arguments.all("empty-ns", "empty-ns"),
        cgroups_mode: arguments.value("manage-cgroups-mode").unwrap_or_default(),
    }
}

/// Paths as another program understands them, whatever folder it works in.
fn absolute(mut wanted: Checkpoint) -> Result<Checkpoint> {
    let whole = |path: &PathBuf| std::path::absolute(path).map_err(|error| error.to_string());
    (wanted.images, wanted.work) = (whole(&wanted.images)?, whole(&wanted.work)?);
    std::fs::create_dir_all(&wanted.work).map_err(|error| format!("{}: {error}", wanted.work.display()))?;
    Ok(wanted)
}

pub fn checkpoint(global: &Global, words: Vec<String>) -> Result<i32> {
    let mut arguments = Arguments::parse("checkpoint", words, VALUES, SWITCHES, 1..=1)?;
    for flag in ["lazy-pages", "pre-dump", "auto-dedup"] {
        if arguments.has(flag) {
            return Err(format!("--{flag} is not supported by this runtime"));
        }
    }
    let target = global.existing(&arguments.take())?;
    let wanted = absolute(wanted(&arguments))?;
    embedded::checkpoint(&target, &wanted)?;
    if !wanted.leave_running {
        embedded::delete(&target, true)?;
    }
    Ok(0)
}

pub fn restore(global: &Global, words: Vec<String>) -> Result<i32> {
    let values = [VALUES, &["bundle", "b", "pid-file", "console-socket", "lsm-profile"]].concat();
    let switches = [SWITCHES, &["detach", "d", "no-pivot", "no-subreaper"]].concat();
    let mut arguments = Arguments::parse("restore", words, &values, &switches, 1..=1)?;
    let from = absolute(wanted(&arguments))?;
    let created = Created::restore(global, &mut arguments, &from)?;
    follow_created(&created, &arguments)
}
