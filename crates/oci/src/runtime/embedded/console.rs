//! The terminal of a process: made inside of the container, its master sent to whoever supervises it.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use corten_tree::Root;
use rustix::fs::{Gid, OFlags, Uid, fchown, fstat, makedev};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::Failure;
use super::config::Process;
use super::rootfs::words;

/// Makes a terminal from the container's own multiplexer and sends its master; answers the other end.
pub(super) fn open(root: &Root, process: &Process, to: &UnixStream) -> Result<OwnedFd, Failure> {
    let failed = |error: rustix::io::Errno| format!("open a terminal: {}", words(error));
    let master = root.open_at(Path::new("dev/pts/ptmx"), OFlags::RDWR | OFlags::NOCTTY).map_err(failed)?;
    if fstat(&master).map_err(failed)?.st_rdev != makedev(5, 2) {
        return Err("open a terminal: /dev/pts/ptmx is no terminal multiplexer".into());
    }
    unlockpt(&master).map_err(failed)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = ioctl_tiocgptpeer(&master, flags).map_err(failed)?;
    if let Some(size) = process.console_size {
        let size = Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).map_err(failed)?;
    }
    let user = &process.user;
    // In a user namespace the user may be the only one there is.
    fchown(&terminal, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid))).ok();
    send(&master, to).map_err(failed)?;
    Ok(terminal)
}

fn send(master: &OwnedFd, to: &UnixStream) -> Result<(), rustix::io::Errno> {
    let fds = [master.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(to, &[IoSlice::new(b"/dev/ptmx")], &mut control, SendFlags::NOSIGNAL).map(drop)
}
