//! What `docker save` writes, turned into manifests (spec 03 §8).

use std::io::{Read, Write};

use corten_types::{Descriptor, Digest, Error, Labels, Platform, Reference, Result, ResultExt, media_type};
use serde::Serialize;

use super::archive::{Blobs, DockerImage};
use super::store::BlobStore;
use crate::labels::{self, UNCOMPRESSED};
use crate::manifest::Config;
use crate::naming::{IMAGE_NAME, REF_NAME};
use crate::walk::MAX_CONFIG_SIZE;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ManifestDocument<'a> {
    schema_version: u32,
    media_type: &'a str,
    config: &'a Descriptor,
    layers: &'a [Descriptor],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct IndexDocument<'a> {
    schema_version: u32,
    manifests: &'a [Descriptor],
}

/// How a blob is compressed, by its first bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Stores manifests and an index for the images of an archive, and returns the index.
pub(super) fn index(
    store: &BlobStore,
    images: &[DockerImage],
    blobs: &Blobs,
    compress: bool,
) -> Result<Descriptor> {
    let mut manifests = Vec::new();
    for image in images {
        let manifest = manifest(store, image, blobs, compress)?;
        let tags = image.repo_tags.as_deref().unwrap_or_default();
        if tags.is_empty() {
            manifests.push(manifest);
            continue;
        }
        for tag in tags {
            let name = Reference::familiar(tag)?;
            let mut manifest = manifest.clone();
            let tag = name.tag().unwrap_or_default().to_owned();
            manifest.annotations.insert(REF_NAME.to_owned(), tag);
            manifest.annotations.insert(IMAGE_NAME.to_owned(), name.to_string());
            manifests.push(manifest);
        }
    }
    let document = IndexDocument { schema_version: 2, manifests: &manifests };
    let labels = labels::of_children(&manifests, true);
    store.document(media_type::OCI_INDEX, &serialize(&document)?, labels)
}

fn manifest(store: &BlobStore, image: &DockerImage, blobs: &Blobs, compress: bool) -> Result<Descriptor> {
    let (digest, size) = blobs.get(&image.config).context("image config not resolved")?;
    let config = Descriptor::new(media_type::DOCKER_CONFIG, digest, to_signed(size));
    let mut layers = Vec::new();
    for path in image.layers.as_deref().unwrap_or_default() {
        let (digest, size) = blobs.get(path).context("layer not resolved")?;
        layers.push(layer(store, digest, size, compress).with_context(|| format!("layer {path:?}"))?);
    }
    let document = ManifestDocument {
        schema_version: 2,
        media_type: media_type::DOCKER_MANIFEST,
        config: &config,
        layers: &layers,
    };
    let labels = labels::of_children(std::iter::once(&config).chain(&layers), true);
    let mut manifest = store.document(media_type::DOCKER_MANIFEST, &serialize(&document)?, labels)?;
    let data = store.service.shared.content.read(&store.ctx, &config.digest, MAX_CONFIG_SIZE)?;
    let platform = Config::read(&config, &data)?.platform();
    manifest.platform = (platform != Platform::default()).then_some(platform);
    Ok(manifest)
}

/// The descriptor of a layer: of a compressed twin where there is one or one is wanted.
fn layer(store: &BlobStore, digest: Digest, size: u64, compress: bool) -> Result<Descriptor> {
    let (compression, digest, size) = match sniff(store, &digest)? {
        Compression::None => match compressed_twin(store, &digest)? {
            Some((digest, size)) => (sniff(store, &digest)?, digest, size),
            None if compress => {
                let (digest, size) = gzip(store, &digest)?;
                (Compression::Gzip, digest, size)
            }
            None => (Compression::None, digest, size),
        },
        compression => (compression, digest, size),
    };
    let media_type = match compression {
        Compression::None => media_type::DOCKER_LAYER.to_owned(),
        Compression::Gzip => media_type::DOCKER_LAYER_GZIP.to_owned(),
        Compression::Zstd => format!("{}.zstd", media_type::DOCKER_LAYER),
    };
    Ok(Descriptor::new(media_type, digest, to_signed(size)))
}

fn sniff(store: &BlobStore, digest: &Digest) -> Result<Compression> {
    let blob = store.service.shared.content.reader(&store.ctx, digest)?;
    let mut start = [0; 4];
    let read = blob.read_at(&mut start, 0)?;
    Ok(match start.get(..read).unwrap_or_default() {
        [0x1f, 0x8b, 0x08, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd] => Compression::Zstd,
        _ => Compression::None,
    })
}

/// A stored blob that is this one, compressed.
fn compressed_twin(store: &BlobStore, digest: &Digest) -> Result<Option<(Digest, u64)>> {
    let filter = format!("labels.\"{UNCOMPRESSED}\"=={digest}");
    let found = store.service.shared.content.list(&store.ctx, &[filter])?;
    let twin = found.into_iter().find(|info| info.digest != *digest);
    Ok(twin.map(|info| (info.digest, info.size)))
}

/// Stores the compressed form of a blob.
fn gzip(store: &BlobStore, digest: &Digest) -> Result<(Digest, u64)> {
    let blob = store.service.shared.content.reader(&store.ctx, digest)?;
    let plain = BlobRead { blob, position: 0 };
    let mut compressed = GzipRead {
        plain,
        encoder: Some(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default())),
        ready: Vec::new(),
        taken: 0,
    };
    let labels = Labels::from([(UNCOMPRESSED.to_owned(), digest.to_string())]);
    let key = format!("import-compress-{digest}");
    let compressed_digest = store.write(&key, None, None, &mut compressed, labels.clone())?;
    store.wait(store.service.set_labels(&store.ctx, &compressed_digest, labels))?;
    let info = store.service.shared.content.info(&store.ctx, &compressed_digest)?;
    Ok((compressed_digest, info.size))
}

struct BlobRead {
    blob: corten_content::BlobReader,
    position: u64,
}

impl Read for BlobRead {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.blob.read_at(buffer, self.position).map_err(std::io::Error::other)?;
        self.position += read as u64;
        Ok(read)
    }
}

/// The compressed form of what a reader gives.
struct GzipRead {
    plain: BlobRead,
    encoder: Option<flate2::write::GzEncoder<Vec<u8>>>,
    ready: Vec<u8>,
    taken: usize,
}

impl Read for GzipRead {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.taken == self.ready.len() {
            let Some(encoder) = &mut self.encoder else { return Ok(0) };
            let mut plain = [0; 32 << 10];
            let read = self.plain.read(&mut plain)?;
            encoder.write_all(plain.get(..read).unwrap_or_default())?;
            self.ready = std::mem::take(encoder.get_mut());
            self.taken = 0;
            if read == 0
                && let Some(encoder) = self.encoder.take()
            {
                let rest = encoder.finish()?;
                self.ready.extend_from_slice(&rest);
            }
        }
        let ready = self.ready.get(self.taken..).unwrap_or_default();
        let count = ready.len().min(buffer.len());
        buffer[..count].copy_from_slice(&ready[..count]);
        self.taken += count;
        Ok(count)
    }
}

fn serialize(document: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(document).map_err(|error| Error::internal(error.to_string()))
}

fn to_signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}
