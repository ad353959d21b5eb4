//! A process of a container: its init, or one that was added. One state at a time.

use std::time::SystemTime;

use corten_types::{Error, ErrorClass, Result};

use crate::stdio::{Paths, Stdio};

/// Where a process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Known, but not there yet (an exec before its start).
    Added,
    /// There, waiting to be let go.
    Created { pid: i32 },
    /// Running.
    Running { pid: i32 },
    /// Frozen.
    Paused { pid: i32 },
    /// Ended.
    Stopped { pid: i32, status: u32, at: SystemTime },
}

impl State {
    /// As messages name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Added | Self::Created { .. } => "created",
            Self::Running { .. } => "running",
            Self::Paused { .. } => "paused",
            Self::Stopped { .. } => "stopped",
        }
    }
}

/// A process and its streams.
#[derive(Debug)]
pub(crate) struct Process {
    pub state: State,
    pub paths: Paths,
    pub stdio: std::sync::Arc<Stdio>,
    /// The OCI process of an exec, JSON.
    pub spec: Vec<u8>,
    /// Its start is under way.
    starting: bool,
    /// Told about every change of state.
    pub changed: tokio::sync::watch::Sender<()>,
}

impl Process {
    pub(crate) fn new(paths: Paths, spec: Vec<u8>) -> Self {
        Self {
            state: State::Added,
            paths,
            stdio: std::sync::Arc::default(),
            spec,
            starting: false,
            changed: tokio::sync::watch::Sender::new(()),
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        match self.state {
            State::Added => 0,
            State::Created { pid } | State::Running { pid } | State::Paused { pid } => pid,
            State::Stopped { pid, .. } => pid,
        }
    }

    pub(crate) fn set(&mut self, state: State) {
        self.state = state;
        self.changed.send_replace(());
    }

    /// A start begins.
    pub(crate) fn begin(&mut self) {
        self.starting = true;
    }

    /// The start has been told, or has failed.
    pub(crate) fn end_begin(&mut self, state: Option<State>) {
        self.starting = false;
        self.set(state.unwrap_or(self.state));
    }

    pub(crate) fn starting(&self) -> bool {
        self.starting
    }

    pub(crate) fn is_stopped(&self) -> bool {
        matches!(self.state, State::Stopped { .. })
    }

    /// Status and time of the end.
    pub(crate) fn exit(&self) -> Option<(u32, SystemTime)> {
        match self.state {
            State::Stopped { status, at, .. } => Some((status, at)),
            _ => None,
        }
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: u32) -> Result<()> {
        let pid = match self.state {
            State::Added => return Err(Error::failed_precondition("process not created")),
            State::Stopped { .. } => return Err(Error::not_found("process already finished")),
            _ => self.pid(),
        };
        send_signal(pid, signal)
    }
}

/// Sends a signal to a process of a container.
pub(crate) fn send_signal(pid: i32, signal: u32) -> Result<()> {
    use rustix::process::{Pid, kill_process};
    let number = i32::try_from(signal).unwrap_or(0);
    let sent = match (Pid::from_raw(pid), rustix::process::Signal::from_named_raw(number)) {
        (Some(pid), Some(signal)) => kill_process(pid, signal).map_err(std::io::Error::from),
        // Real-time signals have no name.
        (Some(_), None) => corten_sys::kill(pid, number),
        (None, _) => return Err(Error::not_found("process already finished")),
    };
    match sent {
        Err(error) if error.raw_os_error() == Some(3) => Err(Error::not_found("process already finished")),
        Err(error) => Err(Error::bare(ErrorClass::Unknown, format!("unknown error after kill: {error}"))),
        Ok(()) => Ok(()),
    }
}
