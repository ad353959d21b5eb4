//! One task: its bundle, its shim, and how it ended.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use corten_api::task_v3::DeleteResponse;
use prost_types::Timestamp;
use tokio::sync::watch;

use crate::bundle::Bundle;
use crate::log::ShimLog;
use crate::shim::Shim;
use crate::table::Key;

/// Exit status of a task whose shim died and left no word of it.
const LOST: u32 = 255;
/// Exec processes of one task that are remembered for the case that the shim dies.
const MAX_EXECS: usize = 4096;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exit {
    /// Its process id; 0 if it never ran.
    pub pid: u32,
    /// Exit code, or 128 and the signal.
    pub status: u32,
    /// When; none if it never ran.
    pub at: Option<Timestamp>,
}

impl Exit {
    /// What is reported when nothing is known.
    pub(crate) fn lost(pid: u32) -> Self {
        Self { pid, status: LOST, at: Some(corten_types::timestamp::now()) }
    }
}

impl From<DeleteResponse> for Exit {
    fn from(response: DeleteResponse) -> Self {
        Self { pid: response.pid, status: response.exit_status, at: response.exited_at }
    }
}

/// A task whose shim has answered at least once.
#[derive(Debug)]
pub(crate) struct Task {
    pub key: Key,
    pub bundle: Bundle,
    pub shim: Shim,
    /// Whether the shim belongs to a sandbox, so that it is not ours to end.
    pub sandboxed: bool,
    /// Process id of the init process; 0 while unknown.
    pub pid: AtomicU32,
    /// Exec processes that are started (0 before their process id is known) and are not known to have
    /// ended.
    execs: Mutex<BTreeMap<String, u32>>,
    ended: watch::Sender<Option<Exit>>,
    /// Whether the end of the init process has been told to subscribers.
    exit_told: AtomicBool,
    /// Whether the deletion has.
    deletion_told: watch::Sender<bool>,
    _log: Option<ShimLog>,
}

impl Task {
    pub fn new(key: Key, bundle: Bundle, shim: Shim, sandboxed: bool, log: Option<ShimLog>) -> Self {
        Self {
            key,
            bundle,
            shim,
            sandboxed,
            pid: AtomicU32::new(0),
            execs: Mutex::default(),
            ended: watch::Sender::new(None),
            exit_told: AtomicBool::new(false),
            deletion_told: watch::Sender::new(false),
            _log: log,
        }
    }

    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Notes the process id of the init process.
    pub fn set_pid(&self, pid: u32) {
        self.pid.store(pid, Ordering::Relaxed);
    }

    /// An exec process is about to be started: its end may be told before its start is answered.
    pub fn exec_starts(&self, exec: &str) {
        let mut execs = self.execs();
        if execs.len() < MAX_EXECS {
            execs.entry(exec.to_owned()).or_insert(0);
        }
    }

    /// An exec process was started, and has perhaps ended by now.
    pub fn exec_started(&self, exec: &str, pid: u32) {
        if let Some(known) = self.execs().get_mut(exec) {
            *known = pid;
        }
    }

    /// An exec process could not be started; perhaps because it runs.
    pub fn exec_failed(&self, exec: &str) {
        let mut execs = self.execs();
        if execs.get(exec) == Some(&0) {
            execs.remove(exec);
        }
    }

    /// An exec process has ended.
    pub fn exec_ended(&self, exec: &str) {
        self.execs().remove(exec);
    }

    /// The exec processes that still run as far as known.
    pub fn running_execs(&self) -> BTreeMap<String, u32> {
        let mut execs = self.execs().clone();
        execs.retain(|_, &mut pid| pid != 0);
        execs
    }

    /// Notes that the end of the init process is told now. False if it was before.
    pub fn tell_exit(&self) -> bool {
        !self.exit_told.swap(true, Ordering::SeqCst)
    }

    /// Notes that the deletion is told now. False if it was before.
    pub fn tell_deletion(&self) -> bool {
        !self.deletion_told.send_replace(true)
    }

    /// Waits until the deletion has been told.
    pub async fn deletion_told(&self) {
        let mut told = self.deletion_told.subscribe();
        // The sender lives as long as the task.
        let _ = told.wait_for(|told| *told).await;
    }

    /// Notes how the task ended, for those who wait although its shim is gone.
    pub fn end(&self, exit: Exit) {
        self.ended.send_replace(Some(exit));
    }

    /// How the task ended, once it is deleted or buried.
    pub async fn ended(&self) -> Exit {
        let mut ended = self.ended.subscribe();
        let exit = ended.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        exit.unwrap_or_else(|| Exit::lost(self.pid()))
    }

    fn execs(&self) -> MutexGuard<'_, BTreeMap<String, u32>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
