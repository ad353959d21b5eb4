//! What a container is attached to when it is started: kept in an annotation of its specification, and read by hooks.

use std::net::IpAddr;
use std::path::PathBuf;

use corten_types::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Attachments, Member};

/// What a container is attached to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Plan {
    /// Where networks are.
    pub root: PathBuf,
    /// The container's id among all of the machine's.
    pub id: String,
    /// The networks, the first one by `eth0`.
    pub networks: Vec<String>,
    /// Names by which others reach it.
    #[serde(default)]
    pub names: Vec<String>,
    /// Ports of the host that lead to it, by its first network.
    #[serde(default)]
    pub ports: Value,
    /// Addresses that it wants of its first network.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

impl Plan {
    /// The annotation.
    pub const ANNOTATION: &'static str = "corten/network";

    /// Reads an annotation.
    ///
    /// # Errors
    /// InvalidArgument.
    pub fn read(text: &str) -> Result<Self> {
        let wrong = |error: serde_json::Error| {
            Error::invalid_argument(format!("annotation {}: {error}", Self::ANNOTATION))
        };
        serde_json::from_str(text).map_err(wrong)
    }

    /// As an annotation has it.
    ///
    /// # Errors
    /// Internal.
    pub fn text(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| Error::internal(error.to_string()))
    }

    /// Attaches the container of a process; on failure to none.
    ///
    /// # Errors
    /// As [`Attachments::attach`].
    pub fn attach(&self, pid: u32) -> Result<()> {
        let networks = Attachments::new(&self.root);
        // What an earlier run left, whose end nobody has told.
        networks.detach(&self.id, None)?;
        for (number, network) in self.networks.iter().enumerate() {
            let first = number == 0;
            let member = Member {
                id: self.id.clone(),
                netns: format!("/proc/{pid}/ns/net"),
                names: self.names.clone(),
                ports: if first { self.ports.clone() } else { Value::Null },
                addresses: if first { self.addresses.clone() } else { Vec::new() },
            };
            networks.attach(network, &member).inspect_err(|_| drop(networks.detach(&self.id, None)))?;
        }
        Ok(())
    }

    /// Detaches the container from all; what is not attached is no failure.
    ///
    /// # Errors
    /// As [`Attachments::detach`].
    pub fn detach(&self) -> Result<()> {
        Attachments::new(&self.root).detach(&self.id, None)
    }
}
