//! Running a program to its end: standard input from memory, bounded output, a time limit, a
//! process group of its own.

use std::ffi::OsString;
use std::io::{self, ErrorKind, PipeReader, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::fs::MemfdFlags;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::net::unix::pipe::Receiver;
use tokio::process::Child;

/// Output beyond this is thrown away.
const MAX_OUTPUT: usize = 1 << 20;

/// What to run.
#[derive(Debug)]
pub(crate) struct Invocation<'a> {
    pub program: &'a Path,
    pub arguments: Vec<OsString>,
    /// Added to the daemon's own environment.
    pub environment: Vec<(OsString, OsString)>,
    pub folder: Option<&'a Path>,
    pub input: &'a [u8],
    /// Whether standard error goes with standard output.
    pub combined: bool,
    pub timeout: Duration,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Output {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    /// Empty if combined.
    pub stderr: Vec<u8>,
}

impl Output {
    /// `exit status 1` or `signal: killed`, in Go's words; nothing for success.
    pub fn failure(&self) -> Option<String> {
        match (self.status.code(), self.status.signal()) {
            (Some(0), _) => None,
            (Some(code), _) => Some(format!("exit status {code}")),
            (None, Some(9)) => Some("signal: killed".to_owned()),
            (None, signal) => Some(format!("signal: {}", signal.unwrap_or_default())),
        }
    }
}

impl Invocation<'_> {
    /// Runs the program. A program that exceeds its time is killed with its process group, as is
    /// one whose caller gives up.
    ///
    /// # Errors
    /// Those of the system; `TimedOut`.
    pub async fn run(self) -> io::Result<Output> {
        let timeout = self.timeout;
        let (running, mut stdout, mut stderr) = self.spawn()?;
        let mut running = KillOnDrop(Some(running));
        let Some(child) = &mut running.0 else { return Err(ErrorKind::Other.into()) };
        let finish = async {
            let both = async { tokio::join!(stdout.read_to_end(), stderr.read_to_end()) };
            // The end of the output is usually seen first; a process that was left behind may
            // hold the pipes open for ever, so the end of the program counts as well.
            tokio::select! {
                biased;
                _ = both => {}
                status = child.wait() => { status?; }
            }
            child.wait().await
        };
        let status = tokio::time::timeout(timeout, finish).await.map_err(|_| ErrorKind::TimedOut)??;
        running.0 = None;
        Ok(Output { status, stdout: stdout.finish(), stderr: stderr.finish() })
    }

    /// Starts the program by posix_spawn(3), which is what std does as long as nothing is asked for
    /// that it cannot do: the daemon's memory is not copied.
    fn spawn(self) -> io::Result<(Child, Capture, Capture)> {
        let (out_reader, out_writer) = io::pipe()?;
        let mut command = std::process::Command::new(self.program);
        command.args(&self.arguments).envs(self.environment).process_group(0);
        if let Some(folder) = self.folder {
            command.current_dir(folder);
        }
        command.stdin(input(self.input)?);
        let stderr = if self.combined {
            command.stderr(out_writer.try_clone()?);
            Capture::default()
        } else {
            let (err_reader, err_writer) = io::pipe()?;
            command.stderr(err_writer);
            Capture::new(err_reader)?
        };
        command.stdout(out_writer);
        let child = tokio::process::Command::from(command).spawn()?;
        Ok((child, Capture::new(out_reader)?, stderr))
    }
}

fn input(bytes: &[u8]) -> io::Result<Stdio> {
    if bytes.is_empty() {
        return Ok(Stdio::null());
    }
    // A file rather than a pipe: nobody has to write while the program reads.
    let mut file = std::fs::File::from(rustix::fs::memfd_create("stdin", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

/// The reading end of a pipe and what came out of it.
#[derive(Debug, Default)]
struct Capture {
    pipe: Option<Receiver>,
    bytes: Vec<u8>,
}

impl Capture {
    fn new(reader: PipeReader) -> io::Result<Self> {
        let pipe = Some(Receiver::from_owned_fd(OwnedFd::from(reader))?);
        Ok(Self { pipe, bytes: Vec::new() })
    }

    async fn read_to_end(&mut self) {
        while let Some(pipe) = &self.pipe {
            if pipe.readable().await.is_err() || !self.read_some() {
                return;
            }
        }
    }

    /// What has been captured, including what is in the pipe now. The pipe itself is asked: that the program has ended
    /// may be known before tokio hears that there is something to read.
    fn finish(mut self) -> Vec<u8> {
        let mut buffer = [0; 4096];
        while let Some(pipe) = &self.pipe
            && self.bytes.len() < MAX_OUTPUT
        {
            match rustix::io::read(pipe, &mut buffer) {
                Ok(read @ 1..) => self.take(buffer.get(..read).unwrap_or_default()),
                Err(rustix::io::Errno::INTR) => {}
                _ => break,
            }
        }
        self.bytes
    }

    /// False at the end.
    fn read_some(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let Some(pipe) = &self.pipe else { return false };
        match pipe.try_read(&mut buffer) {
            Ok(0) => false,
            Ok(read) => {
                self.take(buffer.get(..read).unwrap_or_default());
                true
            }
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let room = MAX_OUTPUT.saturating_sub(self.bytes.len()).min(bytes.len());
        self.bytes.extend_from_slice(bytes.get(..room).unwrap_or_default());
    }
}

/// Kills a program and its process group unless it has been waited for.
struct KillOnDrop(Option<Child>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let id = self.0.as_ref().and_then(Child::id).and_then(|id| i32::try_from(id).ok());
        // Dropping the child leaves its reaping to the runtime.
        if let Some(pid) = id.and_then(Pid::from_raw) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, input: &'static [u8]) -> Invocation<'static> {
        Invocation {
            program: Path::new("/bin/sh"),
            arguments: vec!["-c".into(), script.into()],
            environment: vec![("COLOUR".into(), "rust".into())],
            folder: Some(Path::new("/proc")),
            input,
            combined: false,
            timeout: Duration::from_secs(600),
        }
    }

    #[tokio::test]
    async fn input_folder_and_environment_reach_the_program() {
        let output = shell("cat; pwd; echo $COLOUR; echo oops >&2; exit 3", b"in\n").run().await.unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "in\n/proc\nrust\n");
        assert_eq!(output.stderr, b"oops\n");
        assert_eq!(output.failure().as_deref(), Some("exit status 3"));
        let combined = Invocation { combined: true, ..shell("echo a; echo b >&2", b"") };
        let output = combined.run().await.unwrap();
        assert_eq!((output.stdout, output.stderr), (b"a\nb\n".to_vec(), Vec::new()));
    }

    #[tokio::test]
    async fn a_process_left_behind_with_the_pipes_does_not_hold_the_caller() {
        let output = shell("sleep 1000 & echo $!", b"").run().await.unwrap();
        let left: i32 = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap();
        rustix::process::kill_process(Pid::from_raw(left).unwrap(), Signal::KILL).unwrap();
        assert_eq!(output.failure(), None);
    }

    #[tokio::test]
    async fn output_is_there_before_the_reactor_has_told_of_it() {
        let (reader, mut writer) = io::pipe().unwrap();
        let capture = Capture::new(reader).unwrap();
        writer.write_all(b"late").unwrap();
        assert_eq!(capture.finish(), b"late");
    }

    #[tokio::test]
    async fn output_is_bounded() {
        let output = shell("head -c 3000000 /dev/zero", b"").run().await.unwrap();
        assert_eq!(output.stdout.len(), MAX_OUTPUT);
        assert_eq!(output.failure(), None);
    }

    #[tokio::test]
    async fn a_program_that_takes_too_long_is_killed_with_its_group() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
            .unwrap();
        let script = format!("sleep 1000 < {0} & exec sleep 1000 > {0}", pipe.display());
        let slow = Invocation { timeout: Duration::from_millis(500), ..shell(&script, b"") };
        assert_eq!(slow.run().await.unwrap_err().kind(), ErrorKind::TimedOut);
        // Once both are gone, the pipe has no writer: reading finds its end instead of nothing yet.
        use rustix::fs::{Mode, OFlags};
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let reader = rustix::fs::open(&pipe, flags, Mode::empty()).unwrap();
        while rustix::io::read(&reader, &mut [0; 1]) != Ok(0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
