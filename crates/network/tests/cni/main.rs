//! The client of CNI: with a scripted plugin that misbehaves, and with Debian's plugins (`PEERS`).

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod debian;
mod scripted;

use std::path::Path;
use std::time::Duration;

use corten_network::cni::{Attachment, Cni, NetworkConfig, Runner};
use serde_json::{Map, Value};

/// Values by the name of their capability.
fn capabilities(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

/// A client of the plugins in a folder, with its records beside them.
fn client(plugins: &Path, records: &Path) -> Cni {
    let runner = Runner { timeout: Duration::from_secs(60), ..Runner::new(vec![plugins.to_owned()]) };
    Cni { runner, cache: records.join("results"), durable: true }
}

fn network(value: &Value) -> NetworkConfig {
    NetworkConfig::from_list(value.to_string().as_bytes(), None).unwrap()
}

fn attachment<'a>(id: &'a str, netns: &'a str, capabilities: &'a Map<String, Value>) -> Attachment<'a> {
    Attachment { container_id: id, netns, ifname: "eth0", args: &[], capabilities }
}
