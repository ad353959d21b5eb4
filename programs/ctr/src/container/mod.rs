//! From flags and an image to a container's record and snapshot.

mod apparmor;
mod cdi;
mod devices;
pub mod flags;
pub mod image;
pub mod network;
mod spec;

use corten_api::keys;
use corten_api::services::{containers, namespaces, snapshots};
use corten_api::types::Mount;
use corten_oci::spec::Spec;
use corten_types::{Any, Error, Labels, Platform, Result, ResultExt};
use serde_json::json;

use crate::client::{Daemon, error};
use crate::{rootfs, waiting};

pub use flags::{ContainerFlags, RunFlags, RuntimeFlags};
use image::Image;
pub use image::{manifest, read_blob};

/// `K=V`; a bare key is true.
pub fn labels(list: &[String]) -> Labels {
    let pair = |text: &String| match text.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        None => (text.clone(), "true".to_owned()),
    };
    list.iter().map(pair).collect()
}

/// What was made: its id, and the mounts of its root file system.
#[derive(Debug)]
pub struct Created {
    pub id: String,
    pub mounts: Vec<Mount>,
    pub snapshotter: String,
    /// Options of its task.
    pub options: Option<Any>,
}

/// A container about to be recorded.
struct Plan<'a> {
    id: &'a str,
    image: &'a str,
    snapshotter: String,
    labels: Labels,
    spec: Spec,
}

impl ContainerFlags {
    /// How many words come before the command: image or folder, and id; with a specification only the id.
    fn words<'a>(&self, rest: &'a [String], running: bool) -> Result<(&'a str, &'a str, &'a [String])> {
        let refused = |text: &str| match running {
            true => Err(Error::unknown(text)),
            false => Err(Error::invalid_argument(text)),
        };
        match (self.config.is_some(), rest) {
            (true, [_, _, ..]) => refused("with spec config file, only container id should be provided"),
            (true, [id]) if !id.is_empty() => Ok(("", id, &[])),
            (false, [image, id, args @ ..]) if !image.is_empty() && !id.is_empty() => Ok((image, id, args)),
            (false, []) => refused("image ref must be provided"),
            (false, [image, ..]) if image.is_empty() => refused("image ref must be provided"),
            _ => refused("container id must be provided"),
        }
    }

    /// Makes the record, and the snapshot if an image stands behind it.
    pub async fn create(&self, daemon: &Daemon, rest: &[String], run: Option<&RunFlags>) -> Result<Created> {
        let (source, id, args) = self.words(rest, run.is_some())?;
        self.runtime.options(false, (0, 0))?;
        if let Some(file) = &self.config {
            return self.specified(daemon, id, file).await;
        }
        let platform = match run.map_or("", |run| &run.platform) {
            "" => Platform::host(),
            named => named.parse()?,
        };
        let mut spec = self.begin(&daemon.namespace, id)?;
        if self.rootfs {
            let folder = std::path::absolute(source).with_context(|| source.to_owned())?;
            spec.value_mut()["root"]["path"] = json!(folder);
            self.finish(&mut spec, args, run)?;
            if !self.user.is_empty() {
                let source = folder.display().to_string();
                let mount = Mount { r#type: "bind".into(), source, ..Mount::default() };
                set_user(&mut spec, &rootfs::user(&[mount], &self.user)?);
            }
            self.join_networks(daemon, id, &mut spec, run).await?;
            dump(&spec, run)?;
            let plan = Plan { id, image: "", snapshotter: String::new(), labels: labels(&self.label), spec };
            let made = self.record(daemon, &plan, run).await;
            return made.inspect_err(|_| network::give_up(daemon, id, run));
        }
        let (image, snapshotter) =
            tokio::join!(image::find(daemon, source, &platform), snapshotter(daemon, &self.snapshotter));
        let (image, snapshotter) = (image?, snapshotter?);
        spec.apply_image(&image.config, args);
        self.finish(&mut spec, args, run)?;
        self.join_networks(daemon, id, &mut spec, run).await?;
        let name = &image.record.name;
        let plan = Plan { id, image: name, snapshotter, labels: self.all_labels(&image), spec };
        let made = self.with_snapshot(daemon, plan, &image, run).await;
        made.inspect_err(|_| network::give_up(daemon, id, run))
    }

    async fn join_networks(
        &self,
        daemon: &Daemon,
        id: &str,
        spec: &mut Spec,
        run: Option<&RunFlags>,
    ) -> Result<()> {
        match run {
            Some(run) => run.networks.apply(daemon, id, spec).await,
            None => Ok(()),
        }
    }

    async fn specified(&self, daemon: &Daemon, id: &str, file: &std::path::Path) -> Result<Created> {
        let data = std::fs::read(file)
            .with_context(|| format!("cannot load spec config file: open {}", file.display()))?;
        let mut spec =
            Spec::read(&data).map_err(Error::unknown).context("decoding spec config file failed")?;
        labels(&self.label).iter().for_each(|(key, value)| spec.annotate(key, value));
        let plan = Plan { id, image: "", snapshotter: String::new(), labels: labels(&self.label), spec };
        self.record(daemon, &plan, None).await
    }

    /// Labels of the record: the image's, those of its config that may not speak to the daemon left out, our own.
    fn all_labels(&self, image: &Image) -> Labels {
        let mut all = image.record.labels.clone();
        let of_config: Labels = serde_json::from_value(image.config["Labels"].clone()).unwrap_or_default();
        let reserved = |key: &str| key.starts_with("containerd.io/") || key.starts_with("io.cri-containerd");
        all.extend(
            of_config.into_iter().filter(|(key, value)| !reserved(key) && key.len() + value.len() <= 4096),
        );
        let signal =
            image.config["StopSignal"].as_str().filter(|signal| !signal.is_empty()).unwrap_or("SIGTERM");
        all.insert("io.containerd.image.config.stop-signal".into(), signal.into());
        all.extend(labels(&self.label));
        all
    }

    /// Record and snapshot; where the user is known by number both at once: the record keeps the snapshot from the
    /// collector.
    async fn with_snapshot(
        &self,
        daemon: &Daemon,
        mut plan: Plan<'_>,
        image: &Image,
        run: Option<&RunFlags>,
    ) -> Result<Created> {
        let named = image.config["User"].as_str().unwrap_or_default();
        let user = if self.user.is_empty() { named } else { &self.user };
        if user.is_empty() {
            dump(&plan.spec, run)?;
            let record = self.record(daemon, &plan, run);
            let (record, mounts) = tokio::join!(record, self.prepare(daemon, &plan, image, run));
            return match (record, mounts) {
                (Ok(created), Ok(mounts)) => Ok(Created { mounts, ..created }),
                (Ok(_), Err(failed)) => {
                    let request = containers::DeleteContainerRequest { id: plan.id.into() };
                    daemon.containers().delete(request).await.ok();
                    Err(failed)
                }
                (Err(failed), Ok(_)) => {
                    forget(daemon, &plan).await;
                    Err(failed)
                }
                // The original prepares first, so its error is the snapshot's.
                (Err(_), Err(failed)) => Err(failed),
            };
        }
        let mounts = self.prepare(daemon, &plan, image, run).await?;
        let made = async {
            set_user(&mut plan.spec, &rootfs::user(&mounts, user)?);
            dump(&plan.spec, run)?;
            self.record(daemon, &plan, run).await
        };
        match made.await {
            Ok(created) => Ok(Created { mounts, ..created }),
            Err(failed) => {
                forget(daemon, &plan).await;
                Err(failed)
            }
        }
    }

    async fn prepare(
        &self,
        daemon: &Daemon,
        plan: &Plan<'_>,
        image: &Image,
        run: Option<&RunFlags>,
    ) -> Result<Vec<Mount>> {
        let mut labels = labels(&self.snapshotter_label);
        if let Some((users, groups)) = run.map(RunFlags::maps).transpose()?.flatten() {
            let text = |ranges: &[spec::Range]| {
                let ranges = ranges.iter().map(|(inside, host, size)| format!("{inside}:{host}:{size}"));
                ranges.collect::<Vec<_>>().join(",")
            };
            labels.insert("containerd.io/snapshot/uidmapping".into(), text(&users));
            labels.insert("containerd.io/snapshot/gidmapping".into(), text(&groups));
        }
        let request = snapshots::PrepareSnapshotRequest {
            snapshotter: plan.snapshotter.clone(),
            key: plan.id.into(),
            parent: image.chain().pop().unwrap_or_default(),
            labels,
        };
        let first = daemon.snapshots().prepare(request.clone()).await.map_err(error);
        let made = match first {
            Err(missing) if missing.is_not_found() => {
                let sync_fs = run.is_some_and(|run| run.sync_fs);
                let unpacking = image::unpack(daemon, image, &plan.snapshotter, sync_fs);
                waiting::told("unpacking the image", unpacking).await?;
                daemon.snapshots().prepare(request).await.map_err(error)?
            }
            other => other?,
        };
        Ok(made.into_inner().mounts)
    }

    async fn record(&self, daemon: &Daemon, plan: &Plan<'_>, run: Option<&RunFlags>) -> Result<Created> {
        let snapshot_key = if plan.snapshotter.is_empty() { String::new() } else { plan.id.into() };
        let container = containers::Container {
            id: plan.id.into(),
            labels: plan.labels.clone(),
            image: plan.image.into(),
            runtime: Some(containers::container::Runtime {
                name: self.runtime.runtime.clone(),
                options: self.runtime.options(false, (0, 0))?,
            }),
            spec: Some(Any { type_url: keys::SPEC.into(), value: plan.spec.to_bytes() }),
            snapshotter: plan.snapshotter.clone(),
            snapshot_key,
            sandbox: self.sandbox.clone(),
            extensions: run.filter(|run| run.cni).map(|_| network::cni_extension()).into_iter().collect(),
            ..Default::default()
        };
        let request = containers::CreateContainerRequest { container: Some(container) };
        daemon.containers().create(request).await.map_err(error)?;
        let maps = run.map(RunFlags::maps).transpose()?.flatten();
        let host = |ranges: &[spec::Range]| ranges.first().map_or(0, |range| range.1);
        let owner = maps.map_or((0, 0), |(users, groups)| (host(&users), host(&groups)));
        let options = self.runtime.options(self.no_pivot, owner)?;
        Ok(Created { id: plan.id.into(), mounts: Vec::new(), snapshotter: plan.snapshotter.clone(), options })
    }
}

/// A snapshotter's name: the one asked for, the namespace's, or the daemon's default.
///
/// # Errors
/// None of its own: a daemon that cannot be asked tells so when the name is used.
pub async fn snapshotter(daemon: &Daemon, given: &str) -> Result<String> {
    if !given.is_empty() {
        return Ok(given.to_owned());
    }
    let request = namespaces::GetNamespaceRequest { name: daemon.namespace.clone() };
    let found = match daemon.namespaces().get(request).await.map_err(error) {
        Ok(found) => found.into_inner().namespace.unwrap_or_default(),
        // A namespace comes into being with the first thing in it; a malformed name is told by others.
        Err(_) => namespaces::Namespace::default(),
    };
    let default = found.labels.get("containerd.io/defaults/snapshotter").cloned();
    Ok(default.unwrap_or_else(|| "overlayfs".into()))
}

/// The snapshot that a failed record leaves behind.
async fn forget(daemon: &Daemon, plan: &Plan<'_>) {
    let request =
        snapshots::RemoveSnapshotRequest { snapshotter: plan.snapshotter.clone(), key: plan.id.into() };
    daemon.snapshots().remove(request).await.ok();
}

fn dump(spec: &Spec, run: Option<&RunFlags>) -> Result<()> {
    let Some(file) = run.and_then(|run| run.dump_config.as_ref()) else { return Ok(()) };
    let text = crate::json::Document::spec(spec.value().clone()).text(4);
    std::fs::write(file, text + "\n").with_context(|| file.display().to_string())
}

fn set_user(spec: &mut Spec, user: &rootfs::User) {
    spec.value_mut()["process"]["user"] =
        json!({"uid": user.uid, "gid": user.gid, "additionalGids": user.additional});
}
