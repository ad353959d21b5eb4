//! Files of a container: its root file system, and trees of it as archives.
//!
//! Names and links in a container are hostile: everything goes through directory handles, and no link leads out of
//! the container, or out of the folder that files are copied to.

mod pack;
mod unpack;

use std::path::{Path, PathBuf};

use corten_api::services::containers::Container;
use corten_api::services::{snapshots, tasks};
use corten_api::task_types::Status;
use corten_mounts::TempMount;
use corten_sys::detached_clone;
use corten_tree::Root;
use corten_types::{Error, Mount, Result, ResultExt};
use rustix::fs::CWD;
use serde_json::Value;

use crate::client::{Daemon, error};

pub use pack::pack;
pub use unpack::{Taken, unpack};

/// Where file systems are mounted for a moment.
const FOLDER: &str = "/run/containerd/ctr";

/// The root file system of a container.
#[derive(Debug)]
pub struct RootFs {
    pub root: Root,
    /// Who root of the container is here.
    pub owner: (u32, u32),
}

impl RootFs {
    /// That which the processes of a container see, or that of a container that does not run: its snapshot.
    ///
    /// # Errors
    /// NotFound without container; those of the kernel.
    pub async fn open(daemon: &Daemon, container: &Container) -> Result<Self> {
        let spec: Value =
            serde_json::from_slice(&container.spec.clone().unwrap_or_default().value).unwrap_or_default();
        let owner = (host_id(&spec, "uidMappings"), host_id(&spec, "gidMappings"));
        if let Some(pid) = pid(daemon, &container.id).await? {
            let path = PathBuf::from(format!("/proc/{pid}/root"));
            let root = Root::open(&path).with_context(|| format!("open {}", path.display()))?;
            return Ok(Self { root, owner });
        }
        if container.snapshot_key.is_empty() {
            let path = spec["root"]["path"].as_str().unwrap_or_default();
            let root = Root::open(Path::new(path)).with_context(|| format!("open {path}"))?;
            return Ok(Self { root, owner });
        }
        let request = snapshots::MountsRequest {
            snapshotter: container.snapshotter.clone(),
            key: container.snapshot_key.clone(),
        };
        let mounts = daemon.snapshots().mounts(request).await.map_err(error)?.into_inner().mounts;
        Ok(Self { root: mounted(&mounts)?, owner })
    }
}

/// Mounts what a snapshotter answered, for as long as the handle is open: it has no place that outlives this program,
/// however it ends.
pub fn mounted(mounts: &[corten_api::types::Mount]) -> Result<Root> {
    let mounts: Vec<Mount> = mounts.iter().cloned().map(Into::into).collect();
    let mount =
        TempMount::new(Path::new(FOLDER), &mounts).map_err(|failed| {
            match rustix::process::geteuid().is_root() {
                true => failed,
                false => failed.with_hint("only root may mount a container's file system"),
            }
        })?;
    let path = mount.path().display().to_string();
    let tree = detached_clone(CWD, mount.path().as_os_str(), true).with_context(|| path.clone())?;
    mount.close().with_context(|| path)?;
    Ok(Root::of(tree))
}

/// The process of a container that has one.
async fn pid(daemon: &Daemon, id: &str) -> Result<Option<u32>> {
    let request = tasks::GetRequest { container_id: id.into(), exec_id: String::new() };
    match daemon.tasks().get(request).await.map_err(error) {
        Ok(found) => {
            let process = found.into_inner().process.unwrap_or_default();
            let lives = matches!(process.status(), Status::Created | Status::Running | Status::Paused);
            Ok(Some(process.pid).filter(|pid| lives && *pid > 0))
        }
        Err(missing) if missing.is_not_found() => Ok(None),
        Err(failed) => Err(failed),
    }
}

/// The id here of the id 0 in a container.
fn host_id(spec: &Value, maps: &str) -> u32 {
    let maps = spec["linux"][maps].as_array().map(Vec::as_slice).unwrap_or_default();
    let root = maps.iter().find(|map| map["containerID"] == 0);
    root.and_then(|map| map["hostID"].as_u64()?.try_into().ok()).unwrap_or(0)
}

/// An error of the kernel about a path.
fn about(path: &Path, error: impl Into<std::io::Error>) -> Error {
    Error::from(error.into()).context(path.display().to_string())
}
