//! Commands with a deadline and their output.

use std::fmt;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a command of a test may take before it counts as hanging.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a finished command left.
pub struct Finished {
    /// The command line, for messages.
    pub line: String,
    /// Exit code; 128+n for a signal; nothing when it was ended for hanging.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// The output of a command that must have succeeded.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.code == Some(0), "{self:?}");
        self.stdout
    }

    /// The standard error of a command that must have failed with `code`.
    ///
    /// # Panics
    /// When it ended otherwise.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        assert!(self.code == Some(code), "expected exit code {code}: {self:?}");
        self.stderr
    }

    /// As [`Finished::fails`] with code 1, and the message must contain `text`.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn fails_with(self, text: &str) -> String {
        assert!(self.stderr.contains(text), "expected the message to contain {text:?}: {self:?}");
        self.fails(1)
    }
}

impl fmt::Debug for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` ended with ", self.line)?;
        match self.code {
            Some(code) => write!(f, "{code}")?,
            None => write!(f, "no answer: it hung and was ended")?,
        }
        write!(f, "\n--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr)
    }
}

/// A command that goes on while the test does. Dropping it ends it.
#[derive(Debug)]
pub struct Running {
    line: String,
    child: Child,
    stdout: Option<JoinHandle<String>>,
    stderr: Option<JoinHandle<String>>,
    lines: mpsc::Receiver<String>,
}

impl Running {
    /// Starts `command`; `input` is its standard input (none: `/dev/null`).
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(mut command: Command, input: Option<&[u8]>) -> Self {
        let line = format!("{command:?}");
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {line}: {error}"));
        if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
            let input = input.to_vec();
            // A command that reads nothing closes the pipe; that is its business.
            std::thread::spawn(move || stdin.write_all(&input).ok());
        }
        let (sender, lines) = mpsc::channel();
        let stdout = child.stdout.take().map(|pipe| collect(pipe, Some(sender)));
        let stderr = child.stderr.take().map(|pipe| collect(pipe, None));
        Self { line, child, stdout, stderr, lines }
    }

    /// Pid of the command.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next chunk of standard output as it arrives.
    pub fn next_output(&self, patience: Duration) -> Option<String> {
        self.lines.recv_timeout(patience).ok()
    }

    /// Waits for the end; a command that takes longer than [`PATIENCE`] is ended.
    pub fn finish(self) -> Finished {
        self.finish_within(PATIENCE)
    }

    /// Waits for the end; a command that takes longer is ended.
    pub fn finish_within(mut self, patience: Duration) -> Finished {
        let ended = wait_for(self.child.id(), patience);
        if !ended {
            self.child.kill().ok();
        }
        let status = self.child.wait().ok().filter(|_| ended);
        let code = status.and_then(|status| {
            use std::os::unix::process::ExitStatusExt;
            status.code().or(status.signal().map(|signal| 128 + signal))
        });
        let text =
            |reader: Option<JoinHandle<String>>| reader.and_then(|r| r.join().ok()).unwrap_or_default();
        Finished {
            line: std::mem::take(&mut self.line),
            code,
            stdout: text(self.stdout.take()),
            stderr: text(self.stderr.take()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

/// Whether a child ends in time. It is noticed at once: figures are taken of this.
fn wait_for(pid: u32, patience: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let Some(Ok(child)) = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) else { return true };
    let late = Instant::now() + patience;
    loop {
        let left = late.saturating_duration_since(Instant::now());
        let timeout = left.try_into().ok();
        match poll(&mut [PollFd::new(&child, PollFlags::IN)], timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return ready.is_ok_and(|count| count > 0),
        }
    }
}

/// Runs a command to its end.
pub fn run(command: Command) -> Finished {
    Running::start(command, None).finish()
}

fn collect(mut pipe: impl Read + Send + 'static, sender: Option<mpsc::Sender<String>>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let (mut all, mut buffer) = (Vec::new(), [0; 65536]);
        while let Ok(length @ 1..) = pipe.read(&mut buffer) {
            let chunk = buffer.get(..length).unwrap_or_default();
            all.extend_from_slice(chunk);
            if let Some(sender) = &sender {
                sender.send(String::from_utf8_lossy(chunk).into_owned()).ok();
            }
        }
        String::from_utf8_lossy(&all).into_owned()
    })
}
