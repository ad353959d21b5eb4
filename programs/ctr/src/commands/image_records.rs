//! `images label`, `images check` and `images usage`: what is known of images here.

use clap::Args;
use corten_api::services::content::InfoRequest;
use corten_api::services::{images as api, snapshots};
use corten_types::{Error, Labels, Platform, Result, ResultExt};

use crate::client::{Daemon, error};
use crate::container::image::{Image, find};
use crate::container::{labels, manifest, snapshotter};
use crate::output::{self, Ends, Format, Table};

async fn get(daemon: &Daemon, name: &str) -> Result<api::Image> {
    let request = api::GetImageRequest { name: name.into() };
    let found = daemon.images().get(request).await.map_err(error)?.into_inner().image;
    found.ok_or_else(|| Error::not_found(format!("image {name:?}")))
}

/// Show and change labels of an image; an empty value removes one.
#[derive(Debug, Args)]
pub struct Label {
    /// Remove all others.
    #[arg(short, long)]
    replace_all: bool,
    #[arg(default_value = "", value_name = "IMAGE")]
    name: String,
    #[arg(value_name = "KEY=VALUE")]
    labels: Vec<String>,
}

impl Label {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        if self.name.is_empty() {
            return Err(Error::unknown("please specify an image"));
        }
        let mut image = get(daemon, &self.name).await?;
        let wanted = labels(&self.labels);
        if wanted.is_empty() && !self.replace_all {
            println!("{}", output::labels(&image.labels, ""));
            return Ok(());
        }
        let paths = match self.replace_all {
            true => vec!["labels".to_owned()],
            false => wanted.keys().map(|key| format!("labels.{key}")).collect(),
        };
        image.labels = wanted;
        let update_mask = Some(prost_types::FieldMask { paths });
        let request = api::UpdateImageRequest { image: Some(image), update_mask, ..Default::default() };
        let changed = daemon.images().update(request).await.map_err(error)?.into_inner();
        let labels: Labels = changed.image.unwrap_or_default().labels;
        println!("{}", output::labels(&labels, ""));
        Ok(())
    }
}

/// Whether what images consist of is there, and unpacked.
#[derive(Debug, Args)]
pub struct Check {
    /// Only names of images that can be used at once.
    #[arg(short, long)]
    quiet: bool,
    /// The snapshotter.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = "")]
    snapshotter: String,
    /// How to show them.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    #[arg(value_name = "[FILTER...]")]
    filters: Vec<String>,
}

/// How much of an image is there.
struct State {
    status: String,
    size: String,
    complete: bool,
}

impl Check {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        let request = api::ListImagesRequest { filters: self.filters };
        let found = daemon.images().list(request).await.map_err(error)?.into_inner();
        let snapshotter = snapshotter(daemon, &self.snapshotter).await?;
        let columns = ["REF", "TYPE", "DIGEST", "STATUS", "SIZE", "UNPACKED"];
        let mut table = Table::tight(&columns).ends(Ends::PaddedHeader);
        let is_empty = found.images.is_empty();
        for image in found.images {
            let target = image.target.clone().unwrap_or_default();
            let state = state(daemon, &target).await;
            let unpacked = is_unpacked(daemon, &image.name, &snapshotter).await;
            if self.quiet {
                if state.complete && unpacked {
                    println!("{}", image.name);
                }
                continue;
            }
            let State { status, size, .. } = state;
            table.row([image.name, target.media_type, target.digest, status, size, unpacked.to_string()]);
        }
        // Without images there is not even a header.
        let is_silent = is_empty && matches!(self.format, Format::Table | Format::Plain);
        if self.quiet || is_silent { Ok(()) } else { table.show(self.format) }
    }
}

/// Looks for the image of this machine's platform.
async fn state(daemon: &Daemon, target: &corten_api::types::Descriptor) -> State {
    let without = |status: &str| State { status: status.into(), size: "-".into(), complete: false };
    let document = match manifest(daemon, target, &Platform::host()).await {
        Ok(document) => document,
        Err(missing) if missing.is_not_found() => return without("unavailable (0/?)"),
        Err(_) => return without("error"),
    };
    let layers = document["layers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let (mut parts, mut present, mut size, mut there) = (0, 0, 0, 0);
    for part in [&document["config"]].into_iter().chain(layers) {
        let digest = part["digest"].as_str().unwrap_or_default().to_owned();
        let bytes = part["size"].as_i64().unwrap_or(0);
        parts += 1;
        size += bytes;
        if daemon.content().info(InfoRequest { digest }).await.is_ok() {
            present += 1;
            there += bytes;
        }
    }
    let word = if present == parts { "complete" } else { "incomplete" };
    State {
        status: format!("{word} ({present}/{parts})"),
        size: format!("{}/{}", output::binary_size(there), output::binary_size(size)),
        complete: present == parts,
    }
}

async fn is_unpacked(daemon: &Daemon, name: &str, snapshotter: &str) -> bool {
    let top = |image: Image| image.chain().pop();
    let Some(key) = find(daemon, name, &Platform::host()).await.ok().and_then(top) else { return false };
    let request = snapshots::StatSnapshotRequest { snapshotter: snapshotter.into(), key };
    daemon.snapshots().stat(request).await.is_ok()
}

/// What the snapshots of an image take up, the topmost first.
#[derive(Debug, Args)]
pub struct Usage {
    /// The snapshotter.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = "")]
    snapshotter: String,
    /// How to show them.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    #[arg(default_value = "", value_name = "IMAGE")]
    name: String,
}

impl Usage {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        if self.name.is_empty() {
            return Err(Error::unknown("please provide an image reference to mount"));
        }
        let image = find(daemon, &self.name, &Platform::host()).await;
        let image = image.with_context(|| format!("failed to ensure if image {} exists", self.name))?;
        let snapshotter = snapshotter(daemon, &self.snapshotter).await?;
        let mut table = Table::tight(&["KEY", "SIZE", "INODES"]);
        for key in image.chain().into_iter().rev() {
            let request = snapshots::UsageRequest { snapshotter: snapshotter.clone(), key: key.clone() };
            let used = daemon.snapshots().usage(request).await.map_err(error);
            let used = used.map_err(|failed| match failed.is_not_found() {
                true => {
                    Error::unknown(format!("image {} isn't unpacked in snapshotter {snapshotter}", self.name))
                }
                false => failed,
            });
            let used = used?.into_inner();
            table.row([key, output::binary_size(used.size), used.inodes.to_string()]);
        }
        table.show(self.format)
    }
}
