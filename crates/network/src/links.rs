//! Links (interfaces): made, changed, moved, listed with their statistics, deleted.

use std::fmt;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::str::FromStr;

use corten_types::{Error, Result, ResultExt};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridge, InfoData, InfoIpVlan, InfoKind, InfoMacVlan, InfoVeth, InfoVlan, InfoVxlan, IpVlanMode,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage, MacVlanMode,
};

use crate::{Netlink, NetworkNamespace};

/// The address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::invalid_argument(format!("address {text}: invalid MAC address"));
        let parts: Vec<&str> = text.split([':', '-']).collect();
        let mut bytes = [0; 6];
        if parts.len() != bytes.len() {
            return Err(bad());
        }
        for (byte, part) in bytes.iter_mut().zip(parts) {
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        Ok(Self(bytes))
    }
}

/// Whether a link can have this name: 1 to 15 bytes, not `.` or `..`, without `/`, `:` and white space.
///
/// # Errors
/// InvalidArgument.
pub fn validate_link_name(name: &str) -> Result<()> {
    let why = match name {
        "" => "interface name is empty",
        "." | ".." => "interface name is . or ..",
        name if name.len() > 15 => "interface name is too long; maximum is 15 characters",
        name if name.contains(|letter: char| letter == '/' || letter == ':' || letter.is_whitespace()) => {
            "interface name contains / or : or whitespace characters"
        }
        _ => return Ok(()),
    };
    Err(Error::invalid_argument(format!("{why}: {name:?}")))
}

/// What a link is.
#[derive(Clone, Copy, Debug)]
pub enum Kind<'a> {
    /// A switch.
    Bridge {
        /// Whether it looks at VLANs.
        vlan_filtering: bool,
    },
    /// One end of a cable.
    Veth(Peer<'a>),
    /// Another address of a parent.
    Macvlan {
        /// Index of the parent.
        parent: u32,
        /// `bridge`, `private`, `vepa`, `passthru`.
        mode: &'a str,
    },
    /// Other IP addresses of a parent under its one MAC address.
    Ipvlan {
        /// Index of the parent.
        parent: u32,
        /// `l2`, `l3`, `l3s`.
        mode: &'a str,
    },
    /// A VLAN of a parent.
    Vlan {
        /// Index of the parent.
        parent: u32,
        /// 1 to 4094.
        id: u16,
    },
    /// One that drops everything.
    Dummy,
    /// Ethernet in UDP.
    Vxlan {
        /// Network identifier, 24 bits.
        id: u32,
        /// Own address.
        local: Option<Ipv4Addr>,
        /// The other side, or a multicast group.
        remote: Option<Ipv4Addr>,
        /// Index of the link below.
        parent: Option<u32>,
        /// UDP port; 4789 is the usual one.
        port: u16,
    },
}

/// The other end of a cable.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where it is made; else beside the first end.
    pub namespace: Option<&'a NetworkNamespace>,
    /// Its address; else a random one.
    pub mac: Option<MacAddress>,
    /// Largest packet; else 1500.
    pub mtu: Option<u32>,
}

/// A link that is to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewLink<'a> {
    /// Its name; see [`validate_link_name`].
    pub name: &'a str,
    /// What it is.
    pub kind: Kind<'a>,
    /// Largest packet; else the kind's default.
    pub mtu: Option<u32>,
    /// Its address; else a random one.
    pub mac: Option<MacAddress>,
    /// Index of the bridge that it is a port of.
    pub master: Option<u32>,
    /// Where it is made; else where the connection is.
    pub namespace: Option<&'a NetworkNamespace>,
    /// Whether it is up.
    pub up: bool,
}

impl<'a> NewLink<'a> {
    /// One that is down, with defaults.
    #[must_use]
    pub fn new(name: &'a str, kind: Kind<'a>) -> Self {
        Self { name, kind, mtu: None, mac: None, master: None, namespace: None, up: false }
    }
}

/// What is to change; nothing else does.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkChange<'a> {
    /// Up or down.
    pub up: Option<bool>,
    /// Largest packet.
    pub mtu: Option<u32>,
    /// Address.
    pub mac: Option<MacAddress>,
    /// Name; older kernels want the link to be down.
    pub name: Option<&'a str>,
    /// Index of the bridge; 0 for none.
    pub master: Option<u32>,
    /// Where it moves.
    pub namespace: Option<&'a NetworkNamespace>,
    /// All packets are listened to.
    pub promiscuous: Option<bool>,
}

/// A link as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `bridge`, `veth`, …; empty for devices.
    pub kind: String,
    /// Its address, if it has one of 6 bytes.
    pub mac: Option<MacAddress>,
    /// Largest packet.
    pub mtu: u32,
    /// Whether it was brought up.
    pub up: bool,
    /// Whether packets pass.
    pub running: bool,
    /// Index of the bridge that it is a port of.
    pub master: Option<u32>,
    /// Index of its parent or other end, perhaps in another namespace.
    pub parent: Option<u32>,
    /// What has passed.
    pub statistics: Statistics,
}

/// What has passed since the link was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Statistics {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

impl Netlink {
    /// Makes a link.
    ///
    /// # Errors
    /// InvalidArgument, AlreadyExists; those of the kernel, which has not every kind.
    pub fn add_link(&mut self, new: &NewLink<'_>) -> Result<()> {
        validate_link_name(new.name)?;
        let mut message = LinkMessage::default();
        let mut attributes =
            vec![LinkAttribute::IfName(new.name.into()), LinkAttribute::LinkInfo(info(&new.kind)?)];
        match new.kind {
            Kind::Macvlan { parent, .. } | Kind::Ipvlan { parent, .. } | Kind::Vlan { parent, .. } => {
                attributes.push(LinkAttribute::Link(parent));
            }
            _ => {}
        }
        attributes.extend(new.mtu.map(LinkAttribute::Mtu));
        attributes.extend(new.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        attributes.extend(new.master.map(LinkAttribute::Controller));
        attributes.extend(new.namespace.map(|it| LinkAttribute::NetNsFd(it.as_fd().as_raw_fd())));
        if new.up {
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
        }
        message.attributes = attributes;
        self.create(RouteNetlinkMessage::NewLink(message))
            .with_context(|| format!("create link {}", new.name))
    }

    /// Changes a link.
    ///
    /// # Errors
    /// NotFound; those of the kernel.
    pub fn change_link(&mut self, index: u32, change: &LinkChange<'_>) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        for (flag, wanted) in [(LinkFlags::Up, change.up), (LinkFlags::Promisc, change.promiscuous)] {
            if let Some(on) = wanted {
                message.header.change_mask |= flag;
                message.header.flags.set(flag, on);
            }
        }
        let attributes = &mut message.attributes;
        if let Some(name) = change.name {
            validate_link_name(name)?;
            attributes.push(LinkAttribute::IfName(name.into()));
        }
        attributes.extend(change.mtu.map(LinkAttribute::Mtu));
        attributes.extend(change.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        attributes.extend(change.master.map(LinkAttribute::Controller));
        attributes.extend(change.namespace.map(|it| LinkAttribute::NetNsFd(it.as_fd().as_raw_fd())));
        self.change(RouteNetlinkMessage::SetLink(message)).with_context(|| format!("change link {index}"))
    }

    /// Lets packets that came by a port of a bridge out by it again.
    ///
    /// # Errors
    /// NotFound; those of the kernel.
    pub fn set_hairpin(&mut self, port: u32, on: bool) -> Result<()> {
        use netlink_packet_route::link::{InfoBridgePort, InfoPortData, InfoPortKind};
        let mut message = LinkMessage::default();
        message.header.index = port;
        message.attributes = vec![LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(on)])),
        ])];
        self.change(RouteNetlinkMessage::NewLink(message)).with_context(|| format!("change port {port}"))
    }

    /// Deletes a link, and its other end with it. One that is not there is NotFound.
    ///
    /// # Errors
    /// NotFound; those of the kernel.
    pub fn delete_link(&mut self, index: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.change(RouteNetlinkMessage::DelLink(message)).with_context(|| format!("delete link {index}"))
    }

    /// Deletes a link by name; answers whether there was one.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn delete_link_named(&mut self, name: &str) -> Result<bool> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.into())];
        match self.change(RouteNetlinkMessage::DelLink(message)) {
            Ok(()) => Ok(true),
            Err(failure) if failure.is_missing() => Ok(false),
            Err(failure) => Err(Error::from(failure).context(format!("delete link {name}"))),
        }
    }

    /// A link by name.
    ///
    /// # Errors
    /// NotFound.
    pub fn link(&mut self, name: &str) -> Result<Link> {
        self.find_link(name)?.ok_or_else(|| Error::not_found(format!("link {name}")))
    }

    /// A link by name, if there is one.
    ///
    /// # Errors
    /// InvalidArgument for what cannot be a name; those of the kernel.
    pub fn find_link(&mut self, name: &str) -> Result<Option<Link>> {
        validate_link_name(name)?;
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.into())];
        match self.get(RouteNetlinkMessage::GetLink(message)) {
            Ok(found) => Ok(found.into_iter().find_map(read)),
            Err(failure) if failure.is_missing() => Ok(None),
            Err(failure) => Err(Error::from(failure).context(format!("look for link {name}"))),
        }
    }

    /// All links, by index.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let found = self.list(&RouteNetlinkMessage::GetLink(LinkMessage::default())).context("list links")?;
        Ok(found.into_iter().filter_map(read).collect())
    }
}

fn info(kind: &Kind<'_>) -> Result<Vec<LinkInfo>> {
    let (kind, data) = match *kind {
        Kind::Bridge { vlan_filtering } => {
            let filtering = vlan_filtering.then_some(InfoBridge::VlanFiltering(true));
            (InfoKind::Bridge, Some(InfoData::Bridge(filtering.into_iter().collect())))
        }
        Kind::Veth(peer) => (InfoKind::Veth, Some(InfoData::Veth(InfoVeth::Peer(peer_message(&peer)?)))),
        Kind::Macvlan { mode, .. } => {
            let mode = match mode {
                "bridge" | "" => MacVlanMode::Bridge,
                "private" => MacVlanMode::Private,
                "vepa" => MacVlanMode::Vepa,
                "passthru" => MacVlanMode::Passthrough,
                other => return Err(Error::invalid_argument(format!("unknown macvlan mode: {other:?}"))),
            };
            (InfoKind::MacVlan, Some(InfoData::MacVlan(vec![InfoMacVlan::Mode(mode)])))
        }
        Kind::Ipvlan { mode, .. } => {
            let mode = match mode {
                "l2" | "" => IpVlanMode::L2,
                "l3" => IpVlanMode::L3,
                "l3s" => IpVlanMode::L3S,
                other => return Err(Error::invalid_argument(format!("unknown ipvlan mode: {other:?}"))),
            };
            (InfoKind::IpVlan, Some(InfoData::IpVlan(vec![InfoIpVlan::Mode(mode)])))
        }
        Kind::Vlan { id, .. } => {
            if !(1..=4094).contains(&id) {
                return Err(Error::invalid_argument(format!(
                    "invalid VLAN ID {id} (must be between 1 and 4094)"
                )));
            }
            (InfoKind::Vlan, Some(InfoData::Vlan(vec![InfoVlan::Id(id)])))
        }
        Kind::Dummy => (InfoKind::Dummy, None),
        Kind::Vxlan { id, local, remote, parent, port } => {
            let mut data = vec![InfoVxlan::Id(id), InfoVxlan::Port(port), InfoVxlan::Learning(true)];
            data.extend(local.map(InfoVxlan::Local));
            data.extend(remote.map(InfoVxlan::Group));
            data.extend(parent.map(InfoVxlan::Link));
            (InfoKind::Vxlan, Some(InfoData::Vxlan(data)))
        }
    };
    Ok(std::iter::once(LinkInfo::Kind(kind)).chain(data.map(LinkInfo::Data)).collect())
}

fn peer_message(peer: &Peer<'_>) -> Result<LinkMessage> {
    validate_link_name(peer.name)?;
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(peer.name.into()));
    message.attributes.extend(peer.namespace.map(|it| LinkAttribute::NetNsFd(it.as_fd().as_raw_fd())));
    message.attributes.extend(peer.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    message.attributes.extend(peer.mtu.map(LinkAttribute::Mtu));
    Ok(message)
}

fn read(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        up: flags.contains(LinkFlags::Up),
        running: flags.contains(LinkFlags::Running),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(mac) => link.mac = mac.try_into().ok().map(MacAddress),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(master) => link.master = Some(master),
            LinkAttribute::Link(parent) => link.parent = Some(parent),
            LinkAttribute::LinkInfo(info) => {
                let kind = info.iter().find_map(|one| match one {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
                link.kind = kind.unwrap_or_default();
            }
            LinkAttribute::Stats64(all) => {
                link.statistics = Statistics {
                    rx_bytes: all.rx_bytes,
                    rx_packets: all.rx_packets,
                    rx_errors: all.rx_errors,
                    rx_dropped: all.rx_dropped,
                    tx_bytes: all.tx_bytes,
                    tx_packets: all.tx_packets,
                    tx_errors: all.tx_errors,
                    tx_dropped: all.tx_dropped,
                }
            }
            _ => {}
        }
    }
    Some(link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_checked() {
        for good in ["eth0", "a", "123456789012345"] {
            validate_link_name(good).unwrap();
        }
        for bad in ["", ".", "..", "1234567890123456", "a/b", "a:b", "a b", "a\tb"] {
            assert!(validate_link_name(bad).is_err(), "{bad}");
        }
        let mac: MacAddress = "02:00:00:00:Ab:ff".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:00:00:ab:ff");
        for bad in ["", "02:00", "02:00:00:00:00:0g", "02:00:00:00:00:001", "+2:00:00:00:00:00"] {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
        }
    }
}
