//! Network interfaces, as far as ioctl(2) knows them.

use std::io;
use std::os::fd::AsRawFd;

use crate::checked;

/// Brings an interface of this network namespace up.
///
/// # Errors
/// InvalidInput for a name that is too long; those of netdevice(7).
pub fn set_link_up(name: &str) -> io::Result<()> {
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    // SAFETY: all zeros is a request without name and flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the request outlives the calls, and the first one sets the flags that the second one reads.
    unsafe {
        checked(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request).into())?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        checked(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request).into())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_of_a_new_namespace_comes_up() {
        let how = crate::NewProcess { namespaces: libc::CLONE_NEWNET as u64, ..crate::NewProcess::default() };
        let child = crate::clone_process(how, || {
            let reachable =
                || std::net::UdpSocket::bind("127.0.0.1:0").and_then(|it| it.connect("127.0.0.1:9"));
            i32::from(reachable().is_ok() || set_link_up("lo").is_err() || reachable().is_err())
        });
        assert_eq!(crate::process::tests::end_of(child.unwrap()), 0);
        assert!(set_link_up("no such name of sixteen").is_err());
    }
}
