//! What is in the store of an image, by platform (spec 03 §3, §14), and unpacking it.

use corten_registry::MAX_MANIFEST_SIZE;
use corten_types::{Context, Descriptor, Digest, Error, Labels, Platform, Result, media_type};

use crate::ImageService;
use crate::labels;
use crate::manifest::{Config, Index, Manifest, chain_ids};
use crate::platforms::Platforms;
use crate::progress::ProgressSender;
use crate::unpack;
use crate::walk::MAX_CONFIG_SIZE;

const MAX_DEPTH: usize = 8;

/// One platform's image in the store.
#[derive(Clone, Debug)]
pub struct Selected {
    /// Descriptor of the manifest.
    pub descriptor: Descriptor,
    /// The manifest.
    pub manifest: Manifest,
    /// Its platform, as the config says.
    pub platform: Platform,
}

impl ImageService {
    /// The best manifest of an image for some platforms.
    ///
    /// # Errors
    /// NotFound `no match for platform in manifest <digest>`, and NotFound for missing content.
    pub fn select(&self, ctx: &Context, target: &Descriptor, platforms: &Platforms) -> Result<Selected> {
        let mut missing = None;
        let mut found: Vec<Selected> = Vec::new();
        self.gather(ctx, target, platforms, 0, &mut found, &mut missing)?;
        found.sort_by_key(|selected| platforms.rank(&selected.platform));
        let nothing = || Error::not_found(format!("no match for platform in manifest {}", target.digest));
        found.into_iter().next().ok_or_else(|| missing.unwrap_or_else(nothing))
    }

    /// The manifests of an image that are in the store, with the platforms they are for; attestations are
    /// left out.
    ///
    /// # Errors
    /// NotFound when the image's own document is missing.
    pub fn manifests(&self, ctx: &Context, target: &Descriptor) -> Result<Vec<Selected>> {
        let mut found = Vec::new();
        self.gather(ctx, target, &Platforms::all(), 0, &mut found, &mut None)?;
        found.retain(|selected| {
            selected.platform.os != "unknown" && selected.platform.architecture != "unknown"
        });
        Ok(found)
    }

    /// Visits all that an image consists of, parents first; of an index, only what is for wanted platforms.
    ///
    /// # Errors
    /// NotFound for documents that are missing.
    pub(crate) fn tree(
        &self,
        ctx: &Context,
        target: &Descriptor,
        platforms: &Platforms,
        visit: &mut dyn FnMut(&Descriptor),
    ) -> Result<()> {
        self.branch(ctx, target, platforms, 0, visit)
    }

    fn branch(
        &self,
        ctx: &Context,
        descriptor: &Descriptor,
        platforms: &Platforms,
        depth: usize,
        visit: &mut dyn FnMut(&Descriptor),
    ) -> Result<()> {
        if depth >= MAX_DEPTH {
            return Err(Error::invalid_argument(format!("{}: index too deep", descriptor.digest)));
        }
        let wanted =
            |one: &Descriptor| one.platform.as_ref().is_none_or(|platform| platforms.matches(platform));
        let children = if media_type::is_index(&descriptor.media_type) {
            let data = self.read_document(ctx, descriptor)?;
            let children = Index::read(descriptor, &data)?.manifests;
            children.into_iter().filter(wanted).collect()
        } else if media_type::is_manifest(&descriptor.media_type) {
            let data = self.read_document(ctx, descriptor)?;
            Manifest::read(descriptor, &data)?.children().cloned().collect()
        } else {
            Vec::new()
        };
        visit(descriptor);
        children.iter().try_for_each(|child| self.branch(ctx, child, platforms, depth + 1, visit))
    }

    fn gather(
        &self,
        ctx: &Context,
        descriptor: &Descriptor,
        platforms: &Platforms,
        depth: usize,
        found: &mut Vec<Selected>,
        missing: &mut Option<Error>,
    ) -> Result<()> {
        if depth >= MAX_DEPTH {
            return Err(Error::invalid_argument(format!("{}: index too deep", descriptor.digest)));
        }
        if media_type::is_index(&descriptor.media_type) {
            let data = self.read_document(ctx, descriptor)?;
            for child in Index::read(descriptor, &data)?.manifests {
                if child.platform.as_ref().is_some_and(|platform| !platforms.matches(platform)) {
                    continue;
                }
                match self.gather(ctx, &child, platforms, depth + 1, found, missing) {
                    Err(error) if error.is_not_found() => {
                        missing.get_or_insert(error);
                    }
                    other => other?,
                }
            }
            return Ok(());
        }
        if !media_type::is_manifest(&descriptor.media_type) {
            return Ok(());
        }
        let data = self.read_document(ctx, descriptor)?;
        let manifest = Manifest::read(descriptor, &data)?;
        let platform = match &descriptor.platform {
            Some(platform) => platform.clone(),
            None if media_type::is_config(&manifest.config.media_type) => {
                self.config(ctx, &manifest.config)?.platform()
            }
            None => Platform::default(),
        };
        // The target itself is taken as it is.
        if depth == 0 || descriptor.platform.is_some() || platforms.matches(&platform) {
            found.push(Selected { descriptor: descriptor.clone(), manifest, platform });
        }
        Ok(())
    }

    /// Reads a config.
    ///
    /// # Errors
    /// NotFound when it is missing, Unknown when it cannot be read.
    pub fn config(&self, ctx: &Context, descriptor: &Descriptor) -> Result<Config> {
        let data = self.shared.content.read(ctx, &descriptor.digest, MAX_CONFIG_SIZE)?;
        Config::read(descriptor, &data)
    }

    pub(crate) fn read_document(&self, ctx: &Context, descriptor: &Descriptor) -> Result<Vec<u8>> {
        self.shared.content.read(ctx, &descriptor.digest, MAX_MANIFEST_SIZE.unsigned_abs())
    }

    /// The name of the top snapshot of an image.
    ///
    /// # Errors
    /// As [`Self::select`].
    pub fn top_snapshot(&self, ctx: &Context, selected: &Selected) -> Result<Digest> {
        let config = self.config(ctx, &selected.manifest.config)?;
        let top = chain_ids(&config.rootfs.diff_ids).pop();
        top.ok_or_else(|| Error::unknown("the image has no layers"))
    }

    /// Compressed size of one platform's image: manifest, config and layers.
    #[must_use]
    pub fn size(&self, selected: &Selected) -> i64 {
        let children: i64 = selected.manifest.children().map(|child| child.size).sum();
        selected.descriptor.size + children
    }

    /// Unpacks an image whose content is in the store, and returns the name of its top snapshot. What is
    /// unpacked already is left as it is.
    ///
    /// # Errors
    /// As [`Self::select`] and [`Self::pull`] have it.
    pub async fn unpack(
        &self,
        ctx: &Context,
        target: &Descriptor,
        platforms: &Platforms,
        snapshotter: &str,
        progress: &ProgressSender,
    ) -> Result<Digest> {
        let lease = self.lease(ctx, "").await?;
        let unpacked = self.unpack_selected(&lease.ctx, target, platforms, snapshotter, progress).await;
        match unpacked {
            Ok(top) => {
                lease.succeed().await;
                Ok(top)
            }
            Err(error) => {
                lease.fail().await;
                Err(error)
            }
        }
    }

    async fn unpack_selected(
        &self,
        ctx: &Context,
        target: &Descriptor,
        platforms: &Platforms,
        snapshotter: &str,
        progress: &ProgressSender,
    ) -> Result<Digest> {
        let selected = self.select(ctx, target, platforms)?;
        let config = self.config(ctx, &selected.manifest.config)?;
        let layers: Vec<Descriptor> = selected
            .manifest
            .layers
            .iter()
            .filter(|layer| media_type::is_layer(&layer.media_type))
            .cloned()
            .collect();
        let snapshotter = self.snapshotter(&config.platform(), snapshotter);
        let request = unpack::Request {
            snapshotter,
            differs: self.differs(&config.platform(), snapshotter),
            layers: &layers,
            diff_ids: &config.rootfs.diff_ids,
            labels: &|_| Labels::new(),
            origin: None,
            progress,
            parent: &crate::blob::ingest_key(&selected.descriptor),
        };
        let top = self.unpack_layers(ctx, request).await?;
        let label = (labels::of_snapshot(snapshotter), top.to_string());
        self.set_labels(ctx, &selected.manifest.config.digest, Labels::from([label])).await?;
        Ok(top)
    }
}
