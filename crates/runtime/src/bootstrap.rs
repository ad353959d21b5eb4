//! Where a shim listens: what `start` prints and `bootstrap.json` keeps (spec 02 §3.1, §4), and
//! the connection to it.

use std::collections::BTreeMap;
use std::fmt;
use std::os::linux::net::SocketAddrExt;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use corten_api::bootstrap::BootstrapResult;
use corten_ttrpc::Client;
use corten_types::{Digest, Error, ErrorClass, Result, ResultExt};
use prost::Message;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::bundle::Bundle;
use crate::config::Config;
use crate::connection::Connection;

/// The newest version of the task API that the daemon speaks.
const MAX_VERSION: i32 = 3;
/// Pause while a shim's socket has no room for another connection.
const BACKLOG_PAUSE: Duration = Duration::from_millis(5);
/// Key of the metadata entry that says in which boot of the machine a shim was started.
const BOOT_KEY: &str = "boot-id";

/// This boot of the machine; empty if the kernel does not say.
pub(crate) static BOOT_ID: LazyLock<String> = LazyLock::new(|| {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
});

/// Address and protocol of a shim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Endpoint {
    /// Version of the task API: 2 or 3.
    pub version: i32,
    pub address: String,
    /// `ttrpc` or `grpc`.
    #[serde(default)]
    pub protocol: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<serde_json::Value>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

impl Endpoint {
    /// Reads what a shim printed or a bundle keeps: protobuf (2.3), JSON (1.7), the bare address.
    /// Nothing is trimmed before the first two have been tried.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let endpoint = Self::from_protobuf(bytes).or_else(|| Self::from_json(bytes));
        let mut endpoint = endpoint.map_or_else(|| Self::from_address(bytes), Ok)?;
        if endpoint.version > MAX_VERSION {
            return Err(Error::not_implemented(format!("unsupported shim version ({})", endpoint.version)));
        }
        if endpoint.protocol.is_empty() {
            endpoint.protocol = "ttrpc".to_owned();
        }
        Ok(endpoint)
    }

    /// An endpoint that a client named: `[<protocol>+]<address>`.
    pub fn given(address: &str, version: u32) -> Result<Self> {
        let (protocol, address) = match address.split_once('+') {
            Some((protocol @ ("ttrpc" | "grpc"), address)) => (protocol, address),
            _ => ("ttrpc", address),
        };
        let version = i32::try_from(version).unwrap_or(i32::MAX);
        if version > MAX_VERSION {
            return Err(Error::not_implemented(format!("unsupported shim version ({version})")));
        }
        let (address, protocol) = (address.to_owned(), protocol.to_owned());
        Ok(Self { version: if version == 0 { 2 } else { version }, address, protocol, ..Self::default() })
    }

    /// Where the stock shim of a bundle would listen that has left no word of it.
    pub fn derived(config: &Config, bundle: &Bundle) -> Self {
        let group = bundle.group().unwrap_or_else(|| bundle.id.clone());
        let name = format!("{}/{}/{group}", config.grpc_address.trim_end_matches('/'), bundle.namespace);
        let digest = Digest::sha256(name.as_bytes());
        let address = format!("unix://{}/{}", config.socket_dir.display(), digest.hex());
        Self { version: MAX_VERSION, address, protocol: "ttrpc".to_owned(), ..Self::default() }
    }

    fn from_protobuf(bytes: &[u8]) -> Option<Self> {
        let result = BootstrapResult::decode(bytes).ok()?;
        let metadata = result.metadata.into_iter().collect();
        let endpoint = Self {
            version: result.version,
            address: result.address,
            protocol: result.protocol,
            capabilities: Vec::new(),
            metadata,
        };
        endpoint.is_plausible().then_some(endpoint)
    }

    fn from_json(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok().filter(Self::is_plausible)
    }

    fn from_address(bytes: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(bytes).unwrap_or_default().trim();
        if text.is_empty() || text.contains(|character: char| character.is_control()) {
            return Err(Error::unknown(format!(
                "not the address of a shim: {:?}",
                String::from_utf8_lossy(bytes.get(..256).unwrap_or(bytes))
            )));
        }
        Ok(Self { version: 2, address: text.to_owned(), ..Self::default() })
    }

    fn is_plausible(&self) -> bool {
        self.version >= 2 && !self.address.is_empty()
    }

    /// The content of `bootstrap.json`.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The same endpoint, marked as one of this boot.
    pub fn stamped(mut self) -> Self {
        if !BOOT_ID.is_empty() {
            self.metadata.insert(BOOT_KEY.to_owned(), BOOT_ID.clone());
        }
        self
    }

    /// Whether the machine has been booted since the shim was started, so that it cannot live.
    pub fn is_of_another_boot(&self) -> bool {
        self.metadata.get(BOOT_KEY).is_some_and(|boot| !BOOT_ID.is_empty() && *boot != *BOOT_ID)
    }

    /// Connects to the shim.
    pub async fn connect(&self, config: &Config, timeout: Duration) -> Result<Connection> {
        let grpc = match (self.protocol.as_str(), &config.grpc, self.address.strip_prefix("unix://")) {
            ("ttrpc", ..) => None,
            ("grpc", Some(shims), Some(path)) => Some((shims, Path::new(path))),
            (protocol, ..) => {
                return Err(Error::not_implemented(format!("shims that speak {protocol} ({self})")));
            }
        };
        let connecting = async {
            Ok(match grpc {
                None => Connection::Ttrpc(Client::new(self.dial().await?)),
                Some((shims, path)) => Connection::Grpc(shims.connect(path).await?),
            })
        };
        tokio::time::timeout(timeout, connecting)
            .await
            .unwrap_or_else(|_| Err(Error::new(ErrorClass::DeadlineExceeded, "")))
            .with_context(|| format!("failed to connect to shim at {self}"))
    }

    async fn dial(&self) -> Result<UnixStream> {
        match self.address.split_once("://") {
            Some(("unix", path)) => dial_path(Path::new(path)).await,
            Some(("hvsock", address)) => dial_hybrid(address).await,
            Some((scheme, _)) => Err(Error::not_implemented(format!("shim addresses of scheme {scheme}"))),
            None => dial_abstract(&self.address),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.protocol, self.address)
    }
}

async fn dial_path(path: &Path) -> Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            // The shim has not accepted its other connections yet.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                tokio::time::sleep(BACKLOG_PAUSE).await;
            }
            result => return result.with_context(|| format!("dial unix {}", path.display())),
        }
    }
}

fn dial_abstract(name: &str) -> Result<UnixStream> {
    let name = name.trim_start_matches('\0');
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    let stream = std::os::unix::net::UnixStream::connect_addr(&address)
        .with_context(|| format!("dial abstract socket {name}"))?;
    stream.set_nonblocking(true)?;
    Ok(UnixStream::from_std(stream)?)
}

/// A socket of a virtual machine monitor, which wants to be told the port in the machine.
async fn dial_hybrid(address: &str) -> Result<UnixStream> {
    const MAX_REPLY: usize = 64;
    let (path, port) = address
        .rsplit_once(':')
        .ok_or_else(|| Error::invalid_argument(format!("hvsock address {address:?} without a port")))?;
    let mut stream = dial_path(Path::new(path)).await?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let mut reply = Vec::new();
    while reply.last() != Some(&b'\n') && reply.len() < MAX_REPLY {
        reply.push(stream.read_u8().await?);
    }
    let reply = String::from_utf8_lossy(&reply);
    if !reply.contains("OK") {
        return Err(Error::unavailable(format!("hvsock {address}: {}", reply.trim())));
    }
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_three_forms_are_told_apart() {
        let expected = Endpoint {
            version: 3,
            address: "unix:///run/containerd/s/x".into(),
            protocol: "ttrpc".into(),
            ..Endpoint::default()
        };
        let protobuf = BootstrapResult {
            version: 3,
            address: expected.address.clone(),
            protocol: "ttrpc".into(),
            ..BootstrapResult::default()
        };
        assert_eq!(Endpoint::parse(&protobuf.encode_to_vec()).unwrap(), expected);
        let json = br#"{"version":3,"address":"unix:///run/containerd/s/x","protocol":"ttrpc"}"#;
        assert_eq!(Endpoint::parse(json).unwrap(), expected);
        assert_eq!(expected.to_json(), json);
        let old = Endpoint::parse(b"unix:///run/containerd/s/x\n").unwrap();
        assert_eq!(old, Endpoint { version: 2, ..expected });
        assert_eq!(old.to_string(), "ttrpc+unix:///run/containerd/s/x");
    }

    #[test]
    fn a_version_from_the_future_is_refused() {
        let error =
            Endpoint::parse(br#"{"version":4,"address":"unix:///a","protocol":"ttrpc"}"#).unwrap_err();
        assert_eq!(error.class(), ErrorClass::NotImplemented);
        assert!(error.message().starts_with("unsupported shim version (4)"));
        assert!(Endpoint::parse(b"").is_err());
        assert!(Endpoint::parse(b"\n").is_err());
    }

    #[test]
    fn another_boot_is_recognised() {
        let endpoint = Endpoint::parse(b"unix:///a").unwrap();
        assert!(!endpoint.is_of_another_boot(), "unknown");
        let mut endpoint = Endpoint::parse(&endpoint.stamped().to_json()).unwrap();
        assert!(!endpoint.is_of_another_boot());
        endpoint.metadata.insert(BOOT_KEY.into(), "another".into());
        assert!(endpoint.is_of_another_boot());
    }

    proptest! {
        #[test]
        fn protobuf_results_survive_whatever_bytes_end_them(
            address in "[a-z/]{1,20}[ \n\t]{0,3}",
            value in "[ -~\n]{0,20}",
        ) {
            let result = BootstrapResult {
                version: 3,
                address: address.clone(),
                metadata: [("k".to_owned(), value.clone())].into(),
                ..BootstrapResult::default()
            };
            let endpoint = Endpoint::parse(&result.encode_to_vec()).unwrap();
            prop_assert_eq!(&endpoint.address, &address);
            prop_assert_eq!(&endpoint.metadata["k"], &value);
        }

        #[test]
        fn anything_else_is_an_address_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(endpoint) = Endpoint::parse(&bytes) {
                prop_assert!((2..=3).contains(&endpoint.version) && !endpoint.address.is_empty());
            }
        }
    }
}
