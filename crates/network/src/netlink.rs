//! The kernel's routing socket: one request, its answers.

use std::io;

use corten_types::{Error, ErrorClass};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::NetworkNamespace;

/// How often a list that changed while it was read is read again.
const ATTEMPTS: usize = 10;

/// A connection to the routing part of the kernel. It speaks of the network namespace that it was opened in, from
/// whichever thread it is used.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// For the network namespace of the calling thread.
    ///
    /// # Errors
    /// Those of socket(2).
    pub fn open() -> corten_types::Result<Self> {
        Self::connect().map_err(|error| Error::from(error).context("open a netlink socket"))
    }

    /// For another network namespace.
    ///
    /// # Errors
    /// Those of setns(2) and socket(2).
    pub fn open_in(namespace: &NetworkNamespace) -> corten_types::Result<Self> {
        namespace.run(Self::open)?
    }

    fn connect() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Changes something that exists.
    pub(crate) fn change(&mut self, message: RouteNetlinkMessage) -> Result<(), Failure> {
        self.request(message, NLM_F_ACK).map(drop)
    }

    /// Makes something that must not exist yet.
    pub(crate) fn create(&mut self, message: RouteNetlinkMessage) -> Result<(), Failure> {
        self.request(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// Makes something, in the place of an equal one.
    pub(crate) fn replace(&mut self, message: RouteNetlinkMessage) -> Result<(), Failure> {
        self.request(message, NLM_F_ACK | NLM_F_CREATE | netlink_packet_core::NLM_F_REPLACE).map(drop)
    }

    /// Asks for one thing.
    pub(crate) fn get(&mut self, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Failure> {
        self.request(message, NLM_F_ACK)
    }

    /// Asks for a list.
    pub(crate) fn list(
        &mut self,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Failure> {
        for _ in 0..ATTEMPTS {
            match self.request(message.clone(), NLM_F_DUMP) {
                Err(failure) if failure.number == INTERRUPTED => {}
                other => return other,
            }
        }
        Err(io::Error::other("the list kept changing while it was read").into())
    }

    fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, Failure> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut buffer = vec![0; packet.buffer_len()];
        packet.serialize(&mut buffer);
        self.socket.send(&buffer, 0)?;
        self.answers()
    }

    /// All answers to the request that was sent last, up to the word that there are no more.
    fn answers(&self) -> Result<Vec<RouteNetlinkMessage>, Failure> {
        let mut found = Vec::new();
        let mut interrupted = false;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while let Some(length) = length_of_first(rest) {
                let (data, behind) = rest.split_at(length);
                rest = behind.get(padding(length).min(behind.len())..).unwrap_or_default();
                let packet = NetlinkMessage::<RouteNetlinkMessage>::deserialize(data);
                let (header, payload) =
                    packet.map_err(|error| io::Error::other(error.to_string()))?.into_parts();
                if header.sequence_number != self.sequence {
                    continue;
                }
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                match payload {
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            None => Ok(found),
                            Some(code) => Err(Failure { number: code.get().abs(), detail: detail(data) }),
                        };
                    }
                    NetlinkPayload::Done(_) if interrupted => return Err(Failure::interrupted()),
                    NetlinkPayload::Done(_) => return Ok(found),
                    _ => {}
                }
            }
        }
    }
}

fn length_of_first(data: &[u8]) -> Option<usize> {
    let (length, _) = data.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_ne_bytes(*length)).ok()?;
    (16..=data.len()).contains(&length).then_some(length)
}

fn padding(length: usize) -> usize {
    length.next_multiple_of(4) - length
}

/// The kernel's explanation behind the header of an error, the number, and the header of what was refused.
fn detail(error: &[u8]) -> Option<String> {
    const MESSAGE: u16 = 1;
    let mut rest = error.get(16 + 4 + 16..)?;
    while let [l0, l1, k0, k1, ..] = *rest {
        let (length, kind) = (usize::from(u16::from_ne_bytes([l0, l1])), u16::from_ne_bytes([k0, k1]));
        let value = rest.get(4..length)?;
        if kind & 0x3fff == MESSAGE {
            return Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned());
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// Not a number of the kernel's.
const INTERRUPTED: i32 = -1;

/// Why the kernel refused.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The error's number, 0 when the request did not get there.
    number: i32,
    /// What it says beside.
    detail: Option<String>,
}

impl Failure {
    fn interrupted() -> Self {
        Self { number: INTERRUPTED, detail: None }
    }

    /// Whether the thing, or the namespace of its name, does not exist.
    pub fn is_missing(&self) -> bool {
        use rustix::io::Errno;
        [Errno::NODEV, Errno::SRCH, Errno::ADDRNOTAVAIL, Errno::NOENT, Errno::NXIO]
            .iter()
            .any(|errno| errno.raw_os_error() == self.number)
    }

    /// Whether it exists already.
    pub fn is_existing(&self) -> bool {
        rustix::io::Errno::EXIST.raw_os_error() == self.number
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(number) => Self { number, detail: None },
            None => Self { number: 0, detail: Some(error.to_string()) },
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let detail = failure.detail.as_deref();
        if failure.number <= 0 {
            return Self::unknown(detail.unwrap_or("the kernel's answer was cut off"));
        }
        let error = Self::from(io::Error::from_raw_os_error(failure.number));
        let class = if failure.is_missing() { ErrorClass::NotFound } else { error.class() };
        match detail {
            Some(detail) => Self::bare(class, format!("{} ({detail})", error.message())),
            None => Self::bare(class, error.message()),
        }
    }
}
