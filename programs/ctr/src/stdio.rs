//! Standard streams of a process: FIFOs that the shim opens too (spec 02 §6), or a terminal in raw mode.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use corten_api::services::tasks as api;
use corten_types::{Result, ResultExt};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::io::retry_on_intr;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::client::Daemon;
use crate::detach::{self, Keys};
use crate::output;

const FOLDER: &str = "/run/containerd/fifo";

/// Where streams go, as a request tells it.
#[derive(Clone, Debug, Default)]
pub struct Paths {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
}

/// How the input of a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputEnd {
    /// Ours did.
    Closed,
    /// Somebody pressed the keys that leave the process alone.
    Detached,
}

/// The FIFOs of one process, and the copies between them and our own streams.
#[derive(Debug)]
pub struct Streams {
    pub paths: Paths,
    folder: Option<PathBuf>,
    copies: Vec<JoinHandle<Option<std::io::Error>>>,
    terminal: bool,
    keys: Keys,
}

impl Streams {
    /// The keys that leave the process alone, where there is a terminal to press them on.
    pub fn with_keys(mut self, keys: &Keys) -> Self {
        if self.terminal && std::io::stdin().is_terminal() {
            self.keys = keys.clone();
        }
        self
    }

    fn of(paths: Paths, folder: Option<PathBuf>, terminal: bool) -> Self {
        Self { paths, folder, copies: Vec::new(), terminal, keys: Keys::default() }
    }

    /// Nobody reads and nobody writes.
    pub fn null() -> Self {
        Self::of(Paths::default(), None, false)
    }

    /// Output goes where an address says.
    pub fn logged(uri: &str) -> Self {
        let paths = Paths { stdin: String::new(), stdout: uri.into(), stderr: uri.into() };
        Self::of(paths, None, false)
    }

    /// New FIFOs. Output is read from here on: some shims wait for a reader.
    pub fn fifos(folder: Option<&Path>, id: &str, terminal: bool) -> Result<Self> {
        let base = folder.unwrap_or(Path::new(FOLDER));
        std::fs::create_dir_all(base).with_context(|| base.display().to_string())?;
        let folder = unique(base)?;
        let make = |name: &str| -> Result<String> {
            let path = folder.join(format!("{id}-{name}"));
            mkfifoat(CWD, &path, Mode::from_raw_mode(0o700)).map_err(std::io::Error::from)?;
            Ok(path.display().to_string())
        };
        let stderr = if terminal { String::new() } else { make("stderr")? };
        let paths = Paths { stdin: make("stdin")?, stdout: make("stdout")?, stderr };
        let mut streams = Self::of(paths, Some(folder), terminal);
        streams.follow_output()?;
        Ok(streams)
    }

    /// The FIFOs that a process has already.
    pub fn existing(paths: Paths, terminal: bool) -> Result<Self> {
        let mut streams = Self::of(paths, None, terminal);
        streams.follow_output()?;
        Ok(streams)
    }

    fn follow_output(&mut self) -> Result<()> {
        for (path, error) in [(&self.paths.stdout, false), (&self.paths.stderr, true)] {
            if path.is_empty() || path.contains("://") || !is_fifo(Path::new(path)) {
                continue;
            }
            let mut from =
                pipe::OpenOptions::new().open_receiver(path).with_context(|| format!("open {path}"))?;
            self.copies.push(tokio::spawn(async move {
                let (mut buffer, mut lost) = (vec![0; 32 << 10], None);
                while let Ok(count @ 1..) = from.read(&mut buffer).await {
                    if lost.is_none() {
                        let data = buffer.get(..count).unwrap_or_default();
                        lost = show(data, error).err();
                    }
                    // What cannot be shown is still read: the process would wait for ever.
                }
                lost.filter(|_| !error)
            }));
        }
        Ok(())
    }

    /// Connects our standard input as soon as the shim opens the FIFO; the receiver is told when it ends.
    pub fn feed_input(&self) -> oneshot::Receiver<InputEnd> {
        let (ended, receiver) = oneshot::channel();
        let path = PathBuf::from(&self.paths.stdin);
        if !is_fifo(&path) {
            return receiver;
        }
        // The open waits for the shim, and reading a terminal or a pipe blocks too: this thread ends with the
        // process.
        let keys = self.keys.clone();
        std::thread::spawn(move || {
            let Ok(to) = std::fs::File::options().write(true).open(path) else { return };
            let end = feed(to, keys);
            let _ = ended.send(end);
        });
        receiver
    }

    /// Waits until all output has been shown.
    ///
    /// # Errors
    /// When some of it could not be: a disk is full.
    pub async fn drain(&mut self) -> Result<()> {
        for copy in self.copies.drain(..) {
            if let Ok(Some(lost)) = copy.await {
                return Err(corten_types::Error::from(lost).context("write /dev/stdout"));
            }
        }
        Ok(())
    }

    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Leaves the FIFOs to a process that goes on without us.
    pub fn leave(mut self) {
        self.folder = None;
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            std::fs::remove_dir_all(folder).ok();
        }
    }
}

/// Copies our standard input until it ends, or the keys are pressed.
fn feed(mut to: std::fs::File, mut keys: Keys) -> InputEnd {
    let mut buffer = [0; 32 << 10];
    let mut from = std::io::stdin().lock();
    loop {
        if keys.is_holding() && !is_readable_within(detach::PATIENCE) {
            if to.write_all(&keys.release()).is_err() {
                return InputEnd::Closed;
            }
            continue;
        }
        let Ok(count @ 1..) = from.read(&mut buffer) else { return InputEnd::Closed };
        let (data, detached) = keys.take(buffer.get(..count).unwrap_or_default());
        if to.write_all(&data).is_err() {
            return InputEnd::Closed;
        }
        if detached {
            return InputEnd::Detached;
        }
    }
}

/// Whether somebody presses a key in time.
fn is_readable_within(patience: std::time::Duration) -> bool {
    let input = std::io::stdin();
    let timeout = patience.try_into().ok();
    retry_on_intr(|| poll(&mut [PollFd::new(&input, PollFlags::IN)], timeout.as_ref())) != Ok(0)
}

/// Shows output of a process. A reader that has gone ends this program, as it does with the original.
fn show(data: &[u8], error: bool) -> std::io::Result<()> {
    if error {
        return std::io::stderr().write_all(data);
    }
    let mut out = std::io::stdout().lock();
    match out.write_all(data).and_then(|()| out.flush()) {
        Err(gone) if gone.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(output::READER_GONE),
        other => other,
    }
}

fn is_fifo(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo())
}

fn unique(base: &Path) -> Result<PathBuf> {
    let stamp = corten_types::timestamp::nanos();
    for n in 0..1000_u32 {
        let path = base.join(format!("{}{stamp}{n}", std::process::id()));
        match std::fs::create_dir(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            other => {
                other.with_context(|| path.display().to_string())?;
                return Ok(path);
            }
        }
    }
    Err(corten_types::Error::internal(format!("no free name in {}", base.display())))
}

/// Our terminal in raw mode; restored when this is dropped.
#[derive(Debug)]
pub struct RawTerminal(Option<Termios>);

impl RawTerminal {
    pub fn enter() -> Self {
        let input = std::io::stdin();
        if !input.is_terminal() {
            return Self(None);
        }
        let Ok(before) = tcgetattr(&input) else { return Self(None) };
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&input, OptionalActions::Now, &raw).ok();
        Self(Some(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            tcsetattr(std::io::stdin(), OptionalActions::Now, before).ok();
        }
    }
}

/// Tells the process the size of our terminal.
pub async fn resize(daemon: &Daemon, id: &str, exec: &str) {
    let Ok(size) = tcgetwinsize(std::io::stdout()).or_else(|_| tcgetwinsize(std::io::stdin())) else {
        return;
    };
    let request = api::ResizePtyRequest {
        container_id: id.into(),
        exec_id: exec.into(),
        width: size.ws_col.into(),
        height: size.ws_row.into(),
    };
    // The process may have ended.
    let _ = daemon.tasks().resize_pty(request).await;
}
