//! Drivers of OCI runtimes. The embedded one's functions block and change the process they run in: they
//! are called in a forked child.

pub mod command;
pub mod embedded;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use corten_sys::FolderLock;

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
    /// The bundle's lock, for as long as something of the container is being made: who removes it waits for that.
    pub lock: Option<Arc<FolderLock>>,
}

impl Target {
    /// The folder of its state.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.root.join(&self.id)
    }
}

/// How a container is written down, and read again, by CRIU.
#[derive(Clone, Debug, Default)]
pub struct Checkpoint {
    /// The folder of images.
    pub images: PathBuf,
    /// Where CRIU works and logs.
    pub work: PathBuf,
    /// Images of before, against which only differences are written.
    pub parent: Option<PathBuf>,
    /// It goes on afterwards.
    pub leave_running: bool,
    /// Connections that stand are kept.
    pub open_tcp: bool,
    /// Unix sockets that lead out are kept.
    pub external_unix_sockets: bool,
    /// There is a terminal.
    pub terminal: bool,
    /// Locks on files are kept.
    pub file_locks: bool,
    /// Kinds of namespaces that are made empty.
    pub empty_namespaces: Vec<String>,
    /// How cgroups are restored, as CRIU names it.
    pub cgroups_mode: String,
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
    /// Descriptors from 3 on that the process gets beside these.
    pub more: u32,
    /// How many of those are sockets that the process is told of, as systemd does.
    pub listening: u32,
}
