//! The store: reading, listing, and opening writers.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{IoSliceMut, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use corten_events::Exchange;
use corten_metadata::{BlobRecord, Blobs, Database, Ingests};
use corten_types::filter::Fields;
use corten_types::{Context, Digest, Error, ErrorClass, Filter, Labels, Result, ResultExt, timestamp};
use rustix::io::ReadWriteFlags;

use crate::ingest::IngestFiles;
use crate::remote::{RemoteBlobs, wait};
use crate::writer::{Existing, Writer};

/// Whether a namespace may use the blobs of others by their digest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Knowing the digest is enough.
    #[default]
    Shared,
    /// Only of namespaces that say so by a label.
    Isolated,
}

/// What is to be written.
#[derive(Clone, Debug, Default)]
pub struct WriterOptions {
    /// The client's name for the ingest.
    pub reference: String,
    /// Bytes; 0 when not known.
    pub total: u64,
    /// Digest, if known.
    pub expected: Option<Digest>,
}

/// How far an ingest is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngestStatus {
    /// The client's name for it.
    pub reference: String,
    /// Bytes on disk.
    pub offset: u64,
    /// Bytes announced; 0 when not known.
    pub total: u64,
    /// Digest announced; only of writers that share an existing blob.
    pub expected: Option<Digest>,
    /// When it was begun.
    pub started_at: SystemTime,
    /// When it last grew.
    pub updated_at: SystemTime,
}

impl Fields for IngestStatus {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        (path.first() == Some(&"ref")).then_some(Cow::Borrowed(&self.reference))
    }
}

/// The content store. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub root: PathBuf,
    pub blobs: Blobs,
    pub ingests: Ingests,
    /// Another process that keeps the blobs.
    pub remote: Option<Arc<dyn RemoteBlobs>>,
    /// Held for writing while a blob is removed there: who holds one waits until that is over.
    pub removing: tokio::sync::RwLock<()>,
    policy: Policy,
    /// Open writers by backend reference, since when.
    locks: Mutex<HashMap<String, SystemTime>>,
    /// Blobs whose files must stay though there may be no record yet, and for how many.
    held: Mutex<HashMap<String, usize>>,
}

/// Keeps a blob's file from being swept.
#[derive(Debug)]
pub(crate) struct Hold {
    shared: Arc<Shared>,
    digest: String,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = lock(&self.shared.held);
        if let Some(count) = held.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.digest);
            }
        }
    }
}

/// Holds a reference for one writer.
#[derive(Debug)]
pub(crate) struct Lock {
    shared: Arc<Shared>,
    backend: String,
}

impl Drop for Lock {
    fn drop(&mut self) {
        lock(&self.shared.locks).remove(&self.backend);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.algorithm().as_str()).join(digest.hex())
    }

    pub(crate) fn lock(self: &Arc<Self>, backend: &str) -> Result<Lock> {
        let mut locks = lock(&self.locks);
        if let Some(since) = locks.get(backend) {
            let held = since.elapsed().unwrap_or_default();
            let since = timestamp::rfc3339(*since).replace('T', " ").replace('Z', " +0000 UTC");
            return Err(Error::unavailable(format!("ref {backend} locked for {held:?} (since {since})")));
        }
        locks.insert(backend.to_owned(), SystemTime::now());
        Ok(Lock { shared: Arc::clone(self), backend: backend.to_owned() })
    }

    /// Backend references that are being written.
    pub(crate) fn locked(&self) -> Vec<String> {
        lock(&self.locks).keys().cloned().collect()
    }

    /// Keeps the file of a blob, if there is one or as soon as there is.
    pub(crate) fn hold(self: &Arc<Self>, digest: &Digest) -> Hold {
        *lock(&self.held).entry(digest.to_string()).or_default() += 1;
        Hold { shared: Arc::clone(self), digest: digest.to_string() }
    }

    /// Removes a blob's file unless it is held or known by now.
    pub(crate) fn remove_unknown(&self, digest: &str, path: &Path) -> Result<()> {
        // Who commits holds the blob until its record is durable: none can come between these steps.
        let held = lock(&self.held);
        if held.contains_key(digest) || self.blobs.is_known(digest)? {
            return Ok(());
        }
        tracing::debug!(digest, "a blob that nobody knows is removed");
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::from(error).context(path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Whether nobody holds or knows a blob, which may go then.
    pub(crate) fn is_unknown(&self, digest: &str) -> Result<bool> {
        Ok(!lock(&self.held).contains_key(digest) && !self.blobs.is_known(digest)?)
    }

    /// The size of a blob that is stored. May block.
    pub(crate) fn size_of(&self, ctx: &Context, digest: &Digest) -> Result<Option<u64>> {
        match &self.remote {
            Some(remote) => wait(remote.size(Some(ctx), digest)),
            None => Ok(std::fs::metadata(self.blob_path(digest)).ok().map(|metadata| metadata.len())),
        }
    }

    /// A stored blob. May block.
    pub(crate) fn open(&self, ctx: &Context, digest: &Digest) -> Result<BlobReader> {
        let missing = || Error::not_found(format!("content digest {digest}"));
        if let Some(remote) = &self.remote {
            let size = wait(remote.size(Some(ctx), digest))?.ok_or_else(missing)?;
            let (remote, ctx, digest) = (Arc::clone(remote), ctx.clone(), digest.clone());
            return Ok(BlobReader { bytes: Bytes::Remote { remote, ctx, digest }, size });
        }
        let file = File::open(self.blob_path(digest)).map_err(|_| missing())?;
        let size = file.metadata()?.len();
        Ok(BlobReader { bytes: Bytes::File(Arc::new(file)), size })
    }
}

impl Store {
    /// Opens the store in a folder, which is made if need be.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(root: &Path, database: &Database, exchange: &Exchange, policy: Policy) -> Result<Self> {
        Self::with_remote(root, database, exchange, policy, None)
    }

    /// The same, with blobs that another process keeps. Within a runtime of several threads.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn with_remote(
        root: &Path,
        database: &Database,
        exchange: &Exchange,
        policy: Policy,
        remote: Option<Arc<dyn RemoteBlobs>>,
    ) -> Result<Self> {
        for folder in ["blobs/sha256", "ingest"] {
            corten_durable::create_folders(&root.join(folder)).with_context(|| root.display().to_string())?;
        }
        let shared = Shared {
            root: root.to_owned(),
            blobs: Blobs::new(database.clone(), exchange.clone()),
            ingests: Ingests::new(database.clone()),
            remote,
            removing: tokio::sync::RwLock::default(),
            policy,
            locks: Mutex::default(),
            held: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// What is known of a blob.
    ///
    /// # Errors
    /// NotFound.
    pub fn info(&self, ctx: &Context, digest: &Digest) -> Result<BlobRecord> {
        self.shared.blobs.get(ctx, digest)
    }

    /// Changes labels: those that `paths` names (`labels`, `labels.K`), or all when it names none.
    ///
    /// # Errors
    /// NotFound, InvalidArgument.
    pub async fn update(
        &self,
        ctx: &Context,
        digest: &Digest,
        labels: Labels,
        paths: &[String],
    ) -> Result<BlobRecord> {
        self.shared.blobs.update(ctx, digest, labels, paths.to_vec()).await
    }

    /// The blobs that pass, by digest.
    ///
    /// # Errors
    /// InvalidArgument for a malformed filter.
    pub fn list(&self, ctx: &Context, filters: &[String]) -> Result<Vec<BlobRecord>> {
        self.shared.blobs.list(ctx, filters)
    }

    /// Removes a blob from the namespace; its file goes with a collection.
    ///
    /// # Errors
    /// NotFound.
    pub async fn delete(&self, ctx: &Context, digest: &Digest) -> Result<()> {
        self.shared.blobs.delete(ctx, digest).await
    }

    /// Opens a blob for reading.
    ///
    /// # Errors
    /// NotFound.
    pub fn reader(&self, ctx: &Context, digest: &Digest) -> Result<BlobReader> {
        self.info(ctx, digest)?;
        self.shared.open(ctx, digest)
    }

    /// A whole blob of at most `limit` bytes.
    ///
    /// # Errors
    /// NotFound; ResourceExhausted when it is larger.
    pub fn read(&self, ctx: &Context, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
        let blob = self.reader(ctx, digest)?;
        if blob.size > limit {
            let text = format!("content {digest} has {} bytes, more than {limit}", blob.size);
            return Err(Error::new(ErrorClass::ResourceExhausted, text));
        }
        let mut data = vec![0; usize::try_from(blob.size).unwrap_or(0)];
        blob.read_exact_at(&mut data, 0)?;
        Ok(data)
    }

    /// How far an ingest is.
    ///
    /// # Errors
    /// NotFound.
    pub fn status(&self, ctx: &Context, reference: &str) -> Result<IngestStatus> {
        let missing =
            || Error::not_found(format!("could not get status for ref {reference:?}: reference {reference}"));
        let record = self.shared.ingests.get(ctx, reference)?.ok_or_else(missing)?;
        IngestFiles::of(&self.shared.root, &record.backend).status(reference).ok_or_else(missing)
    }

    /// The ingests that pass.
    ///
    /// # Errors
    /// InvalidArgument for a malformed filter.
    pub fn statuses(&self, ctx: &Context, filters: &[String]) -> Result<Vec<IngestStatus>> {
        let filter = Filter::parse(filters)?;
        let records = self.shared.ingests.list(ctx)?;
        let statuses = records.iter().filter_map(|record| {
            IngestFiles::of(&self.shared.root, &record.backend).status(&record.reference)
        });
        Ok(statuses.filter(|status| filter.matches(status)).collect())
    }

    /// Gives an ingest up, also one that is being written: its writer fails later.
    ///
    /// # Errors
    /// NotFound `reference R`.
    pub async fn abort(&self, ctx: &Context, reference: &str) -> Result<()> {
        let record = self.shared.ingests.remove(ctx, reference).await?;
        if let Some(remote) = &self.shared.remote
            && let Err(error) = remote.abort(ctx, &record.backend).await
        {
            tracing::debug!(%error, reference, "the other content store keeps what it has of an ingest");
        }
        let files = IngestFiles::of(&self.shared.root, &record.backend);
        blocking(move || files.remove()).await
    }

    /// Whether the namespace has a blob, and all of it is on disk.
    ///
    /// # Errors
    /// Those of the database.
    pub fn has(&self, ctx: &Context, digest: &Digest) -> Result<bool> {
        let known = match self.info(ctx, digest) {
            Err(error) if error.is_not_found() => return Ok(false),
            other => other?,
        };
        let whole = self.shared.size_of(ctx, digest)? == Some(known.size);
        if !whole {
            tracing::warn!(%digest, "a blob is missing or cut short on disk, it can be written anew");
        }
        Ok(whole)
    }

    /// Opens a writer: for a blob that exists elsewhere one that shares it, else for an ingest, new or
    /// resumed (spec 01 §2.3).
    ///
    /// # Errors
    /// AlreadyExists when the namespace has the blob, which then joins the caller's lease; Unavailable while
    /// somebody else writes under this reference; NotFound for the lease.
    pub async fn writer(&self, ctx: &Context, options: WriterOptions) -> Result<Writer> {
        let shared = &self.shared;
        let mut existing = None;
        if let Some(expected) = &options.expected {
            if self.has(ctx, expected)? && shared.blobs.lease_existing(ctx, expected).await? {
                return Err(Error::already_exists(format!("content {expected}")));
            }
            if shared.policy == Policy::Shared || shared.blobs.is_shareable(expected)? {
                let hold = shared.hold(expected);
                let _stays = shared.removing.read().await;
                let size = shared.size_of(ctx, expected)?;
                existing = size
                    .filter(|size| options.total == 0 || options.total == *size)
                    .map(|size| Existing { digest: expected.clone(), size, _hold: hold });
            }
        }
        let held = match shared.ingests.get(ctx, &options.reference)? {
            Some(known) => Some(shared.lock(&known.backend)?),
            None => None,
        };
        let record = shared
            .ingests
            .open(ctx, &options.reference, options.expected.as_ref().filter(|_| existing.is_some()))
            .await?;
        let lock = match held {
            Some(lock) => lock,
            None => shared.lock(&record.backend)?,
        };
        Writer::open(self.clone(), ctx.clone(), options, record, lock, existing).await
    }
}

/// Runs what waits for the disk where it may.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal(format!("content store: {error}")))?
}

/// An open blob. Clones share it.
#[derive(Clone, Debug)]
pub struct BlobReader {
    bytes: Bytes,
    size: u64,
}

/// Where the bytes of a blob are.
#[derive(Clone, Debug)]
enum Bytes {
    File(Arc<File>),
    Remote { remote: Arc<dyn RemoteBlobs>, ctx: Context, digest: Digest },
}

impl BlobReader {
    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads from an offset; 0 at the end. May block.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        match &self.bytes {
            Bytes::File(file) => Ok(file.read_at(buffer, offset)?),
            Bytes::Remote { .. } if offset >= self.size || buffer.is_empty() => Ok(0),
            Bytes::Remote { remote, ctx, digest } => {
                let most = (self.size - offset).min(buffer.len() as u64);
                let data = wait(remote.read(ctx, digest, offset, most))?;
                let count = data.len().min(buffer.len());
                for (place, byte) in buffer.iter_mut().zip(data.iter()) {
                    *place = *byte;
                }
                Ok(count)
            }
        }
    }

    /// Reads what memory has of the blob from an offset, and answers how many bytes that is. Waits for nothing.
    #[must_use]
    pub fn read_cached(&self, buffer: &mut [u8], offset: u64) -> usize {
        let Bytes::File(file) = &self.bytes else { return 0 };
        let buffers = &mut [IoSliceMut::new(buffer)];
        // Whoever reads on is told why there was nothing.
        rustix::io::preadv2(file, buffers, offset, ReadWriteFlags::NOWAIT).unwrap_or(0)
    }

    /// Fills a buffer from an offset. May block.
    ///
    /// # Errors
    /// Those of the file system; DataLoss when there are fewer bytes.
    pub fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> Result<()> {
        while !buffer.is_empty() {
            match self.read_at(buffer, offset)? {
                0 => return Err(Error::new(ErrorClass::DataLoss, "the blob is shorter than it was")),
                count => {
                    buffer = buffer.get_mut(count..).unwrap_or_default();
                    offset += count as u64;
                }
            }
        }
        Ok(())
    }

    /// All bytes, one after the other.
    #[must_use]
    pub fn stream(&self) -> BlobStream {
        BlobStream { blob: self.clone(), position: 0 }
    }
}

/// A blob read from its beginning. May block.
#[derive(Debug)]
pub struct BlobStream {
    blob: BlobReader,
    position: u64,
}

impl Read for BlobStream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.blob.read_at(buffer, self.position).map_err(std::io::Error::other)?;
        self.position += count as u64;
        Ok(count)
    }
}
