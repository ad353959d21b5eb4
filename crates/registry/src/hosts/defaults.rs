//! What holds for a host of which nothing is said, and when plain HTTP is a way out (spec 03 §7).

use std::net::IpAddr;

use super::config::Entry;
use super::{Capabilities, Host, HostOptions};
use crate::url::{Scheme, split_port};

/// Where docker.io is served.
pub(super) const DOCKER_IO: &str = "registry-1.docker.io";

/// A host of what is configured; `registry` is the reference's own host, for the entry that names none.
pub(super) fn complete(entry: Entry, registry: Option<&str>, options: &HostOptions) -> Host {
    let Entry { address, path, capabilities, headers, mut tls, dial_timeout } = entry;
    let (scheme, authority, path) = match (address, registry) {
        (Some(url), _) => (url.scheme, url.authority, path),
        (None, registry) => {
            let registry = registry.unwrap_or_default();
            let scheme = default_scheme(registry, options.default_scheme);
            if options.default_scheme.is_none() && is_localhost(registry) && !has_port(registry, 80) {
                tls.skip_verify = Some(true);
            }
            let authority = if registry == "docker.io" { DOCKER_IO } else { registry };
            (scheme, authority.to_owned(), "/v2".to_owned())
        }
    };
    let tls = tls.over(&options.tls);
    // With TLS options the protocol of an http address is in doubt, unless its port is 80.
    let http_fallback = scheme == Scheme::Http && tls.is_set() && !has_port(&authority, 80);
    Host {
        scheme: if http_fallback { Scheme::Https } else { scheme },
        authority,
        path,
        capabilities: capabilities.unwrap_or(Capabilities::ALL),
        headers,
        tls,
        dial_timeout,
        http_fallback,
    }
}

fn default_scheme(registry: &str, said: Option<Scheme>) -> Scheme {
    if registry == "docker.io" {
        return Scheme::Https;
    }
    if let Some(scheme) = said {
        return scheme;
    }
    let port = split_port(registry).1;
    if is_localhost(registry) && !matches!(port, None | Some(443)) { Scheme::Http } else { Scheme::Https }
}

fn has_port(authority: &str, port: u16) -> bool {
    split_port(authority).1 == Some(port)
}

/// Whether a host is this machine.
pub(crate) fn is_localhost(authority: &str) -> bool {
    let host = split_port(authority).0;
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}
