//! The daemon can be watched: debug socket, metrics, traces, what systemd is told; and it watches containers.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod debug;
mod metrics;
mod restart;
mod systemd;
mod traces;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use corten_tests::{ImageBuilder, Node};

const IMAGE: &str = "example.com/lab/box:1";
/// For what the daemon does in its own time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Gives a node the image with busybox.
fn import(node: &Node) {
    ImageBuilder::busybox().build().save(&node.join("image.tar"), IMAGE).unwrap();
    node.ctr(["images", "import", node.join("image.tar").to_str().unwrap()]).ok();
}

/// Ends a container and its record.
fn remove(node: &Node, id: &str) {
    node.ctr(["tasks", "rm", "--force", id]);
    node.ctr(["containers", "rm", id]).ok();
}

/// The answer to a GET by HTTP: head and body.
struct Answer {
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

fn get_unix(socket: &Path, path: &str) -> Answer {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    get(stream, path)
}

fn get_tcp(port: u16, path: &str) -> Answer {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    get(stream, path)
}

/// By HTTP/1.0, so that the body is what comes until the end.
fn get(mut stream: impl Read + Write, path: &str) -> Answer {
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    let end = all.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    Answer { head: String::from_utf8_lossy(&all[..end]).into_owned(), body: all[end + 4..].to_vec() }
}

/// A port that is free now.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
