//! A machine of the test's own.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use corten_network::nft::Filter;
use corten_network::{LinkChange, Netlink, NetworkNamespace};
use corten_tests::{Finished, ImageBuilder, Layer, Node, Running, Scratch, command, eventually};

pub const IMAGE: &str = "example.com/lab/busybox:1";

/// A network namespace with a node in it.
pub struct Lab {
    pub host: NetworkNamespace,
    /// Nothing while the machine is off.
    pub node: Option<Node>,
    /// Networks and what they hold.
    pub scratch: Scratch,
    outside: Vec<String>,
}

impl Lab {
    pub fn start() -> Self {
        let outside = outside();
        let host = NetworkNamespace::new().unwrap();
        let mut netlink = Netlink::open_in(&host).unwrap();
        let lo = netlink.link("lo").unwrap().index;
        netlink.change_link(lo, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
        let lab = Self { node: Some(host.run(Node::start).unwrap()), host, scratch: Scratch::new(), outside };
        let archive = lab.scratch.join("image.tar");
        // The C library asks servers of names first, unless it is told otherwise.
        let files = Layer::new().file("etc/nsswitch.conf", 0o644, b"hosts: files\n").finish();
        ImageBuilder::busybox().layer(files).build().save(&archive, IMAGE).unwrap();
        lab.ctr(["images", "import", archive.to_str().unwrap()]).ok();
        lab
    }

    pub fn node(&self) -> &Node {
        self.node.as_ref().unwrap()
    }

    pub fn root(&self) -> PathBuf {
        self.scratch.join("network")
    }

    /// Does something on the machine.
    pub fn on<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.host.run(work).unwrap()
    }

    /// Runs a command on the machine.
    pub fn run(&self, mut command: Command) -> Finished {
        command.env("CORTEN_NETWORK_ROOT", self.root());
        self.on(|| command::run(command))
    }

    pub fn ctr<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Finished {
        self.run(self.node().ctr_command(args))
    }

    pub fn start_ctr<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Running {
        let mut command = self.node().ctr_command(args);
        command.env("CORTEN_NETWORK_ROOT", self.root());
        self.on(|| Running::start(command, None))
    }

    /// A container that serves the name of its host on port 80.
    pub fn serve(&self, id: &str, flags: &[&str]) {
        let script = "mkdir /www; hostname >/www/name; exec busybox httpd -f -p 80 -h /www";
        let args = [&["run", "-d"][..], flags, &[IMAGE, id, "sh", "-c", script]].concat();
        self.ctr(args).ok();
        eventually("the server listens", Duration::from_secs(60), || {
            let asked = [
                "tasks",
                "exec",
                "--exec-id",
                "probe",
                id,
                "busybox",
                "wget",
                "-q",
                "-O-",
                "http://127.0.0.1/name",
            ];
            Some(()).filter(|()| self.ctr(asked).code == Some(0))
        });
    }

    /// What a server says to a program in a container with these flags.
    pub fn ask(&self, id: &str, flags: &[&str], url: &str) -> Finished {
        let wget = ["busybox", "wget", "-q", "-O-", url];
        self.ctr([&["run", "--rm"][..], flags, &[IMAGE, id], &wget].concat())
    }

    /// What a server says to a program on the machine.
    pub fn get(&self, to: &str) -> Option<String> {
        let to: SocketAddr = to.parse().unwrap();
        self.on(|| {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(20)).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
            stream.write_all(b"GET /name HTTP/1.0\r\n\r\n").ok()?;
            let mut said = String::new();
            stream.read_to_string(&mut said).ok()?;
            said.split("\r\n\r\n").nth(1).map(str::to_owned)
        })
    }

    /// Links, leases, records, ports and files of containers.
    pub fn state(&self) -> Vec<String> {
        let links = Netlink::open_in(&self.host).unwrap().links().unwrap();
        let mut found: Vec<String> = links.into_iter().map(|link| format!("link {}", link.name)).collect();
        let ports = Filter::open_in(&self.host).unwrap().published().unwrap();
        found.extend(ports.into_iter().map(|(owner, port)| format!("port {} of {owner}", port.port)));
        for folder in ["leases", "results", "containers"] {
            found.extend(files(&self.root(), &self.root().join(folder)));
        }
        found.sort();
        found
    }

    /// The machine's rules, as the kernel tells them.
    pub fn rules(&self) -> String {
        let list = || Command::new("nft").args(["list", "ruleset"]).output();
        self.on(list).map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
    }

    /// Ends the test: nothing may be left on the machine, nor around it.
    pub fn finish(mut self) {
        self.node.take().unwrap().finish();
        assert_eq!(outside(), self.outside, "the network of those who run the tests was touched");
    }
}

/// Files below a folder, by their paths from the root.
fn files(root: &Path, folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(root, &entry.path()));
        } else if name != "lock" && !name.starts_with("last_reserved_ip") {
            found.push(entry.path().strip_prefix(root).unwrap().display().to_string());
        }
    }
    found
}

/// What there is outside of the machine that could be ours. Others may have bridges of their own meanwhile.
fn outside() -> Vec<String> {
    let links = Netlink::open().unwrap().links().unwrap().into_iter().map(|link| link.name);
    let ours = |name: &String| {
        name.starts_with("br-lab") || name == "corten0" || name.len() == 15 && name.starts_with("veth")
    };
    let mut found: Vec<String> = links.filter(ours).collect();
    found.sort();
    found.extend(Filter::open().unwrap().exists().unwrap().then(|| "table corten".to_owned()));
    found
}
