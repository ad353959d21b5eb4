//! Tables of the file that are not plugins'.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `[debug]`: the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Debug {
    /// trace, debug, info, warn, error, fatal or panic; empty for info.
    pub level: String,
    /// text or json; empty for text.
    pub format: String,
    /// Whether lines bear the trace that they belong to.
    pub log_trace_id: bool,
}

/// `[cgroup]`: where the daemon puts itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// Below the mount points; empty to stay.
    pub path: String,
}

/// `[proxy_plugins.<id>]`: a plugin behind a socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProxyPlugin {
    /// snapshot, content, diff, sandbox or the URI of a plugin type.
    #[serde(rename = "type")]
    pub kind: String,
    /// The gRPC socket.
    pub address: String,
    /// What it works for; empty for the host's.
    pub platform: String,
    /// Shown with the plugin.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub exports: BTreeMap<String, String>,
    /// What it can do.
    pub capabilities: Vec<String>,
}

/// `[stream_processors.<id>]`: a program that turns one media type into another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamProcessor {
    /// Media types that it reads.
    pub accepts: Vec<String>,
    /// Media type that it writes.
    pub returns: String,
    /// The program.
    pub path: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// `KEY=value` entries added to its environment.
    pub env: Vec<String>,
}
