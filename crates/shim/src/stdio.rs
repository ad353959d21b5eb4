//! Standard streams (spec 02 §6): FIFOs and files of clients, logging programs, terminals. Bytes pass with
//! back-pressure; nothing grows, nothing is lost when a process ends right after writing.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use corten_oci::runtime::Streams;
use corten_types::{Error, Result, ResultExt};
use rustix::fs::{Mode, OFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::console::{Console, is_fifo};
use crate::helper::{Reaper, pipe, set_nonblocking, watched};

/// How long a logging program may take after its input has ended, and after it was asked to end.
const LOGGER_ENDS: Duration = Duration::from_secs(2);
const LOGGER_STOPS: Duration = Duration::from_secs(12);

/// Where a process' streams go, as the request says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Paths {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

/// The shim's side of a process' streams.
#[derive(Debug, Default)]
pub(crate) struct Stdio {
    copies: Mutex<JoinSet<()>>,
    /// Our own writer on the stdin FIFO: while it is open, `stdin` does not end.
    stdin: Mutex<Option<OwnedFd>>,
    master: Mutex<Option<Arc<AsyncFd<OwnedFd>>>>,
    logger: Mutex<Option<Logger>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open(path: &Path, flags: OFlags) -> Result<OwnedFd> {
    let fd = rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o644));
    fd.map_err(|error| Error::from(std::io::Error::from(error)))
        .with_context(|| format!("open {}", path.display()))
}

/// A place for output: a FIFO is kept readable, so that nobody's going away ends the container.
fn sink(path: &str) -> Result<OwnedFd> {
    let path = Path::new(path);
    if is_fifo(path) {
        open(path, OFlags::RDWR | OFlags::NONBLOCK)
    } else {
        open(path, OFlags::WRONLY | OFlags::APPEND)
    }
}

fn file_sink(path: &Path) -> Result<OwnedFd> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let file = std::fs::File::options().append(true).create(true).mode(0o644).open(path);
    Ok(file.with_context(|| format!("open {}", path.display()))?.into())
}

impl Stdio {
    /// Makes the streams of a process without a terminal, and begins to copy.
    pub(crate) async fn pipes(&self, paths: &Paths, owner: &Owner<'_>) -> Result<Streams> {
        let mut streams = Streams::default();
        if let Some((scheme, rest)) = paths.stdout.split_once("://") {
            match scheme {
                "file" => {
                    for slot in [&mut streams.stdout, &mut streams.stderr] {
                        *slot = Some(file_sink(Path::new(rest))?);
                    }
                }
                "binary" | "binary-v2" => self.logger(scheme, rest, owner, &mut streams).await?,
                "fifo" => return Err(Error::unknown("unknown STDIO scheme fifo://: give the path")),
                other => return Err(Error::unknown(format!("unknown STDIO scheme {other}"))),
            }
        } else {
            for (path, slot) in [(&paths.stdout, &mut streams.stdout), (&paths.stderr, &mut streams.stderr)] {
                *slot = self.output(path)?;
            }
        }
        if !paths.stdin.is_empty() {
            streams.stdin = Some(self.input(&paths.stdin)?);
        }
        for (slot, write) in
            [(&mut streams.stdin, false), (&mut streams.stdout, true), (&mut streams.stderr, true)]
        {
            if slot.is_none() {
                *slot =
                    Some(open(Path::new("/dev/null"), if write { OFlags::WRONLY } else { OFlags::RDONLY })?);
            }
        }
        Ok(streams)
    }

    fn output(&self, path: &str) -> Result<Option<OwnedFd>> {
        if path.is_empty() {
            return Ok(None);
        }
        if !is_fifo(Path::new(path)) {
            // A plain file needs nobody between.
            return sink(path).map(Some);
        }
        let target = sink(path)?;
        let (read, write) = pipe()?;
        lock(&self.copies).spawn(copy(watched(read, Interest::READABLE)?, Target::new(target)?));
        Ok(Some(write))
    }

    fn input(&self, path: &str) -> Result<OwnedFd> {
        if !is_fifo(Path::new(path)) {
            return open(Path::new(path), OFlags::RDONLY);
        }
        // A FIFO opened for reading first can be opened for writing without waiting.
        let source = open(Path::new(path), OFlags::RDONLY | OFlags::NONBLOCK)?;
        *lock(&self.stdin) = Some(open(Path::new(path), OFlags::WRONLY | OFlags::NONBLOCK)?);
        let (read, write) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(std::io::Error::from)?;
        set_nonblocking(&write)?;
        // Not among the copies that are waited for: input may never end.
        tokio::spawn(copy(watched(source, Interest::READABLE)?, Target::new(write)?));
        Ok(read)
    }

    /// Takes over a terminal and begins to copy.
    pub(crate) async fn terminal(&self, paths: &Paths, console: &Console, owner: &Owner<'_>) -> Result<()> {
        let master = console.receive().await?;
        set_nonblocking(&master)?;
        let reader = rustix::io::fcntl_dupfd_cloexec(&master, 3).map_err(std::io::Error::from)?;
        let output = match paths.stdout.split_once("://") {
            Some(("file", path)) => Some(file_sink(Path::new(path))?),
            Some((scheme @ ("binary" | "binary-v2"), rest)) => {
                let mut streams = Streams::default();
                self.logger(scheme, rest, owner, &mut streams).await?;
                let output = streams.stdout;
                output.as_ref().map(set_nonblocking).transpose()?;
                output
            }
            Some((other, _)) => return Err(Error::unknown(format!("unknown STDIO scheme {other}"))),
            None if paths.stdout.is_empty() => None,
            None => Some(sink(&paths.stdout)?),
        };
        let output = output.map_or_else(|| open(Path::new("/dev/null"), OFlags::WRONLY), Ok)?;
        lock(&self.copies).spawn(copy(watched(reader, Interest::READABLE)?, Target::new(output)?));
        if !paths.stdin.is_empty() {
            let source = open(Path::new(&paths.stdin), OFlags::RDONLY | OFlags::NONBLOCK)?;
            if is_fifo(Path::new(&paths.stdin)) {
                *lock(&self.stdin) = Some(open(Path::new(&paths.stdin), OFlags::WRONLY | OFlags::NONBLOCK)?);
                let target = rustix::io::fcntl_dupfd_cloexec(&master, 3).map_err(std::io::Error::from)?;
                let source = watched(source, Interest::READABLE)?;
                tokio::spawn(copy(source, Target::new(target)?));
            }
        }
        *lock(&self.master) = Some(Arc::new(watched(master, Interest::READABLE)?));
        Ok(())
    }

    /// Starts a logging program; it says when it is ready.
    async fn logger(&self, scheme: &str, rest: &str, owner: &Owner<'_>, streams: &mut Streams) -> Result<()> {
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let pipe2 =
            || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(std::io::Error::from);
        let ((out_read, out_write), (err_read, err_write)) = (pipe2()?, pipe2()?);
        let (ready, ready_write) = pipe()?;
        let null = open(Path::new("/dev/null"), OFlags::RDWR)?;
        let text = |text: String| {
            CString::new(text).map_err(|_| Error::invalid_argument("a logging binary cannot be told NUL"))
        };
        let mut arguments = vec![text(path.to_owned())?];
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            arguments.extend([text(decoded(key))?, text(decoded(value))?]);
        }
        let environment = [
            text(format!("CONTAINER_ID={}", owner.id))?,
            text(format!("CONTAINER_NAMESPACE={}", owner.namespace))?,
        ];
        let program = text(path.to_owned())?;
        let [null, out, err, said] = [&null, &out_read, &err_read, &ready_write].map(AsFd::as_fd);
        let pid = corten_sys::spawn(&corten_sys::Program {
            path: &program,
            arguments: &arguments,
            environment: &environment,
            descriptors: &[(null, 0), (null, 1), (null, 2), (out, 3), (err, 4), (said, 5)],
            mortal: false,
        })
        .map_err(|error| {
            Error::unknown(format!("failed to start binary process: {path}: {}", Error::from(error)))
        })?;
        *lock(&self.logger) = Some(Logger { pid, end: owner.reaper.end_of(pid) });
        drop((out_read, err_read, ready_write));
        let told = wait_ready(&ready).await?;
        if scheme == "binary-v2" && !told {
            let text = "logging binary did not call ready (it may have crashed or exited prematurely)";
            return Err(Error::unknown(text));
        }
        (streams.stdout, streams.stderr) = (Some(out_write), Some(err_write));
        Ok(())
    }

    /// Ends standard input once what is in it has been read.
    pub(crate) fn close_stdin(&self) {
        lock(&self.stdin).take();
    }

    /// Sets the size of the terminal, if there is one.
    pub(crate) fn resize(&self, width: u32, height: u32) -> Result<()> {
        let master = lock(&self.master).clone();
        master.map_or(Ok(()), |master| crate::console::resize(master.get_ref(), width, height))
    }

    /// Lets go of everything: there is no process that these are the streams of.
    pub(crate) fn abandon(&self) {
        lock(&self.copies).abort_all();
        self.close_stdin();
        lock(&self.master).take();
        if let Some(logger) = lock(&self.logger).take() {
            tokio::spawn(logger.finish());
        }
    }

    /// Waits until all output is passed on, for a while.
    pub(crate) async fn drain(&self, patience: Duration) {
        let mut copies = std::mem::take(&mut *lock(&self.copies));
        let drained = async { while copies.join_next().await.is_some() {} };
        if tokio::time::timeout(patience, drained).await.is_err() {
            copies.abort_all();
        }
        self.close_stdin();
        lock(&self.master).take();
        let logger = lock(&self.logger).take();
        if let Some(logger) = logger {
            logger.finish().await;
        }
    }
}

/// A logging program that runs.
#[derive(Debug)]
struct Logger {
    pid: i32,
    end: oneshot::Receiver<i32>,
}

impl Logger {
    /// Lets it write what it has: its input has ended. One that does not end by itself is asked to, and then made to.
    async fn finish(mut self) {
        use rustix::process::{Pid, Signal, kill_process};
        for (patience, signal) in [(LOGGER_ENDS, Signal::TERM), (LOGGER_STOPS, Signal::KILL)] {
            if tokio::time::timeout(patience, &mut self.end).await.is_ok() {
                return;
            }
            // It has not been collected, so the pid is still its own.
            Pid::from_raw(self.pid).map(|pid| kill_process(pid, signal).ok());
        }
    }
}

/// Whose streams they are, for logging programs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner<'a> {
    pub id: &'a str,
    pub namespace: &'a str,
    pub reaper: &'a Reaper,
}

/// True when a byte came, false at the end.
async fn wait_ready(ready: &OwnedFd) -> Result<bool> {
    let ready = watched(ready.as_fd(), Interest::READABLE)?;
    loop {
        let mut guard = ready.readable().await?;
        match guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut [0; 1])?)) {
            Ok(result) => return Ok(result? > 0),
            Err(_) => continue,
        }
    }
}

/// Percent-decoding of a query.
fn decoded(text: &str) -> String {
    let (mut out, mut bytes) = (Vec::new(), text.bytes());
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let digits: Vec<u8> = bytes.by_ref().take(2).collect();
                let code =
                    std::str::from_utf8(&digits).ok().and_then(|digits| u8::from_str_radix(digits, 16).ok());
                out.extend(code);
            }
            other => out.push(other),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Where bytes are copied to: something that can be waited for, or a file that never waits.
#[derive(Debug)]
enum Target {
    Waiting(AsyncFd<OwnedFd>),
    File(OwnedFd),
}

impl Target {
    fn new(fd: OwnedFd) -> Result<Self> {
        use rustix::fs::FileType;
        let mode = rustix::fs::fstat(&fd).map_err(std::io::Error::from)?.st_mode;
        let kind = FileType::from_raw_mode(mode);
        let null = kind == FileType::CharacterDevice && !rustix::termios::isatty(&fd);
        if kind == FileType::RegularFile || null {
            return Ok(Self::File(fd));
        }
        set_nonblocking(&fd)?;
        Ok(Self::Waiting(watched(fd, Interest::WRITABLE)?))
    }

    async fn write_all(&self, mut data: &[u8]) -> std::io::Result<()> {
        while !data.is_empty() {
            let written = match self {
                Self::File(fd) => rustix::io::write(fd, data)?,
                Self::Waiting(fd) => match rustix::io::write(fd, data) {
                    Ok(written) => written,
                    Err(rustix::io::Errno::AGAIN) => {
                        fd.writable().await?.clear_ready();
                        continue;
                    }
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(error) => return Err(error.into()),
                },
            };
            data = data.get(written..).unwrap_or_default();
        }
        Ok(())
    }
}

/// Memory is held only while bytes flow.
const BUFFER: usize = 32 << 10;

/// Copies until the source ends; a terminal ends with an error.
async fn copy(from: AsyncFd<OwnedFd>, to: Target) {
    loop {
        match from.readable().await {
            Ok(mut guard) => {
                let mut buffer = vec![0; BUFFER];
                loop {
                    match rustix::io::read(from.get_ref(), &mut buffer) {
                        Ok(0) => return,
                        Ok(count) => {
                            if to.write_all(buffer.get(..count).unwrap_or_default()).await.is_err() {
                                return;
                            }
                        }
                        Err(rustix::io::Errno::AGAIN) => break,
                        Err(rustix::io::Errno::INTR) => {}
                        Err(_) => return,
                    }
                }
                guard.clear_ready();
            }
            Err(_) => return,
        }
    }
}
