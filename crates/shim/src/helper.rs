//! What must not run in the server's own process: the OCI runtime in a forked child, or as a program. The
//! server waits for neither; it is told when they have ended.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use corten_types::Result;
use rustix::process::{Signal, WaitOptions, set_parent_process_death_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

/// Ends of processes, by pid: of those somebody waits for, and of those that nobody asked about yet.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    waiting: Mutex<HashMap<i32, oneshot::Sender<i32>>>,
    /// Kept while something is being started whose pid is not known yet.
    unclaimed: Mutex<HashMap<i32, i32>>,
    starting: Mutex<usize>,
}

/// While this lives, the ends of unknown processes are kept.
#[derive(Debug)]
pub(crate) struct Starting<'a>(&'a Reaper);

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        let mut starting = lock(&self.0.starting);
        *starting -= 1;
        if *starting == 0 {
            lock(&self.0.unclaimed).clear();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Reaper {
    pub(crate) fn starting(&self) -> Starting<'_> {
        *lock(&self.starting) += 1;
        Starting(self)
    }

    /// Whether something is being started.
    pub(crate) fn is_starting(&self) -> bool {
        *lock(&self.starting) > 0
    }

    /// Told how a process ended, also if it has already.
    pub(crate) fn end_of(&self, pid: i32) -> oneshot::Receiver<i32> {
        let (sender, receiver) = oneshot::channel();
        match lock(&self.unclaimed).remove(&pid) {
            Some(status) => drop(sender.send(status)),
            None => drop(lock(&self.waiting).insert(pid, sender)),
        }
        receiver
    }

    /// Collects all that have ended: exit codes, or 128 and the signal.
    pub(crate) fn reap(&self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let code =
                status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
            let (pid, code) = (pid.as_raw_nonzero().get(), code.unwrap_or(255));
            if let Some(sender) = lock(&self.waiting).remove(&pid) {
                let _ = sender.send(code);
            } else if *lock(&self.starting) > 0 {
                lock(&self.unclaimed).insert(pid, code);
            }
        }
    }
}

/// Kills a process when nobody waits for it any more.
struct Awaited<'a> {
    reaper: &'a Reaper,
    pid: Option<i32>,
}

impl Awaited<'_> {
    fn ended(mut self) {
        self.pid = None;
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        let Some(pid) = self.pid else { return };
        // One that has been collected may have left its number to another.
        let lives = lock(&self.reaper.waiting).contains_key(&pid);
        if let Some(pid) = rustix::process::Pid::from_raw(pid).filter(|_| lives) {
            rustix::process::kill_process(pid, Signal::KILL).ok();
        }
    }
}

/// Runs `work` in a forked child and answers what it says. `keep` are the descriptors it needs.
pub(crate) async fn forked<F>(
    reaper: &Reaper,
    keep: &[i32],
    work: F,
) -> Result<std::result::Result<String, String>>
where
    F: FnOnce() -> std::result::Result<String, String> + Send,
{
    let (read, write) = pipe()?;
    let parent = rustix::process::getpid();
    let child = {
        let work = RefCell::new(Some(work));
        corten_sys::fork(|| {
            set_parent_process_death_signal(Some(Signal::KILL)).ok();
            if rustix::process::getppid() != Some(parent) {
                // It has ended before that.
                return 1;
            }
            let mut kept = keep.to_vec();
            kept.push(write.as_raw_fd());
            corten_sys::close_all_except(&kept);
            let said = work.borrow_mut().take().map_or_else(|| Err(String::new()), |work| work());
            let (mark, text) = match &said {
                Ok(text) => ("+", text),
                Err(text) => ("-", text),
            };
            // The pipe's other holders live on: the end is marked, not closed.
            let message = format!("{mark}{}\0", text.replace('\0', " "));
            rustix::io::write(&write, message.as_bytes()).ok();
            0
        })?
    };
    drop(write);
    let awaited = Awaited { reaper, pid: Some(child) };
    let ended = reaper.end_of(child);
    let said = read_message(read, ended).await?;
    awaited.ended();
    Ok(match said.split_at_checked(1) {
        Some(("+", text)) => Ok(text.to_owned()),
        Some((_, text)) => Err(text.to_owned()),
        None => Err("the runtime's process ended without an answer".into()),
    })
}

/// Everything up to the mark, or to the end of the child.
async fn read_message(read: OwnedFd, mut ended: oneshot::Receiver<i32>) -> Result<String> {
    let read = watched(read, Interest::READABLE)?;
    let mut message = Vec::new();
    let mut gone = false;
    loop {
        let mut buffer = [0; 4096];
        match rustix::io::read(&read, &mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                message.extend_from_slice(buffer.get(..count).unwrap_or_default());
                if message.last() == Some(&0) {
                    message.pop();
                    break;
                }
            }
            Err(rustix::io::Errno::AGAIN) if gone => break,
            Err(rustix::io::Errno::AGAIN) => {
                tokio::select! {
                    ready = read.readable() => ready?.clear_ready(),
                    _ = &mut ended, if !gone => gone = true,
                }
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(std::io::Error::from(error).into()),
        }
    }
    Ok(String::from_utf8_lossy(&message).into_owned())
}

/// A descriptor that can be waited for.
pub(crate) fn watched<F: std::os::fd::AsFd + AsRawFd>(fd: F, interest: Interest) -> Result<AsyncFd<F>> {
    // The descriptor is moved in and closed by whoever is given the result.
    #[expect(deprecated, reason = "its successor is unsafe, which only matters for borrowed numbers")]
    let watched = AsyncFd::with_interest(fd, interest);
    Ok(watched?)
}

/// A pipe whose reading end does not block.
pub(crate) fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(std::io::Error::from)?;
    set_nonblocking(&read)?;
    Ok((read, write))
}

pub(crate) fn set_nonblocking(fd: &OwnedFd) -> Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd).map_err(std::io::Error::from)?;
    rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK).map_err(std::io::Error::from)?;
    Ok(())
}

/// Runs a program to its end; answers its exit code. Output goes to `printed`, if there is one to read.
pub(crate) async fn program(reaper: &Reaper, mut command: Command, io: [Stdio; 3]) -> Result<i32> {
    let [stdin, stdout, stderr] = io;
    corten_sys::die_with_parent(&mut command);
    let child = command.stdin(stdin).stdout(stdout).stderr(stderr).spawn()?;
    let pid = i32::try_from(child.id()).unwrap_or(0);
    // The reaper collects it; the handle only names it.
    drop(child);
    drop(command);
    let awaited = Awaited { reaper, pid: Some(pid) };
    let code = reaper.end_of(pid).await.unwrap_or(255);
    awaited.ended();
    Ok(code)
}
