//! `images mount` and `images unmount`.

use std::path::Path;
use std::time::Duration;

use clap::Args;
use corten_api::services::{leases as lease_api, snapshots};
use corten_types::{Error, Labels, Mount, Platform, Result, ResultExt};

use crate::client::{Daemon, error};
use crate::commands::leases;
use crate::container::image::{find, unpack};
use crate::container::snapshotter;
use crate::registry::Registry;

/// What both commands have.
#[derive(Debug, Args)]
struct MountFlags {
    #[command(flatten)]
    _registry: Registry,
    /// The snapshotter.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = "")]
    snapshotter: String,
    /// As the original has it; mounts have no labels.
    #[arg(long = "label")]
    _labels: Vec<String>,
}

/// Mount an image's files on a folder.
#[derive(Debug, Args)]
pub struct ImageMount {
    #[command(flatten)]
    flags: MountFlags,
    /// So that they can be changed.
    #[arg(long)]
    rw: bool,
    /// For which platform, os/arch.
    #[arg(long)]
    platform: Option<String>,
    /// Everything that is unpacked is on the disk afterwards.
    #[arg(long)]
    sync_fs: bool,
    /// How long the files are kept should nobody unmount them.
    #[arg(short = 'x', long, default_value = "24h0m0s", value_parser = crate::duration)]
    expiration: Duration,
    #[arg(default_value = "", value_name = "IMAGE")]
    name: String,
    #[arg(default_value = "", value_name = "TARGET")]
    target: String,
}

impl ImageMount {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        if self.name.is_empty() {
            return Err(Error::unknown("please provide an image reference to mount"));
        }
        if self.target.is_empty() {
            return Err(Error::unknown("please provide a target path to mount to"));
        }
        let platform = match &self.platform {
            Some(text) => text.parse()?,
            None => Platform::host(),
        };
        let snapshotter = snapshotter(daemon, &self.flags.snapshotter).await?;
        let image = find(daemon, &self.name, &platform).await?;
        let kept =
            Labels::from([(format!("containerd.io/gc.ref.snapshot.{snapshotter}"), self.target.clone())]);
        match leases::create(daemon, Some(self.target.clone()), self.expiration, kept).await {
            Err(failed) if !failed.is_already_exists() => return Err(failed),
            _ => {}
        }
        let leased = daemon.leased(&self.target)?;
        unpack(&leased, &image, &snapshotter, self.sync_fs).await.context("error unpacking image")?;
        let chain = image.chain().pop().unwrap_or_default();
        println!("{chain}");
        let mounts = self.snapshot(&leased, &snapshotter, &chain).await?;
        if let Err(failed) = corten_mounts::mount_all(&mounts, Path::new(&self.target)) {
            remove(daemon, &snapshotter, &self.target).await.ok();
            return Err(failed);
        }
        println!("{}", self.target);
        Ok(())
    }

    /// The mounts of the snapshot that is named after the target, made if need be.
    async fn snapshot(&self, daemon: &Daemon, snapshotter: &str, chain: &str) -> Result<Vec<Mount>> {
        let (snapshotter, key, parent) = (snapshotter.to_owned(), self.target.clone(), chain.to_owned());
        let made = if self.rw {
            let request = snapshots::PrepareSnapshotRequest {
                snapshotter: snapshotter.clone(),
                key: key.clone(),
                parent,
                ..Default::default()
            };
            daemon.snapshots().prepare(request).await.map(|made| made.into_inner().mounts)
        } else {
            let request = snapshots::ViewSnapshotRequest {
                snapshotter: snapshotter.clone(),
                key: key.clone(),
                parent,
                ..Default::default()
            };
            daemon.snapshots().view(request).await.map(|made| made.into_inner().mounts)
        };
        let mounts = match made.map_err(error) {
            Err(known) if known.is_already_exists() => {
                let request = snapshots::MountsRequest { snapshotter, key };
                daemon.snapshots().mounts(request).await.map_err(error)?.into_inner().mounts
            }
            other => other?,
        };
        Ok(mounts.into_iter().map(Mount::from).collect())
    }
}

/// Take an image's files from a folder.
#[derive(Debug, Args)]
pub struct ImageUnmount {
    #[command(flatten)]
    flags: MountFlags,
    /// Remove the files' snapshot too.
    #[arg(long)]
    rm: bool,
    #[arg(default_value = "", value_name = "TARGET")]
    target: String,
}

impl ImageUnmount {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        if self.target.is_empty() {
            return Err(Error::unknown("please provide a target path to unmount from"));
        }
        corten_mounts::unmount_all(Path::new(&self.target))?;
        if self.rm {
            let snapshotter = snapshotter(daemon, &self.flags.snapshotter).await?;
            remove(daemon, &snapshotter, &self.target).await?;
        }
        println!("{}", self.target);
        Ok(())
    }
}

/// Removes the snapshot and the lease that are named after a target; those that are gone are no error.
async fn remove(daemon: &Daemon, snapshotter: &str, target: &str) -> Result<()> {
    let gone = |failed: &Error| failed.is_not_found();
    let request = snapshots::RemoveSnapshotRequest { snapshotter: snapshotter.into(), key: target.into() };
    let removed = daemon.snapshots().remove(request).await.map_err(error);
    let request = lease_api::DeleteRequest { id: target.into(), sync: false };
    let deleted = daemon.leases().delete(request).await.map_err(error);
    for failed in [removed.err(), deleted.err()].into_iter().flatten() {
        if !gone(&failed) {
            return Err(failed);
        }
    }
    Ok(())
}
