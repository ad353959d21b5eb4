//! What is kept of a container between two calls: `<root>/<id>/state.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use corten_cgroups::{Cgroups, Scope};
use serde::{Deserialize, Serialize};

use super::config::Hook;
use super::{Failure, Target};

/// A container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct State {
    pub oci_version: String,
    pub id: String,
    /// Of its first process; 0 while there is none yet.
    pub pid: i32,
    /// When that was started, in ticks since the boot: a pid alone may be somebody else's by now.
    pub started: u64,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    pub annotations: BTreeMap<String, String>,
    pub cgroups: Cgroups,
    /// That systemd made them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// Group of the processor's resources that goes with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rdt: Option<PathBuf>,
    /// Hooks that run when it is removed, whatever has become of the bundle by then.
    pub poststop: Vec<Hook>,
    /// Seconds since 1970.
    pub created: u64,
}

/// How far a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Its process waits to be started.
    Created,
    /// It runs.
    Running,
    /// It is frozen.
    Paused,
    /// Its process has ended.
    Stopped,
}

impl Status {
    /// As the specification names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

impl State {
    pub(super) fn load(target: &Target) -> Result<Self, Failure> {
        let text = std::fs::read(target.state().join("state.json"));
        let text = text.map_err(|_| "container does not exist".to_owned())?;
        serde_json::from_slice(&text).map_err(|error| format!("container state: {error}"))
    }

    pub(super) fn save(&self, target: &Target) -> Result<(), Failure> {
        let (folder, text) = (target.state(), serde_json::to_vec(self).unwrap_or_default());
        let new = folder.join("state.json.new");
        let saved =
            std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, folder.join("state.json")));
        saved.map_err(|error| format!("{}: {error}", folder.display()))
    }

    /// Whether its first process has not ended.
    pub(super) fn is_alive(&self) -> bool {
        self.pid != 0 && start_time(self.pid) == Some(self.started)
    }

    pub(super) fn status(&self, target: &Target) -> Status {
        if !self.is_alive() {
            Status::Stopped
        } else if start_socket(&target.state()).exists() {
            Status::Created
        } else if self.cgroups.is_frozen() {
            Status::Paused
        } else {
            Status::Running
        }
    }

    /// As hooks read it on standard input, and `state` prints it.
    pub(super) fn to_json(&self, status: &str) -> serde_json::Value {
        serde_json::json!({
            "ociVersion": self.oci_version, "id": self.id, "status": status, "pid": self.pid,
            "bundle": self.bundle, "annotations": self.annotations,
        })
    }
}

/// Where a created process waits.
pub(super) fn start_socket(folder: &Path) -> PathBuf {
    folder.join("start.sock")
}

/// When a process was started, if it has not ended.
pub(super) fn start_time(pid: i32) -> Option<u64> {
    started(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The same, from what the kernel tells of a process.
pub(super) fn started(stat: &str) -> Option<u64> {
    // The name before may contain anything.
    let mut fields = stat.rsplit(')').next()?.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}
