//! `images convert`: an image with other media types and other compression of its layers.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use bytes::Bytes;
use clap::Args;
use corten_api::services::{content, images};
use corten_types::{Descriptor, Digest, Digester, Error, Labels, Platform, Result, ResultExt, media_type};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::client::{Daemon, error};
use crate::commands::leases;
use crate::container::read_blob;

/// How long the parts are kept should this program be ended in between.
const LIFE: std::time::Duration = std::time::Duration::from_secs(24 * 3600);
const PIECE: usize = 1 << 20;
const UNCOMPRESSED: &str = "containerd.io/uncompressed";
const ZSTD_LEVEL: i32 = 3;
/// Docker's types and those of OCI.
const TYPES: [(&str, &str); 8] = [
    (media_type::DOCKER_INDEX, media_type::OCI_INDEX),
    (media_type::DOCKER_MANIFEST, media_type::OCI_MANIFEST),
    (media_type::DOCKER_CONFIG, media_type::OCI_CONFIG),
    (media_type::DOCKER_LAYER, media_type::OCI_LAYER),
    (media_type::DOCKER_LAYER_GZIP, media_type::OCI_LAYER_GZIP),
    ("application/vnd.docker.image.rootfs.diff.tar.zstd", media_type::OCI_LAYER_ZSTD),
    (
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
    ),
    (
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    ),
];

/// Make an image with other media types or compression of another one.
#[derive(Debug, Args)]
pub struct Convert {
    /// Do not compress layers.
    #[arg(long, group = "compression")]
    uncompress: bool,
    /// Compress layers with gzip.
    #[arg(long, group = "compression")]
    gzip: bool,
    /// Compress layers with Zstandard.
    #[arg(long, group = "compression")]
    zstd: bool,
    /// OCI's media types instead of Docker's.
    #[arg(long)]
    oci: bool,
    /// Platforms to convert, os/arch; this machine's without it. The others are left out.
    #[arg(long)]
    platform: Vec<String>,
    /// Convert all platforms.
    #[arg(long)]
    all_platforms: bool,
    #[arg(default_value = "", value_name = "SOURCE")]
    source: String,
    #[arg(default_value = "", value_name = "TARGET")]
    target: String,
}

/// How layers are compressed in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Convert {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        if self.source.is_empty() || self.target.is_empty() {
            return Err(Error::unknown("src and target image need to be specified"));
        }
        let lease = leases::create(daemon, None, LIFE, Labels::new()).await?;
        let done = self.converted(&daemon.leased(&lease)?).await;
        let request = corten_api::services::leases::DeleteRequest { id: lease, sync: false };
        daemon.leases().delete(request).await.ok();
        println!("{}", done?);
        Ok(())
    }

    async fn converted(&self, daemon: &Daemon) -> Result<String> {
        let platforms = match (self.all_platforms, self.platform.is_empty()) {
            (true, _) => None,
            (false, true) => Some(vec![Platform::host()]),
            (false, false) => Some(self.platform.iter().map(|text| text.parse()).collect::<Result<_>>()?),
        };
        let compression = match (self.uncompress, self.gzip, self.zstd) {
            (true, ..) => Some(Compression::None),
            (_, true, _) => Some(Compression::Gzip),
            (.., true) => Some(Compression::Zstd),
            _ => None,
        };
        let request = images::GetImageRequest { name: self.source.clone() };
        let found = daemon.images().get(request).await.map_err(error)?.into_inner().image;
        let mut image = found.ok_or_else(|| Error::not_found(format!("image {:?}", self.source)))?;
        let target = Descriptor::try_from(image.target.clone().unwrap_or_default())?;
        let conversion = Conversion { daemon, oci: self.oci, compression, platforms };
        let made = conversion.document(&target).await?;
        let digest = made.digest.to_string();
        image.name.clone_from(&self.target);
        image.target = Some(made.into());
        record(daemon, image).await?;
        Ok(digest)
    }
}

/// Makes the record, or has the one of that name mean the new image.
async fn record(daemon: &Daemon, image: images::Image) -> Result<()> {
    let request = images::CreateImageRequest { image: Some(image.clone()), ..Default::default() };
    match daemon.images().create(request).await.map_err(error) {
        Err(known) if known.is_already_exists() => {
            let request = images::UpdateImageRequest { image: Some(image), ..Default::default() };
            daemon.images().update(request).await.map_err(error).map(drop)
        }
        other => other.map(drop),
    }
}

/// An index or a manifest, its fields in the order in which they are written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    media_type: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    artifact_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    config: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    layers: Option<Vec<Descriptor>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    annotations: Option<BTreeMap<String, String>>,
}

struct Conversion<'a> {
    daemon: &'a Daemon,
    oci: bool,
    /// That of the layers; as it is without.
    compression: Option<Compression>,
    /// Of an index; all without.
    platforms: Option<Vec<Platform>>,
}

impl Conversion<'_> {
    /// An index or manifest; the same one if nothing in it changes.
    async fn document(&self, old: &Descriptor) -> Result<Descriptor> {
        let data = read_blob(self.daemon, old.digest.as_str()).await?;
        let document: Document = serde_json::from_slice(&data)
            .map_err(|bad| Error::invalid_argument(format!("{}: {bad}", old.digest)))?;
        let mut new = document.clone();
        if !new.media_type.is_empty() || self.oci {
            new.media_type = self.media_type(&old.media_type);
        }
        if let Some(config) = &mut new.config {
            config.media_type = self.media_type(&config.media_type);
        }
        for layer in new.layers.iter_mut().flatten() {
            *layer = self.layer(layer).await?;
        }
        if let Some(manifests) = &mut new.manifests {
            manifests.retain(|manifest| self.is_wanted(manifest));
            for manifest in manifests {
                *manifest = Box::pin(self.document(manifest)).await?;
            }
        }
        if new == document && self.media_type(&old.media_type) == old.media_type {
            return Ok(old.clone());
        }
        let data = serde_json::to_vec(&new).map_err(|bad| Error::internal(bad.to_string()))?;
        let (digest, size) = (Digest::sha256(&data), i64::try_from(data.len()).unwrap_or(i64::MAX));
        let reference = format!("convert-{digest}");
        write(self.daemon, reference, references(&new), once(data)).await?;
        Ok(Descriptor { media_type: self.media_type(&old.media_type), digest, size, ..old.clone() })
    }

    fn is_wanted(&self, manifest: &Descriptor) -> bool {
        let (Some(wanted), Some(platform)) = (&self.platforms, &manifest.platform) else { return true };
        wanted.iter().any(|one| one.rank(platform) == Some(0))
    }

    fn media_type(&self, old: &str) -> String {
        let new = TYPES.iter().find(|(docker, _)| self.oci && *docker == old);
        new.map_or(old, |(_, oci)| oci).to_owned()
    }

    async fn layer(&self, old: &Descriptor) -> Result<Descriptor> {
        let media_type = self.media_type(&old.media_type);
        let changed = self
            .compression
            .and_then(|compression| Some((compression, compressed(&media_type, compression)?)));
        let Some((compression, media_type)) = changed.filter(|(_, new)| *new != media_type) else {
            return Ok(Descriptor { media_type, ..old.clone() });
        };
        let (digest, size) =
            self.recompress(old, compression).await.with_context(|| old.digest.to_string())?;
        Ok(Descriptor { media_type, digest, size, ..old.clone() })
    }

    /// Reads a layer, compresses it in another way, and writes it, all at once.
    async fn recompress(&self, old: &Descriptor, compression: Compression) -> Result<(Digest, i64)> {
        let (input, arriving) = mpsc::channel(4);
        let (output, outgoing) = mpsc::channel(4);
        let request = content::ReadContentRequest { digest: old.digest.to_string(), offset: 0, size: 0 };
        let mut stream = self.daemon.content().read(request).await.map_err(error)?.into_inner();
        let reading = async {
            while let Some(message) = stream.message().await.map_err(error)? {
                if input.send(message.data).await.is_err() {
                    break;
                }
            }
            drop(input);
            Ok::<_, Error>(())
        };
        let thread = tokio::task::spawn_blocking(move || {
            recompressed(Arriving::new(arriving), Outgoing::new(output), compression)
        });
        let reference = format!("convert-{compression:?}-from-{}", old.digest).to_lowercase();
        let writing = write(self.daemon, reference, Labels::new(), outgoing);
        let (read, made, written) = tokio::join!(reading, thread, writing);
        read?;
        let uncompressed = made.map_err(|bad| Error::internal(bad.to_string()))??;
        let (digest, size) = written?;
        if compression != Compression::None {
            let label = Labels::from([(UNCOMPRESSED.to_owned(), uncompressed.to_string())]);
            let info = content::Info { digest: digest.to_string(), labels: label, ..Default::default() };
            let update_mask = Some(prost_types::FieldMask { paths: vec![format!("labels.{UNCOMPRESSED}")] });
            let request = content::UpdateRequest { info: Some(info), update_mask };
            self.daemon.content().update(request).await.map_err(error)?;
        }
        Ok((digest, size))
    }
}

/// The type of a layer with another compression; nothing for what is no layer, or encrypted.
fn compressed(media_type: &str, compression: Compression) -> Option<String> {
    let (base, separator) = match media_type.split_once(".tar") {
        Some((base, "" | "+gzip" | "+zstd")) if base.contains("oci.image.layer.") => (base, '+'),
        Some((base, "" | ".gzip" | ".zstd")) if base.contains("docker.image.rootfs.") => (base, '.'),
        _ => return None,
    };
    Some(match compression {
        Compression::None => format!("{base}.tar"),
        Compression::Gzip => format!("{base}.tar{separator}gzip"),
        Compression::Zstd => format!("{base}.tar{separator}zstd"),
    })
}

/// Labels by which the collector finds what a document refers to.
fn references(document: &Document) -> Labels {
    let label = |key: String, one: &Descriptor| {
        (format!("containerd.io/gc.ref.content.{key}"), one.digest.to_string())
    };
    let numbered = |list: &Option<Vec<Descriptor>>, kind: &str| -> Vec<(String, String)> {
        list.iter().flatten().enumerate().map(|(at, one)| label(format!("{kind}.{at}"), one)).collect()
    };
    let config = document.config.iter().map(|one| label("config".into(), one));
    config.chain(numbered(&document.layers, "l")).chain(numbered(&document.manifests, "m")).collect()
}

fn once(data: Vec<u8>) -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(1);
    // There is room for one.
    let _ = sender.try_send(data.into());
    receiver
}

/// Writes a blob as its bytes come; answers digest and size.
async fn write(
    daemon: &Daemon,
    reference: String,
    labels: Labels,
    mut data: mpsc::Receiver<Bytes>,
) -> Result<(Digest, i64)> {
    let (sender, requests) = mpsc::channel(4);
    let feeding = async move {
        let (mut digester, mut offset) = (Digester::default(), 0_i64);
        let first = content::WriteContentRequest { r#ref: reference.clone(), ..Default::default() };
        let mut open = sender.send(first).await.is_ok();
        while let Some(data) = data.recv().await {
            digester.update(&data);
            let length = i64::try_from(data.len()).unwrap_or(i64::MAX);
            let action = content::WriteAction::Write.into();
            let request = content::WriteContentRequest {
                action,
                r#ref: reference.clone(),
                offset,
                data,
                ..Default::default()
            };
            open = open && sender.send(request).await.is_ok();
            offset += length;
        }
        let digest = digester.finish();
        let commit = content::WriteContentRequest {
            action: content::WriteAction::Commit.into(),
            r#ref: reference,
            total: offset,
            offset,
            expected: digest.to_string(),
            labels,
            ..Default::default()
        };
        if open {
            let _ = sender.send(commit).await;
        }
        (digest, offset)
    };
    let answering = async {
        let mut answers =
            daemon.content().write(ReceiverStream::new(requests)).await.map_err(error)?.into_inner();
        while answers.message().await.map_err(error)?.is_some() {}
        Ok::<_, Error>(())
    };
    let (made, answered) = tokio::join!(feeding, answering);
    match answered {
        Err(failed) if !failed.is_already_exists() => Err(failed),
        _ => Ok(made),
    }
}

/// Decompresses and compresses; answers the digest of what is between.
fn recompressed(input: Arriving, output: Outgoing, compression: Compression) -> Result<Digest> {
    let mut input = decoder(input)?;
    let mut digester = Digester::default();
    let mut copy = |output: &mut dyn Write| -> std::io::Result<()> {
        let mut buffer = vec![0; PIECE];
        loop {
            let count = input.read(&mut buffer)?;
            let data = buffer.get(..count).unwrap_or_default();
            if data.is_empty() {
                return Ok(());
            }
            digester.update(data);
            output.write_all(data)?;
        }
    };
    let mut output = match compression {
        Compression::None => {
            let mut output = output;
            copy(&mut output)?;
            output
        }
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(output, flate2::Compression::default());
            copy(&mut encoder)?;
            encoder.finish()?
        }
        Compression::Zstd => {
            let mut encoder = zstd::stream::write::Encoder::new(output, ZSTD_LEVEL)?;
            encoder.include_checksum(true)?;
            copy(&mut encoder)?;
            encoder.finish()?
        }
    };
    output.flush()?;
    Ok(digester.finish())
}

fn decoder(input: Arriving) -> Result<Box<dyn Read>> {
    let mut input = std::io::BufReader::with_capacity(PIECE, input);
    let start = std::io::BufRead::fill_buf(&mut input)?;
    Ok(match start {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
        // A frame to be skipped, with which chunked layers may begin.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
        _ => Box::new(input),
    })
}

/// Reads what a channel brings.
struct Arriving {
    pieces: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Arriving {
    fn new(pieces: mpsc::Receiver<Bytes>) -> Self {
        Self { pieces, piece: Bytes::new() }
    }
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.piece.len());
        let piece = self.piece.split_to(count);
        if let Some(room) = buffer.get_mut(..count) {
            room.copy_from_slice(&piece);
        }
        Ok(count)
    }
}

/// Collects pieces for a channel.
struct Outgoing {
    pieces: mpsc::Sender<Bytes>,
    piece: Vec<u8>,
}

impl Outgoing {
    fn new(pieces: mpsc::Sender<Bytes>) -> Self {
        Self { pieces, piece: Vec::with_capacity(PIECE) }
    }
}

impl Write for Outgoing {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.piece.extend_from_slice(data);
        if self.piece.len() >= PIECE {
            self.flush()?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::take(&mut self.piece);
        let gone = |_| std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        self.pieces.blocking_send(piece.into()).map_err(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_follow_the_compression() {
        let zstd = |kind: &str| compressed(kind, Compression::Zstd);
        assert_eq!(zstd(media_type::OCI_LAYER_GZIP).as_deref(), Some(media_type::OCI_LAYER_ZSTD));
        assert_eq!(
            zstd(media_type::DOCKER_LAYER_GZIP).as_deref(),
            Some("application/vnd.docker.image.rootfs.diff.tar.zstd")
        );
        assert_eq!(
            compressed(media_type::OCI_LAYER_ZSTD, Compression::None).as_deref(),
            Some(media_type::OCI_LAYER)
        );
        assert_eq!(zstd("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"), None);
        assert_eq!(zstd("application/vnd.in-toto+json"), None);
    }
}
