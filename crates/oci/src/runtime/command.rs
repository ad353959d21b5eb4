//! A runtime that is a program: runc, crun, youki. Builds its command lines and reads what it says.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Checkpoint, Target};

/// A runtime's program.
#[derive(Clone, Debug)]
pub struct Program {
    /// Name or path.
    pub path: PathBuf,
}

impl Program {
    fn command(&self, target: &Target, verb: &str) -> Command {
        let mut command = Command::new(&self.path);
        command.arg("--root").arg(&target.root);
        command.arg("--log").arg(target.bundle.join("log.json")).args(["--log-format", "json"]);
        if target.systemd {
            command.arg("--systemd-cgroup");
        }
        command.arg(verb);
        command
    }

    /// `create`, up to the point where the process waits to be started.
    #[must_use]
    pub fn create(&self, target: &Target, console: Option<&Path>) -> Command {
        let mut command = self.command(target, "create");
        command.arg("--bundle").arg(&target.bundle).arg("--pid-file").arg(target.bundle.join("init.pid"));
        if let Some(console) = console {
            command.arg("--console-socket").arg(console);
        }
        if target.no_pivot {
            command.arg("--no-pivot");
        }
        if target.no_new_keyring {
            command.arg("--no-new-keyring");
        }
        command.arg(&target.id);
        command
    }

    /// `exec` of a process described by a file.
    #[must_use]
    pub fn exec(&self, target: &Target, process: &Path, pid_file: &Path, console: Option<&Path>) -> Command {
        let mut command = self.command(target, "exec");
        command.arg("--process").arg(process).arg("--detach").arg("--pid-file").arg(pid_file);
        if let Some(console) = console {
            command.arg("--console-socket").arg(console);
        }
        command.arg(&target.id);
        command
    }

    /// `start`, `pause`, `resume`.
    #[must_use]
    pub fn simple(&self, target: &Target, verb: &str) -> Command {
        let mut command = self.command(target, verb);
        command.arg(&target.id);
        command
    }

    /// `delete`.
    #[must_use]
    pub fn delete(&self, target: &Target, force: bool) -> Command {
        let mut command = self.command(target, "delete");
        if force {
            command.arg("--force");
        }
        command.arg(&target.id);
        command
    }

    /// `checkpoint`.
    #[must_use]
    pub fn checkpoint(&self, target: &Target, wanted: &Checkpoint) -> Command {
        let mut command = self.command(target, "checkpoint");
        command.arg("--image-path").arg(&wanted.images).arg("--work-path").arg(&wanted.work);
        if let Some(parent) = &wanted.parent {
            command.arg("--parent-path").arg(parent);
        }
        for (flag, is_set) in [
            ("--tcp-established", wanted.open_tcp),
            ("--ext-unix-sk", wanted.external_unix_sockets),
            ("--shell-job", wanted.terminal),
            ("--file-locks", wanted.file_locks),
            ("--leave-running", wanted.leave_running),
        ] {
            if is_set {
                command.arg(flag);
            }
        }
        if !wanted.cgroups_mode.is_empty() {
            command.arg("--manage-cgroups-mode").arg(&wanted.cgroups_mode);
        }
        for kind in &wanted.empty_namespaces {
            command.arg("--empty-ns").arg(kind);
        }
        command.arg(&target.id);
        command
    }

    /// `restore`, up to the point where the process runs.
    #[must_use]
    pub fn restore(&self, target: &Target, from: &Checkpoint, console: Option<&Path>) -> Command {
        let mut command = self.command(target, "restore");
        command.arg("--image-path").arg(&from.images).arg("--work-path").arg(&from.work);
        command.arg("--detach").arg("--pid-file").arg(target.bundle.join("init.pid"));
        command.arg("--no-subreaper").arg("--bundle").arg(&target.bundle);
        if let Some(console) = console {
            command.arg("--console-socket").arg(console);
        }
        if target.no_pivot {
            command.arg("--no-pivot");
        }
        command.arg(&target.id);
        command
    }

    /// `update` with resources in a file.
    #[must_use]
    pub fn update(&self, target: &Target, resources: &Path) -> Command {
        let mut command = self.command(target, "update");
        command.arg("--resources").arg(resources).arg(&target.id);
        command
    }
}

/// The last error in a runtime's log, or what it printed.
#[must_use]
pub fn reason(target: &Target, printed: &str) -> String {
    let log = std::fs::read(target.bundle.join("log.json")).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let last = log.lines().rev().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let last =
        last.filter(|line| line["level"] == "error").find_map(|line| Some(line["msg"].as_str()?.to_owned()));
    match last {
        Some(message) => message,
        None if printed.trim().is_empty() => "unable to retrieve OCI runtime error".into(),
        None => printed.trim().to_owned(),
    }
}
