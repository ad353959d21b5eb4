//! `snapshots`.

use clap::{Args, Subcommand};
use corten_api::services::snapshots as api;
use corten_api::types::Mount;
use corten_types::{Error, Labels, Result, ResultExt, timestamp};
use serde_json::json;

use crate::client::{Daemon, error};
use crate::commands::Shown;
use crate::commands::{snapshot_diff, unpack};
use crate::container::labels;
use crate::json::{Document, object, print};
use crate::output::{self, Format, Table};

/// Label that keeps a snapshot although nothing refers to it.
pub const ROOT: &str = "containerd.io/gc.root";

/// Snapshots.
#[derive(Debug, Args)]
pub struct Snapshots {
    /// The snapshotter; empty for the daemon's default.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = "")]
    snapshotter: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an active one a committed one of this name.
    Commit { key: String, active: String },
    /// What one changes, as a layer; against its parent or another one.
    Diff(snapshot_diff::Diff),
    /// All about one, as JSON.
    Info { key: String },
    /// List them.
    #[command(visible_alias = "ls")]
    List(Shown),
    /// The commands that mount one.
    #[command(visible_aliases = ["m", "mount"])]
    Mounts { target: String, key: String },
    /// Make a writable one on a committed one.
    Prepare(Made),
    /// Remove them.
    #[command(visible_aliases = ["del", "remove", "rm"])]
    Delete {
        #[arg(value_name = "KEY")]
        keys: Vec<String>,
    },
    /// Set labels; an empty value removes one.
    Label {
        #[arg(default_value = "")]
        name: String,
        #[arg(value_name = "[KEY=VALUE...]")]
        labels: Vec<String>,
    },
    /// Show what stands on what.
    Tree,
    /// Make snapshots of a manifest's layers.
    Unpack(unpack::Unpack),
    /// What they take on disk.
    Usage {
        /// Exact bytes.
        #[arg(short)]
        b: bool,
        /// How to show them.
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
        #[arg(value_name = "[KEY...]")]
        keys: Vec<String>,
    },
    /// Make one that is only read, on a committed one.
    View(Made),
}

/// A snapshot to be made.
#[derive(Debug, Args)]
struct Made {
    /// Print the commands that mount it there.
    #[arg(short, long)]
    target: Option<String>,
    /// Print its mounts as JSON.
    #[arg(long)]
    mounts: bool,
    key: String,
    #[arg(default_value = "", value_name = "[PARENT]")]
    parent: String,
}

impl Snapshots {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        let snapshotter = crate::container::snapshotter(daemon, &self.snapshotter).await?;
        match self.command {
            Command::Commit { key, active } => {
                let request = api::CommitSnapshotRequest {
                    snapshotter,
                    name: key,
                    key: active,
                    labels: rooted(),
                    ..Default::default()
                };
                daemon.snapshots().commit(request).await.map_err(error).map(drop)
            }
            Command::Diff(diff) => diff.run(daemon, &snapshotter).await,
            Command::Info { key } => info(daemon, &snapshotter, &key).await,
            Command::List(shown) => {
                let mut table = Table::tight(&["KEY", "PARENT", "KIND"]);
                for info in list(daemon, &snapshotter).await? {
                    let kind = kind(&info).to_owned();
                    table.row([info.name, info.parent, kind]);
                }
                table.show_as(&shown)
            }
            Command::Mounts { target, key } => {
                let request = api::MountsRequest { snapshotter, key };
                let mounts = daemon.snapshots().mounts(request).await.map_err(error)?.into_inner().mounts;
                commands(&mounts, &target);
                Ok(())
            }
            Command::Prepare(made) => {
                let request = api::PrepareSnapshotRequest {
                    snapshotter,
                    key: made.key.clone(),
                    parent: made.parent.clone(),
                    labels: rooted(),
                };
                let mounts = daemon.snapshots().prepare(request).await.map_err(error)?.into_inner().mounts;
                made.show(&mounts);
                Ok(())
            }
            Command::View(made) => {
                let request = api::ViewSnapshotRequest {
                    snapshotter,
                    key: made.key.clone(),
                    parent: made.parent.clone(),
                    labels: Labels::new(),
                };
                let mounts = daemon.snapshots().view(request).await.map_err(error)?.into_inner().mounts;
                made.show(&mounts);
                Ok(())
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
            Command::Label { name, labels } => label(daemon, &snapshotter, &name, &labels).await,
            Command::Tree => tree(&list(daemon, &snapshotter).await?),
            Command::Unpack(unpack) => unpack.run(daemon, &snapshotter).await,
            Command::Usage { b, format, keys } => usage(daemon, &snapshotter, b, format, keys).await,
        }
    }
}

/// What one makes by hand stays until it is removed by hand.
fn rooted() -> Labels {
    [(ROOT.to_owned(), output::local_time(std::time::SystemTime::now()))].into()
}

impl Made {
    fn show(&self, mounts: &[Mount]) {
        if let Some(target) = &self.target {
            commands(mounts, target);
        }
        if self.mounts {
            let mount = |one: &Mount| {
                object([
                    ("Type", one.r#type.clone().into()),
                    ("Source", one.source.clone().into()),
                    ("Target", one.target.clone().into()),
                    ("Options", json!(one.options).into()),
                ])
            };
            print(&Document::Array(mounts.iter().map(mount).collect()));
        }
    }
}

fn commands(mounts: &[Mount], target: &str) {
    for mount in mounts {
        let path = match mount.target.is_empty() {
            true => target.to_owned(),
            false => {
                std::path::Path::new(target).join(mount.target.trim_start_matches('/')).display().to_string()
            }
        };
        println!("mount -t {} {} {path} -o {}", mount.r#type, mount.source, mount.options.join(","));
    }
}

fn kind(info: &api::Info) -> &'static str {
    match info.kind() {
        api::Kind::Active => "Active",
        api::Kind::Committed => "Committed",
        api::Kind::View => "View",
        api::Kind::Unknown => "Unknown",
    }
}

/// A snapshot.
pub async fn stat(daemon: &Daemon, snapshotter: &str, key: &str) -> Result<api::Info> {
    let request = api::StatSnapshotRequest { snapshotter: snapshotter.into(), key: key.into() };
    let found = daemon.snapshots().stat(request).await.map_err(error)?.into_inner();
    found.info.ok_or_else(|| Error::not_found(format!("snapshot {key}")))
}

async fn info(daemon: &Daemon, snapshotter: &str, key: &str) -> Result<()> {
    let info = stat(daemon, snapshotter, key).await?;
    let time = |at: Option<prost_types::Timestamp>| {
        Document::from(timestamp::rfc3339(timestamp::to_system(&at.unwrap_or_default())))
    };
    let mut fields: Vec<(&str, Document)> = vec![("Kind", kind(&info).into()), ("Name", info.name.into())];
    if !info.parent.is_empty() {
        fields.push(("Parent", info.parent.into()));
    }
    if !info.labels.is_empty() {
        fields.push(("Labels", json!(info.labels).into()));
    }
    fields.extend([("Created", time(info.created_at)), ("Updated", time(info.updated_at))]);
    print(&Document::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()));
    Ok(())
}

async fn label(daemon: &Daemon, snapshotter: &str, name: &str, given: &[String]) -> Result<()> {
    let labels = labels(given);
    let info = if labels.is_empty() {
        stat(daemon, snapshotter, name).await?
    } else {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let request = api::UpdateSnapshotRequest {
            snapshotter: snapshotter.into(),
            info: Some(api::Info { name: name.into(), labels, ..Default::default() }),
            update_mask: Some(prost_types::FieldMask { paths }),
        };
        daemon.snapshots().update(request).await.map_err(error)?.into_inner().info.unwrap_or_default()
    };
    println!("{}", output::labels(&info.labels, ""));
    Ok(())
}

/// All snapshots.
pub async fn list(daemon: &Daemon, snapshotter: &str) -> Result<Vec<api::Info>> {
    let request = api::ListSnapshotsRequest { snapshotter: snapshotter.into(), filters: Vec::new() };
    let mut stream = daemon.snapshots().list(request).await.map_err(error)?.into_inner();
    let mut found = Vec::new();
    while let Some(block) = stream.message().await.map_err(error)? {
        found.extend(block.info);
    }
    Ok(found)
}

/// Prints each snapshot below its parent; depth is held on a list, chains may be long.
fn tree(all: &[api::Info]) -> Result<()> {
    let known: std::collections::HashSet<&str> = all.iter().map(|info| info.name.as_str()).collect();
    let mut children: std::collections::HashMap<&str, Vec<&str>> = std::collections::HashMap::new();
    let mut waiting = Vec::new();
    for info in all.iter().rev() {
        match known.contains(info.parent.as_str()) {
            true => children.entry(&info.parent).or_default().push(&info.name),
            false => waiting.push((0, info.name.as_str())),
        }
    }
    while let Some((depth, name)) = waiting.pop() {
        match depth {
            0 => println!(" {name}"),
            _ => println!("{:width$}\\_ {name}", "", width = depth * 2),
        }
        waiting.extend(children.remove(name).unwrap_or_default().into_iter().map(|child| (depth + 1, child)));
    }
    Ok(())
}

async fn usage(
    daemon: &Daemon,
    snapshotter: &str,
    bytes: bool,
    format: Format,
    keys: Vec<String>,
) -> Result<()> {
    let keys = match keys.is_empty() {
        true => list(daemon, snapshotter).await?.into_iter().map(|info| info.name).collect(),
        false => keys,
    };
    let mut table = Table::tight(&["KEY", "SIZE", "INODES"]);
    for key in keys {
        let request = api::UsageRequest { snapshotter: snapshotter.into(), key: key.clone() };
        let usage = daemon.snapshots().usage(request).await.map_err(error)?.into_inner();
        let size = if bytes { usage.size.to_string() } else { output::binary_size(usage.size) };
        table.row([key, size, usage.inodes.to_string()]);
    }
    table.show(format)
}
