//! `bridge`: a cable from a bridge of the host into the container, with addresses of another plugin.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use corten_types::{Error, ErrorClass, Result, ResultExt};
use serde::Deserialize;
use serde_json::{Value, json};

use super::owner::number;
use super::{Owner, configuration, valid};
use crate::cni::{Command, Dns, Invocation, NetworkResult, ResultInterface, ResultRoute, Runner};
use crate::nft::{Filter, NetworkRules};
use crate::{
    Cidr, Kind, Link, LinkChange, MacAddress, Netlink, NetworkNamespace, NewLink, Peer, Route, sysctl,
};

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    name: String,
    bridge: String,
    is_gateway: bool,
    is_default_gateway: bool,
    ip_masq: bool,
    mtu: u32,
    hairpin_mode: bool,
    promisc_mode: bool,
    vlan: u32,
    ipam: Value,
    dns: Dns,
    /// Ours: networks with it do not reach each other.
    isolation: bool,
    /// Ours: nothing leaves the network.
    internal: bool,
}

impl Config {
    fn read(invocation: &Invocation<'_>) -> Result<Self> {
        let mut config: Self = configuration(invocation)?;
        if config.bridge.is_empty() {
            config.bridge = "cni0".into();
        }
        crate::validate_link_name(&config.bridge).context("bridge")?;
        config.is_gateway |= config.is_default_gateway;
        if config.hairpin_mode && config.promisc_mode {
            return Err(Error::invalid_argument(
                "cannot set hairpin mode and promiscuous mode at the same time",
            ));
        }
        if config.vlan != 0 {
            return Err(Error::invalid_argument("the built-in bridge has no VLANs: remove \"vlan\""));
        }
        Ok(config)
    }

    fn rules(&self) -> NetworkRules {
        NetworkRules { isolated: self.isolation, masquerade: self.ip_masq, internal: self.internal }
    }

    fn mtu(&self) -> Option<u32> {
        Some(self.mtu).filter(|mtu| *mtu > 0)
    }
}

/// The end of an owner's cable on the host. Always the same, so that it is found when all records are lost.
#[must_use]
pub fn host_link(owner: &Owner) -> String {
    format!("veth{:011x}", owner.number() >> 20)
}

pub fn run(invocation: &Invocation<'_>) -> Result<Option<NetworkResult>> {
    let config = Config::read(invocation)?;
    let owner = Owner { id: invocation.container_id.into(), ifname: invocation.ifname.into() };
    match invocation.command {
        Command::Add => add(invocation, &config, &owner).map(Some),
        Command::Del => delete(invocation, &config, &owner).map(|()| None),
        Command::Check => check(invocation, &config).map(|()| None),
        Command::Gc => collect(invocation, &config).map(|()| None),
        Command::Status => allocate(invocation, &config).map(|_| None),
        Command::Version => Ok(None),
    }
}

fn add(invocation: &Invocation<'_>, config: &Config, owner: &Owner) -> Result<NetworkResult> {
    let container = NetworkNamespace::open(Path::new(invocation.netns))?;
    let mut netlink = Netlink::open()?;
    let bridge = bridge(&mut netlink, config)?;
    let mut result = allocate(invocation, config)?;
    let made = attach(&mut netlink, config, owner, &bridge, &container, &mut result);
    if let Err(failed) = made {
        // Who called will ask for DEL, but need not have to.
        release(invocation, config, &result).ok();
        netlink.delete_link_named(&host_link(owner)).ok();
        return Err(failed);
    }
    for interface in result.interfaces.iter_mut().skip(2) {
        invocation.netns.clone_into(&mut interface.sandbox);
    }
    if result.dns == Dns::default() {
        result.dns = config.dns.clone();
    }
    Ok(result)
}

/// The bridge as it should be; one that is there already stays.
fn bridge(netlink: &mut Netlink, config: &Config) -> Result<Link> {
    let link = match netlink.find_link(&config.bridge)? {
        Some(link) if link.up => link,
        found => {
            if found.is_none() {
                // An address of its own, so that it does not change with its ports.
                let mac = local_mac(number(config.bridge.as_bytes()));
                let kind = Kind::Bridge { vlan_filtering: false };
                let new = NewLink { mac: Some(mac), mtu: config.mtu(), ..NewLink::new(&config.bridge, kind) };
                match netlink.add_link(&new) {
                    // Another was faster.
                    Err(failed) if failed.is_already_exists() => {}
                    other => other?,
                }
                sysctl::set(&format!("net/ipv6/conf/{}/accept_ra", config.bridge), "0").ok();
            }
            let link = netlink.link(&config.bridge)?;
            let promiscuous = config.promisc_mode.then_some(true);
            netlink.change_link(
                link.index,
                &LinkChange { up: Some(true), promiscuous, ..LinkChange::default() },
            )?;
            if config.rules() != NetworkRules::default() {
                Filter::open()?.set_network(&config.bridge, config.rules())?;
            }
            link
        }
    };
    match link.kind.as_str() {
        "bridge" => Ok(link),
        other => Err(Error::failed_precondition(format!(
            "{} already exists but is not a bridge: {other:?}",
            link.name
        ))),
    }
}

/// Cable, addresses and routes.
fn attach(
    netlink: &mut Netlink,
    config: &Config,
    owner: &Owner,
    bridge: &Link,
    container: &NetworkNamespace,
    result: &mut NetworkResult,
) -> Result<()> {
    let name = host_link(owner);
    let v4 = result.ips.iter().find_map(|ip| match ip.address.address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    });
    // Who gets an address that another had before is known by the same one of the hardware.
    let mac = v4.map(|address| {
        let [a, b, c, d] = address.octets();
        MacAddress([0x0a, 0x58, a, b, c, d])
    });
    let peer = Peer { name: &owner.ifname, namespace: Some(container), mac, mtu: config.mtu() };
    let new = NewLink {
        master: Some(bridge.index),
        mtu: config.mtu(),
        up: true,
        ..NewLink::new(&name, Kind::Veth(peer))
    };
    match netlink.add_link(&new) {
        // Of an attachment that was not finished: an owner has one cable.
        Err(failed) if failed.is_already_exists() && netlink.delete_link_named(&name)? => {
            netlink.add_link(&new)?
        }
        other => other?,
    }
    let outside = netlink.link(&name)?;
    if config.hairpin_mode {
        netlink.set_hairpin(outside.index, true)?;
    }
    let mut inside = Netlink::open_in(container)?;
    let eth = inside.link(&owner.ifname)?;
    configure(&mut inside, &eth, config, result)?;
    if config.is_gateway {
        lead(netlink, bridge, result)?;
    }
    let interface = |link: &Link| ResultInterface {
        name: link.name.clone(),
        mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        ..ResultInterface::default()
    };
    result.interfaces = vec![interface(bridge), interface(&outside), interface(&eth)];
    Ok(())
}

/// The container's end.
fn configure(inside: &mut Netlink, eth: &Link, config: &Config, result: &mut NetworkResult) -> Result<()> {
    inside.change_link(eth.index, &LinkChange { up: Some(true), ..LinkChange::default() })?;
    for ip in &mut result.ips {
        ip.interface = Some(2);
        if config.is_gateway && ip.gateway.is_none() {
            ip.gateway = Some(first_of(&ip.address));
        }
        inside.add_address(eth.index, ip.address)?;
    }
    if config.is_default_gateway {
        for gateway in result.ips.iter().filter_map(|ip| ip.gateway) {
            let dst = everything(gateway);
            if !result.routes.iter().any(|route| route.dst == dst) {
                result.routes.push(ResultRoute {
                    dst,
                    gw: Some(gateway),
                    mtu: None,
                    advmss: None,
                    priority: None,
                    table: None,
                    scope: None,
                });
            }
        }
    }
    for route in &result.routes {
        let of_family = result.ips.iter().filter_map(|ip| ip.gateway);
        let gateway = route.gw.or_else(|| {
            of_family.into_iter().find(|gateway| gateway.is_ipv4() == route.dst.address.is_ipv4())
        });
        let wanted = Route {
            mtu: route.mtu,
            advmss: route.advmss,
            priority: route.priority,
            table: route.table,
            scope: route.scope,
            ..Route::new(route.dst, gateway, Some(eth.index))
        };
        inside.ensure_route(&wanted)?;
    }
    Ok(())
}

/// The bridge is the containers' gateway.
fn lead(netlink: &mut Netlink, bridge: &Link, result: &NetworkResult) -> Result<()> {
    for ip in &result.ips {
        let Some(gateway) = ip.gateway else { continue };
        netlink.ensure_address(bridge.index, Cidr { address: gateway, length: ip.address.length })?;
        let setting = if gateway.is_ipv4() { "net/ipv4/ip_forward" } else { "net/ipv6/conf/all/forwarding" };
        sysctl::set(setting, "1")?;
    }
    Ok(())
}

fn first_of(cidr: &Cidr) -> IpAddr {
    crate::cidr::to_address(crate::cidr::number(cidr.network().address) + 1, cidr.address.is_ipv4())
}

fn everything(like: IpAddr) -> Cidr {
    Cidr { address: crate::cidr::to_address(0, like.is_ipv4()), length: 0 }
}

/// An address that nobody was given by a maker.
fn local_mac(number: u64) -> MacAddress {
    let [_, _, _, a, b, c, d, e] = number.to_be_bytes();
    MacAddress([0x02, a, b, c, d, e])
}

fn delete(invocation: &Invocation<'_>, config: &Config, owner: &Owner) -> Result<()> {
    let known = super::previous(invocation).ok().flatten().unwrap_or_default();
    release(invocation, config, &known)?;
    if Netlink::open()?.delete_link_named(&host_link(owner))? || invocation.netns.is_empty() {
        return Ok(());
    }
    // Another program made it, under another name.
    match NetworkNamespace::open(Path::new(invocation.netns)) {
        Ok(container) => Netlink::open_in(&container)?.delete_link_named(&owner.ifname).map(drop),
        Err(gone) if matches!(gone.class(), ErrorClass::NotFound | ErrorClass::InvalidArgument) => Ok(()),
        Err(failed) => Err(failed),
    }
}

fn check(invocation: &Invocation<'_>, config: &Config) -> Result<()> {
    let wrong = |text: String| Err(Error::failed_precondition(text));
    let Some(known) = super::previous(invocation)? else {
        return wrong("required prevResult missing".into());
    };
    allocate(invocation, config)?;
    if Netlink::open()?.find_link(&config.bridge)?.is_none() {
        return wrong(format!("bridge {} is missing", config.bridge));
    }
    let mut inside = Netlink::open_in(&NetworkNamespace::open(Path::new(invocation.netns))?)?;
    let Some(eth) = inside.find_link(invocation.ifname)? else {
        return wrong(format!("interface {} is missing", invocation.ifname));
    };
    let addresses = inside.addresses()?;
    for ip in &known.ips {
        if !addresses.iter().any(|one| one.link == eth.index && one.cidr == ip.address) {
            return wrong(format!("address {} is missing", ip.address));
        }
    }
    Ok(())
}

fn collect(invocation: &Invocation<'_>, config: &Config) -> Result<()> {
    let valid = valid(invocation);
    let data = config.ipam["dataDir"].as_str().unwrap_or("/var/lib/cni/networks");
    if config.ipam["type"] == "host-local" {
        let gone = super::Pool::existing(Path::new(data), &config.name)
            .release_all(|owner| !valid.contains(owner))?;
        let mut netlink = Netlink::open()?;
        for owner in gone {
            netlink.delete_link_named(&host_link(&owner))?;
        }
    }
    allocate(invocation, config).map(drop)
}

/// Asks the plugin for addresses, with the same command; nothing without one.
fn allocate(invocation: &Invocation<'_>, config: &Config) -> Result<NetworkResult> {
    let Some(kind) = config.ipam["type"].as_str().filter(|kind| !kind.is_empty()) else {
        return Ok(NetworkResult::default());
    };
    let folders = invocation.path.split(':').filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let runner = Runner { builtin: Some(super::run), ..Runner::new(folders.collect()) };
    let answer = runner.run(kind, invocation)?;
    let result = NetworkResult::read(&answer.unwrap_or(json!({"cniVersion": "1.1.0"})))?;
    if invocation.command == Command::Add && result.ips.is_empty() {
        return Err(Error::unknown("IPAM plugin returned missing IP config"));
    }
    Ok(result)
}

fn release(invocation: &Invocation<'_>, config: &Config, known: &NetworkResult) -> Result<()> {
    let mut told = invocation.config.clone();
    // The plugin looks there first.
    told["prevResult"] =
        known.to_version(invocation.config["cniVersion"].as_str().unwrap_or_default()).unwrap_or_default();
    let invocation = Invocation { command: Command::Del, config: &told, ..*invocation };
    allocate(&invocation, config).map(drop)
}
