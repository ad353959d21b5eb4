//! `containers`.

use std::collections::HashMap;

use clap::{Args, Subcommand};
use corten_api::keys;
use corten_api::services::{containers as api, snapshots, tasks};
use corten_api::task_types::Status;
use corten_types::{Any, Error, ErrorClass, Result, timestamp};
use serde_json::{Value, json};

use crate::client::{Daemon, error};
use crate::commands::{Listing, checkpoints};
use crate::container::{ContainerFlags, labels, network};
use crate::json::{Document, object, print};
use crate::output::{self, Table};

/// Records of containers.
#[derive(Debug, Subcommand)]
pub enum Containers {
    /// Make one, without running it.
    Create(Box<Create>),
    /// Remove them, with their snapshots.
    #[command(visible_aliases = ["del", "remove", "rm"])]
    Delete {
        /// Leave the snapshots.
        #[arg(long)]
        keep_snapshot: bool,
        #[arg(value_name = "CONTAINER")]
        ids: Vec<String>,
    },
    /// All about one, as JSON.
    Info {
        /// Only its specification.
        #[arg(long)]
        spec: bool,
        #[arg(value_name = "CONTAINER", default_value = "")]
        id: String,
    },
    /// List them.
    #[command(visible_alias = "ls")]
    List(Listing),
    /// Set labels; an empty value removes one.
    Label {
        #[arg(value_name = "CONTAINER", default_value = "")]
        id: String,
        #[arg(value_name = "[KEY=VALUE...]")]
        labels: Vec<String>,
    },
    /// Write its state into an image.
    Checkpoint(checkpoints::Checkpoint),
    /// Make and start one from such an image.
    Restore(checkpoints::Restore),
}

#[derive(Debug, Args)]
pub struct Create {
    #[command(flatten)]
    container: ContainerFlags,
    #[arg(value_name = "IMAGE|ROOTFS CONTAINER [COMMAND] [ARG...]")]
    rest: Vec<String>,
}

impl Containers {
    pub async fn run(self, daemon: &Daemon) -> Result<i32> {
        match self {
            Self::Create(create) => create.container.create(daemon, &create.rest, None).await.map(drop)?,
            Self::List(listing) => list(daemon, listing).await?,
            Self::Delete { keep_snapshot, ids } => delete_all(daemon, &ids, keep_snapshot).await?,
            Self::Info { spec, id } => info(daemon, &id, spec).await?,
            Self::Label { id, labels } => label(daemon, id, &labels).await?,
            Self::Checkpoint(checkpoint) => checkpoint.run(daemon).await?,
            Self::Restore(restore) => return restore.run(daemon).await,
        }
        Ok(0)
    }
}

async fn list(daemon: &Daemon, listing: Listing) -> Result<()> {
    let request = api::ListContainersRequest { filters: listing.filters };
    let found = daemon.containers().list(request).await.map_err(error)?.into_inner().containers;
    if listing.shown.format.is_for_people() && !listing.shown.quiet {
        return list_for_people(daemon, found).await;
    }
    let mut table = Table::wide(&["CONTAINER", "IMAGE", "RUNTIME"]);
    for container in found {
        let image = if container.image.is_empty() { "-".into() } else { container.image };
        table.row([container.id, image, container.runtime.unwrap_or_default().name]);
    }
    table.show_as(&listing.shown)
}

/// What runs of them, and since when they are there.
async fn list_for_people(daemon: &Daemon, found: Vec<api::Container>) -> Result<()> {
    let running = daemon.tasks().list(tasks::ListTasksRequest::default()).await.map_err(error)?.into_inner();
    let states: HashMap<String, Status> =
        running.tasks.into_iter().map(|task| (task.id.clone(), task.status())).collect();
    let mut table = Table::wide(&["CONTAINER", "IMAGE", "STATUS", "CREATED"]);
    for container in found {
        let status = states.get(&container.id).map_or("-".into(), |state| state.as_str_name().to_lowercase());
        let image = if container.image.is_empty() { "-".into() } else { container.image };
        let created = output::age(timestamp::to_system(&container.created_at.unwrap_or_default()));
        table.row([container.id, image, status, format!("{created} ago")]);
    }
    table.print()
}

/// A container.
pub async fn get(daemon: &Daemon, id: &str) -> Result<api::Container> {
    let found = daemon.containers().get(api::GetContainerRequest { id: id.into() }).await;
    // Containers without a name are no question of form here.
    let found = found.map_err(error).map_err(|failed| match id.is_empty() {
        true => Error::not_found(format!("container \"\" in namespace {:?}", daemon.namespace)),
        false => failed,
    })?;
    found.into_inner().container.ok_or_else(|| Error::not_found(format!("container {id:?}")))
}

async fn delete_all(daemon: &Daemon, ids: &[String], keep_snapshot: bool) -> Result<()> {
    if ids.is_empty() {
        return Err(Error::invalid_argument("must specify at least one container to delete"));
    }
    let mut first = Ok(());
    for id in ids {
        if let Err(failed) = delete(daemon, id, keep_snapshot).await {
            crate::log::error(&format!("failed to delete container {id:?}"), &failed);
            first = first.and(Err(failed));
        }
    }
    first
}

/// Removes a container that does not run, and its snapshot.
pub async fn delete(daemon: &Daemon, id: &str, keep_snapshot: bool) -> Result<()> {
    let container = get(daemon, id).await?;
    let request = tasks::GetRequest { container_id: id.into(), exec_id: String::new() };
    match daemon.tasks().get(request).await.map_err(error) {
        Ok(answer) => {
            let process = answer.into_inner().process.unwrap_or_default();
            if !matches!(process.status(), Status::Stopped | Status::Created | Status::Unknown) {
                let text = format!(
                    "cannot delete a non stopped container: {{{} 0 0001-01-01 00:00:00 +0000 UTC}}",
                    process.status().as_str_name().to_lowercase()
                );
                return Err(Error::bare(ErrorClass::Unknown, text));
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
    network::forget(&daemon.namespace, &container.id);
    snapshot
}

async fn label(daemon: &Daemon, id: String, given: &[String]) -> Result<()> {
    if id.is_empty() {
        return Err(Error::invalid_argument("container id must be provided"));
    }
    let labels = labels(given);
    let container = get(daemon, &id).await?;
    if labels.is_empty() {
        println!("{}", output::labels(&container.labels, ""));
        return Ok(());
    }
    let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
    let container = Some(api::Container { id, labels, ..Default::default() });
    let update_mask = Some(prost_types::FieldMask { paths });
    let request = api::UpdateContainerRequest { container, update_mask };
    let changed = daemon.containers().update(request).await.map_err(error)?.into_inner();
    println!("{}", output::labels(&changed.container.unwrap_or_default().labels, ""));
    Ok(())
}

/// A message of some type as the original shows it: its type, its bytes where there are any.
pub fn any(any: &Any) -> Document {
    let mut fields = vec![("type_url".to_owned(), any.type_url.clone().into())];
    if !any.value.is_empty() {
        fields.push(("value".to_owned(), crate::output::base64(&any.value).into()));
    }
    Document::Object(fields)
}

async fn info(daemon: &Daemon, id: &str, only_spec: bool) -> Result<()> {
    if id.is_empty() {
        return Err(Error::invalid_argument("container id must be provided"));
    }
    let container = get(daemon, id).await?;
    let spec = match container.spec.unwrap_or_default() {
        of if of.type_url == keys::SPEC => {
            Document::spec(serde_json::from_slice::<Value>(&of.value).unwrap_or_default())
        }
        other => any(&other),
    };
    if only_spec {
        print(&spec);
        return Ok(());
    }
    let time = |at: Option<prost_types::Timestamp>| {
        Document::from(timestamp::rfc3339(timestamp::to_system(&at.unwrap_or_default())))
    };
    let runtime = container.runtime.unwrap_or_default();
    let extensions: std::collections::BTreeMap<_, _> = container.extensions.into_iter().collect();
    print(&object([
        ("ID", container.id.into()),
        (
            "Labels",
            if container.labels.is_empty() { Value::Null.into() } else { json!(container.labels).into() },
        ),
        ("Image", container.image.into()),
        (
            "Runtime",
            object([
                ("Name", runtime.name.into()),
                ("Options", runtime.options.as_ref().map_or(Value::Null.into(), any)),
            ]),
        ),
        ("SnapshotKey", container.snapshot_key.into()),
        ("Snapshotter", container.snapshotter.into()),
        ("CreatedAt", time(container.created_at)),
        ("UpdatedAt", time(container.updated_at)),
        (
            "Extensions",
            Document::Object(extensions.iter().map(|(key, value)| (key.clone(), any(value))).collect()),
        ),
        ("SandboxID", container.sandbox.into()),
        ("Spec", spec),
    ]));
    Ok(())
}
