//! The terminal of a process: the runtime sends its master through a socket.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use corten_types::{Error, Result, ResultExt};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::net::UnixListener;

/// How long a runtime may take to send it.
const PATIENCE: Duration = Duration::from_secs(30);

/// A socket that waits for a terminal.
#[derive(Debug)]
pub(crate) struct Console {
    folder: PathBuf,
    listener: UnixListener,
}

impl Console {
    pub(crate) fn new() -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // Bundles may lie too deep for a socket's name.
        let folder = std::env::temp_dir().join(format!("pty-{}-{number}", std::process::id()));
        std::fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        let listener = UnixListener::bind(folder.join("s"))?;
        Ok(Self { folder, listener })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.join("s")
    }

    /// The master.
    pub(crate) async fn receive(&self) -> Result<OwnedFd> {
        let late = |_| Error::unknown("the runtime sent no terminal in time");
        tokio::time::timeout(PATIENCE, self.accept()).await.map_err(late)?
    }

    async fn accept(&self) -> Result<OwnedFd> {
        let (stream, _) = self.listener.accept().await?;
        loop {
            stream.readable().await?;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut name = [0; 4096];
            let received = stream.try_io(tokio::io::Interest::READABLE, || {
                let mut buffers = [std::io::IoSliceMut::new(&mut name)];
                Ok(recvmsg(stream.as_fd(), &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC)?)
            });
            match received {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                other => other?,
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(mut descriptors) = message
                    && let Some(master) = descriptors.next()
                {
                    return Ok(master);
                }
            }
            return Err(Error::unknown("the runtime sent no terminal"));
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.folder).ok();
    }
}

/// Sets the size of a terminal.
pub(crate) fn resize(master: &OwnedFd, width: u32, height: u32) -> Result<()> {
    let narrow = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    let size = rustix::termios::Winsize {
        ws_row: narrow(height),
        ws_col: narrow(width),
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(master, size).map_err(std::io::Error::from)?;
    Ok(())
}

/// Whether a path is a FIFO.
pub(crate) fn is_fifo(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo())
}
