//! The differ that everybody has: tar archives, by walking.

use std::io::Read;
use std::path::PathBuf;

use async_trait::async_trait;
use corten_content::Store;
use corten_mounts::{Activations, HeldMounts};
use corten_types::{Context, Descriptor, Error, Mount, Result, ResultExt, media_type};

use crate::apply::{ApplyOptions, apply};
use crate::differ::{Applied, ApplyRequest, DiffRequest, Differ};
use crate::make::{Maker, blocking};
use crate::processor::StreamProcessor;

/// Programs that one layer may pass through.
const CHAIN: usize = 16;
const ENCRYPTED: &str = "+encrypted";

/// Applies and makes layers that are tar archives, compressed by gzip, Zstandard or not at all.
#[derive(Clone, Debug)]
pub struct Walking {
    maker: Maker,
    processors: Vec<StreamProcessor>,
    activations: Option<Activations>,
    sync: bool,
}

impl Walking {
    /// One over a content store; trees that cannot be reached otherwise are mounted below `mount_folder`.
    #[must_use]
    pub fn new(content: Store, mount_folder: PathBuf) -> Self {
        let maker = Maker { content, mount_folder };
        Self { maker, processors: Vec::new(), activations: None, sync: false }
    }

    /// The same, and mounts that need more than mount(2) are activated for as long as it works on them.
    #[must_use]
    pub fn with_activations(mut self, activations: Option<Activations>) -> Self {
        self.activations = activations;
        self
    }

    /// The same, and layers pass through these programs first; of those that take a type the last one counts.
    #[must_use]
    pub fn with_processors(mut self, processors: Vec<StreamProcessor>) -> Self {
        self.processors = processors;
        self
    }

    /// The same, and all that is applied is on the disk when the call returns.
    #[must_use]
    pub fn with_sync(mut self, sync: bool) -> Self {
        self.sync = sync;
        self
    }

    /// The mounts, and what has been mounted for them.
    async fn hold(&self, mounts: &[Mount]) -> Result<(Vec<Mount>, Option<HeldMounts>)> {
        match &self.activations {
            // A single one is mounted as it is.
            Some(activations) if mounts.len() > 1 && Activations::concern(mounts) => {
                let held = activations.hold(mounts.to_vec()).await.context("failed to activate mounts")?;
                Ok((held.mounts().to_vec(), Some(held)))
            }
            _ => Ok((mounts.to_vec(), None)),
        }
    }

    /// The bytes of a layer after all programs that want to have them.
    fn open(&self, ctx: &Context, request: &ApplyRequest) -> Result<Box<dyn Read + Send>> {
        let mut media_type = request.layer.media_type.clone();
        let chosen = self.chain(&mut media_type);
        let chosen = chosen
            .with_context(|| format!("failed to get stream processor for {}", request.layer.media_type))?;
        let mut stream = match &request.source {
            Some(source) => source.open()?,
            None => {
                let blob = self.maker.content.reader(ctx, &request.layer.digest);
                Box::new(blob.context("failed to get reader from content store")?.stream())
            }
        };
        let mut accepted = request.layer.media_type.as_str();
        for processor in chosen {
            let payload = request.payloads.get(&processor.id);
            stream = processor.start(stream, accepted, payload).with_context(|| {
                format!("failed to get stream processor for {}", request.layer.media_type)
            })?;
            accepted = &processor.returns;
        }
        Ok(stream)
    }

    /// The programs that a layer passes through, the first one first, until it is one that can be extracted.
    fn chain(&self, media_type: &mut String) -> Result<Vec<&StreamProcessor>> {
        let mut chosen = Vec::new();
        loop {
            match self.processors.iter().rev().find(|processor| processor.takes(media_type)) {
                Some(_) if chosen.len() >= CHAIN => {
                    let text = format!("more than {CHAIN} stream processors in a row");
                    return Err(Error::invalid_argument(text));
                }
                Some(processor) => {
                    media_type.clone_from(&processor.returns);
                    chosen.push(processor);
                    if media_type == media_type::OCI_LAYER {
                        return Ok(chosen);
                    }
                }
                None if is_archive(media_type) => return Ok(chosen),
                // Of no class, as with the original: no other differ is asked.
                None => return Err(Error::unknown("no processor for media-type")),
            }
        }
    }
}

/// Whether it is a tar archive that may be compressed.
fn is_archive(media_type: &str) -> bool {
    media_type::is_layer(media_type) && media_type.contains(".tar") && !media_type.ends_with(ENCRYPTED)
}

#[async_trait]
impl Differ for Walking {
    fn id(&self) -> &str {
        "walking"
    }

    fn is_streaming(&self) -> bool {
        true
    }

    async fn apply(&self, ctx: &Context, request: &ApplyRequest) -> Result<Applied> {
        let mut input = self.open(ctx, request)?;
        let mount_folder = self.maker.mount_folder.clone();
        let options = ApplyOptions { sync: request.sync || self.sync, limit: request.limit, mount_folder };
        let (mounts, held) = self.hold(&request.mounts).await?;
        blocking(move || {
            let applied = apply(&mut input, &mounts, &options);
            // Also when the caller has gone, it is used until here.
            drop(held);
            applied
        })
        .await
    }

    async fn diff(&self, ctx: &Context, request: &DiffRequest) -> Result<Descriptor> {
        let ((lower, below), (upper, above)) =
            (self.hold(&request.lower).await?, self.hold(&request.upper).await?);
        let request = DiffRequest { lower, upper, ..request.clone() };
        self.maker.run(ctx, request, (below, above)).await
    }
}
