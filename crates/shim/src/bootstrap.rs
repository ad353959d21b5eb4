//! What a daemon says on standard input, and the form in which it wants the answer (spec 02 §3.1).

use corten_api::bootstrap::{BootstrapParams, BootstrapResult};
use corten_api::runc::Options;
use prost::Message;

use crate::Flags;

/// How the daemon talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// From 2.3 on: parameters and answer in protobuf.
    Protobuf,
    /// 1.7 to 2.2: options in, JSON out.
    Json,
    /// Older: options in, the bare address out.
    Address,
}

/// What the daemon said.
#[derive(Debug)]
pub(crate) struct Bootstrap {
    pub dialect: Dialect,
    pub options: Options,
    pub socket_dir: String,
}

const SOCKET_DIR: &str = "/run/containerd/s";

impl Bootstrap {
    /// Reads it. The two messages decode as each other: only parameters repeat id and namespace.
    pub(crate) fn read(input: &[u8], flags: &Flags) -> Self {
        let params = BootstrapParams::decode(input).ok();
        let params =
            params.filter(|params| params.instance_id == flags.id && params.namespace == flags.namespace);
        if let Some(params) = params {
            let values = params.extensions.iter().filter_map(|extension| extension.value.as_ref());
            let options = values.filter_map(|any| corten_api::unpack::<Options>(any).ok()).next();
            let socket_dir = params.socket_dir.filter(|folder| !folder.is_empty());
            return Self {
                dialect: Dialect::Protobuf,
                options: options.unwrap_or_default(),
                socket_dir: socket_dir.unwrap_or_else(|| SOCKET_DIR.into()),
            };
        }
        // Only daemons that understand JSON tell which version of the interface they know.
        let json = std::env::var_os("MAX_SHIM_VERSION").is_some();
        let options = prost_types::Any::decode(input).ok();
        let options = options.and_then(|any| corten_api::unpack::<Options>(&any).ok()).unwrap_or_default();
        Self {
            dialect: if json { Dialect::Json } else { Dialect::Address },
            options,
            socket_dir: SOCKET_DIR.into(),
        }
    }

    /// The answer for a server at `address`.
    pub(crate) fn answer(&self, address: &str) -> Vec<u8> {
        match self.dialect {
            Dialect::Protobuf => BootstrapResult {
                version: 3,
                address: address.into(),
                protocol: "ttrpc".into(),
                ..Default::default()
            }
            .encode_to_vec(),
            Dialect::Json => {
                format!("{{\"version\":3,\"address\":\"{address}\",\"protocol\":\"ttrpc\"}}").into_bytes()
            }
            Dialect::Address => address.as_bytes().to_vec(),
        }
    }
}
