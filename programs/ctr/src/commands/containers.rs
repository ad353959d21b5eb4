//! `containers`.

use clap::{Args, Subcommand};
use corten_api::keys;
use corten_api::services::{containers as api, snapshots, tasks};
use corten_types::{Error, Result, timestamp};
use serde_json::{Value, json};

use crate::client::{Daemon, error};
use crate::container::{ContainerFlags, labels};
use crate::output::{self, Table};

/// Records of containers.
#[derive(Debug, Subcommand)]
pub enum Containers {
    /// Make one, without running it.
    Create(Box<Create>),
    /// List them.
    #[command(visible_alias = "ls")]
    List {
        /// Only ids.
        #[arg(short, long)]
        quiet: bool,
        filters: Vec<String>,
    },
    /// Remove them, with their snapshots.
    #[command(visible_alias = "rm", aliases = ["del", "remove"])]
    Delete {
        /// Leave the snapshots.
        #[arg(long)]
        keep_snapshot: bool,
        ids: Vec<String>,
    },
    /// All about one, as JSON.
    Info { id: String },
    /// Set labels; an empty value removes one.
    Label { id: String, labels: Vec<String> },
}

#[derive(Debug, Args)]
pub struct Create {
    #[command(flatten)]
    container: ContainerFlags,
    /// Image or folder, id, command.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

impl Containers {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        match self {
            Self::Create(create) => create.container.create(daemon, &create.rest, None).await.map(drop),
            Self::List { quiet, filters } => list(daemon, quiet, filters).await,
            Self::Delete { keep_snapshot, ids } => {
                let mut first = Ok(());
                for id in ids {
                    let deleted = delete(daemon, &id, keep_snapshot).await;
                    if first.is_ok() {
                        first = deleted;
                    }
                }
                first
            }
            Self::Info { id } => info(daemon, &id).await,
            Self::Label { id, labels: given } => {
                let labels = labels(&given);
                let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
                let container = Some(api::Container { id, labels, ..Default::default() });
                let update_mask = Some(prost_types::FieldMask { paths });
                let request = api::UpdateContainerRequest { container, update_mask };
                let changed = daemon.containers().update(request).await.map_err(error)?.into_inner();
                println!("{}", output::labels(&changed.container.unwrap_or_default().labels, ""));
                Ok(())
            }
        }
    }
}

async fn list(daemon: &Daemon, quiet: bool, filters: Vec<String>) -> Result<()> {
    let found =
        daemon.containers().list(api::ListContainersRequest { filters }).await.map_err(error)?.into_inner();
    let mut table = Table::wide(&["CONTAINER", "IMAGE", "RUNTIME"]);
    for container in found.containers {
        if quiet {
            println!("{}", container.id);
            continue;
        }
        let image = if container.image.is_empty() { "-".into() } else { container.image };
        table.row([container.id, image, container.runtime.unwrap_or_default().name]);
    }
    if quiet { Ok(()) } else { table.print() }
}

/// A container.
pub async fn get(daemon: &Daemon, id: &str) -> Result<api::Container> {
    let found = daemon.containers().get(api::GetContainerRequest { id: id.into() }).await.map_err(error)?;
    found.into_inner().container.ok_or_else(|| Error::not_found(format!("container {id:?}")))
}

/// Removes a container that does not run, and its snapshot.
pub async fn delete(daemon: &Daemon, id: &str, keep_snapshot: bool) -> Result<()> {
    let container = get(daemon, id).await?;
    let request = tasks::GetRequest { container_id: id.into(), exec_id: String::new() };
    match daemon.tasks().get(request).await.map_err(error) {
        Ok(answer) => {
            let process = answer.into_inner().process.unwrap_or_default();
            use corten_api::task_types::Status;
            if !matches!(process.status(), Status::Stopped | Status::Created | Status::Unknown) {
                let text = format!(
                    "cannot delete a non stopped container: {{{} 0 0001-01-01 00:00:00 +0000 UTC}}",
                    process.status().as_str_name().to_lowercase()
                );
                return Err(Error::bare(corten_types::ErrorClass::Unknown, text));
            }
            let request = tasks::DeleteTaskRequest { container_id: id.into() };
            daemon.tasks().delete(request).await.map_err(error)?;
        }
        Err(missing) if missing.is_not_found() => {}
        Err(failed) => return Err(failed),
    }
    remove(daemon, &container, keep_snapshot).await
}

/// Removes record and snapshot at once: both changes share one write to the disk.
pub async fn remove(daemon: &Daemon, container: &api::Container, keep_snapshot: bool) -> Result<()> {
    let snapshot = async {
        if keep_snapshot || container.snapshot_key.is_empty() {
            return Ok(());
        }
        let request = snapshots::RemoveSnapshotRequest {
            snapshotter: container.snapshotter.clone(),
            key: container.snapshot_key.clone(),
        };
        match daemon.snapshots().remove(request).await.map_err(error) {
            Err(failed) if !failed.is_not_found() => Err(failed),
            _ => Ok(()),
        }
    };
    let mut service = daemon.containers();
    let record = service.delete(api::DeleteContainerRequest { id: container.id.clone() });
    let (snapshot, record) = tokio::join!(snapshot, record);
    record.map_err(error)?;
    snapshot
}

async fn info(daemon: &Daemon, id: &str) -> Result<()> {
    let container = get(daemon, id).await?;
    let time = |at: Option<prost_types::Timestamp>| {
        timestamp::rfc3339(timestamp::to_system(&at.unwrap_or_default()))
    };
    let spec = container.spec.unwrap_or_default();
    let spec: Value = match spec.type_url.as_str() {
        keys::SPEC => serde_json::from_slice(&spec.value).unwrap_or_default(),
        other => json!({"type_url": other}),
    };
    let runtime = container.runtime.unwrap_or_default();
    output::json(&json!({
        "ID": container.id, "Labels": container.labels, "Image": container.image,
        "Runtime": {"Name": runtime.name, "Options": runtime.options.map(|any| json!({"type_url": any.type_url}))},
        "SnapshotKey": container.snapshot_key, "Snapshotter": container.snapshotter,
        "CreatedAt": time(container.created_at), "UpdatedAt": time(container.updated_at),
        "SandboxID": container.sandbox, "Spec": spec,
    }))
}
