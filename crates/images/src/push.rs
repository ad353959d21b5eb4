//! From the stores to a registry (spec 03 §6.2): blobs side by side, then manifests, then indexes, so that nothing is
//! named before it is there.

use std::collections::HashSet;
use std::sync::Arc;

use corten_registry::{BlobSource, Pushed, Pusher, Resolver, Sent};
use corten_types::{Context, Descriptor, Reference, Result, ResultExt, media_type};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::ImageService;
use crate::blob::ingest_key;
use crate::labels;
use crate::platforms::Platforms;
use crate::progress::ProgressSender;

/// What to push.
#[derive(Clone, Debug)]
pub struct PushRequest {
    /// Where to: `host/path:tag`.
    pub reference: String,
    /// The image.
    pub target: Descriptor,
    /// Of an index, the platforms whose content goes out; the index itself always does, unchanged.
    pub platforms: Platforms,
    /// Blobs that are sent at once.
    pub max_concurrent_uploads: usize,
}

struct Blob(corten_content::BlobReader);

impl BlobSource for Blob {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        self.0.read_at(buffer, offset)
    }
}

/// What an image consists of, in the order in which it was found.
#[derive(Default)]
struct Parts {
    blobs: Vec<Descriptor>,
    manifests: Vec<Descriptor>,
    indexes: Vec<Descriptor>,
}

impl ImageService {
    /// Pushes an image. What the registry has is not sent.
    ///
    /// # Errors
    /// NotFound for content that is missing here; what the registry answers.
    pub async fn push(
        &self,
        ctx: &Context,
        resolver: &Resolver,
        request: &PushRequest,
        progress: &ProgressSender,
    ) -> Result<()> {
        let reference: Reference = request.reference.parse()?;
        progress.event(format!("Pushing to OCI Registry ({})", request.reference));
        let parts = self.parts(ctx, &request.target, &request.platforms)?;
        let pusher = resolver.pusher(&reference).context("failed to resolve image")?;
        progress.image("pushing content", &request.reference, &request.target);
        let push =
            Push { service: self, ctx, pusher, reference: &reference, target: &request.target, progress };
        let limit = request.max_concurrent_uploads.max(1);
        let failed = || format!("failed to push {}", request.reference);
        let blobs: Vec<_> = parts.blobs.iter().map(|blob| push.blob(blob)).collect();
        stream::iter(blobs).buffer_unordered(limit).try_collect::<()>().await.with_context(failed)?;
        for document in parts.manifests.iter().chain(parts.indexes.iter().rev()) {
            push.document(document).await.with_context(failed)?;
        }
        progress.image("pushed content", &request.reference, &request.target);
        progress.event(format!("Completed push to OCI Registry ({})", request.reference));
        Ok(())
    }

    fn parts(&self, ctx: &Context, target: &Descriptor, platforms: &Platforms) -> Result<Parts> {
        let mut parts = Parts::default();
        let mut seen = HashSet::new();
        self.tree(ctx, target, platforms, &mut |descriptor| {
            if !seen.insert(descriptor.digest.clone()) {
                return;
            }
            let kind = &descriptor.media_type;
            if media_type::is_index(kind) {
                parts.indexes.push(descriptor.clone());
            } else if media_type::is_manifest(kind) {
                parts.manifests.push(descriptor.clone());
            } else if !media_type::is_non_distributable(kind) {
                parts.blobs.push(descriptor.clone());
            }
        })?;
        Ok(parts)
    }
}

struct Push<'a> {
    service: &'a ImageService,
    ctx: &'a Context,
    pusher: Pusher,
    reference: &'a Reference,
    target: &'a Descriptor,
    progress: &'a ProgressSender,
}

impl Push<'_> {
    async fn blob(&self, descriptor: &Descriptor) -> Result<()> {
        let mut meter = self.progress.meter(ingest_key(descriptor), None, descriptor);
        meter.event("waiting", 0);
        let content = &self.service.shared.content;
        let known = content.info(self.ctx, &descriptor.digest)?;
        let source = Arc::new(Blob(content.reader(self.ctx, &descriptor.digest)?));
        let from = labels::neighbour(&known.labels, self.reference.host(), self.reference.path());
        let told: Sent = {
            let meter = std::sync::Mutex::new(meter.clone());
            Arc::new(move |sent| {
                if let Ok(mut meter) = meter.lock() {
                    meter.advance("uploading", sent);
                }
            })
        };
        let pushed = self.pusher.blob(descriptor, from.as_deref(), source, told).await?;
        let event = if pushed == Pushed::Existed { "already exists" } else { "complete" };
        meter.event(event, u64::try_from(descriptor.size).unwrap_or(0));
        Ok(())
    }

    async fn document(&self, descriptor: &Descriptor) -> Result<()> {
        let mut meter = self.progress.meter(ingest_key(descriptor), None, descriptor);
        meter.event("uploading", 0);
        let data = self.service.read_document(self.ctx, descriptor)?;
        let root = descriptor.digest == self.target.digest;
        let pushed = self.pusher.manifest(descriptor, data.into(), root).await?;
        let event = if pushed == Pushed::Existed { "already exists" } else { "complete" };
        meter.event(event, u64::try_from(descriptor.size).unwrap_or(0));
        Ok(())
    }
}
