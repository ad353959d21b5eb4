//! From an archive into the stores (spec 03 §8): OCI layouts and what `docker save` writes, as they stream
//! in. Nothing of an archive but its few documents is held in memory.

mod archive;
mod docker;
mod store;
mod tar;

use std::io::{BufRead, BufReader, Read};
use std::pin::Pin;

use corten_metadata::Image;
use corten_types::{Context, Descriptor, Error, Result, ResultExt};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use self::archive::{Archive, MAX_JSON};
use crate::ImageService;
use crate::destination::Destination;
use crate::manifest::Index;
use crate::progress::ProgressSender;
use crate::walk::Walk;

const BUFFER: usize = 256 << 10;
/// Bytes by which compressions are told apart.
const MAGIC: usize = 4;

/// How an archive is imported.
#[derive(Clone, Debug, Default)]
pub struct ImportRequest {
    /// What becomes of its images. Names come from the prefix rules of `extra_references`; `name` and the
    /// other references are for the index as a whole.
    pub destination: Destination,
    /// Media type of the stream; where it is empty, a compressed stream is recognised.
    pub media_type: String,
    /// Whether plain layers are stored compressed (archives of `docker save`).
    pub force_compress: bool,
}

impl ImageService {
    /// Imports an archive and returns the records made.
    ///
    /// # Errors
    /// `unrecognized image format`, `image might be filtered out`, and what its parts are wrong with.
    pub async fn import(
        &self,
        ctx: &Context,
        input: impl AsyncRead + Send + 'static,
        request: &ImportRequest,
        progress: &ProgressSender,
    ) -> Result<Vec<Image>> {
        progress.event("Importing");
        let lease = self.lease(ctx, "").await?;
        match self.import_leased(&lease.ctx, Box::pin(input), request, progress).await {
            Ok(images) => {
                lease.succeed().await;
                progress.event("Completed import");
                Ok(images)
            }
            Err(error) => {
                lease.fail().await;
                Err(error)
            }
        }
    }

    async fn import_leased(
        &self,
        ctx: &Context,
        input: Pin<Box<dyn AsyncRead + Send>>,
        request: &ImportRequest,
        progress: &ProgressSender,
    ) -> Result<Vec<Image>> {
        let index = self.ingest_archive(ctx, input, request).await?;
        let data = self.shared.content.read(ctx, &index.digest, MAX_JSON)?;
        let manifests = Index::read(&index, &data)?.manifests;
        let destination = &request.destination;
        let walk = Walk::new(self, ctx, destination, None, &destination.name, progress)?;
        walk.archive(&index, &manifests).await?;
        let mut images = Vec::new();
        if !destination.name.is_empty() || destination.extra_references.iter().any(|rule| !rule.is_prefix) {
            images.extend(self.record_pulled(ctx, destination, &index, progress).await?);
        }
        for manifest in &manifests {
            images.extend(self.record_archived(ctx, destination, manifest, progress).await?);
        }
        Ok(images)
    }

    /// Stores the files of an archive and returns its index.
    async fn ingest_archive(
        &self,
        ctx: &Context,
        input: Pin<Box<dyn AsyncRead + Send>>,
        request: &ImportRequest,
    ) -> Result<Descriptor> {
        let cancelled = CancellationToken::new();
        let bridge = Bridge { input, runtime: Handle::current(), cancelled: cancelled.clone() };
        let (service, ctx, request) = (self.clone(), ctx.clone(), request.clone());
        // Ends the thread if we are given up.
        let guard = cancelled.drop_guard();
        let thread = tokio::task::spawn_blocking(move || {
            let store = store::BlobStore::new(service, ctx, Handle::current());
            let mut input = BufReader::with_capacity(BUFFER, bridge);
            let plain: Box<dyn Read + '_> = match request.media_type.is_empty() {
                true => decompress(&mut input)?,
                false => Box::new(&mut input),
            };
            let read = archive::read(plain, |path, size, reader| store.file(path, size, reader))?;
            match read {
                Archive::Layout(index) => Ok(index),
                Archive::Docker(images, blobs) => {
                    docker::index(&store, &images, &blobs, request.force_compress)
                }
            }
        });
        let index = thread.await.map_err(|error| Error::internal(error.to_string()))?;
        drop(guard);
        index
    }
}

/// Reads an archive without storing anything of it.
#[cfg(fuzzing)]
pub(crate) fn read_for_nothing(mut input: &[u8]) -> Result<()> {
    let plain = decompress(&mut input)?.take(1 << 20);
    let read = archive::read(plain, |_, _, reader| {
        std::io::copy(reader, &mut std::io::sink())?;
        Ok(corten_types::Digest::sha256(b""))
    })?;
    if let Archive::Docker(images, blobs) = read {
        for image in images {
            let layers = image.layers.unwrap_or_default();
            drop(layers.iter().chain([&image.config]).map(|path| blobs.get(path)).collect::<Vec<_>>());
        }
    }
    Ok(())
}

/// What follows in its plain form, whatever it is compressed with.
fn decompress<'a>(input: &'a mut impl BufRead) -> Result<Box<dyn Read + 'a>> {
    let mut start = Vec::with_capacity(MAGIC);
    // Whoever writes into a pipe may do so byte by byte.
    input.by_ref().take(MAGIC as u64).read_to_end(&mut start).context("failed to read the archive")?;
    let kind: [u8; MAGIC] = std::array::from_fn(|at| start.get(at).copied().unwrap_or_default());
    let whole = Read::chain(std::io::Cursor::new(start), input);
    match kind {
        [0x1f, 0x8b, 0x08, ..] => Ok(Box::new(flate2::bufread::MultiGzDecoder::new(whole))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Box::new(zstd::stream::read::Decoder::with_buffer(whole)?)),
        _ => Ok(Box::new(whole)),
    }
}

/// Reads from a thread what arrives in the runtime.
struct Bridge {
    input: Pin<Box<dyn AsyncRead + Send>>,
    runtime: Handle,
    cancelled: CancellationToken,
}

impl Read for Bridge {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let Self { input, runtime, cancelled } = self;
        runtime.block_on(async {
            tokio::select! {
                () = cancelled.cancelled() => Err(std::io::Error::other("context canceled")),
                read = input.read(buffer) => read,
            }
        })
    }
}
