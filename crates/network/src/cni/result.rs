//! What plugins answer, in all versions: read into one form, and written in any (spec 06 §2.6).

use std::net::IpAddr;

use corten_types::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{SUPPORTED, Version};
use crate::Cidr;

/// What an attachment is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkResult {
    /// The version of this form when it is written.
    pub cni_version: String,
    /// Interfaces that were made.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "listed")]
    pub interfaces: Vec<Interface>,
    /// Addresses that were given.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "listed")]
    pub ips: Vec<Ip>,
    /// Routes that were made.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "listed")]
    pub routes: Vec<Route>,
    /// Servers of names.
    #[serde(deserialize_with = "nullable")]
    pub dns: Dns,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct Interface {
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub mtu: u32,
    /// Path of the namespace; empty on the host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ip {
    /// Position of its interface in the list.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub interface: Option<usize>,
    /// With the length of its network's prefix.
    pub address: Cidr,
    /// Who leads out.
    #[serde(skip_serializing_if = "Option::is_none", default, deserialize_with = "address")]
    pub gateway: Option<IpAddr>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct Route {
    pub dst: Cidr,
    #[serde(skip_serializing_if = "Option::is_none", default, deserialize_with = "address")]
    pub gw: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub advmss: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub priority: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub table: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub scope: Option<u8>,
}

/// Servers of names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct Dns {
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "listed")]
    pub nameservers: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "listed")]
    pub search: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "listed")]
    pub options: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Plugins say `null` for an empty list.
fn listed<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> std::result::Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

fn nullable<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(
    from: D,
) -> std::result::Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// An address, perhaps empty.
fn address<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Option<IpAddr>, D::Error> {
    match Option::<String>::deserialize(from)? {
        Some(text) if !text.is_empty() => text.parse().map(Some).map_err(serde::de::Error::custom),
        _ => Ok(None),
    }
}

impl NetworkResult {
    /// Reads a result of any version.
    ///
    /// # Errors
    /// In words, what is wrong.
    pub fn read(value: &Value) -> Result<Self> {
        let bad = |why: String| Error::unknown(format!("could not decode result: {why}"));
        let said = value.get("cniVersion").and_then(Value::as_str).unwrap_or_default();
        if !said.is_empty() && !SUPPORTED.contains(&said) {
            return Err(Error::unknown(format!("unsupported CNI result version {said:?}")));
        }
        if said.parse::<Version>()? < Version::LISTS {
            return Self::read_old(value).map_err(|error| bad(error.to_string()));
        }
        let mut result: Self =
            serde_json::from_value(value.clone()).map_err(|error| bad(error.to_string()))?;
        result.cni_version = Version::NEWEST.to_string();
        Ok(result)
    }

    /// The form of 0.1 and 0.2: one address of each family.
    fn read_old(value: &Value) -> serde_json::Result<Self> {
        #[derive(Deserialize)]
        struct Old {
            ip: Cidr,
            #[serde(default, deserialize_with = "address")]
            gateway: Option<IpAddr>,
            #[serde(default, deserialize_with = "listed")]
            routes: Vec<Route>,
        }
        let mut result = Self { cni_version: Version::NEWEST.to_string(), ..Self::default() };
        for family in ["ip4", "ip6"] {
            let Some(one) = value.get(family).filter(|one| !one.is_null()) else { continue };
            let old: Old = serde_json::from_value(one.clone())?;
            result.ips.push(Ip { interface: None, address: old.ip, gateway: old.gateway });
            // A route without a gateway goes by the address'.
            result.routes.extend(old.routes.into_iter().map(|it| Route { gw: it.gw.or(old.gateway), ..it }));
        }
        if let Some(dns) = value.get("dns").filter(|dns| !dns.is_null()) {
            result.dns = serde_json::from_value(dns.clone())?;
        }
        Ok(result)
    }

    /// Writes it as a version has it.
    ///
    /// # Errors
    /// For versions that are unknown, and 0.1 and 0.2 without an address.
    pub fn to_version(&self, version: &str) -> Result<Value> {
        let parsed: Version = version.parse()?;
        if !version.is_empty() && !SUPPORTED.contains(&version) {
            return Err(Error::unknown(format!("unsupported CNI result version {version:?}")));
        }
        if parsed < Version::LISTS {
            return self.write_old(version);
        }
        let written = Self { cni_version: version.to_owned(), ..self.clone() };
        let mut value = serde_json::to_value(written).map_err(|error| Error::internal(error.to_string()))?;
        if parsed < Version::STATUS {
            strip(&mut value, "interfaces", &["mtu", "socketPath", "pciID"]);
            strip(&mut value, "routes", &["mtu", "advmss", "priority", "table", "scope"]);
        }
        if parsed < Version::ONE {
            for (written, ip) in value["ips"].as_array_mut().into_iter().flatten().zip(&self.ips) {
                written["version"] = json!(if ip.address.address.is_ipv4() { "4" } else { "6" });
            }
        }
        Ok(value)
    }

    fn write_old(&self, version: &str) -> Result<Value> {
        let mut value = Map::new();
        value.insert("cniVersion".into(), json!(version));
        for (key, v4) in [("ip4", true), ("ip6", false)] {
            let Some(ip) = self.ips.iter().find(|ip| ip.address.address.is_ipv4() == v4) else { continue };
            let routes: Vec<Value> = self
                .routes
                .iter()
                .filter(|route| route.dst.address.is_ipv4() == v4)
                .map(|route| match route.gw {
                    Some(gw) => json!({"dst": route.dst, "gw": gw}),
                    None => json!({"dst": route.dst}),
                })
                .collect();
            let mut one = json!({"ip": ip.address});
            if let Some(gateway) = ip.gateway {
                one["gateway"] = json!(gateway);
            }
            if !routes.is_empty() {
                one["routes"] = json!(routes);
            }
            value.insert(key.into(), one);
        }
        if value.len() == 1 {
            return Err(Error::unknown("cannot convert: no valid IP addresses"));
        }
        value.insert("dns".into(), json!(self.dns));
        Ok(value.into())
    }
}

fn strip(value: &mut Value, list: &str, keys: &[&str]) {
    let entries = value[list].as_array_mut().into_iter().flatten();
    for object in entries.filter_map(Value::as_object_mut) {
        object.retain(|key, _| !keys.contains(&key.as_str()));
    }
    if value[list].is_null()
        && let Some(object) = value.as_object_mut()
    {
        object.remove(list);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newest() -> Value {
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "br0", "mac": "02:00:00:00:00:01", "mtu": 1500},
                {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/a"},
            ],
            "ips": [
                {"interface": 1, "address": "10.1.0.5/16", "gateway": "10.1.0.1"},
                {"interface": 1, "address": "fd00::5/64"},
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400}],
            "dns": {"nameservers": ["10.1.0.1"]},
        })
    }

    #[test]
    fn results_survive_their_own_version() {
        let result = NetworkResult::read(&newest()).unwrap();
        assert_eq!(result.to_version("1.1.0").unwrap(), newest());
    }

    #[test]
    fn older_versions_say_what_they_can() {
        let result = NetworkResult::read(&newest()).unwrap();
        let old = result.to_version("0.4.0").unwrap();
        assert_eq!(old["ips"][1], json!({"interface": 1, "address": "fd00::5/64", "version": "6"}));
        assert_eq!(old["interfaces"][0], json!({"name": "br0", "mac": "02:00:00:00:00:01"}));
        assert_eq!(old["routes"][0], json!({"dst": "0.0.0.0/0", "gw": "10.1.0.1"}));
        assert_eq!(NetworkResult::read(&old).unwrap().ips, result.ips);
        let oldest = result.to_version("0.2.0").unwrap();
        assert_eq!(
            oldest["ip4"],
            json!({"ip": "10.1.0.5/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]})
        );
        assert_eq!(NetworkResult::read(&oldest).unwrap().ips[1].address.to_string(), "fd00::5/64");
        assert!(NetworkResult::default().to_version("0.2.0").is_err());
        assert!(result.to_version("7.0.0").is_err());
    }

    #[test]
    fn what_is_null_or_wrong_is_understood_or_refused() {
        let empty =
            json!({"cniVersion": "1.0.0", "interfaces": null, "ips": null, "routes": null, "dns": null});
        assert!(NetworkResult::read(&empty).unwrap().ips.is_empty());
        for bad in [
            json!({"cniVersion": "2.0.0"}),
            json!({"cniVersion": "1.0.0", "ips": [{"address": "x"}]}),
            json!({"cniVersion": "1.0.0", "ips": 3}),
        ] {
            assert!(NetworkResult::read(&bad).is_err(), "{bad}");
        }
    }
}
