//! The tree of an image, from its target down (spec 03 §3–§5): each document is stored, labelled with its
//! children and read; what belongs to the wanted platforms is stored and unpacked.

use std::future::Future;
use std::pin::Pin;

use corten_registry::MAX_MANIFEST_SIZE;
use corten_types::{Context, Descriptor, Digest, Error, Labels, Result, ResultExt, media_type};
use futures_util::future::try_join_all;

use crate::ImageService;
use crate::blob::{Origin, ingest_key};
use crate::destination::{Destination, Unpacker};
use crate::labels;
use crate::manifest::{Config, Index, Manifest, with_proper_config_type};
use crate::platforms::Platforms;
use crate::progress::{Meter, ProgressSender};
use crate::unpack;

/// Configs are read into memory.
pub(crate) const MAX_CONFIG_SIZE: u64 = 16 << 20;
/// Indexes of indexes.
const MAX_DEPTH: usize = 8;

/// A walk over one image.
pub(crate) struct Walk<'a> {
    service: &'a ImageService,
    ctx: &'a Context,
    destination: &'a Destination,
    /// Where content comes from; nothing if it must be there.
    origin: Option<&'a Origin>,
    reference: &'a str,
    progress: &'a ProgressSender,
    platforms: Platforms,
    unpackers: Vec<Unpacker>,
}

/// Why a manifest is visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// The image is this manifest, so that its platform does not matter.
    Target,
    /// Its platform is wanted.
    Chosen,
    /// Only its config tells the platform.
    Unknown,
    /// Its platform is not wanted, but its metadata are.
    Foreign,
}

type Visit<'f> = Pin<Box<dyn Future<Output = Result<usize>> + Send + 'f>>;

impl<'a> Walk<'a> {
    pub fn new(
        service: &'a ImageService,
        ctx: &'a Context,
        destination: &'a Destination,
        origin: Option<&'a Origin>,
        reference: &'a str,
        progress: &'a ProgressSender,
    ) -> Result<Self> {
        let unpackers = service.unpackers(&destination.unpacks)?;
        let platforms = Platforms::like(&destination.platforms);
        Ok(Self { service, ctx, destination, origin, reference, progress, platforms, unpackers })
    }

    /// Brings in an image. Returns its target, which is another one where an old registry's manifest had to
    /// be mended.
    pub async fn target(&self, target: &Descriptor) -> Result<Descriptor> {
        if media_type::is_index(&target.media_type) {
            self.index(target, None, 0).await?;
            return Ok(target.clone());
        }
        if !media_type::is_manifest(&target.media_type) {
            self.blob(target, None).await?;
            return Ok(target.clone());
        }
        let data = self.document(target, None).await?;
        let mended = with_proper_config_type(target, &data)?;
        let (target, data) = match mended {
            None => (target.clone(), data),
            Some(data) => (self.service.store_document(self.ctx, &target.media_type, &data).await?, data),
        };
        self.manifest_of(&target, &data, Role::Target).await?;
        Ok(target)
    }

    /// Visits the images of an archive, of which none may be wanted.
    pub async fn archive(&self, index: &Descriptor, manifests: &[Descriptor]) -> Result<()> {
        self.label_children(index, manifests).await?;
        let wanted = manifests.iter().filter(|manifest| self.rank(manifest).is_some());
        // Each of them is an image of its own.
        let role = |manifest: &Descriptor| match manifest.platform {
            Some(_) => Role::Chosen,
            None => Role::Target,
        };
        let visits = wanted.map(|manifest| self.child(manifest, None, 1, role(manifest)));
        let kept: usize = try_join_all(visits).await?.into_iter().sum();
        if kept == 0 { Err(Error::not_found("image might be filtered out")) } else { Ok(()) }
    }

    /// Returns how many manifests of wanted platforms there are below.
    fn index<'f>(&'f self, descriptor: &'f Descriptor, parent: Option<&'f str>, depth: usize) -> Visit<'f> {
        Box::pin(async move {
            if depth >= MAX_DEPTH {
                return Err(Error::invalid_argument(format!("{}: index too deep", descriptor.digest)));
            }
            let data = self.document(descriptor, parent).await?;
            let index = Index::read(descriptor, &data)?;
            self.label_children(descriptor, &index.manifests).await?;
            let (chosen, others) = self.choose(&index.manifests);
            let key = ingest_key(descriptor);
            let mut visits: Vec<Visit<'_>> = Vec::new();
            for child in chosen {
                visits.push(self.child(child, Some(&key), depth + 1, self.role(child)));
            }
            if self.destination.all_metadata {
                for child in others {
                    visits.push(self.child(child, Some(&key), depth + 1, Role::Foreign));
                }
            }
            let kept: usize = try_join_all(visits).await?.into_iter().sum();
            if kept == 0 && depth == 0 && !self.platforms.is_all() {
                let text = format!("no match for platform in manifest {}", descriptor.digest);
                return Err(Error::not_found(text));
            }
            Ok(kept)
        })
    }

    /// The children that are wanted, best first, as many as the limit allows; and the others.
    fn choose<'d>(&self, children: &'d [Descriptor]) -> (Vec<&'d Descriptor>, Vec<&'d Descriptor>) {
        let (mut chosen, mut others): (Vec<_>, Vec<_>) =
            children.iter().partition(|child| self.rank(child).is_some());
        chosen.sort_by_key(|child| self.rank(child));
        let limit = self.destination.manifest_limit;
        if limit > 0 && chosen.len() > limit {
            others.extend(chosen.split_off(limit));
        }
        (chosen, others)
    }

    /// Nothing for a platform that is not wanted; what names no platform comes last.
    fn rank(&self, child: &Descriptor) -> Option<usize> {
        child.platform.as_ref().map_or(Some(usize::MAX), |platform| self.platforms.rank(platform))
    }

    fn role(&self, child: &Descriptor) -> Role {
        if child.platform.is_some() || self.platforms.is_all() { Role::Chosen } else { Role::Unknown }
    }

    fn child<'f>(
        &'f self,
        child: &'f Descriptor,
        parent: Option<&'f str>,
        depth: usize,
        role: Role,
    ) -> Visit<'f> {
        if media_type::is_index(&child.media_type) {
            if role == Role::Foreign {
                return Box::pin(async move { self.document(child, parent).await.map(|_| 0) });
            }
            return self.index(child, parent, depth);
        }
        Box::pin(async move {
            if !media_type::is_manifest(&child.media_type) {
                self.blob(child, parent).await?;
                return Ok(usize::from(role != Role::Foreign));
            }
            let data = match self.document(child, parent).await {
                Ok(data) => data,
                // An archive may list manifests that it does not hold.
                Err(error) if error.is_not_found() && self.origin.is_none() && self.platforms.is_all() => {
                    tracing::debug!(digest = %child.digest, "the archive lacks a manifest");
                    return Ok(0);
                }
                Err(error) => return Err(error),
            };
            self.manifest_of(child, &data, role).await
        })
    }

    /// Brings in what a manifest names. Returns whether its platform is wanted, as a number.
    async fn manifest_of(&self, descriptor: &Descriptor, data: &[u8], mut role: Role) -> Result<usize> {
        let manifest = Manifest::read(descriptor, data)?;
        let children: Vec<Descriptor> = manifest.children().cloned().collect();
        self.label_children(descriptor, &children).await?;
        let key = ingest_key(descriptor);
        self.blob(&manifest.config, Some(&key)).await?;
        // What is only stored may be anything.
        let matters = role == Role::Unknown || (role != Role::Foreign && !self.unpackers.is_empty());
        let config = match media_type::is_config(&manifest.config.media_type) {
            true if matters => Some(self.config(&manifest.config)?),
            _ => None,
        };
        if role == Role::Unknown
            && config.as_ref().is_some_and(|config| !self.platforms.matches(&config.platform()))
        {
            role = Role::Foreign;
        }
        if role == Role::Foreign {
            return Ok(0);
        }
        let unpacked = match &config {
            Some(config) => self.unpack(&manifest, &descriptor.digest, config, role, &key).await?,
            None => false,
        };
        // What is unpacked was fetched on the way, or needs no fetching.
        let rest =
            manifest.layers.iter().filter(|layer| !unpacked || !media_type::is_layer(&layer.media_type));
        try_join_all(rest.map(|layer| self.blob(layer, Some(&key)))).await?;
        Ok(1)
    }

    async fn unpack(
        &self,
        manifest: &Manifest,
        digest: &Digest,
        config: &Config,
        role: Role,
        key: &str,
    ) -> Result<bool> {
        let layers: Vec<Descriptor> =
            manifest.layers.iter().filter(|layer| media_type::is_layer(&layer.media_type)).cloned().collect();
        if layers.is_empty() || self.unpackers.is_empty() {
            return Ok(false);
        }
        let platform = config.platform();
        let mut unpacked = false;
        let mut unpackers: Vec<_> =
            self.unpackers.iter().filter(|unpacker| unpacker.platforms.matches(&platform)).collect();
        if role == Role::Target && unpackers.is_empty() {
            // There is nothing to choose from: whoever wants it unpacked gets it, as from the original.
            unpackers.extend(self.unpackers.first());
        }
        for unpacker in unpackers {
            let labels = |index: usize| {
                let mut labels = unpacker.labels.clone();
                if self.destination.remote_snapshot_labels {
                    labels.extend(labels::of_remote_layer(self.reference, digest, &layers, index));
                }
                labels
            };
            let request = unpack::Request {
                snapshotter: &unpacker.snapshotter,
                differs: self.service.differs(&platform, &unpacker.snapshotter),
                layers: &layers,
                diff_ids: &config.rootfs.diff_ids,
                labels: &labels,
                origin: self.origin,
                progress: self.progress,
                parent: key,
            };
            let top = self.service.unpack_layers(self.ctx, request).await?;
            let label = (labels::of_snapshot(&unpacker.snapshotter), top.to_string());
            self.service.set_labels(self.ctx, &manifest.config.digest, Labels::from([label])).await?;
            unpacked = true;
        }
        if !unpacked {
            tracing::warn!(?platform, image = self.reference, "nothing unpacks images of this platform");
        }
        Ok(unpacked)
    }

    // === content ===

    /// Makes sure that a blob is stored.
    async fn blob(&self, descriptor: &Descriptor, parent: Option<&str>) -> Result<()> {
        let Some(origin) = self.origin else {
            return self.service.shared.content.info(self.ctx, &descriptor.digest).map(|_| ());
        };
        let mut meter = self.meter(descriptor, parent);
        meter.event("waiting", 0);
        self.service.fetch(self.ctx, origin, descriptor, &mut meter).await
    }

    /// Makes sure that a document is stored, and reads it.
    async fn document(&self, descriptor: &Descriptor, parent: Option<&str>) -> Result<Vec<u8>> {
        if descriptor.size > MAX_MANIFEST_SIZE {
            let text = format!("rejecting {} byte manifest for {}", descriptor.size, self.reference);
            return Err(Error::invalid_argument(text));
        }
        self.blob(descriptor, parent).await?;
        self.service.shared.content.read(self.ctx, &descriptor.digest, MAX_MANIFEST_SIZE.unsigned_abs())
    }

    fn config(&self, descriptor: &Descriptor) -> Result<Config> {
        let data = self.service.shared.content.read(self.ctx, &descriptor.digest, MAX_CONFIG_SIZE)?;
        Config::read(descriptor, &data)
    }

    /// Before any platform is chosen: what is not fetched is named too.
    async fn label_children(&self, parent: &Descriptor, children: &[Descriptor]) -> Result<()> {
        let labels = labels::of_children(children, !self.destination.discard_unpacked_layers);
        let set = self.service.set_labels(self.ctx, &parent.digest, labels).await;
        set.with_context(|| format!("failed to set labels of {}", parent.digest))
    }

    fn meter(&self, descriptor: &Descriptor, parent: Option<&str>) -> Meter {
        self.progress.meter(ingest_key(descriptor), parent, descriptor)
    }
}
