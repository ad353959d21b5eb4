//! `inspect`: all about what has a name, wherever it is.

use clap::Args;
use corten_api::services::{images, tasks as api};
use corten_types::{Error, Result, timestamp};
use serde_json::json;

use crate::client::{Daemon, error};
use crate::commands::{containers, snapshots};
use crate::json::{Document, object};
use crate::output::Format;

/// All about containers, tasks, images or snapshots of a name, as JSON.
#[derive(Debug, Args)]
pub struct Inspect {
    /// json, or yaml.
    #[arg(long, value_enum, default_value = "json")]
    format: Format,
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

impl Inspect {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        let mut all = Vec::new();
        for name in &self.names {
            all.push(about(daemon, name).await?);
        }
        self.format.show(&Document::Array(all));
        Ok(())
    }
}

/// All that has a name.
pub async fn about(daemon: &Daemon, name: &str) -> Result<Document> {
    let found = [task(daemon, name).await?, image(daemon, name).await?];
    let found: Vec<(String, Document)> = found.into_iter().flatten().collect();
    if found.is_empty() {
        let text = format!("container or image {name:?} in namespace {:?}", daemon.namespace);
        return Err(Error::not_found(text).with_hint("`ctr containers ls` and `ctr images ls` list them"));
    }
    let mut fields = vec![("name".to_owned(), Document::from(name.to_owned()))];
    fields.extend(found);
    Ok(Document::Object(fields))
}

fn known<T>(found: Result<T>) -> Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(missing) if missing.is_not_found() => Ok(None),
        Err(failed) => Err(failed),
    }
}

/// A container, its process and its snapshot.
async fn task(daemon: &Daemon, id: &str) -> Result<Option<(String, Document)>> {
    let found = containers::get(daemon, id).await;
    // Names of images are no ids of containers.
    let found = found.map_err(|failed| match failed.class() {
        corten_types::ErrorClass::InvalidArgument => Error::not_found(failed.message()),
        _ => failed,
    });
    let Some(container) = known(found)? else { return Ok(None) };
    let get = api::GetRequest { container_id: id.into(), exec_id: String::new() };
    let process = known(daemon.tasks().get(get).await.map_err(error))?;
    let process = process.and_then(|found| found.into_inner().process);
    let task = process.map_or(serde_json::Value::Null.into(), |process| {
        object([
            ("status", process.status().as_str_name().to_lowercase().into()),
            ("pid", process.pid.into()),
            ("exit_status", process.exit_status.into()),
            ("stdout", process.stdout.into()),
        ])
    });
    let mut snapshot = Document::from(serde_json::Value::Null);
    if !container.snapshot_key.is_empty()
        && let Some(info) =
            known(snapshots::stat(daemon, &container.snapshotter, &container.snapshot_key).await)?
    {
        snapshot = object([
            ("snapshotter", container.snapshotter.clone().into()),
            ("key", info.name.into()),
            ("parent", info.parent.into()),
        ]);
    }
    let created = timestamp::to_system(&container.created_at.unwrap_or_default());
    let spec = serde_json::from_slice(&container.spec.unwrap_or_default().value).unwrap_or_default();
    let about = object([
        ("image", container.image.into()),
        ("runtime", container.runtime.unwrap_or_default().name.into()),
        ("created", timestamp::rfc3339(created).into()),
        ("labels", json!(container.labels).into()),
        ("task", task),
        ("snapshot", snapshot),
        ("spec", Document::spec(spec)),
    ]);
    Ok(Some(("container".into(), about)))
}

async fn image(daemon: &Daemon, name: &str) -> Result<Option<(String, Document)>> {
    let request = images::GetImageRequest { name: name.into() };
    let found = known(daemon.images().get(request).await.map_err(error))?;
    let Some(image) = found.and_then(|found| found.into_inner().image) else { return Ok(None) };
    let target = image.target.unwrap_or_default();
    let about = object([
        ("type", target.media_type.into()),
        ("digest", target.digest.into()),
        ("size", target.size.into()),
        ("labels", json!(image.labels).into()),
    ]);
    Ok(Some(("image".into(), about)))
}
