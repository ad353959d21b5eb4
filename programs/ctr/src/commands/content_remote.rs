//! `content fetch`, `fetch-object`, `fetch-blob` and `push-object`: single things of registries.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;

use clap::Args;
use corten_api::services::content::{InfoRequest, ReadContentRequest};
use corten_api::services::images;
use corten_api::transfer_types as objects;
use corten_registry::{BlobSource, Fetcher, Pushed, Pusher};
use corten_types::{Descriptor, Digest, Error, Labels, Reference, Result, ResultExt, media_type};

use super::blobs;
use super::content::digest;
use super::convert::{Document, record, references};
use super::images::{Wanted, transfer, unique};
use crate::client::{Daemon, error};
use crate::commands::leases;
use crate::container::read_blob;
use crate::output;
use crate::progress::ProgressFlag;
use crate::registry::Registry;

/// Bring an image from a registry without unpacking it.
#[derive(Debug, Args)]
pub struct Fetch {
    #[command(flatten)]
    registry: Registry,
    #[command(flatten)]
    wanted: Wanted,
    /// Manifests and configs of all platforms, and no layers.
    #[arg(long)]
    metadata_only: bool,
    #[command(flatten)]
    progress: ProgressFlag,
    /// Its full name.
    #[arg(default_value = "")]
    reference: String,
}

impl Fetch {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        resolvable(&self.reference)?;
        if self.metadata_only {
            return self.metadata(daemon).await;
        }
        let mut access = self.registry.access(daemon).await?;
        let resolver = Some(std::mem::take(&mut access.resolver));
        let source = objects::OciRegistry { reference: self.reference.clone(), resolver };
        let store = self.wanted.store(self.reference)?;
        let shown = Some(("Fetching", self.progress.shown()));
        let done = transfer(daemon, corten_api::pack(&source), corten_api::pack(&store), shown).await;
        access.finish().await;
        done.map(drop)
    }

    /// Brings the documents of an image, which say all of it but what is in its layers.
    async fn metadata(self, daemon: &Daemon) -> Result<()> {
        let local = self.registry.local()?;
        let reference = remote(&self.reference)?;
        leases::held(daemon, async |leased| {
            let target = local.resolver.resolve(&reference).await.context("failed to resolve image")?;
            documents(leased, &local.resolver.fetcher(&reference)?, &target).await?;
            let (name, labels) = (self.reference.clone(), self.wanted.labels());
            let image = images::Image { name, labels, target: Some(target.into()), ..Default::default() };
            record(leased, image).await
        })
        .await
    }
}

/// Refuses a name that no registry can be asked for.
pub(super) fn resolvable(name: &str) -> Result<()> {
    let parsed = remote(name).and_then(|reference| match reference.object.is_empty() {
        true => Err(Error::unknown("object required")),
        false => Ok(()),
    });
    parsed.with_context(|| format!("failed to resolve reference {name:?}"))
}

/// Stores a document and those that it names, these first.
async fn documents(daemon: &Daemon, fetcher: &Fetcher, target: &Descriptor) -> Result<()> {
    let data = whole(fetcher, target).await?;
    let mut labels = Labels::new();
    if media_type::is_index(&target.media_type) || media_type::is_manifest(&target.media_type) {
        let document: Document = serde_json::from_slice(&data)
            .map_err(|bad| Error::invalid_argument(format!("{}: {bad}", target.digest)))?;
        for part in document.config.iter().chain(document.manifests.iter().flatten()) {
            Box::pin(documents(daemon, fetcher, part)).await?;
        }
        labels = references(&document);
    }
    blobs::write(daemon, format!("fetch-{}", target.digest), labels, blobs::once(data)).await.map(drop)
}

/// A document, verified.
async fn whole(fetcher: &Fetcher, target: &Descriptor) -> Result<Vec<u8>> {
    if target.size > corten_registry::MAX_MANIFEST_SIZE {
        return Err(Error::invalid_argument(format!(
            "{}: {} bytes are too many",
            target.digest, target.size
        )));
    }
    let mut download = fetcher.fetch(target, 0).await.context("failed to copy")?;
    let mut data = Vec::new();
    while let Some(chunk) = download.chunk().await? {
        data.extend_from_slice(&chunk);
    }
    let found = Digest::sha256(&data);
    if found != target.digest {
        return Err(Error::failed_precondition(format!("got digest {found}, expected {}", target.digest)));
    }
    Ok(data)
}

/// Write what a registry has under a name to standard output.
#[derive(Debug, Args)]
pub struct FetchObject {
    #[command(flatten)]
    registry: Registry,
    /// Its full name.
    #[arg(default_value = "")]
    reference: String,
    /// As the original has it.
    #[arg(hide = true)]
    _hints: Vec<String>,
}

impl FetchObject {
    pub async fn run(self) -> Result<()> {
        let reference = remote(&self.reference)?;
        if reference.object.is_empty() {
            return Err(Error::unknown("object required"));
        }
        let local = self.registry.local()?;
        let target = local.resolver.resolve(&reference).await?;
        show(&local.resolver.fetcher(&reference)?, &target).await
    }
}

/// Writes content to standard output as it comes.
async fn show(fetcher: &Fetcher, target: &Descriptor) -> Result<()> {
    let mut download = fetcher.fetch(target, 0).await?;
    while let Some(chunk) = download.chunk().await? {
        output::bytes(&chunk);
    }
    Ok(())
}

/// Write blobs of a registry to standard output.
#[derive(Debug, Args)]
pub struct FetchBlob {
    #[command(flatten)]
    registry: Registry,
    /// What the registry is told that is wanted.
    #[arg(long, default_value = "")]
    media_type: String,
    /// The repository, with the host.
    #[arg(default_value = "")]
    remote: String,
    digests: Vec<String>,
}

impl FetchBlob {
    pub async fn run(self) -> Result<()> {
        if self.digests.is_empty() {
            return Err(Error::unknown("must specify digests"));
        }
        let digests: Vec<Digest> = self.digests.iter().map(|text| digest(text)).collect::<Result<_>>()?;
        let repository = remote(&self.remote)?;
        let local = self.registry.local()?;
        let fetcher = local.resolver.fetcher(&repository)?;
        for digest in digests {
            let mut reference = repository.clone();
            reference.object = format!("@{digest}");
            let mut target = local.resolver.resolve(&reference).await?;
            if !self.media_type.is_empty() {
                target.media_type.clone_from(&self.media_type);
            }
            show(&fetcher, &target).await?;
        }
        Ok(())
    }
}

/// Send a blob or manifest to a registry.
#[derive(Debug, Args)]
pub struct PushObject {
    #[command(flatten)]
    registry: Registry,
    /// Where to, with the host.
    #[arg(default_value = "")]
    reference: String,
    #[arg(default_value = "")]
    digest: String,
    /// Its media type.
    #[arg(default_value = "")]
    media_type: String,
}

/// A blob of the daemon's in a file without a name, from which it can be sent more than once.
struct Spooled {
    file: File,
    size: u64,
}

impl Spooled {
    async fn of(daemon: &Daemon, digest: &Digest) -> Result<Self> {
        let path = std::env::temp_dir().join(unique("ctr-push"));
        let mut options = File::options();
        options.read(true).write(true).create_new(true);
        let mut file = OpenOptionsExt::mode(&mut options, 0o600)
            .open(&path)
            .with_context(|| path.display().to_string())?;
        std::fs::remove_file(&path)?;
        let request = ReadContentRequest { digest: digest.to_string(), offset: 0, size: 0 };
        let mut stream = daemon.content().read(request).await.map_err(error)?.into_inner();
        let mut size = 0;
        while let Some(message) = stream.message().await.map_err(error)? {
            file.write_all(&message.data)?;
            size += message.data.len() as u64;
        }
        Ok(Self { file, size })
    }
}

impl BlobSource for Spooled {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        Ok(FileExt::read_at(&self.file, buffer, offset)?)
    }
}

/// Sends a blob of the daemon's.
pub(super) async fn send(daemon: &Daemon, pusher: &Pusher, blob: &Descriptor) -> Result<Pushed> {
    let source = Arc::new(Spooled::of(daemon, &blob.digest).await?);
    pusher.blob(blob, None, source, Arc::new(|_| {})).await
}

impl PushObject {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        let digest = digest(&self.digest)?;
        let reference = remote(&self.reference)?;
        let local = self.registry.local()?;
        let info = daemon.content().info(InfoRequest { digest: digest.to_string() }).await.map_err(error)?;
        let size = info.into_inner().info.unwrap_or_default().size;
        let target = Descriptor::new(self.media_type, digest, size);
        let pusher = local.resolver.pusher(&reference)?;
        let kind = &target.media_type;
        let pushed = if media_type::is_manifest(kind) || media_type::is_index(kind) {
            let data = read_blob(daemon, target.digest.as_str()).await?;
            pusher.manifest(&target, data.into(), true).await?
        } else {
            send(daemon, &pusher, &target).await?
        };
        if pushed == Pushed::Existed {
            return Err(Error::already_exists(format!("content {} on remote", target.digest)));
        }
        println!("Pushed {} {}", target.digest, target.media_type);
        Ok(())
    }
}

/// A name at a registry; the original tells what is wrong with one without the class of the error.
fn remote(name: &str) -> Result<Reference> {
    name.parse::<Reference>().map_err(|failed| match failed.message().strip_suffix(": invalid argument") {
        Some(text) => Error::bare(failed.class(), text),
        None => failed,
    })
}
