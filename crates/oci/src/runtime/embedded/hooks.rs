//! Hooks: programs that run at certain points of a container's life, with its state on standard input.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use corten_sys::FolderLock;
use rustix::fs::MemfdFlags;
use rustix::io::{FdFlags, fcntl_setfd};

use super::Failure;
use super::config::Hook;
use super::state::State;

/// How often a hook with a limit is looked at.
const GLANCE: Duration = Duration::from_millis(5);

/// Runs all, one after the other, up to the first that fails. They share a lock that is held meanwhile.
pub(super) fn run(
    hooks: &[Hook],
    state: &State,
    status: &str,
    when: &str,
    lock: Option<&FolderLock>,
) -> Result<(), Failure> {
    for (number, hook) in hooks.iter().enumerate() {
        run_one(hook, state, status, lock)
            .map_err(|error| format!("error running {when} hook #{number}: {error}"))?;
    }
    Ok(())
}

/// A file in memory: a hook need not read it, and nobody waits for one that does not.
fn input(text: &str) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("state", MemfdFlags::CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

fn run_one(hook: &Hook, state: &State, status: &str, lock: Option<&FolderLock>) -> Result<(), Failure> {
    let mut command = Command::new(&hook.path);
    if let [name, args @ ..] = hook.args.as_slice() {
        command.arg0(name).args(args);
    }
    command.env_clear().envs(hook.env.iter().filter_map(|one| one.split_once('=')));
    let input = input(&state.to_json(status).to_string()).map_err(|error| error.to_string())?;
    command.stdin(input).stdout(Stdio::null()).stderr(Stdio::piped());
    // What gives up a creation gives up its hooks.
    corten_sys::die_with_parent(&mut command);
    let pass_on = |flags: FdFlags| lock.map_or(Ok(()), |lock| fcntl_setfd(lock, flags));
    pass_on(FdFlags::empty()).map_err(|error| error.to_string())?;
    let spawned = command.spawn();
    pass_on(FdFlags::CLOEXEC).map_err(|error| error.to_string())?;
    let mut child = spawned.map_err(|error| format!("{}: {error}", hook.path.display()))?;
    if let Some(seconds) = hook.timeout {
        let late = Instant::now() + Duration::from_secs(seconds);
        while matches!(child.try_wait(), Ok(None)) {
            if Instant::now() >= late {
                child.kill().ok();
                child.wait().ok();
                return Err(format!("hook ran past specified timeout of {seconds}.0s"));
            }
            std::thread::sleep(GLANCE);
        }
    }
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let why = match (output.status.code(), output.status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (_, Some(signal)) => format!("signal: {signal}"),
        _ => "no exit status".into(),
    };
    Err(format!("{why}, stdout: , stderr: {}", String::from_utf8_lossy(&output.stderr).trim_end()))
}
