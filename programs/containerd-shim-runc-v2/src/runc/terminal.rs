//! A process' terminal in the foreground: what is typed at ours goes to it, what it prints comes to ours.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use super::Result;

/// How long the last output may take when the process has ended: others may hold its terminal open.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A socket that waits for a terminal.
pub struct Waiting {
    folder: PathBuf,
    listener: UnixListener,
}

impl Waiting {
    pub fn new() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("pty-{}", std::process::id()));
        std::fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let listener = UnixListener::bind(folder.join("s"));
        let listener = listener.map_err(|error| {
            std::fs::remove_dir_all(&folder).ok();
            format!("{}: {error}", folder.display())
        })?;
        Ok(Self { folder, listener })
    }

    /// Where the runtime sends it.
    pub fn path(&self) -> PathBuf {
        self.folder.join("s")
    }

    /// Takes it over once it has been sent, and begins to copy. To be called when nothing is forked any more.
    pub fn connect(self) -> Result<Terminal> {
        let (stream, _) = self.listener.accept().map_err(|error| format!("console: {error}"))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut name = [0; 4096];
        recvmsg(&stream, &mut [IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC)
            .map_err(|error| format!("console: {error}"))?;
        let rights = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        Terminal::new(rights.ok_or("console: no terminal was sent")?)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.folder).ok();
    }
}

/// A terminal that is connected with ours.
pub struct Terminal {
    master: File,
    /// What ours was like before, if it is one.
    before: Option<Termios>,
    printed: mpsc::Receiver<()>,
}

impl Terminal {
    fn new(master: OwnedFd) -> Result<Self> {
        let master = File::from(master);
        let copy = || master.try_clone().map_err(|error| format!("console: {error}"));
        let (mut to, mut from) = (copy()?, copy()?);
        // Keys are the business of the terminal inside.
        let before = tcgetattr(std::io::stdin()).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)
                .map_err(|error| format!("console: {error}"))?;
        }
        std::thread::spawn(move || pass_on(&mut std::io::stdin(), &mut to));
        let (sender, printed) = mpsc::channel();
        std::thread::spawn(move || {
            pass_on(&mut from, &mut std::io::stdout());
            sender.send(()).ok();
        });
        let this = Self { master, before, printed };
        this.resize();
        Ok(this)
    }

    /// Gives it the size of ours.
    pub fn resize(&self) {
        if let Ok(size) = tcgetwinsize(std::io::stdin().as_fd()) {
            tcsetwinsize(&self.master, size).ok();
        }
    }

    /// Waits until all that was printed has come.
    pub fn finish(self) {
        self.printed.recv_timeout(LAST_WORDS).ok();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            tcsetattr(std::io::stdin(), OptionalActions::Now, before).ok();
        }
    }
}

/// Copies up to the end, which for a terminal is an error.
fn pass_on(from: &mut impl Read, to: &mut impl Write) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let Some(chunk) = buffer.get(..count) else { return };
        if to.write_all(chunk).and_then(|()| to.flush()).is_err() {
            return;
        }
    }
}
