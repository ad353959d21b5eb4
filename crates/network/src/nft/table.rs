//! The table: its rules, and its sets and maps with their elements.

use std::net::IpAddr;

use corten_types::{Error, Result, ResultExt};

use super::TABLE;
use super::expression::{self as x, Field, Meta, R0};
use super::message::{Attributes, Batch, CREATE, Connection, EXCLUSIVE, attribute, kind, told};
use crate::{NetworkNamespace, validate_link_name};

/// Of network filters.
const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// The destination was changed.
const STATUS_REDIRECTED: u32 = 0x20;

/// A port of the host that leads to a container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublishedPort {
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Of the host's; all of the target's family if none.
    pub host: Option<IpAddr>,
    /// Port of the host.
    pub port: u16,
    /// Where it leads.
    pub target: IpAddr,
    /// Port of the container.
    pub target_port: u16,
}

/// What applies to a bridge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkRules {
    /// Others that are isolated too are not reached, nor do they reach it.
    pub isolated: bool,
    /// What leaves does so under the host's address.
    pub masquerade: bool,
    /// Nothing leaves and nothing enters.
    pub internal: bool,
}

/// A set or map: its name, and the types and lengths of its keys and values, as nft shows them.
struct Set {
    name: &'static str,
    key: (u32, u32),
    data: Option<(u32, u32)>,
}

const ADDRESS4: u32 = 7;
const ADDRESS6: u32 = 8;
const PROTOCOL: u32 = 12;
const PORT: u32 = 13;
const LINK: u32 = 41;

const fn with(types: u32, next: u32) -> u32 {
    types << 6 | next
}

const NETWORKS: &str = "networks";
const SAME: &str = "same";
const MASQUERADE: &str = "masquerade";
const INTERNAL: &str = "internal";
/// By family, and whether an address of the host belongs to the key.
const PORTS: [(&str, bool, bool); 4] = [
    ("host_ports4", true, true),
    ("ports4", true, false),
    ("host_ports6", false, true),
    ("ports6", false, false),
];

/// Addresses of those who publish, twice: their packets to themselves, as the host leads them.
const SELVES: [(&str, bool); 2] = [("selves4", true), ("selves6", false)];

const SETS: [Set; 10] = [
    Set { name: NETWORKS, key: (LINK, 16), data: None },
    Set { name: SAME, key: (with(LINK, LINK), 32), data: None },
    Set { name: MASQUERADE, key: (LINK, 16), data: None },
    Set { name: INTERNAL, key: (LINK, 16), data: None },
    Set { name: "selves4", key: (with(ADDRESS4, ADDRESS4), 8), data: None },
    Set { name: "selves6", key: (with(ADDRESS6, ADDRESS6), 32), data: None },
    Set {
        name: "host_ports4",
        key: (with(with(ADDRESS4, PROTOCOL), PORT), 12),
        data: Some((with(ADDRESS4, PORT), 8)),
    },
    Set { name: "ports4", key: (with(PROTOCOL, PORT), 8), data: Some((with(ADDRESS4, PORT), 8)) },
    Set {
        name: "host_ports6",
        key: (with(with(ADDRESS6, PROTOCOL), PORT), 24),
        data: Some((with(ADDRESS6, PORT), 20)),
    },
    Set { name: "ports6", key: (with(PROTOCOL, PORT), 8), data: Some((with(ADDRESS6, PORT), 20)) },
];

/// The table of a network namespace. It is made when it is first needed.
#[derive(Debug)]
pub struct Filter {
    connection: Connection,
}

impl Filter {
    /// For the network namespace of the calling thread.
    ///
    /// # Errors
    /// Those of socket(2).
    pub fn open() -> Result<Self> {
        Ok(Self { connection: told(Connection::open())? })
    }

    /// For another network namespace.
    ///
    /// # Errors
    /// Those of setns(2) and socket(2).
    pub fn open_in(namespace: &NetworkNamespace) -> Result<Self> {
        namespace.run(Self::open)?
    }

    /// Says what applies to a bridge, in the place of what did.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn set_network(&mut self, bridge: &str, rules: NetworkRules) -> Result<()> {
        validate_link_name(bridge)?;
        let name = link_key(bridge);
        let pair = [name, name].concat();
        let wanted: [(&str, &[u8], bool); 4] = [
            (NETWORKS, &name, rules.isolated),
            (SAME, &pair, rules.isolated || rules.internal),
            (MASQUERADE, &name, rules.masquerade),
            (INTERNAL, &name, rules.internal),
        ];
        self.with_table(|connection| {
            let mut batch = Batch::default();
            for (set, key, _) in wanted.iter().filter(|(.., wanted)| *wanted) {
                batch.add(kind::NEW_ELEMENTS, CREATE, elements(set, &[element(key, None, None)]));
            }
            for (set, key, _) in wanted.iter().filter(|(.., wanted)| !wanted) {
                // Deleting what is not there would end the batch.
                batch.add(kind::NEW_ELEMENTS, CREATE, elements(set, &[element(key, None, None)]));
                batch.add(kind::DELETE_ELEMENTS, 0, elements(set, &[element(key, None, None)]));
            }
            connection.commit(&batch)
        })
        .with_context(|| format!("rules of network {bridge}"))
    }

    /// Nothing applies to a bridge any more.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn remove_network(&mut self, bridge: &str) -> Result<()> {
        if self.exists()? { self.set_network(bridge, NetworkRules::default()) } else { Ok(()) }
    }

    /// Publishes ports for somebody, all or none.
    ///
    /// # Errors
    /// AlreadyExists when one is published already.
    pub fn publish(&mut self, owner: &str, ports: &[PublishedPort]) -> Result<()> {
        let mut all = Vec::new();
        for port in ports {
            all.push((set_of(port), EXCLUSIVE, element(&key(port)?, Some(&data(port)), Some(owner))));
            let address = address_bytes(port.target);
            let set = if port.target.is_ipv4() { "selves4" } else { "selves6" };
            all.push((set, 0, element(&[address.clone(), address].concat(), None, Some(owner))));
        }
        let done = self.with_table(|connection| {
            let mut batch = Batch::default();
            for (set, flags, element) in &all {
                let elements = elements(set, std::slice::from_ref(element));
                batch.add(kind::NEW_ELEMENTS, CREATE | flags, elements);
            }
            if batch.is_empty() { Ok(()) } else { connection.commit(&batch) }
        });
        done.map_err(|failed| {
            match failed.message().ends_with("file exists") || failed.message().contains("busy") {
                true => Error::already_exists(format!(
                    "a port is published already: {}",
                    self.taken(owner, ports)
                )),
                false => failed.context("publish ports"),
            }
        })
    }

    /// Which of these ports others have.
    fn taken(&mut self, owner: &str, ports: &[PublishedPort]) -> String {
        let known = self.published().unwrap_or_default();
        let taken = ports.iter().filter_map(|port| {
            let same = |other: &PublishedPort| {
                (other.port, &other.protocol, other.host) == (port.port, &port.protocol, port.host)
            };
            let (by, _) = known.iter().find(|(by, other)| same(other) && by != owner)?;
            Some(format!("{}/{} by {by}", port.port, port.protocol))
        });
        taken.collect::<Vec<_>>().join(", ")
    }

    /// Takes back the ports of those of whom `gone` says so; answers how many.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn withdraw(&mut self, gone: impl Fn(&str) -> bool) -> Result<usize> {
        let mut batch = Batch::default();
        let mut count = 0;
        let ports = PORTS.map(|(set, ..)| (set, 1));
        for (set, counts) in ports.into_iter().chain(SELVES.map(|(set, _)| (set, 0))) {
            for element in self.elements_of(set)? {
                let read = read_element(&element);
                let Some((key, ..)) = read.filter(|(.., owner)| gone(owner)) else { continue };
                batch.add(kind::DELETE_ELEMENTS, 0, elements(set, &[self::element(key, None, None)]));
                count += counts;
            }
        }
        if !batch.is_empty() {
            told(self.connection.commit(&batch)).context("withdraw ports")?;
        }
        Ok(count)
    }

    /// All published ports with their owners.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn published(&mut self) -> Result<Vec<(String, PublishedPort)>> {
        let mut found = Vec::new();
        for (set, v4, by_host) in PORTS {
            for element in self.elements_of(set)? {
                let Some((key, data, owner)) = read_element(&element) else { continue };
                found.extend(read_port(key, data, v4, by_host).map(|port| (owner, port)));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Whether the table is there.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn exists(&mut self) -> Result<bool> {
        match self.connection.elements(set_attributes(NETWORKS)) {
            Ok(_) => Ok(true),
            Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(super::message::refused(error)),
        }
    }

    /// Takes the table away, with all that is in it.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn remove(&mut self) -> Result<()> {
        let mut batch = Batch::default();
        batch.add(kind::DELETE_TABLE, 0, Attributes::default().text(1, TABLE));
        match self.connection.commit(&batch) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => told(Err(error)),
            _ => Ok(()),
        }
    }

    fn elements_of(&mut self, set: &str) -> Result<Vec<Vec<u8>>> {
        match self.connection.elements(set_attributes(set)) {
            Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            other => told(other),
        }
    }

    /// Makes a change; where the table is not there it is made first.
    fn with_table(&mut self, change: impl Fn(&mut Connection) -> std::io::Result<()>) -> Result<()> {
        match change(&mut self.connection) {
            Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => {}
            other => return told(other),
        }
        match self.connection.commit(&table()) {
            // Another was faster.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            other => told(other)?,
        }
        told(change(&mut self.connection))
    }
}

fn set_attributes(set: &str) -> Attributes {
    Attributes::default().text(1, TABLE).text(2, set)
}

fn elements(set: &str, all: &[Attributes]) -> Attributes {
    let list = all.iter().fold(Attributes::default(), |list, one| list.nested(1, one));
    set_attributes(set).nested(3, &list)
}

/// Whose an element is stands in its comment, which nft shows.
fn element(key: &[u8], data: Option<&[u8]>, owner: Option<&str>) -> Attributes {
    const VALUE: u16 = 1;
    let mut element = Attributes::default().nested(1, &Attributes::default().bytes(VALUE, key));
    if let Some(data) = data {
        element = element.nested(2, &Attributes::default().bytes(VALUE, data));
    }
    if let Some(owner) = owner {
        let text = [owner.as_bytes(), &[0]].concat();
        let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
        element = element.bytes(6, &[&[0, length], text.as_slice()].concat());
    }
    element
}

/// Key, value if there is one, and owner.
fn read_element(element: &[u8]) -> Option<(&[u8], &[u8], String)> {
    let key = attribute(attribute(element, 1)?, 1)?;
    let data = attribute(element, 2).and_then(|data| attribute(data, 1)).unwrap_or_default();
    let comment = attribute(element, 6).and_then(|text| text.get(2..)).unwrap_or_default();
    Some((key, data, String::from_utf8_lossy(comment).trim_end_matches('\0').to_owned()))
}

fn link_key(name: &str) -> [u8; 16] {
    let mut key = [0; 16];
    key.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
    key
}

fn protocol_number(name: &str) -> Result<u8> {
    match name {
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "sctp" => Ok(132),
        other => Err(Error::invalid_argument(format!("unknown protocol {other:?}: tcp, udp or sctp"))),
    }
}

fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn set_of(port: &PublishedPort) -> &'static str {
    let found =
        PORTS.iter().find(|(_, v4, by_host)| (*v4, *by_host) == (port.target.is_ipv4(), port.host.is_some()));
    found.map_or("ports4", |(name, ..)| name)
}

/// Each part of a key fills whole registers of 4 bytes.
fn key(port: &PublishedPort) -> Result<Vec<u8>> {
    let mut key = port.host.map(address_bytes).unwrap_or_default();
    if port.host.is_some_and(|host| host.is_ipv4() != port.target.is_ipv4()) {
        return Err(Error::invalid_argument("a port cannot lead from one family of addresses to the other"));
    }
    key.extend([protocol_number(&port.protocol)?, 0, 0, 0]);
    key.extend(port.port.to_be_bytes());
    key.extend([0, 0]);
    Ok(key)
}

fn data(port: &PublishedPort) -> Vec<u8> {
    let mut data = address_bytes(port.target);
    data.extend(port.target_port.to_be_bytes());
    data.extend([0, 0]);
    data
}

fn read_port(key: &[u8], data: &[u8], v4: bool, by_host: bool) -> Option<PublishedPort> {
    let length = if v4 { 4 } else { 16 };
    let address = |bytes: &[u8]| -> Option<IpAddr> {
        match v4 {
            true => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
            false => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
        }
    };
    let port = |bytes: &[u8]| Some(u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?));
    let (host, rest) = if by_host { key.split_at_checked(length)? } else { ([].as_slice(), key) };
    let protocol = match rest.first()? {
        6 => "tcp",
        17 => "udp",
        132 => "sctp",
        _ => return None,
    };
    Some(PublishedPort {
        protocol: protocol.into(),
        host: if by_host { Some(address(host)?) } else { None },
        port: port(rest.get(4..)?)?,
        target: address(data.get(..length)?)?,
        target_port: port(data.get(length..)?)?,
    })
}

/// The table with its rules and empty sets; fails where there is one.
fn table() -> Batch {
    let mut batch = Batch::default();
    batch.add(kind::NEW_TABLE, CREATE | EXCLUSIVE, Attributes::default().text(1, TABLE));
    for (number, set) in (1..).zip(&SETS) {
        const MAP: u32 = 8;
        let flags = if set.data.is_some() { MAP } else { 0 };
        let mut attributes =
            set_attributes(set.name).number(3, flags).number(4, set.key.0).number(5, set.key.1);
        if let Some((kind, length)) = set.data {
            attributes = attributes.number(6, kind).number(7, length);
        }
        batch.add(kind::NEW_SET, CREATE, attributes.number(10, number));
    }
    let base = |name: &str, kind: &str, hook: u32, priority: i32| {
        let hook = Attributes::default().number(1, hook).number(2, priority.cast_unsigned());
        Attributes::default().text(1, TABLE).text(3, name).nested(4, &hook).text(7, kind).number(5, x::ACCEPT)
    };
    for chain in [
        base("prerouting", "nat", 0, -100),
        base("output", "nat", 3, -100),
        base("postrouting", "nat", 4, 100),
        base("forward", "filter", 2, 0),
        base("guard", "filter", 0, -300),
        Attributes::default().text(1, TABLE).text(3, "publish"),
    ] {
        batch.add(kind::NEW_CHAIN, CREATE, chain);
    }
    for (chain, expressions) in rules() {
        let list = expressions.iter().fold(Attributes::default(), |list, one| list.nested(1, one));
        batch.add(
            kind::NEW_RULE,
            CREATE | APPEND,
            Attributes::default().text(1, TABLE).text(2, chain).nested(4, &list),
        );
    }
    batch
}

const APPEND: u16 = 0x800;

/// The rules of all chains, in order; each is shown as nft writes it.
fn rules() -> Vec<(&'static str, Vec<Attributes>)> {
    const LOCAL: u32 = 2;
    let redirected = || {
        let bit = STATUS_REDIRECTED.to_ne_bytes();
        [x::connection_status(R0), x::mask(R0, &bit), x::unequal(R0, &[0; 4])]
    };
    let same = || [x::meta(Meta::InName, R0), x::meta(Meta::OutName, R0 + 4), x::is_in(SAME, R0)];
    let from = |set: &str| [x::meta(Meta::InName, R0), x::is_in(set, R0)];
    let to = |set: &str| [x::meta(Meta::OutName, R0), x::is_in(set, R0)];
    let mut rules = Vec::new();
    // iifname != "lo" ip daddr 127.0.0.0/8 drop: packets from there may leave by bridges, none come in
    let stranger = [
        x::meta(Meta::InName, R0),
        x::unequal(R0, &link_key("lo")),
        x::meta(Meta::Family, R0),
        x::equal(R0, &[IPV4]),
        x::load(Field::Destination4, R0),
        x::mask(R0, &[255, 0, 0, 0]),
        x::equal(R0, &[127, 0, 0, 0]),
        x::verdict(x::DROP),
    ];
    rules.push(("guard", stranger.to_vec()));
    // fib daddr type local jump publish
    for chain in ["prerouting", "output"] {
        let local = [x::kind_of_destination(R0), x::equal(R0, &LOCAL.to_ne_bytes()), x::jump("publish")];
        rules.push((chain, local.to_vec()));
    }
    for (map, v4, by_host) in PORTS {
        rules.push(("publish", lead(map, v4, by_host)));
    }
    // ip saddr . ip daddr @selves4 masquerade: who publishes reaches itself by the host
    for (set, v4) in SELVES {
        let (family, source, destination, width) = match v4 {
            true => (IPV4, Field::Source4, Field::Destination4, 1),
            false => (IPV6, Field::Source6, Field::Destination6, 4),
        };
        let pair =
            [x::load(source, R0), x::load(destination, R0 + width), x::is_in(set, R0), x::masquerade()];
        rules.push((
            "postrouting",
            [&[x::meta(Meta::Family, R0), x::equal(R0, &[family])][..], &pair].concat(),
        ));
    }
    // iifname . oifname @same ct status dnat masquerade: so do its neighbours, where bridges are not filtered
    rules.push(("postrouting", [&same()[..], &redirected(), &[x::masquerade()]].concat()));
    // ip saddr 127.0.0.0/8 oifname @networks masquerade: the host itself does by its loopback
    let loopback = [
        x::meta(Meta::Family, R0),
        x::equal(R0, &[IPV4]),
        x::load(Field::Source4, R0),
        x::mask(R0, &[255, 0, 0, 0]),
        x::equal(R0, &[127, 0, 0, 0]),
    ];
    rules.push(("postrouting", [&loopback[..], &redirected(), &[x::masquerade()]].concat()));
    // iifname @masquerade oifname != @networks masquerade
    let out = [x::meta(Meta::OutName, R0), x::is_not_in(NETWORKS, R0), x::masquerade()];
    rules.push(("postrouting", [&from(MASQUERADE)[..], &out].concat()));
    // iifname . oifname @same accept
    rules.push(("forward", [&same()[..], &[x::verdict(x::ACCEPT)]].concat()));
    // iifname @internal drop, oifname @internal drop
    rules.push(("forward", [&from(INTERNAL)[..], &[x::verdict(x::DROP)]].concat()));
    rules.push(("forward", [&to(INTERNAL)[..], &[x::verdict(x::DROP)]].concat()));
    // ct status dnat accept: what is published is published to all
    rules.push(("forward", [&redirected()[..], &[x::verdict(x::ACCEPT)]].concat()));
    // iifname @networks oifname @networks drop
    rules.push(("forward", [&from(NETWORKS)[..], &to(NETWORKS), &[x::verdict(x::DROP)]].concat()));
    rules
}

/// dnat ip to [ip daddr .] meta l4proto . th dport map @…
fn lead(map: &str, v4: bool, by_host: bool) -> Vec<Attributes> {
    let (family, address, width) =
        if v4 { (IPV4, Field::Destination4, 1) } else { (IPV6, Field::Destination6, 4) };
    let mut rule = vec![x::meta(Meta::Family, R0), x::equal(R0, &[family])];
    let mut register = R0;
    if by_host {
        rule.push(x::load(address, register));
        register += width;
    }
    rule.push(x::meta(Meta::Protocol, register));
    rule.push(x::load(Field::DestinationPort, register + 1));
    rule.push(x::map(map, R0));
    rule.push(x::redirect(family, R0, R0 + width));
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host: Option<&str>, port: u16, target: &str) -> PublishedPort {
        PublishedPort {
            protocol: "tcp".into(),
            host: host.map(|host| host.parse().unwrap()),
            port,
            target: target.parse().unwrap(),
            target_port: 80,
        }
    }

    #[test]
    fn ports_are_published_and_withdrawn_by_their_owners() {
        let namespace = NetworkNamespace::new().unwrap();
        let mut filter = Filter::open_in(&namespace).unwrap();
        assert!(!filter.exists().unwrap() && filter.published().unwrap().is_empty());
        assert_eq!(filter.withdraw(|_| true).unwrap(), 0);
        filter.remove_network("br0").unwrap();
        let mine = [
            port(None, 80, "10.1.0.2"),
            port(Some("192.0.2.1"), 81, "10.1.0.2"),
            port(None, 80, "fd00::2"),
            port(Some("2001:db8::1"), 82, "fd00::2"),
            PublishedPort { protocol: "udp".into(), ..port(None, 80, "10.1.0.2") },
        ];
        filter.publish("a", &mine).unwrap();
        let mut expected: Vec<_> = mine.iter().map(|port| ("a".to_owned(), port.clone())).collect();
        expected.sort();
        assert_eq!(filter.published().unwrap(), expected);
        // All or none, also of those that are free.
        let failed =
            filter.publish("b", &[port(None, 90, "10.1.0.3"), port(None, 80, "10.1.0.3")]).unwrap_err();
        assert_eq!(failed.message(), "a port is published already: 80/tcp by a: already exists");
        assert_eq!(filter.published().unwrap().len(), mine.len());
        filter.publish("b", &[port(None, 90, "10.1.0.3")]).unwrap();
        assert_eq!(filter.withdraw(|owner| owner == "a").unwrap(), mine.len());
        assert_eq!(filter.published().unwrap(), [("b".into(), port(None, 90, "10.1.0.3"))]);
        assert!(filter.publish("c", &[port(Some("::1"), 90, "10.1.0.3")]).is_err());
        assert!(
            filter
                .publish("c", &[PublishedPort { protocol: "icmp".into(), ..port(None, 9, "10.1.0.3") }])
                .is_err()
        );
        filter.remove().unwrap();
        filter.remove().unwrap();
        assert!(!filter.exists().unwrap());
    }

    #[test]
    fn what_applies_to_a_network_is_replaced() {
        let namespace = NetworkNamespace::new().unwrap();
        let mut filter = Filter::open_in(&namespace).unwrap();
        let count = |filter: &mut Filter, set: &str| filter.elements_of(set).unwrap().len();
        let all = NetworkRules { isolated: true, masquerade: true, internal: false };
        for _ in 0..2 {
            filter.set_network("br0", all).unwrap();
            assert_eq!(
                [NETWORKS, SAME, MASQUERADE, INTERNAL].map(|set| count(&mut filter, set)),
                [1, 1, 1, 0]
            );
        }
        filter.set_network("br1", NetworkRules { internal: true, ..NetworkRules::default() }).unwrap();
        assert_eq!([NETWORKS, SAME, MASQUERADE, INTERNAL].map(|set| count(&mut filter, set)), [1, 2, 1, 1]);
        filter.remove_network("br0").unwrap();
        filter.remove_network("br1").unwrap();
        assert_eq!([NETWORKS, SAME, MASQUERADE, INTERNAL].map(|set| count(&mut filter, set)), [0; 4]);
    }
}
