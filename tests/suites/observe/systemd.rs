//! What systemd is told (sd_notify(3)).

use std::os::unix::net::{UnixDatagram, UnixStream};

use corten_tests::{Node, Scratch};

use crate::PATIENCE;

#[test]
fn systemd_hears_that_the_daemon_is_ready_when_it_serves_and_that_it_stops() {
    let scratch = Scratch::new();
    let path = scratch.join("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let heard = || {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let starting = std::thread::spawn({
        let path = path.display().to_string();
        move || Node::builder().env("NOTIFY_SOCKET", &path).start()
    });
    assert_eq!(heard(), "READY=1");
    let mut node = starting.join().unwrap();
    // Both sockets take connections from then on.
    UnixStream::connect(node.address()).unwrap();
    UnixStream::connect(format!("{}.ttrpc", node.address().display())).unwrap();
    node.stop_daemon();
    assert_eq!(heard(), "STOPPING=1");
    assert!(!node.address().exists());
}
