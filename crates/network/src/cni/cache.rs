//! What was attached is kept in files, for those who detach, perhaps another process after a crash: libcni's format
//! (spec 06 §2.4), so that both understand it. A record without a result is that of an attempt.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use corten_types::{Error, Result, ResultExt};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Attachment, NetworkConfig};

const KIND: &str = "cniCacheV1";

/// A record.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    kind: String,
    pub container_id: String,
    /// The network's configuration, base64.
    config: String,
    pub if_name: String,
    pub network_name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub netns: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cni_args: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub capability_args: Map<String, Value>,
    /// The plugins' last result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
}

impl Record {
    pub fn new(network: &NetworkConfig, attachment: &Attachment<'_>, result: Option<Value>) -> Self {
        Self {
            kind: KIND.into(),
            container_id: attachment.container_id.into(),
            config: STANDARD.encode(&network.bytes),
            if_name: attachment.ifname.into(),
            network_name: network.name.clone(),
            netns: attachment.netns.into(),
            cni_args: attachment.args.to_vec(),
            capability_args: attachment.capabilities.clone(),
            result,
        }
    }

    /// The configuration that it was attached with.
    pub fn config(&self) -> Result<NetworkConfig> {
        let bytes = STANDARD.decode(&self.config).map_err(|error| Error::unknown(error.to_string()))?;
        NetworkConfig::from_list(&bytes, None)
    }

    /// Durable: it is there after a loss of power. If not, there is all of it, or nothing that can be read.
    pub fn write(&self, folder: &Path, durable: bool) -> Result<()> {
        if !folder.is_dir() {
            corten_durable::create_folders(folder).with_context(|| format!("mkdir {}", folder.display()))?;
            let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            std::fs::set_permissions(folder, private)?;
        }
        let path = path(folder, &self.network_name, &self.container_id, &self.if_name);
        let data = serde_json::to_vec(self).map_err(|error| Error::internal(error.to_string()))?;
        let done =
            if durable { corten_durable::write_file(&path, &data, 0o600) } else { replace(&path, &data) };
        done.with_context(|| format!("write {}", path.display()))
    }

    /// Nothing when there is none, or it cannot be read.
    pub fn read(folder: &Path, network: &str, container: &str, ifname: &str) -> Option<Self> {
        Self::load(&path(folder, network, container, ifname))
    }

    fn load(path: &Path) -> Option<Self> {
        let record: Self = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        (record.kind == KIND).then_some(record)
    }

    /// The records of a network.
    pub fn all(folder: &Path, network: &str) -> Result<Vec<Self>> {
        let entries = match std::fs::read_dir(folder) {
            Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.with_context(|| format!("open {}", folder.display()))?,
        };
        let begin = format!("{network}-");
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&begin)
                && let Some(record) = Self::load(&entry.path())
                // Another network's name may begin with this one's.
                && record.network_name == network
            {
                found.push(record);
            }
        }
        Ok(found)
    }

    /// Removes the files of a folder that are no records, or not yet; nobody may be writing one.
    pub fn remove_unreadable(folder: &Path) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if Self::load(&entry.path()).is_none() {
                std::fs::remove_file(entry.path()).ok();
            }
        }
    }

    pub fn remove(folder: &Path, network: &str, container: &str, ifname: &str) -> Result<()> {
        let path = path(folder, network, container, ifname);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context(format!("remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Only one writes the record of an attachment at a time.
fn replace(path: &Path, data: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let new = path.with_file_name(format!(".{}", path.file_name().unwrap_or_default().to_string_lossy()));
    let mut file = std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    std::io::Write::write_all(&mut file, data)?;
    std::fs::rename(&new, path)
}

fn path(folder: &Path, network: &str, container: &str, ifname: &str) -> PathBuf {
    folder.join(format!("{network}-{container}-{ifname}"))
}
