//! What shims log: a named pipe in each bundle, copied to the daemon's log (spec 02 §2). A shim
//! holds at most what the pipe holds, and the daemon at most [`QUEUE`] pieces, however much is
//! logged and however slowly it is taken.

use std::io::{ErrorKind, Write};
use std::path::Path;

use corten_types::{Result, ResultExt};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::net::unix::pipe::{OpenOptions, Receiver};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// Pieces in flight, for all shims together.
const QUEUE: usize = 64;
/// Largest piece.
const PIECE: usize = 4096;

/// Where all shims' logs go.
#[derive(Clone, Debug)]
pub(crate) struct LogSink {
    sender: mpsc::Sender<Vec<u8>>,
}

impl LogSink {
    /// Writes to `output`, which may block.
    pub fn new(mut output: Box<dyn Write + Send + Sync>) -> Self {
        let (sender, mut pieces) = mpsc::channel::<Vec<u8>>(QUEUE);
        tokio::spawn(async move {
            while let Some(piece) = pieces.recv().await {
                let written = tokio::task::spawn_blocking(move || {
                    let _ = output.write_all(&piece);
                    output
                });
                match written.await {
                    Ok(returned) => output = returned,
                    Err(_) => return,
                }
            }
        });
        Self { sender }
    }
}

/// The daemon's end of one shim's pipe. Held open for writing too, so that the shim never finds it
/// without a reader and never sees it end.
#[derive(Debug)]
pub(crate) struct ShimLog {
    task: AbortHandle,
}

impl ShimLog {
    /// Opens the pipe at `path`, made if it is not there, and starts copying.
    pub fn open(path: &Path, sink: LogSink) -> Result<Self> {
        make_pipe(path).with_context(|| format!("mkfifo {}", path.display()))?;
        let pipe = OpenOptions::new()
            .read_write(true)
            .open_receiver(path)
            .with_context(|| format!("open shim log pipe {}", path.display()))?;
        Ok(Self { task: tokio::spawn(copy(pipe, sink)).abort_handle() })
    }
}

impl Drop for ShimLog {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn make_pipe(path: &Path) -> std::io::Result<()> {
    match mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Copies whole lines where lines fit into a piece, so that the lines of two shims do not mix.
async fn copy(pipe: Receiver, sink: LogSink) {
    let mut rest = Vec::new();
    while pipe.readable().await.is_ok() {
        let mut piece = std::mem::take(&mut rest);
        let kept = piece.len();
        piece.resize(kept + PIECE, 0);
        let read = match pipe.try_read(piece.get_mut(kept..).unwrap_or_default()) {
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(_) => return,
        };
        piece.truncate(kept + read);
        match piece.iter().rposition(|&byte| byte == b'\n') {
            Some(newline) => rest = piece.split_off(newline + 1),
            None if piece.len() < PIECE => {
                rest = piece;
                continue;
            }
            None => {}
        }
        piece.shrink_to_fit();
        rest.shrink_to_fit();
        if sink.sender.send(piece).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_shims_write_arrives_in_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Memory::default();
        let sink = LogSink::new(Box::new(memory.clone()));
        let mut pipes = Vec::new();
        let mut logs = Vec::new();
        for name in ["a", "b"] {
            let path = folder.path().join(name);
            logs.push(ShimLog::open(&path, sink.clone()).unwrap());
            pipes.push(std::fs::OpenOptions::new().write(true).open(&path).unwrap());
        }
        for round in 0..200 {
            for (name, pipe) in ["a", "b"].iter().zip(&mut pipes) {
                write!(pipe, "{name} says").unwrap();
                tokio::task::yield_now().await;
                writeln!(pipe, " {round}").unwrap();
            }
        }
        let done = |text: &[u8]| text.iter().filter(|&&byte| byte == b'\n').count() == 400;
        while !done(&memory.0.lock().unwrap()) {
            tokio::task::yield_now().await;
        }
        let text = String::from_utf8(memory.0.lock().unwrap().clone()).unwrap();
        for name in ["a", "b"] {
            let lines = text.lines().filter(|line| line.starts_with(name));
            assert!(lines.eq((0..200).map(|round| format!("{name} says {round}"))));
        }
    }
}
