//! Drivers of OCI runtimes. The embedded one's functions block and change the process they run in: they
//! are called in a forked child.

pub mod command;
pub mod embedded;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// Which container, and how it is made.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its identifier.
    pub id: String,
    /// The bundle with `config.json`.
    pub bundle: PathBuf,
    /// The runtime's folder of states.
    pub root: PathBuf,
    /// Cgroups through systemd.
    pub systemd: bool,
    /// The root file system is not pivoted into.
    pub no_pivot: bool,
    /// No session keyring of its own.
    pub no_new_keyring: bool,
}

impl Target {
    /// The folder of its state.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.root.join(&self.id)
    }
}

/// Standard streams of a process; with a console, its socket instead.
#[derive(Debug, Default)]
pub struct Streams {
    /// Standard input.
    pub stdin: Option<OwnedFd>,
    /// Standard output.
    pub stdout: Option<OwnedFd>,
    /// Standard error.
    pub stderr: Option<OwnedFd>,
    /// Socket that the terminal is sent to.
    pub console: Option<PathBuf>,
}
