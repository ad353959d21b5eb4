//! The embedded OCI runtime: containers as the OCI runtime specification describes them, by system calls
//! alone. Every function that changes the process it runs in is for a forked child of one thread: it may
//! block, join namespaces, and clone on.
//!
//! A container's process is one clone into all of its namespaces and its v2 cgroup; v1's it enters itself.
//! Both spare it the kernel's wait for all processors that moving somebody else costs. Its file system is
//! built with mounts that are attached when they are finished, through handles that no name in the image
//! can lead astray. Linux 5.12 or newer is needed; for older ones name runc or crun.

mod channel;
mod checkpoint;
mod config;
mod console;
mod create;
mod devices;
mod exec;
mod features;
mod hooks;
mod init;
mod namespaces;
mod options;
mod process;
mod rdt;
mod rootfs;
mod seccomp;
mod state;

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use corten_cgroups::Resources;
use corten_sys::FolderLock;

use super::{Checkpoint, Streams, Target};
use config::Config;
use state::State;

pub use exec::STOPPED;
pub use features::features;
pub use state::Status;

/// What went wrong, in the words that clients match.
pub type Failure = String;

/// How long those who make something of a container may take to end once they are killed.
const MAKING: Duration = Duration::from_secs(3);
/// How long freezing may take.
const FREEZING: Duration = Duration::from_secs(10);

/// Creates a container up to the point where its process waits to be started; answers its pid. What an
/// earlier try or an earlier life of this host left under the same id is removed first.
///
/// # Errors
/// What failed; nothing is left behind.
pub fn create(target: &Target, streams: Streams) -> Result<i32, Failure> {
    if let Ok(old) = State::load(target) {
        create::destroy(target, &old).ok();
    }
    // What a half-written state left.
    std::fs::remove_dir_all(target.state()).ok();
    let created = create::create(target, &streams);
    drop(streams);
    created.map_err(|failure| {
        if let Ok(state) = State::load(target) {
            create::destroy(target, &state).ok();
        }
        format!("runc create failed: {failure}")
    })
}

/// Runs a further process, described by a file, in a container; answers its pid.
///
/// # Errors
/// What failed.
pub fn exec(target: &Target, process: &Path, streams: Streams) -> Result<i32, Failure> {
    exec::exec(target, process, &streams)
}

/// Writes a container's processes down, by CRIU.
///
/// # Errors
/// What failed; without CRIU, that it is needed.
pub fn checkpoint(target: &Target, wanted: &Checkpoint) -> Result<(), Failure> {
    checkpoint::checkpoint(target, wanted)
}

/// Makes a container from what was written down; answers the pid of its process, which runs, and is a child of the
/// calling process.
///
/// # Errors
/// What failed; nothing is left behind.
pub fn restore(target: &Target, from: &Checkpoint, streams: Streams) -> Result<i32, Failure> {
    if let Ok(old) = State::load(target) {
        create::destroy(target, &old).ok();
    }
    checkpoint::restore(target, from, &streams).inspect_err(|_| {
        if let Ok(state) = State::load(target) {
            create::destroy(target, &state).ok();
        }
    })
}

/// Lets a created container's process go on. The stream ends when its program runs; what it says before
/// that is why it does not. May be called in any process.
///
/// # Errors
/// When there is no such container, or none that waits.
pub fn start(target: &Target) -> Result<UnixStream, Failure> {
    init::knock(&target.state())
}

/// Runs the hooks that follow a start. Their failures are told, and change nothing.
///
/// # Errors
/// What failed.
pub fn started(target: &Target) -> Result<(), Failure> {
    let config = Config::read(&target.bundle)?;
    hooks::run(&config.hooks.poststart, &State::load(target)?, "running", "poststart", None)
}

/// Whether there are hooks that follow a start.
#[must_use]
pub fn has_poststart_hooks(target: &Target) -> bool {
    Config::read(&target.bundle).is_ok_and(|config| !config.hooks.poststart.is_empty())
}

/// How far a container is, and its first process. May be called in any process.
///
/// # Errors
/// `container does not exist`.
pub fn status(target: &Target) -> Result<(Status, i32), Failure> {
    let state = State::load(target)?;
    Ok((state.status(target), state.pid))
}

/// A container's state as the specification has it, with `rootfs` and `created` (seconds since 1970) as runc
/// adds them.
///
/// # Errors
/// `container does not exist`.
pub fn state(target: &Target) -> Result<serde_json::Value, Failure> {
    let state = State::load(target)?;
    let status = state.status(target);
    let mut json = state.to_json(status.name());
    if status == Status::Stopped {
        json["pid"] = 0.into();
    }
    json["rootfs"] = state.rootfs.display().to_string().into();
    json["created"] = state.created.into();
    Ok(json)
}

/// Where a container's cgroups are.
///
/// # Errors
/// `container does not exist`.
pub fn cgroups(target: &Target) -> Result<corten_cgroups::Cgroups, Failure> {
    State::load(target).map(|state| state.cgroups)
}

/// Sends a signal to a container's first process, or to all.
///
/// # Errors
/// `container not running`; `container does not exist`.
pub fn kill(target: &Target, signal: i32, all: bool) -> Result<(), Failure> {
    let state = State::load(target)?;
    if all {
        return state.cgroups.signal(signal).map_err(|error| error.to_string());
    }
    if state.status(target) == Status::Stopped {
        return Err("container not running".into());
    }
    corten_sys::kill(state.pid, signal).map_err(rootfs::words)
}

/// Removes a container's processes, cgroups and state; without `force` its process must have ended or never
/// begun.
///
/// # Errors
/// What failed; that there is nothing is `container does not exist`.
pub fn delete(target: &Target, force: bool) -> Result<(), Failure> {
    // What is still being made of it, by somebody who is gone by now, is waited for.
    let lock = FolderLock::alone(&target.bundle, MAKING).ok();
    let target = &Target { lock: lock.map(Arc::new), ..target.clone() };
    let state = State::load(target).inspect_err(|_| {
        if force || target.lock.is_some() {
            // Somebody was ended before anything was written down, or when the state was all but removed.
            std::fs::remove_dir_all(target.state()).ok();
        }
    })?;
    if !force && !matches!(state.status(target), Status::Stopped | Status::Created) {
        return Err(format!("cannot delete container {} that is not stopped: running", target.id));
    }
    create::destroy(target, &state)
}

/// Freezes or thaws a container, and waits until it is.
///
/// # Errors
/// What failed.
pub fn freeze(target: &Target, frozen: bool) -> Result<(), Failure> {
    let state = State::load(target)?;
    state.cgroups.freeze(frozen).map_err(|error| error.to_string())?;
    let late = Instant::now() + FREEZING;
    while state.cgroups.is_frozen() != frozen {
        if Instant::now() > late {
            state.cgroups.freeze(false).ok();
            return Err("unable to freeze".into());
        }
        std::thread::sleep(Duration::from_millis(1));
        // v1 sometimes has to be asked again.
        state.cgroups.freeze(frozen).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Changes a container's limits; `resources` is OCI's JSON.
///
/// # Errors
/// What failed.
pub fn update(target: &Target, resources: &[u8]) -> Result<(), Failure> {
    let mut wanted: Resources =
        serde_json::from_slice(resources).map_err(|error| format!("resources: {error}"))?;
    // They are set once, at creation.
    wanted.devices.clear();
    create::limit(&State::load(target)?, &wanted)
}
