//! `loopback`: brings `lo` up.

use std::path::Path;

use corten_types::Result;

use super::previous;
use crate::cni::{Command, Invocation, Ip, NetworkResult, ResultInterface};
use crate::{LinkChange, Netlink, NetworkNamespace};

pub fn run(invocation: &Invocation<'_>) -> Result<Option<NetworkResult>> {
    match invocation.command {
        Command::Add => add(invocation).map(Some),
        Command::Check => check(invocation).map(|()| None),
        // It goes with its namespace, and whatever is still in there may use it.
        _ => Ok(None),
    }
}

fn add(invocation: &Invocation<'_>) -> Result<NetworkResult> {
    let mut netlink = Netlink::open_in(&NetworkNamespace::open(Path::new(invocation.netns))?)?;
    let lo = netlink.link("lo")?;
    netlink.change_link(lo.index, &LinkChange { up: Some(true), ..LinkChange::default() })?;
    if let Some(previous) = previous(invocation)? {
        return Ok(previous);
    }
    let sandbox = invocation.netns.to_owned();
    let interface = ResultInterface {
        name: "lo".into(),
        mac: lo.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        sandbox,
        ..ResultInterface::default()
    };
    let addresses = netlink.addresses()?.into_iter().filter(|address| address.link == lo.index);
    let ips = addresses.map(|it| Ip { interface: Some(0), address: it.cidr, gateway: None }).collect();
    Ok(NetworkResult { interfaces: vec![interface], ips, ..NetworkResult::default() })
}

fn check(invocation: &Invocation<'_>) -> Result<()> {
    let mut netlink = Netlink::open_in(&NetworkNamespace::open(Path::new(invocation.netns))?)?;
    match netlink.link("lo")?.up {
        true => Ok(()),
        false => Err(corten_types::Error::unknown("loopback interface is down")),
    }
}
