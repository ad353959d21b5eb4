//! `portmap`: ports of the host that lead to the container, by the packet filter.

use std::net::IpAddr;

use corten_types::{Error, Result};
use serde_json::Value;

use super::{Owner, previous, valid};
use crate::cni::{Command, Invocation, NetworkResult};
use crate::nft::{Filter, PublishedPort};
use crate::sysctl;

pub fn run(invocation: &Invocation<'_>) -> Result<Option<NetworkResult>> {
    let network = invocation.config["name"].as_str().unwrap_or_default();
    let owner = Owner { id: invocation.container_id.into(), ifname: invocation.ifname.into() }.mark(network);
    match invocation.command {
        Command::Add => {
            let missing = || Error::invalid_argument("must be called as chained plugin");
            let result = previous(invocation)?.ok_or_else(missing)?;
            let ports = ports(&invocation.config["runtimeConfig"]["portMappings"], &result)?;
            if !ports.is_empty() {
                Filter::open()?.publish(&owner, &ports)?;
                let_loopback_lead(&result)?;
            }
            Ok(Some(result))
        }
        Command::Del => Filter::open()?.withdraw(|other| other == owner).map(|_| None),
        Command::Check => {
            let result = previous(invocation)?.unwrap_or_default();
            let known = Filter::open()?.published()?;
            for port in ports(&invocation.config["runtimeConfig"]["portMappings"], &result)? {
                if !known.iter().any(|(of, other)| *of == owner && *other == port) {
                    return Err(Error::not_found(format!(
                        "port {}/{} is not published",
                        port.port, port.protocol
                    )));
                }
            }
            Ok(None)
        }
        Command::Gc => {
            let valid: Vec<String> = valid(invocation).iter().map(|owner| owner.mark(network)).collect();
            let begin = format!("{network}/");
            let gone = |owner: &str| owner.starts_with(&begin) && !valid.iter().any(|known| known == owner);
            Filter::open()?.withdraw(gone).map(|_| None)
        }
        Command::Status | Command::Version => Ok(None),
    }
}

/// The mappings with their targets; those without a port of the host are none (spec 06 §7.23).
fn ports(mappings: &Value, result: &NetworkResult) -> Result<Vec<PublishedPort>> {
    let mut ports = Vec::new();
    for mapping in mappings.as_array().into_iter().flatten() {
        let field = |name: &str| {
            let fields = mapping.as_object().into_iter().flatten();
            fields.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
        };
        let number = |name: &str| field(name).and_then(Value::as_i64).unwrap_or_default();
        let text = |name: &str| field(name).and_then(Value::as_str).unwrap_or_default();
        let (port, target_port) = (number("hostPort"), number("containerPort"));
        if port <= 0 {
            continue;
        }
        let wrong =
            |what: &str, port: i64| Error::invalid_argument(format!("invalid {what} port number: {port}"));
        let port = u16::try_from(port).map_err(|_| wrong("host", port))?;
        let target_port = u16::try_from(target_port)
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(|| wrong("container", target_port))?;
        let protocol = Some(text("protocol")).filter(|text| !text.is_empty()).unwrap_or("tcp").to_lowercase();
        let host: Option<IpAddr> = match text("hostIP") {
            "" => None,
            text => {
                Some(text.parse().map_err(|_| Error::invalid_argument(format!("invalid host IP: {text}")))?)
            }
        };
        for v4 in [true, false] {
            let targets = result.ips.iter().map(|ip| ip.address.address);
            let Some(target) = targets.into_iter().find(|target| target.is_ipv4() == v4) else { continue };
            if host.is_some_and(|host| host.is_ipv4() != v4) {
                continue;
            }
            let host = host.filter(|host| !host.is_unspecified());
            ports.push(PublishedPort { protocol: protocol.clone(), host, port, target, target_port });
        }
    }
    Ok(ports)
}

/// Packets from 127.0.0.1 may go out by the bridge; the filter drops those that come in by it.
fn let_loopback_lead(result: &NetworkResult) -> Result<()> {
    let bridge = result.interfaces.first().filter(|interface| interface.sandbox.is_empty());
    match bridge {
        Some(bridge) => sysctl::set(&format!("net/ipv4/conf/{}/route_localnet", bridge.name), "1"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn mappings_lead_to_the_families_that_the_container_has() {
        let value =
            json!({"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.2/16"}, {"address": "fd00::2/64"}]});
        let result = NetworkResult::read(&value).unwrap();
        let read = |mapping: Value| ports(&json!([mapping]), &result);
        let both = read(json!({"HostPort": 80, "ContainerPort": 8080, "Protocol": "TCP"})).unwrap();
        assert_eq!((both.len(), both[0].target_port, both[0].protocol.as_str()), (2, 8080, "tcp"));
        let one = read(json!({"hostPort": 80, "containerPort": 8080, "hostIP": "::"})).unwrap();
        assert_eq!((one.len(), one[0].host, one[0].target.is_ipv6()), (1, None, true));
        assert!(read(json!({"hostPort": 0, "containerPort": 8080})).unwrap().is_empty());
        for bad in [
            json!({"hostPort": 70000, "containerPort": 1}),
            json!({"hostPort": 1, "containerPort": 0}),
            json!({"hostPort": 1, "containerPort": 1, "hostIP": "x"}),
        ] {
            assert!(read(bad.clone()).is_err(), "{bad}");
        }
    }
}
