//! Network interfaces of the host that move into a container (`linux.netDevices`): with their addresses, under another
//! name if that is wanted, and up. They come back to the host when the namespace goes.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};

use corten_sys::{NewProcess, clone_process};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice, recv, send, socket_with,
};

use super::Failure;
use super::config::Config;
use super::namespaces::{NEW_NETWORK, join};
use super::rootfs::words;

const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
const ERROR: u16 = 2;
const DONE: u16 = 3;

const REQUEST: u16 = 0x1;
const ANSWER: u16 = 0x4;
const DUMP: u16 = 0x300;
const CREATE_OR_REPLACE: u16 = 0x500;

/// Attributes of a link.
const NAME: u16 = 3;
const NAMESPACE: u16 = 28;
/// The flag of addresses that do not run out.
const PERMANENT: u8 = 0x80;

const HEADER: usize = 16;
/// Of the message about an address: family, prefix, flags, scope, index.
const ADDRESS: usize = 8;
const BUFFER: usize = 64 << 10;

/// Moves what the configuration names into the network namespace of a process.
pub(super) fn move_in(config: &Config, pid: i32) -> Result<(), Failure> {
    if config.linux.net_devices.is_empty() {
        return Ok(());
    }
    let namespace = File::open(format!("/proc/{pid}/ns/net")).map(OwnedFd::from).map_err(words)?;
    for (name, device) in &config.linux.net_devices {
        let new_name = if device.name.is_empty() { name } else { &device.name };
        move_one(name, new_name, &namespace).map_err(|error| format!("move netDevice {name:?}: {error}"))?;
    }
    Ok(())
}

fn move_one(name: &str, new_name: &str, namespace: &OwnedFd) -> Result<(), Failure> {
    let mut netlink = Netlink::open().map_err(words)?;
    let index = netlink.index(name).map_err(words)?;
    let addresses = netlink.addresses(index).map_err(words)?;
    netlink.move_link(index, new_name, namespace).map_err(words)?;
    within(namespace, || {
        let mut netlink = Netlink::open().map_err(words)?;
        let index = netlink.index(new_name).map_err(words)?;
        for address in &addresses {
            netlink.add_address(index, address).map_err(|error| format!("its address: {}", words(error)))?;
        }
        corten_sys::set_link_up(new_name).map_err(words)
    })
}

/// Does something in a network namespace, in a process of its own.
fn within(namespace: &OwnedFd, work: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(words)?;
    let child = clone_process(NewProcess::default(), || {
        corten_sys::close_all_except(&[write.as_raw_fd(), namespace.as_raw_fd()]);
        match join(NEW_NETWORK, namespace).and_then(|()| work()) {
            Ok(()) => 0,
            Err(failure) => {
                rustix::io::write(&write, failure.as_bytes()).ok();
                1
            }
        }
    })
    .map_err(words)?;
    drop(write);
    let mut failure = String::new();
    File::from(read).read_to_string(&mut failure).map_err(words)?;
    let options = rustix::process::WaitOptions::empty();
    let ended = rustix::process::waitpid(rustix::process::Pid::from_raw(child), options).map_err(words)?;
    if ended.is_some_and(|(_, status)| status.exit_status() == Some(0)) { Ok(()) } else { Err(failure) }
}

/// A conversation with the kernel about links and addresses.
struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    fn open() -> io::Result<Self> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket, sequence: 0 })
    }

    fn index(&self, name: &str) -> io::Result<u32> {
        let socket = std::os::unix::net::UnixDatagram::unbound()?;
        Ok(netdevice::name_to_index(&socket, name)?)
    }

    /// The messages that describe an interface's own addresses, without their headers.
    fn addresses(&mut self, index: u32) -> io::Result<Vec<Vec<u8>>> {
        let mut found = Vec::new();
        self.ask(GET_ADDRESS, REQUEST | DUMP, &[0; ADDRESS], |body| {
            let [_, _, flags, scope, rest @ ..] = body else { return };
            let fits = rest.get(..4).is_some_and(|bytes| bytes == index.to_ne_bytes());
            if fits && *scope == 0 && flags & PERMANENT != 0 {
                found.push(body.to_vec());
            }
        })?;
        Ok(found)
    }

    fn add_address(&mut self, index: u32, address: &[u8]) -> io::Result<()> {
        let mut body = address.to_vec();
        if let Some(place) = body.get_mut(4..8) {
            place.copy_from_slice(&index.to_ne_bytes());
        }
        self.ask(NEW_ADDRESS, REQUEST | ANSWER | CREATE_OR_REPLACE, &body, |_| ())
    }

    fn move_link(&mut self, index: u32, name: &str, namespace: &OwnedFd) -> io::Result<()> {
        // Any family, any kind, this index, no flags.
        let mut body = [[0; 4], index.to_ne_bytes(), [0; 4], [0; 4]].concat();
        attribute(&mut body, NAMESPACE, &namespace.as_raw_fd().to_ne_bytes());
        attribute(&mut body, NAME, &[name.as_bytes(), &[0]].concat());
        self.ask(NEW_LINK, REQUEST | ANSWER, &body, |_| ())
    }

    /// Sends a request and hands on what comes, up to the end of the answer.
    fn ask(&mut self, kind: u16, flags: u16, body: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
        self.sequence += 1;
        let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(body);
        send(&self.socket, &message, SendFlags::empty())?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let (count, _) = recv(&self.socket, &mut buffer, RecvFlags::empty())?;
            let mut rest = buffer.get(..count).unwrap_or_default();
            while let Some((kind, body, next)) = split(rest) {
                match kind {
                    DONE => return Ok(()),
                    ERROR => {
                        let number = body
                            .get(..4)
                            .and_then(|bytes| bytes.try_into().ok())
                            .map_or(0, i32::from_ne_bytes);
                        return if number == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-number)) };
                    }
                    _ => each(body),
                }
                rest = next;
            }
        }
    }
}

/// The first message: its kind, its body, and what comes behind it.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(HEADER..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}
