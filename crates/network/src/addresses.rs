//! IP addresses of links.

use std::net::IpAddr;

use corten_types::{Error, Result, ResultExt};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::{Cidr, Netlink};

/// An address of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of the link.
    pub link: u32,
    /// The address, and the length of its network's prefix.
    pub cidr: Cidr,
    /// Whether it is valid in the world, and not only on the link or the host.
    pub global: bool,
    /// Whether it is not known yet that nobody else has it (IPv6).
    pub tentative: bool,
}

pub(crate) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn message(link: u32, cidr: Cidr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(cidr.address);
    message.header.prefix_len = cidr.length;
    message.header.index = link;
    message.attributes = vec![AddressAttribute::Local(cidr.address), AddressAttribute::Address(cidr.address)];
    message
}

impl Netlink {
    /// Gives a link an address. An IPv6 address can be used at once: nobody is asked whether it is taken.
    ///
    /// # Errors
    /// AlreadyExists; those of the kernel.
    pub fn add_address(&mut self, link: u32, cidr: Cidr) -> Result<()> {
        let mut message = message(link, cidr);
        match cidr.address {
            IpAddr::V4(_) => message.attributes.extend(cidr.broadcast().map(AddressAttribute::Broadcast)),
            IpAddr::V6(_) => message.header.flags = AddressHeaderFlags::Nodad,
        }
        if cidr.address.is_loopback() {
            message.header.scope = AddressScope::Host;
        }
        self.create(RouteNetlinkMessage::NewAddress(message)).with_context(|| format!("add address {cidr}"))
    }

    /// As [`Netlink::add_address`]; an address that is there already is no failure.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn ensure_address(&mut self, link: u32, cidr: Cidr) -> Result<()> {
        match self.add_address(link, cidr) {
            Err(failed) if failed.is_already_exists() => Ok(()),
            other => other,
        }
    }

    /// Takes an address from a link.
    ///
    /// # Errors
    /// NotFound; those of the kernel.
    pub fn delete_address(&mut self, link: u32, cidr: Cidr) -> Result<()> {
        self.change(RouteNetlinkMessage::DelAddress(message(link, cidr)))
            .with_context(|| format!("delete address {cidr}"))
    }

    /// All addresses.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn addresses(&mut self) -> Result<Vec<Address>> {
        let found = self.list(&RouteNetlinkMessage::GetAddress(AddressMessage::default()));
        Ok(found
            .map_err(|it| Error::from(it).context("list addresses"))?
            .into_iter()
            .filter_map(read)
            .collect())
    }
}

fn read(message: RouteNetlinkMessage) -> Option<Address> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    let header = &message.header;
    let mut tentative = header.flags.contains(AddressHeaderFlags::Tentative);
    let (mut local, mut any) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => any = Some(*address),
            AddressAttribute::Flags(flags) => tentative |= flags.contains(AddressFlags::Tentative),
            _ => {}
        }
    }
    let cidr = Cidr::new(local.or(any)?, header.prefix_len).ok()?;
    let global = header.scope == AddressScope::Universe;
    Some(Address { link: header.index, cidr, global, tentative })
}
