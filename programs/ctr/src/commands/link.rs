//! `link`: interfaces, of this or another network namespace.

use std::net::Ipv4Addr;

use clap::{Args, Subcommand, ValueEnum};
use corten_network::{
    Cidr, Kind, Link, LinkChange, MacAddress, Netlink, NetworkNamespace, NewLink, Peer, Route,
};
use corten_types::{Error, Result};
use serde_json::{Value, json};

use crate::commands::netns;
use crate::output::{Format, Table};

/// Interfaces.
#[derive(Debug, Args)]
pub struct Links {
    /// The network namespace, by name or path.
    #[arg(long, default_value = "")]
    netns: String,
    #[command(subcommand)]
    what: What,
}

/// What can be done with them.
#[derive(Debug, Subcommand)]
enum What {
    /// Make one.
    Add(Box<Add>),
    /// Change one.
    Set(Set),
    /// Delete them, and the other ends of cables.
    #[command(visible_alias = "delete")]
    Del {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// List them.
    #[command(visible_alias = "list")]
    Ls {
        /// How to show them; JSON has statistics.
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
}

/// Kinds of links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LinkType {
    Bridge,
    Veth,
    Macvlan,
    Ipvlan,
    Vlan,
    Dummy,
    Vxlan,
}

/// Make a link.
#[derive(Debug, Args)]
struct Add {
    /// What it is.
    #[arg(long = "type", value_enum)]
    kind: LinkType,
    /// The link below, of macvlan, ipvlan, vlan and vxlan.
    #[arg(long)]
    parent: Option<String>,
    /// The other end of a veth.
    #[arg(long, default_value = "")]
    peer: String,
    /// Where the other end is, by name or path.
    #[arg(long, default_value = "")]
    peer_netns: String,
    /// Mode of macvlan (bridge, private, vepa, passthru) and ipvlan (l2, l3, l3s).
    #[arg(long, default_value = "")]
    mode: String,
    /// Number of a vlan or vxlan.
    #[arg(long, default_value = "0")]
    id: u32,
    /// Own address of a vxlan.
    #[arg(long)]
    local: Option<Ipv4Addr>,
    /// Other side of a vxlan.
    #[arg(long)]
    remote: Option<Ipv4Addr>,
    /// UDP port of a vxlan.
    #[arg(long, default_value = "4789")]
    port: u16,
    #[command(flatten)]
    set: Properties,
    name: String,
}

/// Change a link.
#[derive(Debug, Args)]
struct Set {
    /// Bring it down.
    #[arg(long)]
    down: bool,
    /// Give it another name.
    #[arg(long)]
    rename: Option<String>,
    /// Take it from its bridge.
    #[arg(long)]
    no_master: bool,
    /// Move it to another network namespace, by name or path.
    #[arg(long, default_value = "")]
    to_netns: String,
    #[command(flatten)]
    set: Properties,
    name: String,
}

/// What links have.
#[derive(Debug, Args)]
struct Properties {
    /// Bring it up.
    #[arg(long)]
    up: bool,
    /// Largest packet.
    #[arg(long)]
    mtu: Option<u32>,
    /// Address of the hardware.
    #[arg(long)]
    mac: Option<MacAddress>,
    /// The bridge that it is a port of.
    #[arg(long)]
    master: Option<String>,
    /// Addresses that it gets, as 10.5.0.1/24.
    #[arg(long)]
    address: Vec<Cidr>,
    /// Addresses that it loses.
    #[arg(long)]
    no_address: Vec<Cidr>,
    /// Routes by it, as 10.6.0.0/16 or 0.0.0.0/0=10.5.0.1.
    #[arg(long)]
    route: Vec<String>,
}

/// The namespace of a name or path; nothing for an empty one.
fn namespace(name: &str) -> Result<Option<NetworkNamespace>> {
    if name.is_empty() { Ok(None) } else { NetworkNamespace::open(&netns::path(name)?).map(Some) }
}

impl Links {
    pub fn run(self) -> Result<()> {
        let mut netlink = match namespace(&self.netns)? {
            Some(namespace) => Netlink::open_in(&namespace)?,
            None => Netlink::open()?,
        };
        match self.what {
            What::Add(add) => add.run(&mut netlink),
            What::Set(set) => set.run(&mut netlink),
            What::Del { names } => {
                for name in names {
                    let index = netlink.link(&name)?.index;
                    netlink.delete_link(index)?;
                }
                Ok(())
            }
            What::Ls { format } => list(&mut netlink, format),
        }
    }
}

impl Add {
    fn run(&self, netlink: &mut Netlink) -> Result<()> {
        let parent =
            self.parent.as_deref().map(|name| netlink.link(name)).transpose()?.map(|link| link.index);
        let needed = || parent.ok_or_else(|| Error::invalid_argument("--parent must be given"));
        let peer_namespace = namespace(&self.peer_netns)?;
        let peer = if self.peer.is_empty() { format!("{:.13}-p", self.name) } else { self.peer.clone() };
        let kind = match self.kind {
            LinkType::Bridge => Kind::Bridge { vlan_filtering: false },
            LinkType::Veth => Kind::Veth(Peer {
                name: &peer,
                namespace: peer_namespace.as_ref(),
                mac: None,
                mtu: self.set.mtu,
            }),
            LinkType::Macvlan => Kind::Macvlan { parent: needed()?, mode: &self.mode },
            LinkType::Ipvlan => Kind::Ipvlan { parent: needed()?, mode: &self.mode },
            LinkType::Vlan => {
                Kind::Vlan { parent: needed()?, id: u16::try_from(self.id).unwrap_or(u16::MAX) }
            }
            LinkType::Dummy => Kind::Dummy,
            LinkType::Vxlan => {
                Kind::Vxlan { id: self.id, local: self.local, remote: self.remote, parent, port: self.port }
            }
        };
        let master =
            self.set.master.as_deref().map(|name| netlink.link(name)).transpose()?.map(|link| link.index);
        let new = NewLink {
            mtu: self.set.mtu,
            mac: self.set.mac,
            master,
            up: self.set.up,
            ..NewLink::new(&self.name, kind)
        };
        netlink.add_link(&new)?;
        let index = netlink.link(&self.name)?.index;
        self.set.addresses(netlink, index).inspect_err(|_| drop(netlink.delete_link(index)))
    }
}

impl Set {
    fn run(&self, netlink: &mut Netlink) -> Result<()> {
        let index = netlink.link(&self.name)?.index;
        let to = namespace(&self.to_netns)?;
        let master = match (&self.set.master, self.no_master) {
            (Some(name), _) => Some(netlink.link(name)?.index),
            (None, gone) => gone.then_some(0),
        };
        let up = match (self.set.up, self.down) {
            (true, true) => return Err(Error::invalid_argument("--up and --down do not go together")),
            (up, down) => (up || down).then_some(up),
        };
        self.set.addresses(netlink, index)?;
        let change = LinkChange {
            up,
            mtu: self.set.mtu,
            mac: self.set.mac,
            name: self.rename.as_deref(),
            master,
            namespace: to.as_ref(),
            promiscuous: None,
        };
        netlink.change_link(index, &change)
    }
}

impl Properties {
    fn addresses(&self, netlink: &mut Netlink, index: u32) -> Result<()> {
        for address in &self.no_address {
            netlink.delete_address(index, *address)?;
        }
        for address in &self.address {
            netlink.add_address(index, *address)?;
        }
        for text in &self.route {
            let (to, gateway) = text.split_once('=').map_or((text.as_str(), None), |(to, by)| (to, Some(by)));
            let bad =
                |_| Error::invalid_argument(format!("invalid route {text:?}: expected SUBNET[=GATEWAY]"));
            let gateway = gateway.map(str::parse).transpose().map_err(bad)?;
            netlink.add_route(&Route::new(to.parse()?, gateway, Some(index)))?;
        }
        Ok(())
    }
}

fn list(netlink: &mut Netlink, format: Format) -> Result<()> {
    let (links, addresses) = (netlink.links()?, netlink.addresses()?);
    let of = |link: &Link| -> Vec<String> {
        addresses.iter().filter(|one| one.link == link.index).map(|one| one.cidr.to_string()).collect()
    };
    let name = |index: Option<u32>| {
        let found = links.iter().find(|link| Some(link.index) == index);
        found.map(|link| link.name.clone())
    };
    if matches!(format, Format::Json | Format::Yaml) {
        let one = |link: &Link| {
            json!({
                "index": link.index, "name": link.name, "kind": link.kind, "mtu": link.mtu, "up": link.up,
                "running": link.running, "mac": link.mac.map(|mac| mac.to_string()), "master": name(link.master),
                "addresses": of(link), "statistics": link.statistics,
            })
        };
        format.show(&Value::Array(links.iter().map(one).collect()).into());
        return Ok(());
    }
    let mut table = Table::wide(&["NAME", "TYPE", "STATE", "MTU", "MAC", "MASTER", "ADDRESSES"]);
    for link in &links {
        let or_none = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        table.row([
            link.name.clone(),
            or_none(link.kind.clone()),
            if link.up { "up".into() } else { "down".into() },
            link.mtu.to_string(),
            link.mac.map_or_else(|| "-".into(), |mac| mac.to_string()),
            name(link.master).unwrap_or_else(|| "-".into()),
            or_none(of(link).join(",")),
        ]);
    }
    table.show(format)
}
