//! Plugins are executed: configuration on standard input, the rest in the environment, a result or an error on standard
//! output (spec 06 §2.3). Some are built in, and cost no process.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use corten_types::{Error, ErrorClass, Result, ResultExt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde_json::{Value, json};

/// The longest answer that is read.
const LARGEST: usize = 8 << 20;
/// How often a program that is being written is tried, and the pause before it is tried again.
const BUSY: (usize, Duration) = (5, Duration::from_secs(1));

/// What a plugin is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Command {
    /// As plugins read it.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// The command of a text.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let all = [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version];
        all.into_iter().find(|one| one.text() == text)
    }
}

/// What a plugin is told.
#[derive(Clone, Copy, Debug)]
pub struct Invocation<'a> {
    /// What to do.
    pub command: Command,
    /// For whom.
    pub container_id: &'a str,
    /// Path of its network namespace; empty when it is gone.
    pub netns: &'a str,
    /// `K=V;K=V`.
    pub args: &'a str,
    /// Its interface.
    pub ifname: &'a str,
    /// Folders of plugins, joined by colons: some execute others.
    pub path: &'a str,
    /// The plugin's configuration, with what was added.
    pub config: &'a Value,
}

/// Why a plugin failed, as the specification has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// Its number; below 100 they are the specification's.
    pub code: u32,
    /// In words.
    pub msg: String,
    /// In more words.
    pub details: String,
}

impl Failure {
    /// The configuration cannot be used.
    pub const INVALID_CONFIG: u32 = 7;
    /// The environment cannot be used.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// What was read could not be decoded.
    pub const DECODING: u32 = 6;
    /// Later it may work.
    pub const TRY_AGAIN: u32 = 11;
    /// Anything else.
    pub const INTERNAL: u32 = 999;

    /// A failure without details.
    pub fn new(code: u32, msg: impl fmt::Display) -> Self {
        Self { code, msg: msg.to_string(), details: String::new() }
    }

    /// As a plugin prints it.
    #[must_use]
    pub fn to_json(&self, version: &str) -> Value {
        let mut value = json!({"cniVersion": version, "code": self.code, "msg": self.msg});
        if !self.details.is_empty() {
            value["details"] = json!(self.details);
        }
        value
    }

    fn read(stdout: &[u8], stderr: &[u8], status: &str) -> Self {
        if stdout.is_empty() && stderr.is_empty() {
            return Self::new(0, format!("netplugin failed with no error message: {status}"));
        }
        if stdout.is_empty() {
            return Self::new(0, format!("netplugin failed: {:?}", String::from_utf8_lossy(stderr)));
        }
        let said: Option<Value> = serde_json::from_slice(stdout).ok().filter(Value::is_object);
        let Some(said) = said else {
            let text = String::from_utf8_lossy(stdout);
            return Self::new(
                0,
                format!("netplugin failed but error parsing its diagnostic message {text:?}"),
            );
        };
        let text = |key: &str| said[key].as_str().unwrap_or_default().to_owned();
        let code = said["code"].as_u64().and_then(|code| u32::try_from(code).ok()).unwrap_or_default();
        Self { code, msg: text("msg"), details: text("details") }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let text = match (failure.msg.is_empty(), failure.details.is_empty()) {
            (_, true) => failure.msg,
            (true, false) => failure.details,
            (false, false) => format!("{}; {}", failure.msg, failure.details),
        };
        let class =
            if failure.code == Failure::TRY_AGAIN { ErrorClass::Unavailable } else { ErrorClass::Unknown };
        Self::bare(class, text)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match error.class() {
            ErrorClass::InvalidArgument => Self::INVALID_CONFIG,
            ErrorClass::Unavailable => Self::TRY_AGAIN,
            _ => Self::INTERNAL,
        };
        Self::new(code, error.message())
    }
}

/// Answers for the plugins that are built in; nothing for others.
pub type Builtin = fn(kind: &str, invocation: &Invocation<'_>) -> Option<Result<Option<Value>, Failure>>;

/// How plugins are found and executed.
#[derive(Clone, Debug)]
pub struct Runner {
    /// Where programs are, in this order.
    pub folders: Vec<PathBuf>,
    /// Plugins that need no program.
    pub builtin: Option<Builtin>,
    /// Whether these are taken although there is a program; else only where there is none.
    pub builtin_first: bool,
    /// How long a plugin may take.
    pub timeout: Duration,
}

impl Runner {
    /// Programs of folders, and what is built in where they have none.
    #[must_use]
    pub fn new(folders: Vec<PathBuf>) -> Self {
        Self { folders, builtin: None, builtin_first: false, timeout: Duration::from_secs(120) }
    }

    /// Value of `CNI_PATH`.
    #[must_use]
    pub fn path(&self) -> String {
        self.folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(":")
    }

    /// Executes a plugin. Nothing is answered by those that print nothing.
    ///
    /// # Errors
    /// The plugin's; those of finding and starting it; DeadlineExceeded, then it and what it started were killed.
    pub fn run(&self, kind: &str, invocation: &Invocation<'_>) -> Result<Option<Value>> {
        let builtin = || self.builtin.and_then(|builtin| builtin(kind, invocation));
        if self.builtin_first
            && let Some(answer) = builtin()
        {
            return Ok(answer?);
        }
        match self.find(kind) {
            Ok(program) => self.execute(&program, invocation),
            Err(missing) => match builtin() {
                Some(answer) => Ok(answer?),
                None => Err(missing),
            },
        }
    }

    /// Whether a plugin can be executed.
    ///
    /// # Errors
    /// `failed to find plugin "…" in path […]`
    pub fn check(&self, kind: &str) -> Result<()> {
        let config = json!({});
        let asked = Invocation {
            command: Command::Version,
            container_id: "",
            netns: "",
            args: "",
            ifname: "",
            path: "",
            config: &config,
        };
        match self.find(kind) {
            Err(missing) if self.builtin.is_none_or(|builtin| builtin(kind, &asked).is_none()) => {
                Err(missing)
            }
            _ => Ok(()),
        }
    }

    fn find(&self, kind: &str) -> Result<PathBuf> {
        let runs = |path: &PathBuf| {
            std::fs::metadata(path).is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
        };
        let found = self.folders.iter().map(|folder| folder.join(kind)).find(runs);
        found.ok_or_else(|| {
            let folders: Vec<_> = self.folders.iter().map(|folder| folder.display().to_string()).collect();
            Error::unknown(format!("failed to find plugin {kind:?} in path [{}]", folders.join(" ")))
        })
    }

    fn execute(&self, program: &Path, invocation: &Invocation<'_>) -> Result<Option<Value>> {
        let input = invocation.config.to_string();
        let deadline = Instant::now() + self.timeout;
        let child = start(program, invocation)?;
        let ended = Conversation::new(child, input.into_bytes(), deadline)
            .and_then(Conversation::finish)
            .with_context(|| format!("plugin {}", program.display()))?;
        if !ended.status.success() {
            return Err(Failure::read(&ended.stdout, &ended.stderr, &told(ended.status)).into());
        }
        // Whatever it says there, it did not fail.
        std::io::stderr().write_all(&ended.stderr).ok();
        if ended.stdout.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        let answer = serde_json::from_slice(&ended.stdout);
        answer.map(Some).map_err(|error| Error::unknown(format!("failed to unmarshal raw result: {error}")))
    }
}

/// How a process ended, in Go's words.
fn told(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(9)) => "signal: killed".into(),
        (None, signal) => format!("signal: {}", signal.unwrap_or_default()),
    }
}

fn start(program: &Path, invocation: &Invocation<'_>) -> Result<Child> {
    let mut command = std::process::Command::new(program);
    command
        .env("CNI_COMMAND", invocation.command.text())
        .env("CNI_CONTAINERID", invocation.container_id)
        .env("CNI_NETNS", invocation.netns)
        .env("CNI_ARGS", invocation.args)
        .env("CNI_IFNAME", invocation.ifname)
        .env("CNI_PATH", invocation.path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own, so that what it starts can be ended with it.
        .process_group(0);
    let mut attempts = 0;
    loop {
        match command.spawn() {
            Err(busy) if busy.kind() == ErrorKind::ExecutableFileBusy && attempts < BUSY.0 => {
                attempts += 1;
                std::thread::sleep(BUSY.1);
            }
            other => return other.with_context(|| format!("fork/exec {}", program.display())),
        }
    }
}

/// What a plugin that has ended left.
struct Ended {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// A running plugin. Dropping it ends it and what it started.
struct Conversation {
    child: Child,
    input: Vec<u8>,
    written: usize,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    deadline: Instant,
    ended: bool,
}

impl Conversation {
    fn new(child: Child, input: Vec<u8>, deadline: Instant) -> Result<Self> {
        let made =
            Self { child, input, written: 0, stdout: Vec::new(), stderr: Vec::new(), deadline, ended: false };
        let nonblocking = |fd: std::os::fd::BorrowedFd<'_>| {
            let flags = rustix::fs::fcntl_getfl(fd)?;
            rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)
        };
        use std::os::fd::AsFd;
        let pipes = [
            made.child.stdin.as_ref().map(AsFd::as_fd),
            made.child.stdout.as_ref().map(AsFd::as_fd),
            made.child.stderr.as_ref().map(AsFd::as_fd),
        ];
        for pipe in pipes.into_iter().flatten() {
            nonblocking(pipe).map_err(std::io::Error::from)?;
        }
        Ok(made)
    }

    /// Feeds and reads until the process has ended; what others still hold its output open for is not waited for.
    fn finish(mut self) -> Result<Ended> {
        let pid = Pid::from_child(&self.child);
        let process = pidfd_open(pid, PidfdFlags::empty()).map_err(std::io::Error::from)?;
        loop {
            self.pass_on()?;
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::new(
                    ErrorClass::DeadlineExceeded,
                    "it did not answer in time and was killed",
                ));
            }
            let mut waits = vec![PollFd::new(&process, PollFlags::IN)];
            if let Some(stdin) = &self.child.stdin {
                waits.push(PollFd::new(stdin, PollFlags::OUT));
            }
            if let Some(stdout) = &self.child.stdout {
                waits.push(PollFd::new(stdout, PollFlags::IN));
            }
            if let Some(stderr) = &self.child.stderr {
                waits.push(PollFd::new(stderr, PollFlags::IN));
            }
            let timeout = Timespec::try_from(left).ok();
            match poll(&mut waits, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(std::io::Error::from(errno).into()),
            }
            let gone = waits.first().is_some_and(|it| !it.revents().is_empty());
            drop(waits);
            if gone {
                self.pass_on()?;
                let status = self.child.wait()?;
                self.ended = true;
                let (stdout, stderr) = (std::mem::take(&mut self.stdout), std::mem::take(&mut self.stderr));
                return Ok(Ended { status, stdout, stderr });
            }
        }
    }

    /// Writes and reads what can be without waiting.
    fn pass_on(&mut self) -> Result<()> {
        if let Some(stdin) = &mut self.child.stdin {
            let rest = self.input.get(self.written..).unwrap_or_default();
            match stdin.write(rest) {
                Ok(count) => self.written += count,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                // It does not want to know: its answer tells why.
                Err(_) => self.written = self.input.len(),
            }
            if self.written >= self.input.len() {
                self.child.stdin = None;
            }
        }
        if self.child.stdout.as_mut().is_some_and(|pipe| !drain(pipe, &mut self.stdout)) {
            self.child.stdout = None;
        }
        if self.child.stderr.as_mut().is_some_and(|pipe| !drain(pipe, &mut self.stderr)) {
            self.child.stderr = None;
        }
        if self.stdout.len().max(self.stderr.len()) > LARGEST {
            return Err(Error::unknown("its answer is larger than 8 MiB"));
        }
        Ok(())
    }
}

/// Reads what there is; answers whether more may come.
fn drain(pipe: &mut impl Read, into: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 16 << 10];
    while into.len() <= LARGEST {
        match pipe.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => into.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    }
    true
}

impl Drop for Conversation {
    fn drop(&mut self) {
        if !self.ended {
            kill_process_group(Pid::from_child(&self.child), Signal::KILL).ok();
            self.child.wait().ok();
        }
    }
}
