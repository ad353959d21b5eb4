//! Hooks: programs that run at certain points of a container's life, with its state on standard input.

use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Failure;
use super::config::Hook;
use super::state::State;

/// How often a hook with a limit is looked at.
const GLANCE: Duration = Duration::from_millis(5);

/// Runs all, one after the other, up to the first that fails.
pub(super) fn run(hooks: &[Hook], state: &State, status: &str, when: &str) -> Result<(), Failure> {
    for (number, hook) in hooks.iter().enumerate() {
        run_one(hook, state, status)
            .map_err(|error| format!("error running {when} hook #{number}: {error}"))?;
    }
    Ok(())
}

fn run_one(hook: &Hook, state: &State, status: &str) -> Result<(), Failure> {
    let mut command = Command::new(&hook.path);
    if let [name, args @ ..] = hook.args.as_slice() {
        command.arg0(name).args(args);
    }
    command.env_clear().envs(hook.env.iter().filter_map(|one| one.split_once('=')));
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("{}: {error}", hook.path.display()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook need not read it.
        stdin.write_all(state.to_json(status).to_string().as_bytes()).ok();
    }
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
