//! What a network is: the list of plugins that is written for it.

use std::net::IpAddr;
use std::path::Path;

use corten_types::{Error, Result};
use serde_json::{Value, json};

use crate::cidr::{number, to_address};
use crate::cni::NetworkConfig;
use crate::plugins::Owner;
use crate::{Cidr, validate_link_name};

/// A network that is to be made.
#[derive(Clone, Debug, Default)]
pub struct NewNetwork {
    /// Its name.
    pub name: String,
    /// Its addresses, at most one of each family; if none, one of IPv4 that is free.
    pub subnets: Vec<Cidr>,
    /// The bridge's addresses; else the first of each subnet.
    pub gateways: Vec<IpAddr>,
    /// Nothing leaves it.
    pub internal: bool,
    /// Other networks are reached.
    pub open: bool,
    /// What leaves keeps its address.
    pub no_masquerade: bool,
    /// Largest packet.
    pub mtu: Option<u32>,
    /// The bridge's name; else one made of the network's.
    pub bridge: Option<String>,
}

/// A network as its file has it.
#[derive(Clone, Debug)]
pub struct Definition {
    /// Its name.
    pub name: String,
    /// The bridge's name.
    pub bridge: String,
    /// Its addresses.
    pub subnets: Vec<Cidr>,
    /// Nothing leaves it.
    pub internal: bool,
    /// The list of plugins.
    pub config: NetworkConfig,
}

impl NewNetwork {
    /// The list of plugins. `taken` are subnets of others, and of the machine.
    ///
    /// # Errors
    /// InvalidArgument: names, overlapping subnets, gateways outside.
    pub fn list(&self, leases: &Path, taken: &[(String, Cidr)]) -> Result<Value> {
        if !crate::cni::is_name(&self.name) || self.name.len() > 64 {
            let text =
                format!("network name {:?} must be letters, digits, _, . and -, at most 64", self.name);
            return Err(Error::invalid_argument(text));
        }
        let bridge = self.bridge_name();
        validate_link_name(&bridge)?;
        let subnets = match self.subnets.is_empty() {
            true => vec![free(taken)?],
            false => self.checked(taken)?,
        };
        let mut ranges = Vec::new();
        let mut routes = Vec::new();
        let mut gateways = self.gateways.clone();
        for subnet in &subnets {
            let gateway = gateways.iter().position(|gateway| subnet.contains(*gateway));
            let v4 = subnet.address.is_ipv4();
            let first = to_address(number(subnet.address) + 1, v4);
            let gateway = gateway.map_or(first, |at| gateways.remove(at));
            ranges.push(json!([{"subnet": subnet, "gateway": gateway}]));
            if !self.internal {
                routes.push(json!({"dst": if v4 { "0.0.0.0/0" } else { "::/0" }, "gw": gateway}));
            }
        }
        if let Some(outside) = gateways.first() {
            return Err(Error::invalid_argument(format!("gateway {outside} is in no subnet of the network")));
        }
        let mut plugin = json!({
            "type": "bridge", "bridge": bridge, "isGateway": true, "hairpinMode": true,
            "ipMasq": !self.no_masquerade && !self.internal, "isolation": !self.open, "internal": self.internal,
            "ipam": {"type": "host-local", "dataDir": leases, "ranges": ranges, "routes": routes},
        });
        if let Some(mtu) = self.mtu {
            plugin["mtu"] = json!(mtu);
        }
        let ports = json!({"type": "portmap", "capabilities": {"portMappings": true}});
        Ok(json!({"cniVersion": "1.1.0", "name": self.name, "plugins": [plugin, ports]}))
    }

    /// Names of links are short: one that is not is told by a number.
    fn bridge_name(&self) -> String {
        match &self.bridge {
            Some(name) => name.clone(),
            None if self.name.len() <= 12 => format!("br-{}", self.name),
            None => {
                let owner = Owner { id: self.name.clone(), ifname: String::new() };
                format!("br-{:012x}", owner.number() >> 16)
            }
        }
    }

    fn checked(&self, taken: &[(String, Cidr)]) -> Result<Vec<Cidr>> {
        let mut checked: Vec<Cidr> = Vec::new();
        for subnet in &self.subnets {
            let network = subnet.network();
            if subnet.bits() - subnet.length < 2 {
                return Err(Error::invalid_argument(format!("subnet {subnet} is too small")));
            }
            if checked.iter().any(|other| other.bits() == network.bits()) {
                return Err(Error::invalid_argument("a network has at most one subnet of each family"));
            }
            if let Some((by, other)) = taken.iter().find(|(_, other)| other.overlaps(&network)) {
                return Err(Error::invalid_argument(format!(
                    "subnet {subnet} overlaps with {other} of {by}"
                )));
            }
            checked.push(network);
        }
        Ok(checked)
    }
}

/// A subnet that overlaps with none.
fn free(taken: &[(String, Cidr)]) -> Result<Cidr> {
    let candidates = (89..=255_u8)
        .flat_map(|a| (0..=255_u8).map(move |b| Cidr { address: [10, a, b, 0].into(), length: 24 }));
    let mut free = candidates.filter(|one| !taken.iter().any(|(_, other)| other.overlaps(one)));
    let none = || {
        Error::new(
            corten_types::ErrorClass::ResourceExhausted,
            "no subnet is free in 10.89.0.0 to 10.255.255.255",
        )
    };
    free.next().ok_or_else(|| none().with_hint("name one with --subnet"))
}

impl Definition {
    /// Reads a file's content.
    ///
    /// # Errors
    /// When it is not the list of such a network.
    pub fn read(data: &[u8]) -> Result<Self> {
        let config = NetworkConfig::from_list(data, None)?;
        let plugin = config.plugins.iter().find(|plugin| plugin.kind == "bridge");
        let plugin = plugin.ok_or_else(|| Error::invalid_argument("the network has no bridge"))?;
        let value = Value::Object(plugin.value.clone());
        let sets = value["ipam"]["ranges"].as_array().into_iter().flatten();
        let subnets = sets.filter_map(|set| set[0]["subnet"].as_str()?.parse().ok()).collect();
        Ok(Self {
            name: config.name.clone(),
            bridge: value["bridge"].as_str().unwrap_or("cni0").to_owned(),
            subnets,
            internal: value["internal"].as_bool().unwrap_or(false),
            config,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(name: &str, subnets: &[&str]) -> NewNetwork {
        let subnets = subnets.iter().map(|text| text.parse().unwrap()).collect();
        NewNetwork { name: name.into(), subnets, ..NewNetwork::default() }
    }

    #[test]
    fn a_definition_is_read_as_it_was_asked_for() {
        let asked = NewNetwork { internal: true, ..new("a", &["10.5.6.7/16", "fd05::/64"]) };
        let list = asked.list(Path::new("/leases"), &[]).unwrap();
        let read = Definition::read(list.to_string().as_bytes()).unwrap();
        let subnets: Vec<String> = read.subnets.iter().map(Cidr::to_string).collect();
        assert_eq!(
            (read.bridge.as_str(), subnets, read.internal),
            ("br-a", vec!["10.5.0.0/16".into(), "fd05::/64".into()], true)
        );
    }

    #[test]
    fn a_free_subnet_is_chosen_and_overlapping_ones_are_refused() {
        let taken = [
            ("a".to_owned(), "10.89.0.0/24".parse().unwrap()),
            ("host".to_owned(), "10.89.1.0/25".parse().unwrap()),
        ];
        let list = new("b", &[]).list(Path::new("/leases"), &taken).unwrap();
        assert_eq!(list["plugins"][0]["ipam"]["ranges"][0][0]["subnet"], "10.89.2.0/24");
        let all = [("host".to_owned(), "10.0.0.0/8".parse().unwrap())];
        assert!(new("b", &[]).list(Path::new("/leases"), &all).is_err());
        for (asked, why) in [
            (new("b", &["10.89.0.0/16"]), "overlaps with 10.89.0.0/24 of a"),
            (new("b", &["10.7.0.0/31"]), "too small"),
            (new("b", &["10.7.0.0/24", "10.8.0.0/24"]), "at most one subnet"),
            (new("a/b", &[]), "must be letters"),
            (new("", &[]), "must be letters"),
            (NewNetwork { bridge: Some("a-name-that-is-too-long".into()), ..new("b", &[]) }, "too long"),
            (
                NewNetwork { gateways: vec!["10.9.0.1".parse().unwrap()], ..new("b", &["10.7.0.0/24"]) },
                "in no subnet",
            ),
        ] {
            let failed = asked.list(Path::new("/leases"), &taken).unwrap_err();
            assert!(failed.message().contains(why), "{failed}");
        }
        let long = new(&"n".repeat(64), &[]);
        assert_eq!(long.bridge_name().len(), 15);
    }
}
