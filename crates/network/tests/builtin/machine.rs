//! A machine that is only a network namespace, and containers that are others.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use corten_network::builtin::{Attachments, Member, NewNetwork};
use corten_network::cni::NetworkResult;
use corten_network::nft::Filter;
use corten_network::{Cidr, Kind, LinkChange, Netlink, NetworkNamespace, NewLink, Peer, Route, unpin};
use corten_types::Result;
use serde_json::Value;
use tempfile::TempDir;

pub struct Machine {
    pub host: NetworkNamespace,
    pub folder: TempDir,
    pub networks: Attachments,
}

impl Machine {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let networks = Attachments::new(&folder.path().join("network"));
        let machine = Self { host: NetworkNamespace::new().unwrap(), folder, networks };
        up(&machine.host, "lo");
        machine
    }

    /// Does something on the machine.
    pub fn on<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.host.run(work).unwrap()
    }

    pub fn create(&self, name: &str, subnets: &[&str]) {
        let subnets = subnets.iter().map(|text| text.parse().unwrap()).collect();
        let new = NewNetwork { name: name.into(), subnets, ..NewNetwork::default() };
        self.on(|| self.networks.create(&new)).unwrap();
    }

    pub fn container(&self, id: &str) -> Container {
        let namespace = NetworkNamespace::new().unwrap();
        let path = self.folder.path().join("netns").join(id);
        namespace.pin(&path).unwrap();
        let netns = path.display().to_string();
        let member = Member { id: id.into(), netns, names: vec![id.to_owned()], ..Member::default() };
        Container { namespace, member, path }
    }

    pub fn attach(&self, network: &str, container: &Container) -> Result<NetworkResult> {
        self.on(|| self.networks.attach(network, &container.member))
    }

    /// A container that is attached, and its first address.
    pub fn attached(&self, network: &str, id: &str) -> (Container, IpAddr) {
        let container = self.container(id);
        let result = self.attach(network, &container).unwrap();
        (container, result.ips[0].address.address)
    }

    pub fn detach(&self, id: &str) {
        self.on(|| self.networks.detach(id, None)).unwrap();
    }

    /// Everything that may be left: links, files of leases and records, ports.
    pub fn state(&self) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        let links = Netlink::open_in(&self.host).unwrap().links().unwrap();
        found.extend(links.into_iter().map(|link| format!("link {}", link.name)));
        let ports = Filter::open_in(&self.host).unwrap().published().unwrap();
        found.extend(ports.into_iter().map(|(owner, port)| format!("port {} of {owner}", port.port)));
        let mut folders = vec![self.networks.root().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                match entry.file_type().unwrap().is_dir() {
                    true => folders.push(entry.path()),
                    false
                        if name.starts_with("last_reserved_ip")
                            || ["lock", "names", "boot"].contains(&name.as_str()) => {}
                    false => found.push(format!("file {name}")),
                }
            }
        }
        found.sort();
        found
    }

    /// Another machine, on a cable of its own: it has 192.0.2.2 and 2001:db8::2, this one 192.0.2.1 and 2001:db8::1. It
    /// knows no way to the containers.
    pub fn outside(&self) -> NetworkNamespace {
        let other = NetworkNamespace::new().unwrap();
        let peer = Peer { name: "up0", namespace: Some(&other), mac: None, mtu: None };
        let mut netlink = Netlink::open_in(&self.host).unwrap();
        netlink.add_link(&NewLink { up: true, ..NewLink::new("up0", Kind::Veth(peer)) }).unwrap();
        up(&other, "up0");
        for (namespace, addresses) in
            [(&self.host, ["192.0.2.1/24", "2001:db8::1/64"]), (&other, ["192.0.2.2/24", "2001:db8::2/64"])]
        {
            let mut netlink = Netlink::open_in(namespace).unwrap();
            let link = netlink.link("up0").unwrap().index;
            for address in addresses {
                netlink.add_address(link, address.parse().unwrap()).unwrap();
            }
        }
        other
    }
}

pub struct Container {
    pub namespace: NetworkNamespace,
    pub member: Member,
    pub path: std::path::PathBuf,
}

impl Container {
    pub fn publishing(mut self, ports: Value) -> Self {
        self.member.ports = ports;
        self
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        unpin(&self.path).ok();
    }
}

fn up(namespace: &NetworkNamespace, name: &str) {
    let mut netlink = Netlink::open_in(namespace).unwrap();
    let link = netlink.link(name).unwrap().index;
    netlink.change_link(link, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
}

/// Answers each caller with the address that it has here, until the test ends.
pub fn serve(namespace: &NetworkNamespace, at: &str) {
    let listener = namespace.run(|| TcpListener::bind(at).unwrap()).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let peer =
                stream.peer_addr().map(|peer| peer.ip().to_canonical().to_string()).unwrap_or_default();
            stream.write_all(peer.as_bytes()).ok();
        }
    });
}

/// What a server says; nothing when it is not reached within `patience`.
pub fn dial(namespace: &NetworkNamespace, to: SocketAddr, patience: Duration) -> Option<String> {
    let call = || {
        let mut stream = TcpStream::connect_timeout(&to, patience).ok()?;
        stream.set_read_timeout(Some(patience)).ok()?;
        let mut said = String::new();
        stream.read_to_string(&mut said).ok()?;
        Some(said)
    };
    namespace.run(call).unwrap()
}

/// Leads packets of a namespace to others by a gateway.
pub fn route(namespace: &NetworkNamespace, to: &str, gateway: &str) {
    let route = Route::new(to.parse::<Cidr>().unwrap(), Some(gateway.parse().unwrap()), None);
    Netlink::open_in(namespace).unwrap().add_route(&route).unwrap();
}
