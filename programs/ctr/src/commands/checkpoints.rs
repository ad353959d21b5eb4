//! Checkpoints: `containers checkpoint`, `containers restore`, `tasks checkpoint`. A checkpoint is an image whose index
//! lists what was kept: the image, the layer of changes, the memory, the specification.

use clap::Args;
use corten_api::services::containers::Container;
use corten_api::services::{containers as records, content, diff, images, snapshots, tasks as api};
use corten_api::transfer_types as objects;
use corten_api::types::Descriptor;
use corten_api::{keys, runc};
use corten_oci::spec::Spec;
use corten_types::{Any, Digest, Error, Labels, Platform, Result, ResultExt, media_type, timestamp};
use prost::Message;
use serde_json::{Value, json};

use crate::client::{Daemon, error};
use crate::commands::images::transfer;
use crate::commands::{containers, content_remote, leases, snapshots as commands, tasks};
use crate::container::image;
use crate::json::{Document, object};
use crate::stdio::Streams;

const MEMORY: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";
const CONFIG: &str = "application/vnd.containerd.container.checkpoint.config.v1+proto";
const RUNTIME: &str = "io.containerd.checkpoint.runtime";
const SNAPSHOTTER: &str = "io.containerd.checkpoint.snapshotter";
const IMAGE: &str = "org.opencontainers.image.ref.name";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Write a container's state into an image.
#[derive(Debug, Args)]
pub struct Checkpoint {
    /// With the layer of changes.
    #[arg(long)]
    rw: bool,
    /// With the image.
    #[arg(long)]
    image: bool,
    /// With the memory of its processes.
    #[arg(long)]
    task: bool,
    #[arg(default_value = "", value_name = "CONTAINER")]
    id: String,
    #[arg(default_value = "", value_name = "REF")]
    reference: String,
}

fn named(id: &str, reference: &str) -> Result<()> {
    match (id, reference) {
        ("", _) => Err(Error::unknown("container id must be provided")),
        (_, "") => Err(Error::unknown("ref must be provided")),
        _ => Ok(()),
    }
}

impl Checkpoint {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        named(&self.id, &self.reference)?;
        let container = containers::get(daemon, &self.id).await?;
        let get = api::GetRequest { container_id: self.id.clone(), exec_id: String::new() };
        let running = match daemon.tasks().get(get).await.map_err(error) {
            Ok(found) => {
                let process = found.into_inner().process.unwrap_or_default();
                process.status() == corten_api::task_types::Status::Running
            }
            Err(missing) if missing.is_not_found() && !self.task => false,
            Err(failed) => return Err(failed),
        };
        if running {
            let request = api::PauseTaskRequest { container_id: self.id.clone() };
            daemon.tasks().pause(request).await.map_err(error)?;
        }
        let made = leases::held(daemon, async |leased| self.parts(leased, &container).await).await;
        if running {
            let request = api::ResumeTaskRequest { container_id: self.id.clone() };
            let resumed = daemon.tasks().resume(request).await.map_err(error);
            made?;
            return resumed.map(drop);
        }
        made
    }

    async fn parts(&self, daemon: &Daemon, container: &Container) -> Result<()> {
        let mut parts = Vec::new();
        if self.image {
            let request = images::GetImageRequest { name: container.image.clone() };
            let found = daemon.images().get(request).await.map_err(error)?.into_inner();
            parts.extend(found.image.and_then(|image| image.target));
        }
        if self.task {
            parts.extend(checkpoint(daemon, &self.id, runc::CheckpointOptions::default()).await?);
        }
        if self.rw {
            parts.push(changes(daemon, container).await?);
        }
        keep(daemon, &self.reference, container, &parts).await
    }
}

/// The layer of what a container has changed.
async fn changes(daemon: &Daemon, container: &Container) -> Result<Descriptor> {
    let (snapshotter, key) = (container.snapshotter.clone(), container.snapshot_key.clone());
    let parent = commands::stat(daemon, &snapshotter, &key).await?.parent;
    let view = format!("{key}-checkpoint-{}", std::process::id());
    let request = snapshots::ViewSnapshotRequest {
        snapshotter: snapshotter.clone(),
        key: view.clone(),
        parent,
        labels: Labels::new(),
    };
    let left = daemon.snapshots().view(request).await.map_err(error)?.into_inner().mounts;
    let made = async {
        let request = snapshots::MountsRequest { snapshotter: snapshotter.clone(), key: key.clone() };
        let right = daemon.snapshots().mounts(request).await.map_err(error)?.into_inner().mounts;
        let request = diff::DiffRequest { left, right, media_type: LAYER.into(), ..Default::default() };
        let made = daemon.diff().diff(request).await.map_err(error)?.into_inner().diff;
        made.ok_or_else(|| Error::internal("no layer was made"))
    }
    .await;
    let request = snapshots::RemoveSnapshotRequest { snapshotter: snapshotter.clone(), key: view };
    daemon.snapshots().remove(request).await.ok();
    made
}

async fn checkpoint(daemon: &Daemon, id: &str, options: runc::CheckpointOptions) -> Result<Vec<Descriptor>> {
    let request = api::CheckpointTaskRequest {
        container_id: id.into(),
        options: Some(corten_api::pack(&options)),
        ..Default::default()
    };
    Ok(daemon.tasks().checkpoint(request).await.map_err(tasks::running)?.into_inner().descriptors)
}

/// Writes the index and gives it a name.
async fn keep(daemon: &Daemon, name: &str, container: &Container, parts: &[Descriptor]) -> Result<()> {
    let runtime = container.runtime.clone().unwrap_or_default().name;
    let host = Platform::host().architecture;
    let part = |one: &Descriptor| {
        let mut fields: Vec<(&str, Document)> = vec![
            ("mediaType", one.media_type.clone().into()),
            ("digest", one.digest.clone().into()),
            ("size", one.size.into()),
        ];
        if !one.annotations.is_empty() {
            fields.push(("annotations", json!(one.annotations).into()));
        }
        // An image says itself what it is for.
        if !media_type::is_manifest(&one.media_type) && !media_type::is_index(&one.media_type) {
            let platform = [("architecture", host.clone().into()), ("os", "linux".into())];
            fields.push(("platform", object(platform)));
        }
        Document::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    };
    let manifests = match parts.is_empty() {
        true => Value::Null.into(),
        false => Document::Array(parts.iter().map(part).collect()),
    };
    let annotations = json!({RUNTIME: runtime, SNAPSHOTTER: container.snapshotter, IMAGE: container.image});
    let index =
        object([("schemaVersion", 2.into()), ("manifests", manifests), ("annotations", annotations.into())]);
    let data = index.text(0).into_bytes();
    let digest = Digest::sha256(&data).to_string();
    let label =
        |(at, one): (usize, &Descriptor)| (format!("containerd.io/gc.ref.content.{at}"), one.digest.clone());
    let size = i64::try_from(data.len()).unwrap_or(i64::MAX);
    let request = content::WriteContentRequest {
        action: content::WriteAction::Commit.into(),
        r#ref: format!("checkpoint-{digest}"),
        total: size,
        expected: digest.clone(),
        labels: parts.iter().enumerate().map(label).collect(),
        data: data.into(),
        ..Default::default()
    };
    let mut written = match daemon.content().write(tokio_stream::once(request)).await.map_err(error) {
        Ok(written) => Some(written.into_inner()),
        Err(known) if known.is_already_exists() => None,
        Err(failed) => return Err(failed),
    };
    while let Some(stream) = &mut written {
        match stream.message().await.map_err(error) {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(known) if known.is_already_exists() => break,
            Err(failed) => return Err(failed),
        }
    }
    let target = Descriptor { media_type: media_type::OCI_INDEX.into(), digest, size, ..Default::default() };
    let image = images::Image { name: name.into(), target: Some(target), ..Default::default() };
    let request = images::CreateImageRequest { image: Some(image), ..Default::default() };
    daemon.images().create(request).await.map_err(error).map(drop)
}

/// Write the state of a container's processes into an image, or a folder.
#[derive(Debug, Args)]
pub struct TaskCheckpoint {
    /// End the container with it.
    #[arg(long)]
    exit: bool,
    /// Folder for CRIU's images.
    #[arg(long, default_value = "")]
    image_path: String,
    /// Folder for CRIU's work files and logs.
    #[arg(long, default_value = "")]
    work_path: String,
    #[arg(default_value = "", value_name = "CONTAINER")]
    id: String,
}

impl TaskCheckpoint {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        if self.id.is_empty() {
            return Err(Error::unknown("container id must be provided"));
        }
        let container = containers::get(daemon, &self.id).await?;
        let options = runc::CheckpointOptions {
            exit: self.exit,
            image_path: self.image_path.clone(),
            work_path: self.work_path.clone(),
            ..Default::default()
        };
        leases::held(daemon, async |daemon| {
            let parts = checkpoint(daemon, &self.id, options).await?;
            if self.image_path.is_empty() {
                let now = timestamp::rfc3339(std::time::SystemTime::now());
                let name = format!("containerd.io/checkpoint/{}:{}", self.id, now.replace(':', "-"));
                keep(daemon, &name, &container, &parts).await?;
                println!("{name}");
            }
            Ok(())
        })
        .await
    }
}

/// Make and start a container from a checkpoint.
#[derive(Debug, Args)]
pub struct Restore {
    /// With the layer of changes.
    #[arg(long)]
    rw: bool,
    /// With the memory of its processes.
    #[arg(long)]
    live: bool,
    #[arg(default_value = "", value_name = "CONTAINER")]
    id: String,
    #[arg(default_value = "", value_name = "REF")]
    reference: String,
}

impl Restore {
    pub async fn run(self, daemon: &Daemon) -> Result<i32> {
        named(&self.id, &self.reference)?;
        leases::held(daemon, async |leased| self.restored(leased).await).await?;
        Ok(0)
    }

    async fn restored(&self, daemon: &Daemon) -> Result<()> {
        let target = match target(daemon, &self.reference).await {
            Err(missing) if missing.is_not_found() => {
                fetch(daemon, &self.reference).await?;
                target(daemon, &self.reference).await?
            }
            found => found?,
        };
        let index = image::read_json(daemon, &target.digest).await?;
        let text = |key: &str| index["annotations"][key].as_str().unwrap_or_default().to_owned();
        let image =
            image::find(daemon, &text(IMAGE), &Platform::host()).await.context("image of the checkpoint")?;
        let spec = self.spec(daemon, &index, &image).await?;
        let mounts = self.prepare(daemon, &index, &image, &text(SNAPSHOTTER)).await?;
        let options = corten_api::pack(&runc::Options::default());
        let container = Container {
            id: self.id.clone(),
            image: text(IMAGE),
            runtime: Some(records::container::Runtime {
                name: text(RUNTIME),
                options: Some(options.clone()),
            }),
            spec: Some(spec),
            snapshotter: text(SNAPSHOTTER),
            snapshot_key: self.id.clone(),
            ..Default::default()
        };
        let request = records::CreateContainerRequest { container: Some(container) };
        daemon.containers().create(request).await.map_err(error)?;
        let streams = Streams::null();
        let checkpoint = if self.live { part(&index, MEMORY) } else { None };
        let request = api::CreateTaskRequest {
            container_id: self.id.clone(),
            rootfs: mounts,
            checkpoint,
            options: Some(options),
            ..Default::default()
        };
        daemon.tasks().create(request).await.map_err(error)?;
        tasks::start(daemon, &self.id, "").await?;
        streams.leave();
        Ok(())
    }

    /// The specification that was kept; else that of a new container of the image.
    async fn spec(&self, daemon: &Daemon, index: &Value, image: &image::Image) -> Result<Any> {
        if let Some(kept) = part(index, CONFIG) {
            let data = image::read_blob(daemon, &kept.digest).await?;
            let bad = |_| Error::invalid_argument("the checkpoint's specification cannot be read");
            return Any::decode(data.as_slice()).map_err(bad);
        }
        let mut spec = Spec::new(&daemon.namespace, &self.id);
        spec.allow_common_devices();
        spec.apply_image(&image.config, &[]);
        Ok(Any { type_url: keys::SPEC.into(), value: spec.to_bytes() })
    }

    async fn prepare(
        &self,
        daemon: &Daemon,
        index: &Value,
        image: &image::Image,
        snapshotter: &str,
    ) -> Result<Vec<corten_api::types::Mount>> {
        image::unpack(daemon, image, snapshotter, false).await?;
        let request = snapshots::PrepareSnapshotRequest {
            snapshotter: snapshotter.into(),
            key: self.id.clone(),
            parent: image.chain().pop().unwrap_or_default(),
            labels: Labels::new(),
        };
        let mounts = daemon.snapshots().prepare(request).await.map_err(error)?.into_inner().mounts;
        if self.rw {
            let layer =
                part(index, LAYER).ok_or_else(|| Error::not_found("layer of changes in the checkpoint"))?;
            let request =
                diff::ApplyRequest { diff: Some(layer), mounts: mounts.clone(), ..Default::default() };
            daemon.diff().apply(request).await.map_err(error)?;
        }
        Ok(mounts)
    }
}

/// What the record of an image names.
async fn target(daemon: &Daemon, name: &str) -> Result<Descriptor> {
    let request = images::GetImageRequest { name: name.into() };
    let found = daemon.images().get(request).await.map_err(error)?.into_inner();
    Ok(found.image.and_then(|image| image.target).unwrap_or_default())
}

/// Brings a checkpoint from the registry that its name tells.
async fn fetch(daemon: &Daemon, name: &str) -> Result<()> {
    content_remote::resolvable(name)?;
    let source = objects::OciRegistry { reference: name.into(), resolver: None };
    let store = objects::ImageStore { name: name.into(), ..Default::default() };
    let hint = format!("if it is not public, bring it first: ctr images pull --user … {name}");
    let done = transfer(daemon, corten_api::pack(&source), corten_api::pack(&store), None).await;
    done.map(drop).map_err(|failed| {
        let text = failed.message().strip_prefix("failed to resolve image: ").unwrap_or(failed.message());
        Error::bare(failed.class(), format!("failed to resolve reference {name:?}: {text}")).with_hint(hint)
    })
}

/// What an index lists under a type.
fn part(index: &Value, kind: &str) -> Option<Descriptor> {
    let one = index["manifests"].as_array()?.iter().find(|one| one["mediaType"] == kind)?;
    Some(Descriptor {
        media_type: kind.into(),
        digest: one["digest"].as_str()?.into(),
        size: one["size"].as_i64().unwrap_or(0),
        ..Descriptor::default()
    })
}
