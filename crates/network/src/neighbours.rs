//! Neighbours: which address of a link has which address of an interface.

use std::net::IpAddr;

use corten_types::{Error, Result};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};

use crate::addresses::family;
use crate::{MacAddress, Netlink};

/// A neighbour on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Index of the link.
    pub link: u32,
    /// Its IP address.
    pub address: IpAddr,
    /// That of its interface, if known.
    pub mac: Option<MacAddress>,
    /// Whether it was told by someone and is not looked for.
    pub permanent: bool,
}

fn message(link: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = link;
    let address = match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    };
    message.attributes = vec![NeighbourAttribute::Destination(address)];
    message
}

impl Netlink {
    /// Tells a neighbour for good, in the place of what was known of it.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn set_neighbour(&mut self, link: u32, address: IpAddr, mac: MacAddress) -> Result<()> {
        let mut message = message(link, address);
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        self.replace(RouteNetlinkMessage::NewNeighbour(message))
            .map_err(|failed| Error::from(failed).context(format!("set neighbour {address}")))
    }

    /// Forgets a neighbour.
    ///
    /// # Errors
    /// NotFound; those of the kernel.
    pub fn delete_neighbour(&mut self, link: u32, address: IpAddr) -> Result<()> {
        self.change(RouteNetlinkMessage::DelNeighbour(message(link, address)))
            .map_err(|failed| Error::from(failed).context(format!("delete neighbour {address}")))
    }

    /// All neighbours.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn neighbours(&mut self) -> Result<Vec<Neighbour>> {
        let found = self.list(&RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()));
        let found = found.map_err(|it| Error::from(it).context("list neighbours"))?;
        Ok(found.into_iter().filter_map(read).collect())
    }
}

fn read(message: RouteNetlinkMessage) -> Option<Neighbour> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else { return None };
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => address = Some((*found).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => {
                address = Some((*found).into())
            }
            NeighbourAttribute::LinkLayerAddress(found) => {
                mac = found.clone().try_into().ok().map(MacAddress)
            }
            _ => {}
        }
    }
    let permanent = message.header.state == NeighbourState::Permanent;
    Some(Neighbour { link: message.header.ifindex, address: address?, mac, permanent })
}
