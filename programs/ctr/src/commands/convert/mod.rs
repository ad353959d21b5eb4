//! `images convert`: an image with other media types, and its layers in other forms.

mod erofs;
mod lazy;
mod tape;

use std::collections::BTreeMap;
use std::io::{Read, Write};

use bytes::Bytes;
use clap::Args;
use corten_api::services::{content, images};
use corten_types::{Descriptor, Digest, Digester, Error, Labels, Platform, Result, ResultExt, media_type};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::client::{Daemon, error};
use crate::commands::blobs::{once, write};
use crate::commands::leases;
use crate::container::read_blob;

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
    /// Make layers whose files can be fetched one by one, in gzip (eStargz).
    #[arg(long, group = "compression")]
    estargz: bool,
    /// Make layers whose files can be fetched one by one, in Zstandard (zstd:chunked).
    #[arg(long, group = "compression")]
    zstdchunked: bool,
    /// Make layers that the snapshotter erofs mounts as they are; needs mkfs.erofs.
    #[arg(long, group = "compression")]
    erofs: bool,
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

/// What form layers have in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Plain,
    Gzip,
    Zstd,
    Estargz,
    Chunked,
    Erofs,
}

/// What came of a layer.
#[derive(Debug)]
struct Made {
    /// The digest of what is extracted.
    diff_id: Digest,
    /// What its descriptor tells readers besides.
    annotations: BTreeMap<String, String>,
}

/// Beginnings of annotations that speak of a form.
const OF_FORMS: [&str; 3] =
    ["containerd.io/snapshot/stargz/", "io.containers.estargz.", "io.github.containers.zstd-chunked."];

impl Convert {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        if self.source.is_empty() || self.target.is_empty() {
            return Err(Error::unknown("src and target image need to be specified"));
        }
        println!("{}", leases::held(daemon, async |leased| self.converted(leased).await).await?);
        Ok(())
    }

    async fn converted(&self, daemon: &Daemon) -> Result<String> {
        let platforms = match (self.all_platforms, self.platform.is_empty()) {
            (true, _) => None,
            (false, true) => Some(vec![Platform::host()]),
            (false, false) => Some(self.platform.iter().map(|text| platform(text)).collect::<Result<_>>()?),
        };
        let forms = [
            (self.uncompress, Form::Plain),
            (self.gzip, Form::Gzip),
            (self.zstd, Form::Zstd),
            (self.estargz, Form::Estargz),
            (self.zstdchunked, Form::Chunked),
            (self.erofs, Form::Erofs),
        ];
        let form = forms.into_iter().find(|(wanted, _)| *wanted).map(|(_, form)| form);
        let request = images::GetImageRequest { name: self.source.clone() };
        let found = daemon.images().get(request).await.map_err(error)?.into_inner().image;
        let mut image = found.ok_or_else(|| Error::not_found(format!("image {:?}", self.source)))?;
        let target = Descriptor::try_from(image.target.clone().unwrap_or_default())?;
        let conversion = Conversion { daemon, oci: self.oci, form, platforms };
        let made = crate::waiting::told("converting the image", conversion.document(&target)).await?;
        let digest = made.digest.to_string();
        image.name.clone_from(&self.target);
        image.target = Some(made.into());
        record(daemon, image).await?;
        Ok(digest)
    }
}

/// Makes the record, or has the one of that name mean the new image.
pub(in crate::commands) async fn record(daemon: &Daemon, image: images::Image) -> Result<()> {
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
pub(in crate::commands) struct Document {
    schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    media_type: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    artifact_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<Descriptor>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifests: Option<Vec<Descriptor>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    annotations: Option<BTreeMap<String, String>>,
}

struct Conversion<'a> {
    daemon: &'a Daemon,
    oci: bool,
    /// That of the layers; as it is without.
    form: Option<Form>,
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
        let mut diff_ids = Vec::new();
        for layer in new.layers.iter_mut().flatten() {
            let (made, diff_id) = self.layer(layer).await?;
            *layer = made;
            diff_ids.push(diff_id);
        }
        if let Some(config) = &mut new.config
            && diff_ids.iter().any(Option::is_some)
        {
            *config = self.config(config, &diff_ids).await?;
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

    /// The config of layers that are extracted to something else than before; the same one if none is.
    async fn config(&self, old: &Descriptor, diff_ids: &[Option<Digest>]) -> Result<Descriptor> {
        let bad = |text: &str| Error::invalid_argument(format!("{}: {text}", old.digest));
        let data = read_blob(self.daemon, old.digest.as_str()).await?;
        let mut config: serde_json::Value =
            serde_json::from_slice(&data).map_err(|error| bad(&error.to_string()))?;
        let known = config.pointer_mut("/rootfs/diff_ids").and_then(serde_json::Value::as_array_mut);
        let known = known.filter(|known| known.len() == diff_ids.len());
        let known = known.ok_or_else(|| bad("the config does not tell what each layer is extracted to"))?;
        let before = known.clone();
        for (known, new) in known.iter_mut().zip(diff_ids) {
            if let Some(new) = new {
                *known = new.to_string().into();
            }
        }
        if *known == before {
            return Ok(old.clone());
        }
        let data = serde_json::to_vec(&config).map_err(|bad| Error::internal(bad.to_string()))?;
        let digest = Digest::sha256(&data);
        let (digest, size) =
            write(self.daemon, format!("convert-{digest}"), Labels::new(), once(data)).await?;
        Ok(Descriptor { digest, size, ..old.clone() })
    }

    /// A layer in the wanted form, and what it is extracted to if it is another one than before.
    async fn layer(&self, old: &Descriptor) -> Result<(Descriptor, Option<Digest>)> {
        let mut new = Descriptor { media_type: self.media_type(&old.media_type), ..old.clone() };
        let wanted = self.form.and_then(|form| Some((form, typed(&new.media_type, form)?)));
        let Some((form, media_type)) = wanted.filter(|(form, kind)| !has_form(&new, *form, kind)) else {
            return Ok((new, None));
        };
        let failed = || old.digest.to_string();
        let (digest, size, made) = match form {
            Form::Erofs => erofs::layer(self.daemon, old).await.with_context(failed)?,
            _ => self.recompress(old, form).await.with_context(failed)?,
        };
        (new.media_type, new.digest, new.size) = (media_type, digest, size);
        new.annotations.retain(|key, _| !OF_FORMS.iter().any(|form| key.starts_with(form)));
        new.annotations.extend(made.annotations);
        Ok((new, Some(made.diff_id)))
    }

    /// Reads a layer, brings it into another form, and writes it, all at once.
    async fn recompress(&self, old: &Descriptor, form: Form) -> Result<(Digest, i64, Made)> {
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
            reformed(Arriving::new(arriving), Outgoing::new(output), form)
        });
        let reference = format!("convert-{form:?}-from-{}", old.digest).to_lowercase();
        let writing = write(self.daemon, reference, Labels::new(), outgoing);
        let (read, made, written) = tokio::join!(reading, thread, writing);
        read?;
        let made = made.map_err(|bad| Error::internal(bad.to_string()))??;
        let (digest, size) = written?;
        if form != Form::Plain {
            let label = Labels::from([(UNCOMPRESSED.to_owned(), made.diff_id.to_string())]);
            let info = content::Info { digest: digest.to_string(), labels: label, ..Default::default() };
            let update_mask = Some(prost_types::FieldMask { paths: vec![format!("labels.{UNCOMPRESSED}")] });
            let request = content::UpdateRequest { info: Some(info), update_mask };
            self.daemon.content().update(request).await.map_err(error)?;
        }
        Ok((digest, size, made))
    }
}

/// Whether a layer has a form already.
fn has_form(layer: &Descriptor, form: Form, media_type: &str) -> bool {
    let is_told = |prefix: &str| layer.annotations.keys().any(|key| key.starts_with(prefix));
    layer.media_type == media_type
        && match form {
            Form::Plain | Form::Gzip | Form::Zstd | Form::Erofs => true,
            Form::Estargz => is_told(OF_FORMS[0]),
            Form::Chunked => is_told(OF_FORMS[2]),
        }
}

/// The type of a layer in another form; nothing for what is no archive, or encrypted.
fn typed(old: &str, form: Form) -> Option<String> {
    let (base, separator) = match old.split_once(".tar") {
        Some((base, "" | "+gzip" | "+zstd")) if base.contains("oci.image.layer.") => (base, '+'),
        Some((base, "" | ".gzip" | ".zstd")) if base.contains("docker.image.rootfs.") => (base, '.'),
        _ => return None,
    };
    Some(match form {
        Form::Plain => format!("{base}.tar"),
        Form::Gzip | Form::Estargz => format!("{base}.tar{separator}gzip"),
        Form::Zstd | Form::Chunked => format!("{base}.tar{separator}zstd"),
        Form::Erofs => media_type::EROFS_LAYER.to_owned(),
    })
}

/// Labels by which the collector finds what a document refers to.
pub(in crate::commands) fn references(document: &Document) -> Labels {
    let label = |key: String, one: &Descriptor| {
        (format!("containerd.io/gc.ref.content.{key}"), one.digest.to_string())
    };
    let numbered = |list: &Option<Vec<Descriptor>>, kind: &str| -> Vec<(String, String)> {
        list.iter().flatten().enumerate().map(|(at, one)| label(format!("{kind}.{at}"), one)).collect()
    };
    let config = document.config.iter().map(|one| label("config".into(), one));
    config.chain(numbered(&document.layers, "l")).chain(numbered(&document.manifests, "m")).collect()
}

/// Decompresses, and writes what that gives in another form.
fn reformed(input: Arriving, output: Outgoing, form: Form) -> Result<Made> {
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
    let mut output = match form {
        Form::Estargz => return lazy::estargz(input, output),
        Form::Chunked => return lazy::chunked(input, output),
        Form::Erofs => return Err(Error::internal("images of erofs are made elsewhere")),
        Form::Plain => {
            let mut output = output;
            copy(&mut output)?;
            output
        }
        Form::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(output, flate2::Compression::default());
            copy(&mut encoder)?;
            encoder.finish()?
        }
        Form::Zstd => {
            let mut encoder = zstd::stream::write::Encoder::new(output, ZSTD_LEVEL)?;
            encoder.include_checksum(true)?;
            copy(&mut encoder)?;
            encoder.finish()?
        }
    };
    output.flush()?;
    Ok(Made { diff_id: digester.finish(), annotations: BTreeMap::new() })
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

fn platform(text: &str) -> Result<Platform> {
    text.parse::<Platform>().with_context(|| format!("invalid platform {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_follow_the_compression() {
        let zstd = |kind: &str| typed(kind, Form::Zstd);
        assert_eq!(zstd(media_type::OCI_LAYER_GZIP).as_deref(), Some(media_type::OCI_LAYER_ZSTD));
        assert_eq!(
            zstd(media_type::DOCKER_LAYER_GZIP).as_deref(),
            Some("application/vnd.docker.image.rootfs.diff.tar.zstd")
        );
        assert_eq!(typed(media_type::OCI_LAYER_ZSTD, Form::Plain).as_deref(), Some(media_type::OCI_LAYER));
        assert_eq!(zstd("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"), None);
        assert_eq!(zstd("application/vnd.in-toto+json"), None);
    }
}
