//! Netlink messages of nf_tables: a batch of changes, or one question.

use std::io;

use corten_types::{Error, Result};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// The family for IPv4 and IPv6 together.
const INET: u8 = 1;
const NESTED: u16 = 0x8000;

pub(super) const REQUEST: u16 = 1;
pub(super) const ACK: u16 = 4;
pub(super) const EXCLUSIVE: u16 = 0x200;
pub(super) const CREATE: u16 = 0x400;
pub(super) const DUMP: u16 = 0x300;

/// Numbers of messages.
pub(super) mod kind {
    pub const NEW_TABLE: u16 = 0;
    pub const DELETE_TABLE: u16 = 2;
    pub const NEW_CHAIN: u16 = 3;
    pub const NEW_RULE: u16 = 6;
    pub const NEW_SET: u16 = 9;
    pub const NEW_ELEMENTS: u16 = 12;
    pub const GET_ELEMENTS: u16 = 13;
    pub const DELETE_ELEMENTS: u16 = 14;
}

/// Attributes, one behind the other.
#[derive(Clone, Debug, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    pub fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub fn nested(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }
}

/// Kinds and values of attributes, up to what cannot be read.
pub(super) fn attributes(mut data: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, rest) = data.split_first_chunk::<2>()?;
        let (kind, _) = rest.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let value = data.get(4..length)?;
        data = data.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes(*kind) & 0x3fff, value))
    })
}

/// The value of an attribute.
pub(super) fn attribute(data: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(data).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

fn message(to: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, family: u8, resource: u16, body: &[u8]) {
    let length = u32::try_from(20 + body.len()).unwrap_or(u32::MAX);
    to.extend(length.to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend((flags | REQUEST).to_ne_bytes());
    to.extend(sequence.to_ne_bytes());
    to.extend(0_u32.to_ne_bytes());
    to.extend([family, 0]);
    to.extend(resource.to_be_bytes());
    to.extend(body);
}

/// Changes that are all made or none.
#[derive(Debug, Default)]
pub(super) struct Batch {
    changes: Vec<(u16, u16, Attributes)>,
}

impl Batch {
    pub fn add(&mut self, kind: u16, flags: u16, attributes: Attributes) {
        self.changes.push((kind, flags, attributes));
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// A connection to nf_tables.
#[derive(Debug)]
pub(super) struct Connection {
    socket: Socket,
}

impl Connection {
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        Ok(Self { socket })
    }

    /// Makes the changes; on failure none of them, and the first reason is told.
    pub fn commit(&mut self, batch: &Batch) -> io::Result<()> {
        let mut data = Vec::new();
        message(&mut data, BATCH_BEGIN, 0, 0, 0, SUBSYSTEM, &[]);
        let mut sequence = 0;
        for (kind, flags, attributes) in &batch.changes {
            sequence += 1;
            message(&mut data, SUBSYSTEM << 8 | kind, flags | ACK, sequence, INET, 0, &attributes.0);
        }
        message(&mut data, BATCH_END, 0, sequence + 1, 0, SUBSYSTEM, &[]);
        let sent = self.socket.send(&data, 0)?;
        if sent != data.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        // One answer for each change; when the batch itself cannot be made, for its begin or end only.
        let mut first = Ok(());
        let mut answered = 0;
        while answered < sequence {
            let (datagram, _) = self.socket.recv_from_full()?;
            for (kind, number, body) in messages(&datagram) {
                if kind != ERROR {
                    continue;
                }
                let failed = failure(body);
                let of_batch = number == 0 || number > sequence;
                if first.is_ok() {
                    first = failed;
                }
                if of_batch {
                    return first;
                }
                answered += 1;
            }
        }
        first
    }

    /// The elements of a set: the attributes of each.
    pub fn elements(&mut self, attributes: Attributes) -> io::Result<Vec<Vec<u8>>> {
        const LIST: u16 = 3;
        let mut data = Vec::new();
        message(&mut data, SUBSYSTEM << 8 | kind::GET_ELEMENTS, DUMP, 1, INET, 0, &attributes.0);
        self.socket.send(&data, 0)?;
        let mut found = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for (kind, _, body) in messages(&datagram) {
                match kind {
                    DONE => return Ok(found),
                    ERROR => return failure(body).map(|()| found),
                    _ => {
                        let list = body.get(4..).and_then(|body| attribute(body, LIST)).unwrap_or_default();
                        found.extend(self::attributes(list).map(|(_, element)| element.to_owned()));
                    }
                }
            }
        }
    }
}

/// Kind, sequence number and body of each message in a datagram.
fn messages(mut data: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = data.split_first_chunk::<16>()?;
        let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3, ..] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let body = data.get(16..length)?;
        data = data.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]), u32::from_ne_bytes([s0, s1, s2, s3]), body))
    })
}

fn failure(body: &[u8]) -> io::Result<()> {
    let number = body.first_chunk::<4>().map_or(libc_einval(), |number| i32::from_ne_bytes(*number));
    match number {
        0 => Ok(()),
        number => Err(io::Error::from_raw_os_error(number.saturating_abs())),
    }
}

fn libc_einval() -> i32 {
    rustix::io::Errno::INVAL.raw_os_error()
}

/// An error of nf_tables, in words.
pub(super) fn refused(error: io::Error) -> Error {
    Error::from(error).context("nf_tables")
}

/// As [`refused`], for results.
pub(super) fn told<T>(done: io::Result<T>) -> Result<T> {
    done.map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let inner = Attributes::default().number(2, 7).text(3, "abc");
        let all = Attributes::default().nested(1, &inner).bytes(9, &[1]);
        let inner = attribute(&all.0, 1).unwrap();
        assert_eq!(attribute(inner, 2), Some([0, 0, 0, 7].as_slice()));
        assert_eq!(attribute(inner, 3), Some(b"abc\0".as_slice()));
        assert_eq!((attribute(&all.0, 9), attribute(&all.0, 8)), (Some([1].as_slice()), None));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read(data: Vec<u8>) {
            attributes(&data).for_each(drop);
            messages(&data).for_each(drop);
        }
    }
}
