//! `images push` and `images export`.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use corten_api::services::content::InfoRequest;
use corten_api::services::images;
use corten_api::transfer_types::{self as objects, Data, WindowUpdate};
use corten_types::{Any, Descriptor, Error, Platform, Reference, Result, ResultExt, media_type};
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, oneshot};

use super::content_remote::send;
use super::convert::Document;
use super::images::{open, platforms, transfer, unique};
use crate::client::{Daemon, error};
use crate::container::read_blob;
use crate::progress::{ProgressFlag, Shown};
use crate::registry::Registry;

/// Bytes that the daemon may be ahead.
const WINDOW: i32 = 1 << 20;

/// Send an image to a registry.
#[derive(Debug, Args)]
pub struct Push {
    #[command(flatten)]
    registry: Registry,
    /// Send this manifest instead of an image.
    #[arg(long, value_name = "DIGEST")]
    manifest: Option<String>,
    /// The media type of that manifest.
    #[arg(long, default_value = corten_types::media_type::OCI_MANIFEST)]
    manifest_type: String,
    /// Platforms whose content is sent, os/arch; all without it.
    #[arg(long)]
    platform: Vec<String>,
    /// As the original has it; the daemon's own limit holds.
    #[arg(long = "max-concurrent-uploaded-layers", default_value_t = 0, value_name = "COUNT")]
    _uploads: usize,
    /// As the original has it; the daemon does the same either way.
    #[arg(long = "local")]
    _by_client: bool,
    /// Send layers too that may not be handed on.
    #[arg(long)]
    allow_non_distributable_blobs: bool,
    #[command(flatten)]
    progress: ProgressFlag,
    /// Where to, with the host.
    #[arg(default_value = "", value_name = "REMOTE")]
    remote: String,
    /// The image; without it, the one of that name.
    #[arg(default_value = "", value_name = "LOCAL")]
    local: String,
}

impl Push {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        if self.remote.is_empty() {
            return Err(Error::unknown("please provide a remote image reference to push"));
        }
        if let Some(manifest) = &self.manifest {
            let name = self.record(daemon, manifest).await?;
            let done = self.send(daemon, &name).await;
            let request = images::DeleteImageRequest { name, ..Default::default() };
            daemon.images().delete(request).await.map_err(error)?;
            return done;
        }
        self.send(daemon, if self.local.is_empty() { &self.remote } else { &self.local }).await
    }

    /// A record of a manifest for as long as it is being sent, since only images are.
    async fn record(&self, daemon: &Daemon, manifest: &str) -> Result<String> {
        let digest = super::content::digest(manifest)?;
        let info = daemon.content().info(InfoRequest { digest: digest.to_string() }).await.map_err(error)?;
        let size = info.into_inner().info.unwrap_or_default().size;
        let target = Descriptor::new(self.manifest_type.clone(), digest, size);
        let name = unique("push");
        let image = images::Image { name: name.clone(), target: Some(target.into()), ..Default::default() };
        let request = images::CreateImageRequest { image: Some(image), ..Default::default() };
        daemon.images().create(request).await.map_err(error)?;
        Ok(name)
    }

    async fn send(&self, daemon: &Daemon, local: &str) -> Result<()> {
        if self.allow_non_distributable_blobs {
            self.send_non_distributable(daemon, local).await?;
        }
        let mut access = self.registry.access(daemon).await?;
        let source = objects::ImageStore {
            name: local.to_owned(),
            platforms: platforms(&self.platform, self.platform.is_empty())?,
            ..Default::default()
        };
        let resolver = Some(std::mem::take(&mut access.resolver));
        let registry = objects::OciRegistry { reference: self.remote.clone(), resolver };
        let shown = Some(("Pushing", self.progress.shown()));
        let done = transfer(daemon, corten_api::pack(&source), corten_api::pack(&registry), shown).await;
        access.finish().await;
        done.map(drop)
    }
}

impl Push {
    /// Sends the layers that the daemon leaves out, before the manifests that name them.
    async fn send_non_distributable(&self, daemon: &Daemon, local: &str) -> Result<()> {
        let request = images::GetImageRequest { name: local.to_owned() };
        let image = daemon.images().get(request).await.map_err(error)?.into_inner().image.unwrap_or_default();
        let wanted: Vec<Platform> = self.platform.iter().map(|text| text.parse()).collect::<Result<_>>()?;
        let reference: Reference = self.remote.parse()?;
        let access = self.registry.local()?;
        let pusher = access.resolver.pusher(&reference)?;
        let mut pending = vec![Descriptor::try_from(image.target.unwrap_or_default())?];
        while let Some(next) = pending.pop() {
            let is_wanted = |platform: &Platform| wanted.iter().any(|one| one.rank(platform).is_some());
            if !wanted.is_empty() && next.platform.as_ref().is_some_and(|platform| !is_wanted(platform)) {
                continue;
            }
            let document: Document = serde_json::from_slice(&read_blob(daemon, next.digest.as_str()).await?)
                .map_err(|bad| Error::invalid_argument(format!("{}: {bad}", next.digest)))?;
            for layer in document.layers.iter().flatten() {
                if media_type::is_non_distributable(&layer.media_type) {
                    send(daemon, &pusher, layer).await?;
                }
            }
            pending.extend(document.manifests.into_iter().flatten());
        }
        Ok(())
    }
}

/// Write images into an archive.
#[derive(Debug, Args)]
pub struct Export {
    /// Without the file that docker load reads.
    #[arg(long)]
    skip_manifest_json: bool,
    /// Without layers that may not be handed on.
    #[arg(long)]
    skip_non_distributable: bool,
    /// Platforms to write, os/arch.
    #[arg(long)]
    platform: Vec<String>,
    /// Write all platforms.
    #[arg(long)]
    all_platforms: bool,
    #[command(flatten)]
    progress: ProgressFlag,
    /// As the original has it; the daemon does the same either way.
    #[arg(long = "local")]
    _by_client: bool,
    /// The archive, or - for standard output.
    #[arg(default_value = "", value_name = "OUT")]
    file: String,
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
}

impl Export {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        if self.file.is_empty() || self.images.is_empty() {
            return Err(Error::unknown(
                "please provide both an output filename and an image reference to export",
            ));
        }
        let id = unique("export");
        let (sender, stream) = open(daemon, &id).await?;
        let (written, part) = Target::open(&self.file).await?;
        let shown = if self.file == "-" { "/dev/stdout" } else { &self.file };
        let (over, is_over) = oneshot::channel();
        let taking = tokio::spawn(take(written, format!("{WRITE}{shown}"), sender, stream, is_over));
        let mut names = self.images.iter().cloned();
        let source = objects::ImageStore {
            name: names.next().unwrap_or_default(),
            extra_references: names
                .map(|name| objects::ImageReference { name, ..Default::default() })
                .collect(),
            ..Default::default()
        };
        let given = !self.platform.is_empty() && !self.all_platforms;
        let archive = objects::ImageExportStream {
            stream: id,
            platforms: if given { platforms(&self.platform, false)? } else { Vec::new() },
            all_platforms: self.all_platforms,
            skip_compatibility_manifest: self.skip_manifest_json,
            skip_non_distributable: self.skip_non_distributable,
            ..Default::default()
        };
        // The archive itself may go to standard output.
        let progress = match self.progress.shown() {
            // In a pipe the original says nothing of it.
            Shown::Auto if !crate::output::is_terminal() => Shown::None,
            other => other,
        };
        let shown = (self.file != "-").then_some(("Exporting", progress));
        let done = transfer(daemon, corten_api::pack(&source), corten_api::pack(&archive), shown).await;
        // What could not be written says more than a transfer that broke off.
        match done.is_ok() {
            true => drop(over.send(())),
            false if taking.is_finished() => {}
            false => taking.abort(),
        }
        let taken = match taking.await {
            Ok(taken) => taken,
            Err(_) => Err(Error::unknown("the archive was not written")),
        };
        let is_cause = |failed: &Error| failed.message().starts_with(WRITE);
        part.finish(match (done, taken) {
            (Err(_), Err(failed)) if is_cause(&failed) => Err(failed),
            (done, taken) => done.and(taken),
        })
    }
}

type Written = Box<dyn tokio::io::AsyncWrite + Send + Unpin>;

/// A file under a private name until it is whole.
struct Target(Option<(PathBuf, PathBuf)>);

impl Target {
    async fn open(file: &str) -> Result<(Written, Self)> {
        if file == "-" {
            let output = std::fs::File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
            return Ok((Box::new(tokio::fs::File::from_std(output)), Self(None)));
        }
        let path = PathBuf::from(file);
        // What is no plain file (a pipe, a device) is written where it is.
        if path.metadata().is_ok_and(|known| !known.is_file()) {
            let opened = tokio::fs::OpenOptions::new().write(true).open(&path).await;
            return Ok((Box::new(opened.with_context(|| format!("open {file}"))?), Self(None)));
        }
        let mut part = path.clone().into_os_string();
        part.push(format!(".{}.part", std::process::id()));
        let part = PathBuf::from(part);
        let created = tokio::fs::File::create(&part).await.with_context(|| format!("open {file}"))?;
        Ok((Box::new(created), Self(Some((part, path)))))
    }

    fn finish(self, done: Result<()>) -> Result<()> {
        let Some((part, path)) = self.0 else { return done };
        if done.is_err() {
            std::fs::remove_file(&part).ok();
            return done;
        }
        std::fs::rename(&part, &path).with_context(|| format!("write {}", path.display()))
    }
}

/// Takes what the daemon sends.
async fn take(
    mut written: Written,
    what: String,
    sender: mpsc::Sender<Any>,
    mut stream: tonic::Streaming<Any>,
    mut is_over: oneshot::Receiver<()>,
) -> Result<()> {
    let (mut window, mut zeros, mut over) = (0, 0, false);
    loop {
        if window < WINDOW {
            let update = corten_api::pack(&WindowUpdate { update: WINDOW });
            if sender.send(update).await.is_ok() {
                window += WINDOW;
            }
        }
        let message = tokio::select! {
            message = stream.message() => message.map_err(error)?,
            _ = &mut is_over, if !over => {
                over = true;
                continue;
            }
            // Containerd leaves the stream open when the archive has been sent.
            () = tokio::time::sleep(if zeros >= ARCHIVE_END { QUIET } else { PATIENCE }), if over => None,
        };
        let Some(message) = message else { break };
        let data = corten_api::unpack::<Data>(&message)?.data;
        let end = data.iter().rev().take_while(|byte| **byte == 0).count();
        zeros = if end == data.len() { zeros + end } else { end };
        window -= i32::try_from(data.len()).unwrap_or(i32::MAX);
        written.write_all(&data).await.map_err(|failed| lost(failed, &what))?;
    }
    written.flush().await.map_err(|failed| lost(failed, &what))?;
    if zeros < ARCHIVE_END { Err(Error::unknown("the archive ended early")) } else { Ok(()) }
}

/// Zeros that an archive ends with, at least.
const ARCHIVE_END: usize = 1024;
/// How long nothing comes behind the end of an archive when a transfer is over.
const QUIET: Duration = Duration::from_millis(200);
/// How long its end may be on its way.
const PATIENCE: Duration = Duration::from_secs(10);

/// What errors of our own disk begin with.
const WRITE: &str = "write ";

/// A reader that has gone ends the program, as everywhere.
fn lost(failed: std::io::Error, what: &str) -> Error {
    if failed.kind() == std::io::ErrorKind::BrokenPipe {
        std::process::exit(crate::output::READER_GONE);
    }
    Error::from(failed).context(what)
}
