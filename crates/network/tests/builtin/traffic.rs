//! Who reaches whom.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use corten_network::builtin::NewNetwork;
use corten_network::{Netlink, NetworkNamespace};
use serde_json::json;

use super::machine::route;
use super::{Container, Machine, dial, serve};

const PATIENCE: Duration = Duration::from_secs(30);
/// For what must not be reached: packets are dropped, so nobody says no.
const BRIEFLY: Duration = Duration::from_millis(400);

fn to(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn containers_reach_each_other_and_the_machine_in_both_families() {
    let machine = Machine::new();
    machine.create("lab", &["10.90.0.0/24", "fd90::/64"]);
    let (a, b) = (machine.container("a"), machine.container("b"));
    let result = machine.attach("lab", &a).unwrap();
    let other = machine.attach("lab", &b).unwrap();
    serve(&a.namespace, "[::]:80");
    serve(&machine.host, "[::]:81");
    for (family, gateway) in [(0, "10.90.0.1"), (1, "fd90::1")] {
        let (mine, theirs) = (result.ips[family].address.address, other.ips[family].address.address);
        assert_eq!(dial(&b.namespace, to(mine, 80), PATIENCE), Some(theirs.to_string()));
        let gateway: IpAddr = gateway.parse().unwrap();
        assert_eq!(dial(&machine.host, to(mine, 80), PATIENCE), Some(gateway.to_string()));
        assert_eq!(dial(&b.namespace, to(gateway, 81), PATIENCE), Some(theirs.to_string()));
    }
    for id in ["a", "b"] {
        machine.detach(id);
    }
    machine.on(|| machine.networks.remove("lab")).unwrap();
    assert_eq!(machine.state(), ["link lo"]);
}

/// A container that serves port 80 under published ports of the machine.
fn publisher(machine: &Machine, network: &str) -> Container {
    let container = machine.container("web").publishing(json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8081, "containerPort": 80, "hostIP": "192.0.2.1"},
        {"hostPort": 8082, "containerPort": 80, "hostIP": "127.0.0.1"},
    ]));
    machine.attach(network, &container).unwrap();
    serve(&container.namespace, "[::]:80");
    container
}

#[test]
fn published_ports_are_reached_from_everywhere() {
    let machine = Machine::new();
    let outside = machine.outside();
    machine.create("lab", &["10.90.0.0/24", "fd90::/64"]);
    let web = publisher(&machine, "lab");
    let (neighbour, _) = machine.attached("lab", "neighbour");
    machine.create("other", &["10.91.0.0/24"]);
    let (stranger, _) = machine.attached("other", "stranger");
    let reach = |from: &NetworkNamespace, text: &str| dial(from, at(text), PATIENCE);
    assert_eq!(reach(&outside, "192.0.2.1:8080").as_deref(), Some("192.0.2.2"), "with the caller's address");
    assert_eq!(reach(&outside, "[2001:db8::1]:8080").as_deref(), Some("2001:db8::2"));
    assert!(reach(&outside, "192.0.2.1:8081").is_some());
    assert!(dial(&outside, at("192.0.2.1:8082"), BRIEFLY).is_none(), "one of the machine's own");
    for text in ["192.0.2.1:8080", "192.0.2.1:8081", "127.0.0.1:8080", "127.0.0.1:8082", "10.90.0.1:8080"] {
        assert!(reach(&machine.host, text).is_some(), "the machine itself: {text}");
    }
    assert!(dial(&machine.host, at("127.0.0.1:8081"), BRIEFLY).is_none());
    assert!(reach(&neighbour.namespace, "192.0.2.1:8080").is_some(), "a neighbour, by the machine and back");
    assert!(reach(&web.namespace, "192.0.2.1:8080").is_some(), "and itself");
    assert!(
        reach(&stranger.namespace, "192.0.2.1:8080").is_some(),
        "what is published is so to other networks"
    );
    // Nobody reaches what listens on the machine's loopback only, although the bridge lets such packets out.
    serve(&machine.host, "127.0.0.1:9");
    route(&neighbour.namespace, "127.0.0.1/32", "10.90.0.1");
    assert!(dial(&neighbour.namespace, at("127.0.0.1:9"), BRIEFLY).is_none());
    let list = || std::process::Command::new("nft").args(["list", "table", "inet", "corten"]).output();
    if let Ok(shown) = machine.on(list) {
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        for words in [
            "fib daddr type local jump publish",
            "tcp . 8080",
            "10.90.0.2 . 80",
            "lab/web/eth0",
            "masquerade",
        ] {
            assert!(shown.contains(words), "{words}: {shown}");
        }
    }
    machine.detach("web");
    assert!(dial(&outside, at("192.0.2.1:8080"), BRIEFLY).is_none());
}

#[test]
fn networks_do_not_reach_each_other_unless_they_are_open() {
    let machine = Machine::new();
    let outside = machine.outside();
    machine.create("one", &["10.90.0.0/24"]);
    machine.create("two", &["10.91.0.0/24"]);
    for (name, subnet) in [("open1", "10.92.0.0/24"), ("open2", "10.93.0.0/24")] {
        let new = NewNetwork {
            name: name.into(),
            subnets: vec![subnet.parse().unwrap()],
            open: true,
            ..NewNetwork::default()
        };
        machine.on(|| machine.networks.create(&new)).unwrap();
    }
    let internal = NewNetwork { name: "inner".into(), internal: true, ..NewNetwork::default() };
    machine.on(|| machine.networks.create(&internal)).unwrap();
    let (one, _) = machine.attached("one", "c1");
    let (two, address) = machine.attached("two", "c2");
    let (open, _) = machine.attached("open1", "c3");
    let (peer, open_address) = machine.attached("open2", "c4");
    let (inner, inner_address) = machine.attached("inner", "c5");
    let (beside, _) = machine.attached("inner", "c6");
    for container in [&two, &peer, &inner] {
        serve(&container.namespace, "0.0.0.0:80");
    }
    serve(&outside, "[::]:80");
    let reach = |from: &Container, address: IpAddr| dial(&from.namespace, to(address, 80), PATIENCE);
    let refused =
        |from: &Container, address: IpAddr| dial(&from.namespace, to(address, 80), BRIEFLY).is_none();
    let world: IpAddr = "192.0.2.2".parse().unwrap();
    assert!(refused(&one, address) && refused(&one, inner_address) && refused(&inner, address));
    assert!(reach(&open, open_address).is_some());
    assert_eq!(reach(&one, world).as_deref(), Some("192.0.2.1"), "under the machine's address");
    assert!(refused(&inner, world), "there is no way out");
    assert!(reach(&beside, inner_address).is_some(), "but a neighbour");
    // Two networks, two interfaces.
    let result = machine.attach("two", &one).unwrap();
    assert_eq!(result.interfaces[2].name, "eth1");
    assert!(reach(&one, address).is_some());
    machine.on(|| machine.networks.detach("c1", Some("two"))).unwrap();
    assert_eq!(Netlink::open_in(&one.namespace).unwrap().links().unwrap().len(), 2);
    assert!(reach(&one, world).is_some());
}

#[test]
fn names_lead_to_the_members_of_a_network_as_they_come_and_go() {
    let machine = Machine::new();
    machine.create("lab", &["10.90.0.0/24"]);
    machine.create("other", &["10.91.0.0/24"]);
    let files = machine.networks.make_files("a", "a", &[], &[]).unwrap();
    let hosts = || std::fs::read_to_string(files.folder().join("hosts")).unwrap();
    let (a, _) = machine.attached("lab", "a");
    assert!(hosts().contains("10.90.0.2\ta\n"), "{}", hosts());
    let mut b = machine.container("b");
    b.member.names.push("database".into());
    machine.attach("lab", &b).unwrap();
    let (_c, _) = machine.attached("other", "c");
    assert!(hosts().contains("10.90.0.3\tb database\n") && !hosts().contains("10.91"), "{}", hosts());
    machine.attach("other", &a).unwrap();
    assert!(hosts().contains("10.91.0.2\tc\n"), "{}", hosts());
    machine.detach("b");
    assert!(!hosts().contains("database"));
    machine.on(|| machine.networks.forget("a")).unwrap();
    assert!(!files.folder().exists());
}

#[test]
fn fifty_are_attached_at_once() {
    let machine = Machine::new();
    machine.create("lab", &["10.90.0.0/24", "fd90::/64"]);
    let before = machine.state();
    let containers: Vec<Container> = (0..50u16)
        .map(|n| {
            machine
                .container(&format!("c{n}"))
                .publishing(json!([{"hostPort": 9000 + n, "containerPort": 80}]))
        })
        .collect();
    let addresses: Vec<IpAddr> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            containers.iter().map(|it| scope.spawn(|| machine.attach("lab", it).unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap().ips[0].address.address).collect()
    });
    let different: std::collections::HashSet<_> = addresses.iter().collect();
    assert_eq!(different.len(), 50);
    let (first, last) = (&containers[0], &containers[49]);
    serve(&last.namespace, "0.0.0.0:80");
    assert_eq!(dial(&first.namespace, to(addresses[49], 80), PATIENCE), Some(addresses[0].to_string()));
    assert!(dial(&machine.host, at("127.0.0.1:9049"), PATIENCE).is_some());
    std::thread::scope(|scope| {
        for container in &containers {
            scope.spawn(|| machine.detach(&container.member.id));
        }
    });
    let after: Vec<_> = machine.state().into_iter().filter(|it| it != "link br-lab").collect();
    assert_eq!(after, before);
}
