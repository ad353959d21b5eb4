//! A layer made of two trees, into the content store.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use corten_content::{Store, Writer, WriterOptions};
use corten_types::{Context, Descriptor, Digest, Error, Labels, Result, ResultExt, media_type};

use crate::compare::latest;
use crate::compress::{Compression, compress};
use crate::differ::DiffRequest;
use crate::stream::Totals;
use crate::trees::Trees;

/// Label of a blob: digest of what it holds when uncompressed.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// Makes layers.
#[derive(Clone, Debug)]
pub(crate) struct Maker {
    pub content: Store,
    pub mount_folder: PathBuf,
}

/// Tells the threads of a comparison that nobody waits for it any more.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Maker {
    /// The blob of the layer that leads from one tree to the other. What is `held` is dropped when they are not
    /// looked at any more.
    pub(crate) async fn run(
        &self,
        ctx: &Context,
        request: DiffRequest,
        held: impl Send + 'static,
    ) -> Result<Descriptor> {
        let (media_type, compression) = kind(&request.media_type)?;
        let media_type = media_type.to_owned();
        let cancelled = Arc::new(AtomicBool::new(false));
        let guard = CancelOnDrop(Arc::clone(&cancelled));
        // On a task of its own: it cleans up after itself also when the caller goes away.
        let (this, ctx) = (self.clone(), ctx.clone());
        let task = tokio::spawn(async move {
            let made = this.make(&ctx, request, compression, cancelled).await;
            drop(held);
            made
        });
        let made = task.await.map_err(|error| Error::internal(format!("differ: {error}")))?;
        drop(guard);
        let (digest, size) = made?;
        Ok(Descriptor::new(media_type, digest, i64::try_from(size).unwrap_or(i64::MAX)))
    }

    async fn make(
        &self,
        ctx: &Context,
        request: DiffRequest,
        compression: Compression,
        cancelled: Arc<AtomicBool>,
    ) -> Result<(Digest, u64)> {
        let own = request.reference.is_empty();
        let reference = if own { unique() } else { request.reference.clone() };
        let (folder, lower, upper) =
            (self.mount_folder.clone(), request.lower.clone(), request.upper.clone());
        let trees = blocking(move || Trees::open(&lower, &upper, &folder)).await?;
        let options = WriterOptions { reference: reference.clone(), ..WriterOptions::default() };
        let written = match self.content.writer(ctx, options).await.context("failed to open writer") {
            Ok(writer) => self.fill(writer, trees, &request, compression, cancelled).await,
            Err(error) => Err(error),
        };
        let stored = match written {
            Ok((writer, totals)) => self.commit(ctx, writer, totals, request.labels, compression).await,
            Err(error) => Err(error),
        };
        if own && stored.is_err() {
            // It may not even have been begun.
            self.content.abort(ctx, &reference).await.ok();
        }
        stored
    }

    /// Writes the layer's bytes.
    async fn fill(
        &self,
        mut writer: Writer,
        mut trees: Trees,
        request: &DiffRequest,
        compression: Compression,
        cancelled: Arc<AtomicBool>,
    ) -> Result<(Writer, Totals)> {
        let (folder, upper) = (self.mount_folder.clone(), request.upper.clone());
        let latest = request.source_date_epoch.map(latest);
        let what = if compression == Compression::None { "diff" } else { "compressed diff" };
        blocking(move || {
            if writer.offset() > 0 {
                writer.truncate()?;
            }
            let mut made = write(&trees, &mut writer, compression, latest, &cancelled);
            if trees.is_refuted() {
                trees = trees.open_whole(&upper, &folder)?;
                writer.truncate()?;
                made = write(&trees, &mut writer, compression, latest, &cancelled);
            }
            let totals = made.with_context(|| format!("failed to write {what}"))?;
            trees.close()?;
            Ok((writer, totals))
        })
        .await
    }

    async fn commit(
        &self,
        ctx: &Context,
        writer: Writer,
        totals: Totals,
        mut labels: Labels,
        compression: Compression,
    ) -> Result<(Digest, u64)> {
        let digest = writer.digest();
        let label = (UNCOMPRESSED.to_owned(), totals.digest.to_string());
        if compression != Compression::None {
            labels.extend([label.clone()]);
        }
        match writer.commit(0, Some(&digest), labels).await {
            Err(error) if !error.is_already_exists() => return Err(error.context("failed to commit")),
            _ => {}
        }
        let known = self.content.info(ctx, &digest).context("failed to get info from content store")?;
        if compression != Compression::None && !known.labels.contains_key(UNCOMPRESSED) {
            let paths = [format!("labels.{UNCOMPRESSED}")];
            let set = self.content.update(ctx, &digest, Labels::from([label]), &paths).await;
            set.context("error setting uncompressed label")?;
        }
        Ok((digest, known.size))
    }
}

fn write(
    trees: &Trees,
    writer: &mut Writer,
    compression: Compression,
    latest: Option<i64>,
    cancelled: &AtomicBool,
) -> Result<Totals> {
    compress(compression, cancelled, |output| trees.write(output, latest), |data| writer.write(data))
}

/// The media type of a request, which may name none, and what it stands for.
fn kind(media_type: &str) -> Result<(&str, Compression)> {
    match media_type {
        "" => Ok((media_type::OCI_LAYER_GZIP, Compression::Gzip)),
        media_type::OCI_LAYER_GZIP => Ok((media_type, Compression::Gzip)),
        media_type::OCI_LAYER_ZSTD => Ok((media_type, Compression::Zstd)),
        media_type::OCI_LAYER => Ok((media_type, Compression::None)),
        other => Err(Error::not_implemented(format!("unsupported diff media type: {other}"))),
    }
}

/// `<nanoseconds since 1970>-<four characters>`.
fn unique() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut random = [0; 3];
    // Without random numbers the nanoseconds have to do.
    let _ = getrandom::fill(&mut random);
    format!("{}-{}", now.as_nanos(), base64::engine::general_purpose::URL_SAFE.encode(random))
}

/// Runs what waits for the disk where it may.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::internal(format!("differ: {error}")))?
}
