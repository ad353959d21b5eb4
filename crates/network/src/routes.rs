//! Routes.

use std::net::IpAddr;

use corten_types::{Error, Result};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::addresses::family;
use crate::{Cidr, Netlink};

/// A route of unicast packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to; `0.0.0.0/0` and `::/0` for the default.
    pub destination: Cidr,
    /// By whom; else the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Index of the link.
    pub link: Option<u32>,
    /// From which address, if not said by whom it sends.
    pub source: Option<IpAddr>,
    /// The lowest wins.
    pub priority: Option<u32>,
    /// Table; else the main one.
    pub table: Option<u32>,
    /// Largest packet.
    pub mtu: Option<u32>,
    /// Largest segment that is told to the other side.
    pub advmss: Option<u32>,
    /// `RT_SCOPE_` number; else what fits the gateway.
    pub scope: Option<u8>,
}

impl Route {
    /// A route by a gateway or, without one, a link.
    #[must_use]
    pub fn new(destination: Cidr, gateway: Option<IpAddr>, link: Option<u32>) -> Self {
        Self {
            destination,
            gateway,
            link,
            source: None,
            priority: None,
            table: None,
            mtu: None,
            advmss: None,
            scope: None,
        }
    }

    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        let on_link = self.gateway.is_none() && self.destination.address.is_ipv4();
        message.header = RouteHeader {
            address_family: family(self.destination.address),
            destination_prefix_length: self.destination.length,
            table: self
                .table
                .and_then(|table| u8::try_from(table).ok())
                .unwrap_or(RouteHeader::RT_TABLE_MAIN),
            protocol: RouteProtocol::Boot,
            scope: match self.scope {
                Some(scope) => scope.into(),
                None if on_link => RouteScope::Link,
                None => RouteScope::Universe,
            },
            kind: RouteType::Unicast,
            ..RouteHeader::default()
        };
        let attributes = &mut message.attributes;
        if self.destination.length > 0 {
            attributes.push(RouteAttribute::Destination(self.destination.network().address.into()));
        }
        attributes.extend(self.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
        attributes.extend(self.link.map(RouteAttribute::Oif));
        attributes.extend(self.source.map(|source| RouteAttribute::PrefSource(source.into())));
        attributes.extend(self.priority.map(RouteAttribute::Priority));
        attributes.extend(self.table.map(RouteAttribute::Table));
        let metrics: Vec<_> =
            self.mtu.map(RouteMetric::Mtu).into_iter().chain(self.advmss.map(RouteMetric::Advmss)).collect();
        if !metrics.is_empty() {
            attributes.push(RouteAttribute::Metrics(metrics));
        }
        message
    }
}

impl Netlink {
    /// Adds a route.
    ///
    /// # Errors
    /// AlreadyExists; those of the kernel.
    pub fn add_route(&mut self, route: &Route) -> Result<()> {
        self.create(RouteNetlinkMessage::NewRoute(route.message()))
            .map_err(|failed| Error::from(failed).context(format!("add route to {}", route.destination)))
    }

    /// As [`Netlink::add_route`]; an equal one that is there already is no failure.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn ensure_route(&mut self, route: &Route) -> Result<()> {
        match self.create(RouteNetlinkMessage::NewRoute(route.message())) {
            Err(failed) if !failed.is_existing() => {
                Err(Error::from(failed).context(format!("add route to {}", route.destination)))
            }
            _ => Ok(()),
        }
    }

    /// Deletes a route.
    ///
    /// # Errors
    /// NotFound; those of the kernel.
    pub fn delete_route(&mut self, route: &Route) -> Result<()> {
        self.change(RouteNetlinkMessage::DelRoute(route.message()))
            .map_err(|failed| Error::from(failed).context(format!("delete route to {}", route.destination)))
    }

    /// All unicast routes of all tables.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn routes(&mut self) -> Result<Vec<Route>> {
        let found = self.list(&RouteNetlinkMessage::GetRoute(RouteMessage::default()));
        Ok(found.map_err(|it| Error::from(it).context("list routes"))?.into_iter().filter_map(read).collect())
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn read(message: RouteNetlinkMessage) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let header = &message.header;
    if header.kind != RouteType::Unicast {
        return None;
    }
    let all: IpAddr = match header.address_family {
        AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let mut route = Route::new(Cidr::new(all, header.destination_prefix_length).ok()?, None, None);
    route.scope = Some(header.scope.into());
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => route.destination.address = ip(address)?,
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::Oif(index) => route.link = Some(*index),
            RouteAttribute::Priority(priority) => route.priority = Some(*priority),
            RouteAttribute::Table(table) => route.table = Some(*table),
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    match metric {
                        RouteMetric::Mtu(mtu) => route.mtu = Some(*mtu),
                        RouteMetric::Advmss(advmss) => route.advmss = Some(*advmss),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(route)
}
