//! What shall become of an image that comes in: its names, its platforms, where it is unpacked
//! (spec 03 §10).

use std::time::SystemTime;

use corten_metadata::Image;
use corten_types::{Context, Descriptor, Error, Labels, Platform, Result, timestamp};

use crate::ImageService;
use crate::naming::{self, ImageReference};
use crate::platforms::Platforms;
use crate::progress::ProgressSender;

const EXPIRE: &str = "containerd.io/gc.expire";
const IMAGE_BACK_REFERENCE: &str = "containerd.io/gc.bref.image";
/// An image may come and go while its record is written, but not for ever.
const MAX_TRIES: u32 = 10;

/// Where an image goes.
#[derive(Clone, Debug, Default)]
pub struct Destination {
    /// The name of the record; empty for none of its own.
    pub name: String,
    /// Labels of the records.
    pub labels: Labels,
    /// The platforms that are kept; all where it is empty.
    pub platforms: Vec<Platform>,
    /// Whether manifests and configs of other platforms are kept too.
    pub all_metadata: bool,
    /// How many manifests of an index are kept, the best ones; 0 for all that match.
    pub manifest_limit: usize,
    /// Names beside the image's own, and rules for names of images of an archive.
    pub extra_references: Vec<ImageReference>,
    /// Where images are unpacked; nothing to leave them packed.
    pub unpacks: Vec<Unpack>,
    /// Whether layers may be collected once they are unpacked.
    pub discard_unpacked_layers: bool,
    /// Whether snapshotters that fetch layers by themselves are told which (spec 03 §13).
    pub remote_snapshot_labels: bool,
}

/// Where images are unpacked.
#[derive(Clone, Debug, Default)]
pub struct Unpack {
    /// The platform that must be known here; all that is brought is unpacked.
    pub platform: Platform,
    /// The snapshotter; empty for the default one.
    pub snapshotter: String,
    /// Further labels of the snapshots (`containerd.io/snapshot/uidmapping`, …).
    pub labels: Labels,
}

/// An [`Unpack`] that can be done here.
#[derive(Clone, Debug)]
pub(crate) struct Unpacker {
    pub platforms: Platforms,
    pub snapshotter: String,
    pub labels: Labels,
}

impl ImageService {
    /// The unpacks that can be done here.
    pub(crate) fn unpackers(&self, wanted: &[Unpack]) -> Result<Vec<Unpacker>> {
        let mut unpackers = Vec::new();
        for unpack in wanted {
            let snapshotter = self.snapshotter(&unpack.platform, &unpack.snapshotter);
            if let Err(error) = self.shared.snapshots.capabilities(snapshotter) {
                tracing::warn!(snapshotter, %error, "images are not unpacked there");
                continue;
            }
            if self.shared.options.only_by_rules && self.rule(&unpack.platform, snapshotter).is_none() {
                tracing::warn!(snapshotter, platform = %unpack.platform, "no unpack_config is for that");
                continue;
            }
            // As in the original a rule tells what is unpacked. Without rules it is all that is brought.
            let rule = self.rule(&unpack.platform, snapshotter).filter(|_| self.shared.options.only_by_rules);
            let platforms = rule.map_or_else(Platforms::all, |rule| rule.platforms.clone());
            let (snapshotter, labels) = (snapshotter.to_owned(), unpack.labels.clone());
            let is_known = |one: &Unpacker| one.snapshotter == snapshotter && one.labels == labels;
            if platforms.is_all() && unpackers.iter().any(is_known) {
                continue;
            }
            unpackers.push(Unpacker { platforms, snapshotter, labels });
        }
        if unpackers.is_empty() && !wanted.is_empty() {
            return Err(Error::invalid_argument(
                "unable to initialize unpacker: no unpack platforms defined",
            ));
        }
        Ok(unpackers)
    }

    /// Records a pulled image under its own name and those beside it.
    pub(crate) async fn record_pulled(
        &self,
        ctx: &Context,
        destination: &Destination,
        target: &Descriptor,
        progress: &ProgressSender,
    ) -> Result<Vec<Image>> {
        let mut names = Vec::new();
        if !destination.name.is_empty() {
            names.push((destination.name.clone(), destination.labels.clone()));
        }
        for name in naming::beside(target, &destination.extra_references) {
            let mut labels = destination.labels.clone();
            if !destination.name.is_empty() {
                // They vanish with the image's own name.
                labels.insert(IMAGE_BACK_REFERENCE.to_owned(), destination.name.clone());
                labels.insert(EXPIRE.to_owned(), timestamp::rfc3339(SystemTime::now()));
            }
            names.push((name, labels));
        }
        if names.is_empty() {
            return Err(Error::not_found("no image name to store"));
        }
        self.record(ctx, names, target, progress).await
    }

    /// Records an image of an archive under the names that the rules make; none is no error.
    pub(crate) async fn record_archived(
        &self,
        ctx: &Context,
        destination: &Destination,
        target: &Descriptor,
        progress: &ProgressSender,
    ) -> Result<Vec<Image>> {
        let names = naming::of_archived(target, &destination.extra_references);
        if names.is_empty() {
            tracing::info!(digest = %target.digest, "no image name for a manifest of the archive");
        }
        let names = names.into_iter().map(|name| (name, destination.labels.clone())).collect();
        self.record(ctx, names, target, progress).await
    }

    async fn record(
        &self,
        ctx: &Context,
        names: Vec<(String, Labels)>,
        target: &Descriptor,
        progress: &ProgressSender,
    ) -> Result<Vec<Image>> {
        let mut images = Vec::with_capacity(names.len());
        for (name, labels) in names {
            let image = self.create_or_update(ctx, name, labels, target).await?;
            progress.image("saved", &image.name, target);
            images.push(image);
        }
        Ok(images)
    }

    async fn create_or_update(
        &self,
        ctx: &Context,
        name: String,
        labels: Labels,
        target: &Descriptor,
    ) -> Result<Image> {
        let image = Image::new(name, target.clone(), labels);
        for _ in 0..MAX_TRIES {
            match self.shared.images.create(ctx, image.clone(), None).await {
                Err(error) if error.is_already_exists() => {}
                other => return other,
            }
            match self.shared.images.update(ctx, image.clone(), Vec::new(), None).await {
                Err(error) if error.is_not_found() => {}
                other => return other,
            }
        }
        Err(Error::unavailable(format!("image {:?} comes and goes", image.name)))
    }
}
