//! Networks: what containers reach, by which names, from where.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use corten_tests::eventually;

use crate::table::Check;
use corten_tests::engine::{BOX, Engine, Kind, PATIENCE};

pub const CHECKS: &[Check] = &[
    ("--network none", none),
    ("--network bridge", bridge),
    ("--network host", host),
    ("--network container", container),
    ("published ports, TCP and UDP", published),
    ("--publish-all and exposed ports", publish_all),
    ("a network of one's own, with names and aliases", names),
    ("networks are apart from each other", apart),
    ("--ip, --mac-address, a subnet of one's own", addresses),
    ("connect and disconnect while it runs", connect),
    ("an internal network has no way out", internal),
    ("--link", link),
    ("network ls, inspect, rm, prune", lists),
    ("a container that is started again has its names again", restarted),
];

/// A server of HTTP that says one word.
#[track_caller]
fn serve(e: &Engine, name: &str, flags: &str) {
    let script = "mkdir /www && echo word > /www/index.html && exec httpd -f -p 80 -h /www";
    e.out(&format!("run -d --name {name} {flags} {BOX} sh -c '{script}'"));
}

/// What a container of these flags gets from there, trying until it answers.
#[track_caller]
fn fetch(e: &Engine, flags: &str, url: &str) -> String {
    let script = format!("for i in $(seq 100); do wget -q -O - {url} && exit 0; sleep 0.1; done; exit 1");
    e.out(&format!("run --rm {flags} {BOX} sh -c '{script}'"))
}

/// Removes networks; a container that has just gone may hold its endpoint for a moment.
#[track_caller]
fn remove(e: &Engine, names: &str) {
    for name in names.split(' ') {
        let line = format!("network rm {name}");
        eventually(&line, PATIENCE, || e.docker(&line).code.filter(|code| *code == 0));
    }
}

fn get(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.ends_with("word\n").then_some(text)
}

fn none(e: &Engine) {
    let found = e.out(&format!("run --rm --network none {BOX} ip -o link"));
    assert!(found.lines().count() >= 1 && found.contains("lo:") && !found.contains("eth0"), "{found}");
}

fn bridge(e: &Engine) {
    let found = e.out(&format!("run --rm {BOX} sh -c 'ip -o -4 addr show eth0; ip route'"));
    assert!(found.contains("inet 172.17.") && found.contains("default via 172.17.0.1 dev eth0"), "{found}");
    serve(e, "net-bridge", "");
    let address = e.inspect("net-bridge", ".NetworkSettings.Networks.bridge.IPAddress");
    assert_eq!(fetch(e, "", &format!("http://{address}/")), "word");
    e.remove("net-bridge");
}

fn host(e: &Engine) {
    let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap().display().to_string();
    assert_eq!(e.out(&format!("run --rm --network host {BOX} readlink /proc/self/ns/net")), own);
    assert!(e.out(&format!("run --rm --network host {BOX} ip -o link")).contains("docker0"));
}

fn container(e: &Engine) {
    serve(e, "net-container", "");
    assert_eq!(fetch(e, "--network container:net-container", "http://127.0.0.1/"), "word");
    e.remove("net-container");
}

fn published(e: &Engine) {
    serve(e, "net-published", "-p 127.0.0.1:18080:80");
    eventually("the port answers", PATIENCE, || get(18080));
    assert_eq!(e.out("port net-published"), "80/tcp -> 127.0.0.1:18080");
    let finished = e.docker(&format!("run --rm -p 127.0.0.1:18080:80 {BOX} true"));
    assert!(finished.stderr.contains("port is already allocated"), "{finished:?}");
    finished.fails(125);
    e.remove("net-published");
    assert!(TcpStream::connect(("127.0.0.1", 18080)).is_err());
    e.out(&format!("run -d --name net-udp -p 127.0.0.1:18081:81/udp {BOX} sleep 1000"));
    assert_eq!(e.out("port net-udp"), "81/udp -> 127.0.0.1:18081");
    assert!(UdpSocket::bind("127.0.0.1:18081").is_err());
    e.remove("net-udp");
    UdpSocket::bind("127.0.0.1:18081").unwrap();
}

fn publish_all(e: &Engine) {
    serve(e, "net-all", "--expose 80 -P");
    let line = e.out("port net-all 80");
    let port = line.lines().next().unwrap().rsplit(':').next().unwrap().parse().unwrap();
    eventually("the port answers", PATIENCE, || get(port));
    e.remove("net-all");
}

fn names(e: &Engine) {
    e.docker("network create net-names").ok();
    serve(e, "net-server", "--network net-names --network-alias web --hostname other");
    for name in ["net-server", "web"] {
        assert_eq!(fetch(e, "--network net-names", &format!("http://{name}/")), "word");
    }
    let resolver = e.out(&format!("run --rm --network net-names {BOX} cat /etc/resolv.conf"));
    assert!(resolver.contains("nameserver 127.0.0.11"), "{resolver}");
    e.remove("net-server");
    remove(e, "net-names");
}

fn apart(e: &Engine) {
    e.docker("network create net-left").ok();
    e.docker("network create net-right").ok();
    serve(e, "net-apart", "--network net-left");
    assert_eq!(fetch(e, "--network net-left", "http://net-apart/"), "word");
    let address = e.inspect("net-apart", "(index .NetworkSettings.Networks \"net-left\").IPAddress");
    let line =
        format!("run --rm --network net-right {BOX} /bin/busybox timeout 2 wget -q -O - http://{address}/");
    assert_ne!(e.docker(&line).code, Some(0));
    e.remove("net-apart");
    remove(e, "net-left net-right");
}

fn addresses(e: &Engine) {
    e.docker("network create --subnet 10.77.0.0/24 --gateway 10.77.0.9 --opt com.docker.network.driver.mtu=1400 net-subnet")
        .ok();
    let flags = "--network net-subnet --ip 10.77.0.42 --mac-address 02:42:0a:4d:00:2a";
    let found = e
        .out(&format!("run --rm {flags} {BOX} sh -c 'ip -o addr show eth0; ip -o link show eth0; ip route'"));
    for word in ["10.77.0.42/24", "02:42:0a:4d:00:2a", "mtu 1400", "default via 10.77.0.9"] {
        assert!(found.contains(word), "{word:?} is missing:\n{found}");
    }
    remove(e, "net-subnet");
}

fn connect(e: &Engine) {
    e.docker("network create net-late").ok();
    serve(e, "net-connect", "");
    e.docker("network connect --alias late net-late net-connect").ok();
    assert_eq!(fetch(e, "--network net-late", "http://late/"), "word");
    assert!(e.out("exec net-connect ip -o link").contains("eth1"));
    e.docker("network disconnect net-late net-connect").ok();
    assert!(!e.out("exec net-connect ip -o link").contains("eth1"));
    e.remove("net-connect");
    remove(e, "net-late");
}

fn internal(e: &Engine) {
    e.docker("network create --internal net-internal").ok();
    let found = e.out(&format!("run --rm --network net-internal {BOX} ip route"));
    // 20.10 has firewall rules instead.
    assert_eq!(found.contains("default"), e.kind == Kind::Docker20, "{found}");
    remove(e, "net-internal");
}

fn link(e: &Engine) {
    serve(e, "net-linked", "");
    assert_eq!(fetch(e, "--link net-linked:alias", "http://alias/"), "word");
    e.remove("net-linked");
}

fn lists(e: &Engine) {
    e.docker("network create --label net=lists net-lists").ok();
    let found = e.out("network ls --format '{{.Name}} {{.Driver}}'");
    for line in ["bridge bridge", "host host", "none null", "net-lists bridge"] {
        assert!(found.lines().any(|other| other == line), "{line:?} is missing:\n{found}");
    }
    serve(e, "net-lists-1", "--network net-lists");
    assert!(e.out("network inspect net-lists").contains("\"Name\": \"net-lists-1\""));
    e.docker("network rm net-lists").fails(1);
    e.remove("net-lists-1");
    e.docker("network prune -f --filter label=net=lists").ok();
    e.docker("network inspect net-lists").fails(1);
}

fn restarted(e: &Engine) {
    e.docker("network create net-again").ok();
    serve(e, "net-restarted", "--network net-again --restart always");
    assert_eq!(fetch(e, "--network net-again", "http://net-restarted/"), "word");
    e.docker("exec net-restarted rm -r /www").ok();
    e.docker("restart -t 0 net-restarted").ok();
    assert_eq!(fetch(e, "--network net-again", "http://net-restarted/"), "word");
    e.remove("net-restarted");
    remove(e, "net-again");
}
