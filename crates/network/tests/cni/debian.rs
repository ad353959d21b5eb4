//! Debian's plugins, in network namespaces of the test's own.

use std::path::PathBuf;

use corten_network::cni::NetworkResult;
use corten_network::{Kind, LinkChange, Netlink, NetworkNamespace, NewLink, Peer};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::{attachment, capabilities, client, network};

/// A host and a container, both only namespaces.
struct Machine {
    folder: TempDir,
    host: NetworkNamespace,
    container: NetworkNamespace,
    plugins: PathBuf,
}

impl Machine {
    /// Nothing where Debian's plugins are not.
    fn new() -> Option<Self> {
        let peers = PathBuf::from(std::env::var_os("PEERS")?);
        let plugins = Some(peers.join("cni/usr/lib/cni")).filter(|folder| folder.is_dir())?;
        let folder = tempfile::tempdir().unwrap();
        let container = NetworkNamespace::new().unwrap();
        container.pin(&folder.path().join("netns/c")).unwrap();
        Some(Self { host: NetworkNamespace::new().unwrap(), container, plugins, folder })
    }

    fn netns(&self) -> String {
        self.folder.path().join("netns/c").display().to_string()
    }

    fn cni(&self) -> corten_network::cni::Cni {
        client(&self.plugins, self.folder.path())
    }

    /// Names of the host's links.
    fn links(&self) -> Vec<String> {
        let links = Netlink::open_in(&self.host).unwrap().links().unwrap();
        links.into_iter().map(|link| link.name).collect()
    }

    fn leases(&self, network: &str) -> Vec<String> {
        let entries =
            std::fs::read_dir(self.folder.path().join("leases").join(network)).into_iter().flatten();
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.parse::<std::net::IpAddr>().is_ok()).collect()
    }

    fn ipam(&self) -> Value {
        json!({"type": "host-local", "dataDir": self.folder.path().join("leases"), "routes": [{"dst": "0.0.0.0/0"}],
            "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]]})
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        corten_network::unpin(&self.folder.path().join("netns/c")).ok();
    }
}

macro_rules! machine {
    () => {
        match Machine::new() {
            Some(machine) => machine,
            None => return eprintln!("skipped: no plugins (scripts/peers FOLDER cni, and PEERS=FOLDER)"),
        }
    };
}

#[test]
fn a_chain_of_plugins_attaches_and_leaves_nothing() {
    let machine = machine!();
    let net = network(&json!({"name": "chain", "cniVersion": "1.1.0", "plugins": [
        {"type": "bridge", "bridge": "br-chain", "isGateway": true, "ipMasq": true, "ipam": machine.ipam()},
        {"type": "portmap", "capabilities": {"portMappings": true}},
        {"type": "firewall"},
        {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}},
        {"type": "bandwidth", "capabilities": {"bandwidth": true}},
    ]}));
    let given = capabilities(json!({
        "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp"}],
        "bandwidth": {"IngressRate": 1_000_000, "IngressBurst": 2_000_000, "EgressRate": 1_000_000, "EgressBurst": 2_000_000},
    }));
    let netns = machine.netns();
    let to = attachment("c1", &netns, &given);
    let cni = machine.cni();
    let result: NetworkResult = machine.host.run(|| cni.add(&net, &to)).unwrap().unwrap();
    let ips: Vec<String> = result.ips.iter().map(|ip| ip.address.to_string()).collect();
    assert_eq!(ips, ["10.77.0.2/24", "fd77::2/64"]);
    let inside = Netlink::open_in(&machine.container).unwrap().addresses().unwrap();
    assert!(inside.iter().any(|one| one.cidr.to_string() == "10.77.0.2/24"));
    machine.host.run(|| cni.check(&net, &to)).unwrap().unwrap();
    machine.host.run(|| cni.status(&net)).unwrap().unwrap();
    assert_eq!(machine.leases("chain").len(), 2);
    // The namespace goes first, and DEL hears of it by an empty path.
    corten_network::unpin(&machine.folder.path().join("netns/c")).unwrap();
    let none = Map::new();
    machine.host.run(|| cni.delete(&net, &attachment("c1", "", &none))).unwrap().unwrap();
    machine.host.run(|| cni.delete(&net, &attachment("c1", "", &none))).unwrap().unwrap();
    assert!(machine.leases("chain").is_empty());
    let rules = || {
        std::process::Command::new("iptables-save").output().map(|output| output.stdout).unwrap_or_default()
    };
    let rules = String::from_utf8_lossy(&machine.host.run(rules).unwrap()).into_owned();
    // The bridge plugin itself forgets its masquerading when the namespace is gone.
    assert!(!rules.contains("8080"), "{rules}");
}

#[test]
fn a_bridge_is_spoken_to_in_every_version() {
    let machine = machine!();
    let cni = machine.cni();
    let none = Map::new();
    let netns = machine.netns();
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let mut ipam = machine.ipam();
        ipam["ranges"] = json!([[{"subnet": "10.77.0.0/24"}]]);
        let net = network(&json!({"name": "v", "cniVersion": version, "plugins": [
            {"type": "bridge", "bridge": "br-v", "isGateway": true, "ipam": ipam}]}));
        let to = attachment("c1", &netns, &none);
        let result = machine.host.run(|| cni.add(&net, &to)).unwrap().unwrap();
        assert_eq!(result.ips[0].gateway, Some("10.77.0.1".parse().unwrap()), "{version}: {result:?}");
        machine.host.run(|| cni.delete(&net, &to)).unwrap().unwrap();
        assert!(machine.leases("v").is_empty(), "{version}");
        assert_eq!(machine.links(), ["lo", "br-v"], "{version}");
    }
}

#[test]
fn plugins_of_other_links_attach() {
    let machine = machine!();
    let (cni, none, netns) = (machine.cni(), Map::new(), machine.netns());
    let mut netlink = Netlink::open_in(&machine.host).unwrap();
    let peer = Peer { name: "other", namespace: None, mac: None, mtu: None };
    netlink.add_link(&NewLink { up: true, ..NewLink::new("parent", Kind::Veth(peer)) }).unwrap();
    let other = netlink.link("other").unwrap().index;
    netlink.change_link(other, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
    let loopback = network(&json!({"name": "l", "cniVersion": "1.0.0", "plugins": [{"type": "loopback"}]}));
    let mut to = attachment("c1", &netns, &none);
    to.ifname = "lo";
    let result = machine.host.run(|| cni.add(&loopback, &to)).unwrap().unwrap();
    assert!(result.ips.iter().any(|ip| ip.address.to_string() == "127.0.0.1/8"), "{result:?}");
    machine.host.run(|| cni.delete(&loopback, &to)).unwrap().unwrap();
    for kind in ["macvlan", "ipvlan"] {
        let net = network(&json!({"name": kind, "cniVersion": "1.0.0", "plugins": [
            {"type": kind, "master": "parent", "ipam": machine.ipam()}]}));
        let to = attachment("c1", &netns, &none);
        match machine.host.run(|| cni.add(&net, &to)).unwrap() {
            Ok(result) => assert_eq!(result.ips[0].address.to_string(), "10.77.0.2/24"),
            // Not every kernel has it.
            Err(failed) => {
                assert!(kind == "ipvlan" && failed.message().contains("not supported"), "{failed}")
            }
        }
        machine.host.run(|| cni.delete(&net, &to)).unwrap().unwrap();
        assert!(machine.leases(kind).is_empty());
    }
    assert_eq!(Netlink::open_in(&machine.container).unwrap().links().unwrap().len(), 1);
}
