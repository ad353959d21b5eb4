//! Links, addresses, routes and neighbours in namespaces of the test's own, told again by iproute2.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use corten_network::{Cidr, Kind, LinkChange, MacAddress, Netlink, NetworkNamespace, NewLink, Peer, Route};
use corten_types::{ErrorClass, Result};
use serde_json::Value;

/// What iproute2 says of a namespace.
fn ip(namespace: &NetworkNamespace, args: &[&str]) -> Value {
    let run = || std::process::Command::new("ip").args(["-j", "-d"]).args(args).output().unwrap();
    let output = namespace.run(run).unwrap();
    assert!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn parts() -> (NetworkNamespace, Netlink) {
    let namespace = NetworkNamespace::new().unwrap();
    let netlink = Netlink::open_in(&namespace).unwrap();
    (namespace, netlink)
}

/// A bridge, and its index.
fn bridge(netlink: &mut Netlink, name: &str) -> u32 {
    let new = NewLink { up: true, ..NewLink::new(name, Kind::Bridge { vlan_filtering: false }) };
    netlink.add_link(&new).unwrap();
    netlink.link(name).unwrap().index
}

#[test]
fn a_cable_leads_from_a_bridge_into_another_namespace() {
    let (host, mut netlink) = parts();
    let (container, mut inside) = parts();
    let bridge = bridge(&mut netlink, "br0");
    let mac: MacAddress = "02:11:22:33:44:55".parse().unwrap();
    let peer = Peer { name: "eth0", namespace: Some(&container), mac: Some(mac), mtu: Some(1400) };
    let new = NewLink {
        master: Some(bridge),
        mtu: Some(1400),
        up: true,
        ..NewLink::new("veth0", Kind::Veth(peer))
    };
    netlink.add_link(&new).unwrap();
    let link = netlink.link("veth0").unwrap();
    assert_eq!((link.kind.as_str(), link.mtu, link.up, link.master), ("veth", 1400, true, Some(bridge)));
    netlink.set_hairpin(link.index, true).unwrap();
    let told = ip(&host, &["link", "show", "veth0"]);
    assert_eq!(told[0]["master"], "br0");
    assert_eq!(told[0]["linkinfo"]["info_slave_data"]["hairpin"], true, "{told}");

    let eth = inside.link("eth0").unwrap();
    assert_eq!((eth.mac, eth.mtu, eth.up), (Some(mac), 1400, false));
    inside.change_link(eth.index, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
    assert_eq!(ip(&container, &["link", "show", "eth0"])[0]["address"], "02:11:22:33:44:55");
    // One end takes the other with it.
    assert!(inside.delete_link_named("eth0").unwrap());
    assert!(!inside.delete_link_named("eth0").unwrap());
    assert_eq!(netlink.find_link("veth0").unwrap(), None);
    assert!(netlink.link("veth0").unwrap_err().is_not_found());
}

#[test]
fn links_are_renamed_moved_and_changed() {
    let (host, mut netlink) = parts();
    let (container, mut inside) = parts();
    let bridge = bridge(&mut netlink, "br0");
    let peer = Peer { name: "b", namespace: None, mac: None, mtu: None };
    netlink.add_link(&NewLink::new("a", Kind::Veth(peer))).unwrap();
    let a = netlink.link("a").unwrap().index;
    let change = LinkChange {
        master: Some(bridge),
        mtu: Some(1300),
        promiscuous: Some(true),
        ..LinkChange::default()
    };
    netlink.change_link(a, &change).unwrap();
    let told = ip(&host, &["link", "show", "a"]);
    assert_eq!((&told[0]["mtu"], &told[0]["master"]), (&1300.into(), &"br0".into()));
    netlink.change_link(a, &LinkChange { master: Some(0), ..LinkChange::default() }).unwrap();
    assert_eq!(netlink.link("a").unwrap().master, None);
    let change = LinkChange { name: Some("eth7"), namespace: Some(&container), ..LinkChange::default() };
    netlink.change_link(a, &change).unwrap();
    let names: Vec<_> = inside.links().unwrap().into_iter().map(|link| link.name).collect();
    assert_eq!(names, ["lo", "eth7"]);
    assert_eq!(ip(&container, &["link", "show", "eth7"])[0]["mtu"], 1300);
    netlink.delete_link(bridge).unwrap();
    assert!(netlink.delete_link(bridge).unwrap_err().is_not_found());
}

/// Kinds that this kernel may not have are refused by it, and no other error is.
fn made(netlink: &mut Netlink, new: &NewLink<'_>) -> bool {
    match netlink.add_link(new) {
        Ok(()) => true,
        Err(refused) => {
            let unknown =
                ["not supported", "Unknown device type"].iter().any(|it| refused.message().contains(it));
            assert!(unknown, "{refused}");
            false
        }
    }
}

#[test]
fn every_kind_of_link_is_told_as_it_was_asked_for() {
    let (host, mut netlink) = parts();
    let peer = Peer { name: "peer", namespace: None, mac: None, mtu: None };
    netlink.add_link(&NewLink { up: true, ..NewLink::new("parent", Kind::Veth(peer)) }).unwrap();
    let parent = netlink.link("parent").unwrap().index;
    let filtering = Kind::Bridge { vlan_filtering: true };
    let local = Some("10.1.1.1".parse().unwrap());
    let vxlan =
        Kind::Vxlan { id: 77, local, remote: Some("10.1.1.2".parse().unwrap()), parent: None, port: 4789 };
    let data = |kind: &str, key: &str, value: Value| (kind.to_owned(), key.to_owned(), value);
    let all = [
        (filtering, data("bridge", "vlan_filtering", 1.into())),
        (Kind::Macvlan { parent, mode: "vepa" }, data("macvlan", "mode", "vepa".into())),
        (Kind::Vlan { parent, id: 55 }, data("vlan", "id", 55.into())),
        (vxlan, data("vxlan", "id", 77.into())),
        (Kind::Dummy, data("dummy", "", Value::Null)),
        (
            Kind::Ipvlan { parent: netlink.link("peer").unwrap().index, mode: "l3" },
            data("ipvlan", "mode", "l3".into()),
        ),
    ];
    for (kind, (name, key, value)) in all {
        if made(&mut netlink, &NewLink::new("new", kind)) {
            let told = ip(&host, &["link", "show", "new"]);
            assert_eq!(told[0]["linkinfo"]["info_kind"], name.as_str());
            assert_eq!(told[0]["linkinfo"]["info_data"][&key], value, "{told}");
            assert_eq!(netlink.link("new").unwrap().kind, name);
            netlink.delete_link_named("new").unwrap();
        }
    }
    let refused = |result: Result<()>| assert_eq!(result.unwrap_err().class(), ErrorClass::InvalidArgument);
    refused(netlink.add_link(&NewLink::new("new", Kind::Vlan { parent, id: 4095 })));
    refused(netlink.add_link(&NewLink::new("new", Kind::Macvlan { parent, mode: "x" })));
    refused(netlink.add_link(&NewLink::new("much-too-long-name", Kind::Dummy)));
    let again = netlink.add_link(&NewLink::new("parent", Kind::Bridge { vlan_filtering: false }));
    assert!(again.unwrap_err().is_already_exists());
}

#[test]
fn addresses_routes_and_neighbours_come_and_go() {
    let (host, mut netlink) = parts();
    let link = bridge(&mut netlink, "br0");
    for text in ["10.5.0.1/24", "fd05::1/64"] {
        netlink.add_address(link, cidr(text)).unwrap();
        assert!(netlink.add_address(link, cidr(text)).unwrap_err().is_already_exists());
        netlink.ensure_address(link, cidr(text)).unwrap();
    }
    let told = ip(&host, &["addr", "show", "br0"]);
    let info = told[0]["addr_info"].as_array().unwrap();
    let find = |text: &str| info.iter().find(|one| one["local"] == text).unwrap();
    assert_eq!(
        (&find("10.5.0.1")["broadcast"], &find("10.5.0.1")["prefixlen"]),
        (&"10.5.0.255".into(), &24.into())
    );
    assert!(find("fd05::1")["tentative"].is_null(), "{told}");
    let found = netlink.addresses().unwrap();
    let mine: Vec<_> =
        found.iter().filter(|it| it.link == link && it.global).map(|it| it.cidr.to_string()).collect();
    assert_eq!(mine, ["10.5.0.1/24", "fd05::1/64"]);

    let by = |to: &str, gateway: &str| Route::new(cidr(to), Some(gateway.parse().unwrap()), None);
    let routes = [
        Route { mtu: Some(1300), advmss: Some(1200), ..by("10.6.0.0/16", "10.5.0.9") },
        Route { priority: Some(77), ..by("0.0.0.0/0", "10.5.0.9") },
        Route { table: Some(1000), ..by("10.7.0.0/16", "10.5.0.9") },
        Route::new(cidr("10.8.0.0/16"), None, Some(link)),
        by("::/0", "fd05::9"),
    ];
    for route in &routes {
        netlink.add_route(route).unwrap();
        assert!(netlink.add_route(route).unwrap_err().is_already_exists(), "{route:?}");
        netlink.ensure_route(route).unwrap();
    }
    let told = ip(&host, &["route", "show", "10.6.0.0/16"]);
    assert_eq!(
        (&told[0]["gateway"], &told[0]["metrics"][0]["mtu"]),
        (&"10.5.0.9".into(), &1300.into()),
        "{told}"
    );
    assert_eq!(ip(&host, &["route", "show", "default"])[0]["metric"], 77);
    assert_eq!(ip(&host, &["route", "show", "table", "1000"])[0]["dst"], "10.7.0.0/16");
    assert_eq!(ip(&host, &["-6", "route", "show", "default"])[0]["gateway"], "fd05::9");
    let listed = netlink.routes().unwrap();
    for route in &routes {
        let known = listed.iter().find(|one| one.destination == route.destination).unwrap();
        assert_eq!((known.gateway, known.mtu, known.link), (route.gateway, route.mtu, Some(link)));
        netlink.delete_route(route).unwrap();
        assert!(netlink.delete_route(route).unwrap_err().is_not_found());
    }

    let (address, mac) = ("10.5.0.9".parse().unwrap(), "02:00:00:00:00:09".parse().unwrap());
    netlink.set_neighbour(link, address, "02:00:00:00:00:01".parse().unwrap()).unwrap();
    netlink.set_neighbour(link, address, mac).unwrap();
    let known = netlink.neighbours().unwrap();
    assert!(
        known.iter().any(|one| one.address == address && one.mac == Some(mac) && one.permanent),
        "{known:?}"
    );
    netlink.delete_neighbour(link, address).unwrap();
    assert!(netlink.delete_neighbour(link, address).unwrap_err().is_not_found());
    netlink.delete_address(link, cidr("10.5.0.1/24")).unwrap();
    assert!(netlink.delete_address(link, cidr("10.5.0.1/24")).unwrap_err().is_not_found());
}

#[test]
fn statistics_count_what_passes() {
    let (namespace, mut netlink) = parts();
    let lo = netlink.link("lo").unwrap();
    assert_eq!(lo.statistics.tx_packets, 0);
    netlink.change_link(lo.index, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
    let send = || std::net::UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"hello", "127.0.0.1:9").unwrap();
    namespace.run(send).unwrap();
    let after = netlink.link("lo").unwrap();
    assert!(after.up && after.statistics.tx_packets >= 1 && after.statistics.rx_bytes >= 5, "{after:?}");
}

#[test]
fn many_links_are_listed_whole() {
    let (_host, mut netlink) = parts();
    for number in 0..150 {
        let (name, other) = (format!("v{number}"), format!("p{number}"));
        let peer = Peer { name: &other, namespace: None, mac: None, mtu: None };
        netlink.add_link(&NewLink::new(&name, Kind::Veth(peer))).unwrap();
    }
    assert_eq!(netlink.links().unwrap().len(), 301);
}
