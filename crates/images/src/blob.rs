//! One blob from a registry into the content store (spec 03 §5): hashed while it is written, continued
//! where it was left, fetched once however many want it, and open to be read while it arrives.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use corten_content::{Writer, WriterOptions};
use corten_registry::{Download, Fetcher};
use corten_types::{Context, Descriptor, Error, ErrorClass, Labels, Result, ResultExt, media_type};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::ImageService;
use crate::arrival::{Arrival, Arriving, follow};
use crate::flight::{Flight, Turn};
use crate::labels;
use crate::naming::REF_NAME;
use crate::progress::Meter;

/// Pieces between the network and the disk, and the most bytes of one: what a registry sends at once is its choice.
const QUEUE: usize = 8;
const PIECE: usize = 256 << 10;
const FIRST_WAIT: Duration = Duration::from_millis(16);
const LAST_WAIT: Duration = Duration::from_millis(2048);
const FIGURES: Duration = Duration::from_millis(300);

/// The repository that blobs come from.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub fetcher: Fetcher,
    /// `host[:port]`.
    pub registry: String,
    pub repository: String,
    /// Bounds the blobs that come at once. Each operation has a bound of its own, so that one at a registry that
    /// hangs holds up no other.
    pub downloads: Arc<Semaphore>,
}

/// Where the bytes of a blob can be read.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// Behind the download.
    Arriving(Arrival),
    /// In the content store.
    Stored,
}

/// How a fetch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fetched {
    /// The blob is stored and verified.
    Done,
    /// An ingest that was continued turned out to be wrong, and is gone: try again from the start.
    Stale,
}

/// The content reference under which a descriptor is ingested.
pub(crate) fn ingest_key(descriptor: &Descriptor) -> String {
    let kind = match descriptor.media_type.as_str() {
        kind if media_type::is_manifest(kind) => "manifest",
        kind if media_type::is_index(kind) => "index",
        kind if media_type::is_layer(kind) => "layer",
        kind if media_type::is_config(kind) => "config",
        "application/vnd.in-toto+json" => "attestation",
        _ => "unknown",
    };
    match descriptor.annotations.get(REF_NAME) {
        Some(name) => format!("{kind}-{name}@{}", descriptor.digest),
        None => format!("{kind}-{}", descriptor.digest),
    }
}

impl ImageService {
    /// Makes sure that a blob is stored; it is read from `tap` while it arrives.
    pub(crate) async fn fetch(
        &self,
        ctx: &Context,
        origin: &Origin,
        descriptor: &Descriptor,
        meter: &mut Meter,
    ) -> Result<()> {
        while self.fetch_tapped(ctx, origin, descriptor, meter, None).await? == Fetched::Stale {}
        Ok(())
    }

    /// As [`Self::fetch`], but tells where the bytes can be read as soon as there are any, and leaves it to
    /// the caller to try again.
    pub(crate) async fn fetch_tapped(
        &self,
        ctx: &Context,
        origin: &Origin,
        descriptor: &Descriptor,
        meter: &mut Meter,
        tap: Option<oneshot::Sender<Incoming>>,
    ) -> Result<Fetched> {
        if descriptor.size == 0 {
            return Err(Error::invalid_argument(format!(
                "unable to fetch descriptor ({}) which reports content size of zero",
                descriptor.digest
            )));
        }
        let flight = self.shared.fetching.join(descriptor.digest.clone());
        let turn = wait_for_turn(&flight, meter).await;
        let mut ingest = Ingest { service: self, ctx, origin, descriptor, meter, turn, tap };
        let writer = match ingest.open().await {
            Ok(writer) => writer,
            Err(error) if error.is_already_exists() => {
                self.add_source(ctx, origin, descriptor).await?;
                ingest.meter.event("already exists", size(descriptor));
                ingest.stored();
                return Ok(Fetched::Done);
            }
            Err(error) => return Err(error),
        };
        ingest.run(writer).await
    }

    /// Notes on a stored blob where it came from as well.
    async fn add_source(&self, ctx: &Context, origin: &Origin, descriptor: &Descriptor) -> Result<()> {
        let known = self.shared.content.info(ctx, &descriptor.digest)?.labels;
        match labels::of_source(&known, &origin.registry, &origin.repository) {
            Some((key, value)) => {
                self.set_labels(ctx, &descriptor.digest, Labels::from([(key, value)])).await
            }
            None => Ok(()),
        }
    }

    /// Sets labels of a blob and leaves its others alone.
    pub(crate) async fn set_labels(
        &self,
        ctx: &Context,
        digest: &corten_types::Digest,
        labels: Labels,
    ) -> Result<()> {
        if labels.is_empty() {
            return Ok(());
        }
        // Mostly they are there already when an image is pulled again: nothing has to reach the disk.
        let known = self.shared.content.info(ctx, digest)?.labels;
        if labels.iter().all(|(key, value)| known.get(key) == Some(value)) {
            return Ok(());
        }
        let paths: Vec<String> = labels.keys().map(|key| format!("labels.{key}")).collect();
        self.shared.content.update(ctx, digest, labels, &paths).await?;
        Ok(())
    }
}

/// One ingest on its way.
struct Ingest<'a> {
    service: &'a ImageService,
    ctx: &'a Context,
    origin: &'a Origin,
    descriptor: &'a Descriptor,
    meter: &'a mut Meter,
    turn: Turn,
    tap: Option<oneshot::Sender<Incoming>>,
}

impl Ingest<'_> {
    /// Opens the ingest; waits while somebody outside of this service writes it.
    async fn open(&self) -> Result<Writer> {
        let mut wait = FIRST_WAIT;
        loop {
            let options = WriterOptions {
                reference: ingest_key(self.descriptor),
                total: size(self.descriptor),
                expected: Some(self.descriptor.digest.clone()),
            };
            match self.service.shared.content.writer(self.ctx, options).await {
                Err(error) if error.class() == ErrorClass::Unavailable => {
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(LAST_WAIT);
                }
                other => return other,
            }
        }
    }

    async fn run(mut self, writer: Writer) -> Result<Fetched> {
        let (offset, total) = (writer.offset(), size(self.descriptor));
        let writer = if offset >= total { writer } else { self.fill(writer, offset).await? };
        let labels = labels::of_source(&Labels::new(), &self.origin.registry, &self.origin.repository);
        let labels: Labels = labels.into_iter().collect();
        match writer.commit(total, Some(&self.descriptor.digest), labels).await {
            Ok(_) => {}
            Err(error) if error.is_already_exists() => {
                self.service.add_source(self.ctx, self.origin, self.descriptor).await?;
            }
            Err(error) if error.class() == ErrorClass::FailedPrecondition => {
                return self.discard(offset, error).await;
            }
            Err(error) => return Err(error.context(self.failed_commit())),
        }
        self.meter.event("complete", total);
        self.stored();
        Ok(Fetched::Done)
    }

    /// Downloads what is missing.
    async fn fill(&mut self, mut writer: Writer, offset: u64) -> Result<Writer> {
        let (arriving, arrival) = follow(writer.reader()?, offset);
        if let Some(tap) = self.tap.take() {
            // Nobody may be listening any more.
            let _ = tap.send(Incoming::Arriving(arrival));
        }
        let _permit = self.origin.downloads.acquire().await;
        let source = match embedded(self.descriptor) {
            Some(data) => Source::Embedded(Some(data.slice(usize::try_from(offset).unwrap_or(0)..))),
            None => {
                let download = self.origin.fetcher.fetch(self.descriptor, offset).await;
                Source::Download(Box::new(download.context("failed to copy")?))
            }
        };
        self.copy(source, writer, arriving).await
    }

    /// Network here, hashing and writing on a thread of its own.
    async fn copy(&mut self, mut source: Source, mut writer: Writer, arriving: Arriving) -> Result<Writer> {
        let (sender, mut receiver) = mpsc::channel::<Bytes>(QUEUE);
        let thread = tokio::task::spawn_blocking(move || -> Result<(Writer, Arriving)> {
            while let Some(chunk) = receiver.blocking_recv() {
                writer.write(&chunk)?;
                arriving.advance(writer.offset());
            }
            Ok((writer, arriving))
        });
        let mut failure = None;
        loop {
            match source.next().await {
                Ok(Some((chunk, offset))) => {
                    // The thread is gone only if writing failed, which it tells below.
                    if hand_over(&sender, chunk).await.is_err() {
                        break;
                    }
                    self.turn.advance(offset);
                    self.meter.advance("downloading", offset);
                }
                Ok(None) => break,
                Err(error) => {
                    failure = Some(error.context("failed to copy"));
                    break;
                }
            }
        }
        drop(sender);
        // Joined in any case: afterwards the ingest is at rest and can be opened again.
        let (writer, arriving) = thread.await.map_err(|error| Error::internal(error.to_string()))??;
        match failure {
            Some(error) => Err(error),
            None => {
                arriving.complete();
                Ok(writer)
            }
        }
    }

    /// Throws away an ingest whose bytes are wrong, so that the next try does not continue it.
    async fn discard(self, resumed_from: u64, error: Error) -> Result<Fetched> {
        let key = ingest_key(self.descriptor);
        match self.service.shared.content.abort(self.ctx, &key).await {
            Err(abort) if !abort.is_not_found() => {
                tracing::warn!(ingest = %key, error = %abort, "failed to discard wrong bytes");
            }
            _ => {}
        }
        if resumed_from > 0 {
            tracing::info!(ingest = %key, %error, "what was there before is wrong, fetching all of it");
            return Ok(Fetched::Stale);
        }
        Err(error.context(self.failed_commit()))
    }

    fn failed_commit(&self) -> String {
        format!("failed commit on ref \"{}\"", ingest_key(self.descriptor))
    }

    fn stored(&mut self) {
        if let Some(tap) = self.tap.take() {
            let _ = tap.send(Incoming::Stored);
        }
    }
}

/// Where the bytes come from.
enum Source {
    Download(Box<Download>),
    /// The descriptor holds them itself.
    Embedded(Option<Bytes>),
}

impl Source {
    /// The next piece, and the offset after it.
    async fn next(&mut self) -> Result<Option<(Bytes, u64)>> {
        match self {
            Self::Download(download) => Ok(download.chunk().await?.map(|chunk| (chunk, download.offset()))),
            Self::Embedded(data) => Ok(data.take().map(|data| {
                let length = data.len() as u64;
                (data, length)
            })),
        }
    }
}

/// Passes bytes on in pieces.
async fn hand_over(
    sender: &mpsc::Sender<Bytes>,
    mut chunk: Bytes,
) -> Result<(), mpsc::error::SendError<Bytes>> {
    while chunk.len() > PIECE {
        sender.send(chunk.split_to(PIECE)).await?;
    }
    sender.send(chunk).await
}

fn embedded(descriptor: &Descriptor) -> Option<Bytes> {
    let data = STANDARD.decode(descriptor.data.as_ref()?).ok()?;
    (data.len() as u64 == size(descriptor)).then(|| data.into())
}

pub(crate) fn size(descriptor: &Descriptor) -> u64 {
    u64::try_from(descriptor.size).unwrap_or(0)
}

/// Waits for whoever fetches the same already, and shows his progress.
async fn wait_for_turn(flight: &Flight, meter: &mut Meter) -> Turn {
    let turn = flight.turn();
    tokio::pin!(turn);
    let mut figures = tokio::time::interval(FIGURES);
    loop {
        tokio::select! {
            biased;
            turn = &mut turn => return turn,
            _ = figures.tick() => meter.advance("downloading", flight.progress()),
        }
    }
}

#[cfg(test)]
mod tests {
    use corten_types::Digest;

    use super::*;

    #[test]
    fn ingests_are_named_by_kind() {
        let digest = Digest::sha256(b"");
        let mut layer = Descriptor::new(media_type::OCI_LAYER, digest.clone(), 1);
        assert_eq!(ingest_key(&layer), format!("layer-{digest}"));
        layer.annotations.insert(REF_NAME.to_owned(), "1.0".to_owned());
        assert_eq!(ingest_key(&layer), format!("layer-1.0@{digest}"));
        let other = Descriptor::new("application/vnd.in-toto+json", digest.clone(), 1);
        assert_eq!(ingest_key(&other), format!("attestation-{digest}"));
    }

    #[test]
    fn embedded_data_counts_only_if_it_is_whole() {
        let mut descriptor = Descriptor::new("t", Digest::sha256(b"data"), 4);
        assert_eq!(embedded(&descriptor), None);
        descriptor.data = Some(STANDARD.encode("data"));
        assert_eq!(embedded(&descriptor).unwrap(), &b"data"[..]);
        descriptor.size = 5;
        assert_eq!(embedded(&descriptor), None);
    }
}
