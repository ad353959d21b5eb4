//! The plugins of CNI that are built in: `bridge`, `host-local`, `portmap` and `loopback`. They take the configuration and
//! give the results of those with these names that most people install, and share their state where that is in files
//! (the leases of `host-local`), so that one can be put in the place of the other.
//!
//! [`run`] answers within the process; [`main`] is the same as a program.

mod bridge;
mod leases;
mod loopback;
mod owner;
mod portmap;

use corten_types::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::cni::{Command, Failure, Invocation, NetworkResult, SUPPORTED};
use crate::validate_link_name;

pub use bridge::host_link;
pub use leases::{Lease, Pool};
pub use owner::Owner;

/// The plugins that are built in.
pub const NAMES: [&str; 4] = ["bridge", "host-local", "loopback", "portmap"];

/// Answers for a plugin that is built in, in the network namespace of the calling thread. Nothing for others.
#[must_use]
pub fn run(kind: &str, invocation: &Invocation<'_>) -> Option<Result<Option<Value>, Failure>> {
    NAMES.contains(&kind).then(|| answer(kind, invocation))
}

fn answer(kind: &str, invocation: &Invocation<'_>) -> Result<Option<Value>, Failure> {
    if invocation.command == Command::Version {
        let version = invocation.config["cniVersion"].as_str().unwrap_or("1.1.0");
        return Ok(Some(json!({"cniVersion": version, "supportedVersions": SUPPORTED})));
    }
    let version = invocation.config["cniVersion"].as_str().unwrap_or_default();
    if !version.is_empty() && !SUPPORTED.contains(&version) {
        let msg = format!("incompatible CNI versions; config is {version:?}, plugin supports {SUPPORTED:?}");
        return Err(Failure::new(1, msg));
    }
    if matches!(invocation.command, Command::Add | Command::Del | Command::Check) {
        validate(invocation)?;
    }
    let result = match kind {
        "bridge" => bridge::run(invocation),
        "host-local" => leases::run(invocation),
        "portmap" => portmap::run(invocation),
        _ => loopback::run(invocation),
    };
    let result = result.map_err(Failure::from)?;
    result.map(|result| result.to_version(version)).transpose().map_err(Failure::from)
}

fn validate(invocation: &Invocation<'_>) -> Result<(), Failure> {
    let missing = |name: &str| {
        Failure::new(Failure::INVALID_ENVIRONMENT, format!("required env variables [{name}] missing"))
    };
    if invocation.container_id.is_empty() {
        return Err(missing("CNI_CONTAINERID"));
    }
    if invocation.netns.is_empty() && invocation.command != Command::Del {
        return Err(missing("CNI_NETNS"));
    }
    validate_link_name(invocation.ifname)
        .map_err(|wrong| Failure::new(Failure::INVALID_ENVIRONMENT, wrong.message()))
}

/// A plugin's configuration, as far as it is known.
fn configuration<T: DeserializeOwned>(invocation: &Invocation<'_>) -> Result<T> {
    T::deserialize(invocation.config)
        .map_err(|error| Error::invalid_argument(format!("failed to load netconf: {error}")))
}

/// The result of the plugins before.
fn previous(invocation: &Invocation<'_>) -> Result<Option<NetworkResult>> {
    let previous = &invocation.config["prevResult"];
    if previous.is_null() {
        return Ok(None);
    }
    NetworkResult::read(previous).map(Some).map_err(|failed| failed.context("could not parse prevResult"))
}

/// Who is still attached, of a GC.
fn valid(invocation: &Invocation<'_>) -> Vec<Owner> {
    let list = invocation.config["cni.dev/valid-attachments"].as_array().cloned().unwrap_or_default();
    let text = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
    list.iter().map(|one| Owner { id: text(one, "containerID"), ifname: text(one, "ifname") }).collect()
}

/// `K=V;K=V`.
fn arguments(text: &str) -> Map<String, Value> {
    let pairs = text.split(';').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), json!(value))).collect()
}

/// A plugin as a program: its name, a variable of the environment by name, standard input. Answers what goes to standard
/// output, and the exit code.
pub fn main(name: &str, variable: impl Fn(&str) -> Option<String>, input: &[u8]) -> (String, i32) {
    let value = |name: &str| variable(name).unwrap_or_default();
    let failed = |failure: &Failure, version: &str| (format!("{:#}\n", failure.to_json(version)), 1);
    let Some(command) = Command::read(&value("CNI_COMMAND")) else {
        let msg = format!("unknown CNI_COMMAND: {}", value("CNI_COMMAND"));
        return failed(&Failure::new(Failure::INVALID_ENVIRONMENT, msg), "1.1.0");
    };
    let config: Value = match serde_json::from_slice(input) {
        Ok(config @ Value::Object(_)) => config,
        Ok(_) => {
            return failed(&Failure::new(Failure::DECODING, "the configuration is not an object"), "1.1.0");
        }
        Err(error) => {
            let msg = format!("error unmarshall network config: {error}");
            return failed(&Failure::new(Failure::DECODING, msg), "1.1.0");
        }
    };
    let (id, netns, args) = (value("CNI_CONTAINERID"), value("CNI_NETNS"), value("CNI_ARGS"));
    let (ifname, path) = (value("CNI_IFNAME"), value("CNI_PATH"));
    let invocation = Invocation {
        command,
        container_id: &id,
        netns: &netns,
        args: &args,
        ifname: &ifname,
        path: &path,
        config: &config,
    };
    match run(name, &invocation) {
        Some(Ok(Some(result))) => (format!("{result:#}\n"), 0),
        Some(Ok(None)) => (String::new(), 0),
        Some(Err(failure)) => failed(&failure, config["cniVersion"].as_str().unwrap_or("1.1.0")),
        None => failed(
            &Failure::new(Failure::INTERNAL, format!("no plugin {name}: it is one of {NAMES:?}")),
            "1.1.0",
        ),
    }
}
