//! `snapshots`.

use clap::{Args, Subcommand};
use corten_api::services::snapshots as api;
use corten_types::{Result, ResultExt};

use crate::client::{Daemon, error};
use crate::output::Table;

/// Snapshots.
#[derive(Debug, Args)]
pub struct Snapshots {
    /// The snapshotter.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = "overlayfs")]
    snapshotter: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List them.
    #[command(visible_alias = "ls")]
    List,
    /// Remove them.
    #[command(visible_alias = "rm", aliases = ["del", "remove"])]
    Delete { keys: Vec<String> },
    /// What they take on disk.
    Usage {
        /// Exact bytes.
        #[arg(short)]
        bytes: bool,
        keys: Vec<String>,
    },
}

impl Snapshots {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        let snapshotter = self.snapshotter;
        match self.command {
            Command::List => {
                let mut table = Table::tight(&["KEY", "PARENT", "KIND"]);
                for info in list(daemon, &snapshotter).await? {
                    let kind = match info.kind() {
                        api::Kind::Active => "Active",
                        api::Kind::Committed => "Committed",
                        api::Kind::View => "View",
                        api::Kind::Unknown => "Unknown",
                    };
                    table.row([info.name, info.parent, kind.into()]);
                }
                table.print()
            }
            Command::Delete { keys } => {
                for key in keys {
                    let request =
                        api::RemoveSnapshotRequest { snapshotter: snapshotter.clone(), key: key.clone() };
                    let removed = daemon.snapshots().remove(request).await.map_err(error);
                    removed.with_context(|| format!("failed to remove {key:?}"))?;
                }
                Ok(())
            }
            Command::Usage { bytes, keys } => {
                let keys = if keys.is_empty() {
                    list(daemon, &snapshotter).await?.into_iter().map(|info| info.name).collect()
                } else {
                    keys
                };
                let mut table = Table::tight(&["KEY", "SIZE", "INODES"]);
                for key in keys {
                    let request = api::UsageRequest { snapshotter: snapshotter.clone(), key: key.clone() };
                    let usage = daemon.snapshots().usage(request).await.map_err(error)?.into_inner();
                    let size =
                        if bytes { usage.size.to_string() } else { crate::output::binary_size(usage.size) };
                    table.row([key, size, usage.inodes.to_string()]);
                }
                table.print()
            }
        }
    }
}

async fn list(daemon: &Daemon, snapshotter: &str) -> Result<Vec<api::Info>> {
    let request = api::ListSnapshotsRequest { snapshotter: snapshotter.into(), filters: Vec::new() };
    let mut stream = daemon.snapshots().list(request).await.map_err(error)?.into_inner();
    let mut found = Vec::new();
    while let Some(block) = stream.message().await.map_err(error)? {
        found.extend(block.info);
    }
    Ok(found)
}
