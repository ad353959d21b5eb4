//! What the process of a container and its creator tell each other. Each message is one packet.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

use super::Failure;
use super::rootfs::words;

/// Longest message; failures are cut.
const LONGEST: usize = 4096;

/// One end.
#[derive(Debug)]
pub(super) struct Channel(OwnedFd);

/// A message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// Go on, or: this far without failure.
    Go,
    /// It failed.
    Failed(Failure),
    /// The other end is closed.
    Closed,
}

impl Channel {
    /// Both ends, which end with the program.
    pub(super) fn pair() -> Result<(Self, Self), Failure> {
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        pair.map(|(one, other)| (Self(one), Self(other)))
            .map_err(|error| format!("socketpair: {}", words(error)))
    }

    /// Forgets the end of the other side, which a clone has inherited.
    pub(super) fn forget(number: RawFd) {
        corten_sys::close_inherited(number);
    }

    /// Which descriptor this end is.
    pub(super) fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    pub(super) fn go(&self) -> Result<(), Failure> {
        self.send(b"+")
    }

    /// Tells a failure, if there is still somebody to be told.
    pub(super) fn fail(&self, failure: &str) {
        let mut message = b"-".to_vec();
        message.extend(failure.bytes().take(LONGEST - 1));
        self.send(&message).ok();
    }

    pub(super) fn receive(&self) -> Message {
        let mut buffer = [0; LONGEST];
        let count = loop {
            match recv(&self.0, &mut buffer, RecvFlags::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other.map_or(0, |(count, _)| count),
            }
        };
        match buffer.get(..count) {
            Some([b'+', ..]) => Message::Go,
            Some([b'-', text @ ..]) => Message::Failed(String::from_utf8_lossy(text).into_owned()),
            _ => Message::Closed,
        }
    }

    /// Waits for the other side to go on.
    pub(super) fn wait(&self) -> Result<(), Failure> {
        match self.receive() {
            Message::Go => Ok(()),
            Message::Failed(failure) => Err(failure),
            Message::Closed => Err("the other side is gone".into()),
        }
    }

    fn send(&self, message: &[u8]) -> Result<(), Failure> {
        loop {
            match send(&self.0, message, SendFlags::NOSIGNAL) {
                Err(rustix::io::Errno::INTR) => {}
                other => return other.map(drop).map_err(|error| format!("send: {}", words(error))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_and_an_end_is_noticed() {
        let (one, other) = Channel::pair().unwrap();
        one.go().unwrap();
        one.fail(&"x".repeat(2 * LONGEST));
        drop(one);
        assert_eq!(other.receive(), Message::Go);
        assert!(matches!(other.receive(), Message::Failed(text) if text.len() == LONGEST - 1));
        assert_eq!(other.receive(), Message::Closed);
        assert!(other.wait().is_err());
    }
}
