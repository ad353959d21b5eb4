//! `images`.

use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::{Args, Subcommand};
use corten_api::services::images as api;
use corten_api::services::streaming::StreamInit;
use corten_api::services::transfer::{TransferOptions, TransferRequest};
use corten_api::transfer_types::{self as objects, Data, Progress, WindowUpdate};
use corten_types::{Any, Error, Labels, Platform, Reference, Result, ResultExt, timestamp};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Listing;
use super::content::release_layers;
use super::convert::Convert;
use super::image_layers::{History, Layers};
use super::image_mounts::{ImageMount, ImageUnmount};
use super::image_records::{Check, Label, Usage};
use super::image_tree::ImageTree;
use super::images_out::{Export, Push};
use super::referrers::Referrers;
use crate::client::{Daemon, error};
use crate::commands::prune::PruneImages;
use crate::container::image::{find, platform_of};
use crate::container::{labels, manifest, read_blob};
use crate::output::{self, Table};
use crate::progress::{Display, ProgressFlag, Shown};
use crate::registry::Registry;

/// Exit code of a program that was interrupted: 128 and SIGINT.
const INTERRUPTED: i32 = 130;

/// Images.
#[derive(Debug, Subcommand)]
pub enum Images {
    /// Whether what they consist of is there, and unpacked.
    Check(Check),
    /// Write some into an archive.
    Export(Export),
    /// Bring some from an archive, and unpack them.
    Import(Import),
    /// Show what one consists of.
    #[command(visible_alias = "i")]
    Inspect(ImageTree),
    /// List them.
    #[command(visible_alias = "ls")]
    List(Listing),
    /// Mount the files of one on a folder.
    Mount(ImageMount),
    /// Take the files of one from a folder.
    Unmount(ImageUnmount),
    /// Bring one from a registry, and unpack it.
    Pull(Pull),
    /// Send one to a registry.
    Push(Push),
    /// Remove those that no container uses.
    Prune(PruneImages),
    /// Remove them.
    #[command(visible_aliases = ["del", "remove", "rm"])]
    Delete {
        /// Wait until what they alone held is gone.
        #[arg(long)]
        sync: bool,
        names: Vec<String>,
    },
    /// Give one another name.
    Tag {
        /// Replace what has the name.
        #[arg(long)]
        force: bool,
        /// Through the store of images alone: what has the name stays, unless --force.
        #[arg(long)]
        local: bool,
        /// Any name will do.
        #[arg(long)]
        skip_reference_check: bool,
        #[arg(default_value = "")]
        source: String,
        targets: Vec<String>,
    },
    /// Show and change labels.
    Label(Label),
    /// Make one with other media types or compression of another one.
    Convert(Convert),
    /// What their snapshots take up.
    Usage(Usage),
    /// How one came about: what made each layer, the newest first.
    History(History),
    /// Which layers the images share.
    Tree(Layers),
    /// What is attached to one at its registry: signatures, attestations, lists of what is in it.
    Referrers(Referrers),
}

/// Bring an image from a registry.
#[derive(Debug, Args)]
pub struct Pull {
    #[command(flatten)]
    registry: Registry,
    /// The snapshotter.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = "")]
    snapshotter: String,
    #[command(flatten)]
    wanted: Wanted,
    /// Say the chain ID of what was unpacked.
    #[arg(long)]
    print_chainid: bool,
    #[command(flatten)]
    progress: ProgressFlag,
    #[command(flatten)]
    of_the_original: PullFlags,
    /// Its full name; on a terminal docker's short ones are completed.
    #[arg(default_value = "")]
    reference: String,
}

/// What is brought of an image, and how it is recorded.
#[derive(Debug, Args)]
pub struct Wanted {
    /// Labels of the image, K=V.
    #[arg(long)]
    label: Vec<String>,
    /// Platforms to bring, os/arch.
    #[arg(long)]
    platform: Vec<String>,
    /// Bring all platforms; a pull unpacks none of them.
    #[arg(long)]
    all_platforms: bool,
    /// Leave the manifests of other platforms away.
    #[arg(long)]
    skip_metadata: bool,
}

impl Wanted {
    /// The labels of the record.
    pub fn labels(&self) -> Labels {
        labels(&self.label)
    }

    /// The record that a transfer makes, of content that is not unpacked.
    pub fn store(&self, name: String) -> Result<objects::ImageStore> {
        Ok(objects::ImageStore {
            name,
            labels: self.labels(),
            platforms: platforms(&self.platform, self.all_platforms)?,
            all_metadata: !self.skip_metadata,
            ..Default::default()
        })
    }
}

/// Flags of the original for what the daemon does or decides anyhow.
#[derive(Debug, Args)]
pub struct PullFlags {
    /// As the original has it; the daemon's own limit holds.
    #[arg(long = "max-concurrent-downloads", default_value_t = 0, value_name = "COUNT")]
    _downloads: usize,
    /// As the original has it; it unpacks all platforms then, instead of none, where all are brought.
    #[arg(long = "local")]
    by_client: bool,
    /// As the original has it; files are on disk before the image is recorded.
    #[arg(long = "sync-fs")]
    _sync: bool,
}

/// Bring images from an archive.
#[derive(Debug, Args)]
pub struct Import {
    /// Name for images that have none.
    #[arg(long)]
    base_name: Option<String>,
    /// Names with digests too.
    #[arg(long)]
    digests: bool,
    /// Without digests for those that have a name.
    #[arg(long)]
    skip_digest_for_named: bool,
    /// A name for all of the archive.
    #[arg(long, default_value = "")]
    index_name: String,
    /// Bring all platforms.
    #[arg(long)]
    all_platforms: bool,
    /// Platforms to bring, os/arch.
    #[arg(long)]
    platform: Vec<String>,
    /// Do not unpack.
    #[arg(long)]
    no_unpack: bool,
    /// As the original has it; the daemon does the same either way.
    #[arg(long = "local")]
    _by_client: bool,
    /// Compress layers that are not.
    #[arg(long)]
    compress_blobs: bool,
    /// Let layers go once they are unpacked.
    #[arg(long, conflicts_with = "no_unpack")]
    discard_unpacked_layers: bool,
    /// As the original has it; files are on disk before the image is recorded.
    #[arg(long = "sync-fs")]
    _sync: bool,
    /// The snapshotter.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = "")]
    snapshotter: String,
    /// Labels of the images, K=V.
    #[arg(long)]
    label: Vec<String>,
    #[command(flatten)]
    progress: ProgressFlag,
    /// The archive, or - for standard input.
    #[arg(default_value = "", value_parser = crate::path)]
    file: PathBuf,
}

impl Images {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        match self {
            Self::Pull(pull) => pull.run(daemon).await,
            Self::Import(import) => import.run(daemon).await,
            Self::List(listing) => list(daemon, listing).await,
            Self::Delete { sync, names } => {
                for name in names {
                    let request = api::DeleteImageRequest { name: name.clone(), sync, target: None };
                    match daemon.images().delete(request).await.map_err(error) {
                        Ok(_) => println!("{name}"),
                        Err(missing) if missing.is_not_found() => {
                            crate::log::warning(&format!("{name}: image not found"));
                        }
                        Err(failed) => {
                            return Err(failed).with_context(|| format!("unable to delete {name}"));
                        }
                    }
                }
                Ok(())
            }
            Self::Push(push) => push.run(daemon).await,
            Self::Export(export) => export.run(daemon).await,
            Self::Label(label) => label.run(daemon).await,
            Self::Check(check) => check.run(daemon).await,
            Self::Usage(usage) => usage.run(daemon).await,
            Self::Convert(convert) => convert.run(daemon).await,
            Self::History(history) => history.run(daemon).await,
            Self::Tree(layers) => layers.run(daemon).await,
            Self::Referrers(referrers) => referrers.run().await,
            Self::Inspect(tree) => tree.run(daemon).await,
            Self::Prune(prune) => prune.run(daemon).await,
            Self::Mount(mount) => mount.run(daemon).await,
            Self::Unmount(unmount) => unmount.run(daemon).await,
            Self::Tag { force, local, skip_reference_check, source, targets } => {
                if source.is_empty() {
                    return Err(Error::unknown("please provide an image reference to tag from"));
                }
                if targets.is_empty() {
                    return Err(Error::unknown("please provide an image reference to tag to"));
                }
                for target in targets {
                    if !skip_reference_check {
                        check_name(&target)?;
                    }
                    tag(daemon, &source, &target, local.then_some(force)).await?;
                    println!("{target}");
                }
                Ok(())
            }
        }
    }
}

/// Gives an image another name: by a transfer, which replaces what has the name, or in the store alone, which does so
/// only by force.
async fn tag(daemon: &Daemon, source: &str, target: &str, local: Option<bool>) -> Result<()> {
    let Some(force) = local else {
        let named =
            |name: &str| corten_api::pack(&objects::ImageStore { name: name.into(), ..Default::default() });
        return transfer(daemon, named(source), named(target), None).await.map(drop);
    };
    let request = api::GetImageRequest { name: source.into() };
    let found = daemon.images().get(request).await.map_err(error)?.into_inner().image;
    let image = found.ok_or_else(|| Error::not_found(format!("image {source:?}")))?;
    let image = api::Image { name: target.into(), ..image };
    let request = api::CreateImageRequest { image: Some(image), ..Default::default() };
    match daemon.images().create(request.clone()).await.map_err(error) {
        Err(failed) if failed.is_already_exists() && force => {
            let old = api::DeleteImageRequest { name: target.into(), ..Default::default() };
            daemon.images().delete(old).await.map_err(error)?;
            daemon.images().create(request).await.map_err(error).map(drop)
        }
        done => done.map(drop),
    }
}

/// Whether registries could know a name.
fn check_name(name: &str) -> Result<()> {
    let known = |char: char| char.is_ascii_alphanumeric() || "._-/:@".contains(char);
    match name.chars().all(known) && name.starts_with(|char: char| char.is_ascii_alphanumeric()) {
        true => Ok(()),
        false => Err(Error::unknown(format!(
            "error parsing reference: {name:?} is not a valid repository/tag invalid reference format"
        ))),
    }
}

pub(super) fn platforms(given: &[String], all: bool) -> Result<Vec<corten_api::types::Platform>> {
    if all {
        return Ok(Vec::new());
    }
    if given.is_empty() {
        return Ok(vec![Platform::host().into()]);
    }
    given.iter().map(|text| Ok(text.parse::<Platform>()?.into())).collect()
}

fn unpacks(
    platforms: &[corten_api::types::Platform],
    snapshotter: &str,
) -> Vec<objects::UnpackConfiguration> {
    let unpack = |platform: Option<corten_api::types::Platform>| objects::UnpackConfiguration {
        platform,
        snapshotter: snapshotter.into(),
    };
    if platforms.is_empty() {
        return vec![unpack(Some(Platform::host().into()))];
    }
    platforms.iter().cloned().map(|platform| unpack(Some(platform))).collect()
}

impl Pull {
    async fn run(self, daemon: &Daemon) -> Result<()> {
        if self.reference.is_empty() {
            return Err(Error::unknown("please provide an image reference to pull"));
        }
        let reference = match output::is_terminal() {
            true => Reference::familiar(&self.reference)?.to_string(),
            false => self.reference.clone(),
        };
        let (is_all, by_client) = (self.wanted.all_platforms, self.of_the_original.by_client);
        if is_all && !by_client && !self.wanted.platform.is_empty() {
            return Err(Error::unknown("cannot specify both --platform and --all-platforms"));
        }
        let mut access = self.registry.access(daemon).await?;
        let resolver = Some(std::mem::take(&mut access.resolver));
        let source = objects::OciRegistry { reference: reference.clone(), resolver };
        let mut store = self.wanted.store(reference.clone())?;
        if by_client || !is_all {
            store.unpacks = unpacks(&store.platforms, &self.snapshotter);
        }
        let shown = Some(("Pulling", self.progress.shown()));
        let done = transfer(daemon, corten_api::pack(&source), corten_api::pack(&store), shown).await;
        access.finish().await;
        done?;
        if self.print_chainid {
            let image = find(daemon, &reference, &Platform::host()).await?;
            if let Some(top) = image.chain().last() {
                println!("image chain ID: {top}");
            }
        }
        Ok(())
    }
}

impl Import {
    async fn run(self, daemon: &Daemon) -> Result<()> {
        let id = unique("import");
        let (sender, stream) = open(daemon, &id).await?;
        let file = self.file.clone();
        let feeding = tokio::spawn(feed(file, sender, stream));
        let source = objects::ImageImportStream {
            stream: id,
            force_compress: self.compress_blobs,
            ..Default::default()
        };
        let platforms = platforms(&self.platform, self.all_platforms)?;
        let today = corten_types::timestamp::rfc3339(std::time::SystemTime::now());
        let prefix = objects::ImageReference {
            name: self
                .base_name
                .clone()
                .unwrap_or_else(|| format!("import-{}", today.get(..10).unwrap_or_default())),
            is_prefix: true,
            allow_overwrite: self.base_name.is_none(),
            add_digest: self.digests,
            skip_named_digest: self.skip_digest_for_named,
        };
        let unpacks = if self.no_unpack { Vec::new() } else { unpacks(&platforms, &self.snapshotter) };
        let store = objects::ImageStore {
            name: self.index_name.clone(),
            labels: labels(&self.label),
            platforms,
            extra_references: vec![prefix],
            unpacks,
            ..Default::default()
        };
        let shown = Some(("Importing", self.progress.shown()));
        let done = transfer(daemon, corten_api::pack(&source), corten_api::pack(&store), shown).await;
        // A file that cannot be read says more than a stream that ended early.
        if feeding.is_finished()
            && let Ok(Err(failed)) = feeding.await
        {
            return Err(failed);
        }
        let saved = done.map_err(|failed| about_archive(failed, &self.file))?;
        if self.discard_unpacked_layers {
            for digest in saved {
                release_layers(daemon, &digest).await?;
            }
        }
        Ok(())
    }
}

/// What to do about a file that the daemon did not understand.
fn about_archive(failed: Error, file: &Path) -> Error {
    let mut start = [0; 6];
    if std::fs::File::open(file).and_then(|mut file| file.read_exact(&mut start)).is_err() {
        return failed;
    }
    let program = match start {
        [0xfd, b'7', b'z', b'X', b'Z', 0] => "xz",
        [b'B', b'Z', b'h', ..] => "bzip2",
        [0x04, 0x22, 0x4d, 0x18, ..] => "lz4",
        _ if failed.message().contains("unrecognized image format") => {
            return failed.with_hint("it has neither the files of an OCI layout nor those of docker save");
        }
        _ => return failed,
    };
    let file = file.display();
    failed.with_hint(format!("it is compressed with {program}: {program} -dc {file} | ctr images import -"))
}

/// Sends a file as the receiver allows.
async fn feed(file: PathBuf, sender: mpsc::Sender<Any>, mut stream: tonic::Streaming<Any>) -> Result<()> {
    let file = if file.as_os_str() == "-" { PathBuf::from("/dev/stdin") } else { file };
    let mut input = tokio::fs::File::open(&file).await.with_context(|| format!("open {}", file.display()))?;
    let (mut window, mut buffer) = (0_i64, vec![0; 128 << 10]);
    loop {
        while window <= 0 {
            match stream.message().await.map_err(error)? {
                Some(message) => window += i64::from(corten_api::unpack::<WindowUpdate>(&message)?.update),
                None => return Ok(()),
            }
        }
        let most = buffer.len().min(usize::try_from(window).unwrap_or(0));
        let count = input.read(buffer.get_mut(..most).unwrap_or_default()).await?;
        if count == 0 {
            // Our end is over with the last byte; the call may only end after they have been read.
            drop(sender);
            while let Ok(Some(_)) = stream.message().await {}
            return Ok(());
        }
        window -= i64::try_from(count).unwrap_or(0);
        let data = Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default());
        if sender.send(corten_api::pack(&Data { data })).await.is_err() {
            return Ok(());
        }
    }
}

pub(crate) fn unique(what: &str) -> String {
    format!("{what}-{}-{}", std::process::id(), corten_types::timestamp::nanos())
}

/// Opens a stream under a name.
pub(crate) async fn open(daemon: &Daemon, id: &str) -> Result<(mpsc::Sender<Any>, tonic::Streaming<Any>)> {
    let (sender, receiver) = mpsc::channel(16);
    let gone = |_| Error::unknown("the stream was closed");
    sender.send(corten_api::pack(&StreamInit { id: id.into() })).await.map_err(gone)?;
    let mut stream =
        daemon.streaming().stream(ReceiverStream::new(receiver)).await.map_err(error)?.into_inner();
    // The first answer says that the stream stands.
    stream.message().await.map_err(error)?;
    Ok((sender, stream))
}

/// A transfer, with its progress shown; answers the digests of the images that were recorded, if it is.
pub(super) async fn transfer(
    daemon: &Daemon,
    source: Any,
    destination: Any,
    shown: Option<(&str, Shown)>,
) -> Result<Vec<String>> {
    let mut options = None;
    let mut display = None;
    if let Some((what, shown)) = shown {
        let id = unique("progress");
        let (sender, mut stream) = open(daemon, &id).await?;
        options = Some(TransferOptions { progress_stream: id });
        let mut shown = Display::new(what, shown);
        let task = tokio::spawn(async move {
            while let Ok(Some(message)) = stream.message().await {
                if let Ok(progress) = corten_api::unpack::<Progress>(&message) {
                    shown.update(&progress);
                }
            }
            drop(sender);
            shown
        });
        display = Some(task);
    }
    let request = TransferRequest { source: Some(source), destination: Some(destination), options };
    let mut client = daemon.transfer();
    let done = tokio::select! {
        done = client.transfer(request) => done.map_err(error),
        Ok(()) = tokio::signal::ctrl_c(), if display.is_some() => {
            // The daemon gives up by itself; the terminal is left clean.
            if let Some(task) = display {
                task.abort();
                drop(task.await);
            }
            std::process::exit(INTERRUPTED);
        }
    };
    let mut saved = Vec::new();
    if let Some(task) = display {
        // The daemon ends the stream with the transfer.
        if let Ok(Ok(display)) = tokio::time::timeout(std::time::Duration::from_secs(2), task).await
            && done.is_ok()
        {
            saved = display.saved().to_vec();
            display.finish();
        }
    }
    done.map(|_| saved)
}

async fn list(daemon: &Daemon, listing: Listing) -> Result<()> {
    let request = api::ListImagesRequest { filters: listing.filters };
    let found =
        daemon.images().list(request).await.map_err(error).context("failed to list images")?.into_inner();
    if listing.shown.quiet {
        found.images.iter().for_each(|image| println!("{}", image.name));
        return Ok(());
    }
    let for_people = listing.shown.format.is_for_people();
    let mut table = match for_people {
        true => Table::wide(&["REF", "DIGEST", "SIZE", "PLATFORMS", "UPDATED"]),
        false => Table::tight(&["REF", "TYPE", "DIGEST", "SIZE", "PLATFORMS", "LABELS"]),
    };
    for image in found.images {
        let target = image.target.unwrap_or_default();
        let size = match manifest(daemon, &target, &Platform::host()).await {
            Ok(manifest) => output::binary_size(size(&manifest) + target.size),
            Err(_) => "-".into(),
        };
        let platforms = shown_platforms(daemon, &target).await;
        if for_people {
            let updated = output::age(timestamp::to_system(&image.updated_at.unwrap_or_default()));
            let digest = output::short_digest(&target.digest).to_owned();
            table.row([image.name, digest, size, platforms, format!("{updated} ago")]);
            continue;
        }
        let labels = output::labels(&image.labels, "-");
        table.row([image.name, target.media_type, target.digest, size, platforms, labels]);
    }
    table.show(listing.shown.format)
}

/// What a manifest refers to.
fn size(manifest: &serde_json::Value) -> i64 {
    let layers = manifest["layers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let sizes = layers.iter().chain([&manifest["config"]]).filter_map(|one| one["size"].as_i64());
    sizes.sum()
}

async fn shown_platforms(daemon: &Daemon, target: &corten_api::types::Descriptor) -> String {
    let found = async {
        let document: serde_json::Value =
            serde_json::from_slice(&read_blob(daemon, &target.digest).await.ok()?).ok()?;
        if let Some(manifests) = document["manifests"].as_array() {
            let mut found = Vec::new();
            for one in manifests {
                found.extend(platform_of(daemon, one).await);
            }
            return Some(found);
        }
        let config = read_blob(daemon, document["config"]["digest"].as_str()?).await.ok()?;
        Some(vec![serde_json::from_slice::<Platform>(&config).ok()?])
    };
    let mut shown: Vec<String> = found
        .await
        .unwrap_or_default()
        .iter()
        .filter(|one| !one.is_unknown())
        .map(|one| one.normalized().to_string())
        .collect();
    shown.sort();
    shown.dedup();
    if shown.is_empty() { "-".into() } else { shown.join(",") }
}
