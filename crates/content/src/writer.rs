//! Writing: hashed on the way, durable before it has a name.

use std::fs::{File, Permissions};
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::time::SystemTime;

use bytes::Bytes;
use corten_metadata::IngestRecord;
use corten_types::digest::Algorithm;
use corten_types::{Context, Digest, Digester, Error, Labels, Result, ResultExt};

use crate::ingest::IngestFiles;
use crate::remote::{Ahead, wait};
use crate::store::{Hold, IngestStatus, Lock, Store, WriterOptions, blocking};

/// Bytes read at once to hash what is there already.
const BUFFER: usize = 256 << 10;
/// Bytes that the disk is set to work on at a time.
const WRITEBACK: usize = 8 << 20;
/// Bytes that another thread is worth.
const BESIDE: usize = 128 << 10;

/// An open ingest. Dropped without a commit it stays and can be resumed.
#[derive(Debug)]
pub struct Writer {
    store: Store,
    ctx: Context,
    ingest: IngestRecord,
    files: IngestFiles,
    source: Source,
    /// What another process has, if one keeps the blobs.
    ahead: Ahead,
    offset: u64,
    total: u64,
    started_at: SystemTime,
    updated_at: SystemTime,
    written: bool,
    _lock: Lock,
}

/// Where the bytes are.
#[derive(Debug)]
enum Source {
    /// In a file of the ingest.
    Own(Own),
    /// In a blob that exists already.
    Shared(Existing),
}

#[derive(Debug)]
struct Own {
    file: File,
    algorithm: Algorithm,
    digester: Digester,
    /// Bytes written since the disk was last set to work.
    unsynced: usize,
}

/// A blob whose file is there, and stays.
#[derive(Debug)]
pub(crate) struct Existing {
    pub digest: Digest,
    pub size: u64,
    pub _hold: Hold,
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.written {
            self.files.touch();
        }
    }
}

impl Writer {
    /// Opens the ingest's file, and hashes what is in it; or shares what exists.
    pub(crate) async fn open(
        store: Store,
        ctx: Context,
        options: WriterOptions,
        ingest: IngestRecord,
        lock: Lock,
        existing: Option<Existing>,
    ) -> Result<Self> {
        let files = IngestFiles::of(&store.shared.root, &ingest.backend);
        blocking(move || {
            let (source, offset, total) = match existing {
                Some(existing) => {
                    let size = existing.size;
                    (Source::Shared(existing), size, size)
                }
                None => {
                    let algorithm = options.expected.map_or(Algorithm::Sha256, |digest| digest.algorithm());
                    let (own, offset) = Own::open(&files, &ingest.backend, options.total, algorithm)?;
                    (Source::Own(own), offset, options.total)
                }
            };
            let now = SystemTime::now();
            let known = files.status(&ingest.reference);
            let (started_at, updated_at) = known.map_or((now, now), |it| (it.started_at, it.updated_at));
            let (written, _lock) = (false, lock);
            Ok(Self {
                store,
                ctx,
                ingest,
                files,
                source,
                ahead: Ahead::Nothing,
                offset,
                total,
                started_at,
                updated_at,
                written,
                _lock,
            })
        })
        .await
    }

    /// How far it is. `expected` is that of a writer that shares a blob.
    #[must_use]
    pub fn status(&self) -> IngestStatus {
        let expected = match &self.source {
            Source::Shared(existing) => Some(existing.digest.clone()),
            Source::Own(_) => None,
        };
        IngestStatus {
            reference: self.ingest.reference.clone(),
            offset: self.offset,
            total: self.total,
            expected,
            started_at: self.started_at,
            updated_at: self.updated_at,
        }
    }

    /// Bytes so far.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Digest of the bytes so far.
    #[must_use]
    pub fn digest(&self) -> Digest {
        match &self.source {
            Source::Own(own) => own.digester.clone().finish(),
            Source::Shared(existing) => existing.digest.clone(),
        }
    }

    /// Bytes announced; 0 when not known.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Announces another size.
    pub fn set_total(&mut self, total: u64) {
        self.total = total;
    }

    /// A handle of its own on the bytes, to read them while they arrive. It stays valid over a commit.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn reader(&mut self) -> Result<File> {
        if self.store.shared.remote.is_some() {
            // There is no file yet.
            self.own(false)?;
        }
        let path = match &self.source {
            Source::Own(_) => self.files.data(),
            Source::Shared(existing) => self.store.shared.blob_path(&existing.digest),
        };
        File::open(&path).with_context(|| path.display().to_string())
    }

    /// Appends. Blocks for the disk; what shared a blob until now copies it first.
    ///
    /// # Errors
    /// Those of the file system; ResourceExhausted when it is full.
    pub fn write(&mut self, data: &[u8]) -> Result<()> {
        self.store_bytes(data)?;
        self.own(false)?.digester.update(data);
        self.wrote(data.len());
        Ok(())
    }

    /// Appends as [`Writer::write`] does, within a runtime. Much at once is hashed by another thread meanwhile.
    ///
    /// # Errors
    /// Those of [`Writer::write`].
    pub fn write_shared(&mut self, data: &Bytes) -> Result<()> {
        if data.len() < BESIDE {
            return self.write(data);
        }
        let own = self.own(false)?;
        let (before, bytes) = (own.digester.clone(), data.clone());
        let hashed = tokio::task::spawn_blocking(move || {
            let mut digester = before;
            digester.update(&bytes);
            digester
        });
        let stored = self.store_bytes(data);
        // Whoever answers may give the bytes' memory to the next ones: nobody looks at them any more then.
        let hashed = tokio::runtime::Handle::current().block_on(hashed);
        stored?;
        self.own(false)?.digester = hashed.map_err(|error| Error::internal(format!("hashing: {error}")))?;
        self.wrote(data.len());
        Ok(())
    }

    /// Puts bytes behind the others, and counts nothing.
    fn store_bytes(&mut self, data: &[u8]) -> Result<()> {
        let (offset, reference) = (self.offset, self.ingest.reference.clone());
        let own = self.own(false)?;
        own.file.write_all_at(data, offset).with_context(|| format!("failed to write {reference:?}"))?;
        own.unsynced += data.len();
        if own.unsynced >= WRITEBACK {
            // The disk works while the next bytes arrive and are hashed, instead of all at once at the commit.
            corten_sys::start_writeback(own.file.as_fd());
            own.unsynced = 0;
        }
        if let Some(remote) = &self.store.shared.remote {
            let ingest = (self.ingest.backend.as_str(), self.total);
            self.ahead.pass_on((remote.as_ref(), &self.ctx), ingest, offset, data);
        }
        Ok(())
    }

    fn wrote(&mut self, count: usize) {
        self.offset += count as u64;
        self.updated_at = SystemTime::now();
        self.written = true;
    }

    /// Begins anew. Blocks for the disk.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn truncate(&mut self) -> Result<()> {
        let own = self.own(true)?;
        own.file.set_len(0)?;
        own.digester = Digester::new(own.algorithm);
        self.ahead = Ahead::Nothing;
        self.offset = 0;
        self.written = true;
        Ok(())
    }

    /// The file of its own; what shared a blob gets one now, with the same bytes or empty.
    fn own(&mut self, empty: bool) -> Result<&mut Own> {
        if let Source::Shared(existing) = &self.source {
            let blob = self.store.shared.open(&self.ctx, &existing.digest)?;
            let algorithm = existing.digest.algorithm();
            let mut file = self.files.open(&self.ingest.backend, self.total)?;
            file.set_len(0)?;
            if !empty {
                std::io::copy(&mut blob.stream(), &mut file)
                    .with_context(|| format!("failed to copy {}", existing.digest))?;
            }
            drop(file);
            let (own, offset) = Own::open(&self.files, &self.ingest.backend, self.total, algorithm)?;
            (self.source, self.offset) = (Source::Own(own), offset);
        }
        match &mut self.source {
            Source::Own(own) => Ok(own),
            Source::Shared(_) => Err(Error::internal("a shared blob cannot be written")),
        }
    }

    /// Verifies, makes durable, and makes visible. `size` 0 and no `expected` accept what was written.
    ///
    /// # Errors
    /// FailedPrecondition for another size or digest, the ingest staying; AlreadyExists, the blob having
    /// joined the caller's lease and the ingest being gone; NotFound for the lease, or when the ingest was
    /// given up meanwhile; InvalidArgument for labels.
    pub async fn commit(mut self, size: u64, expected: Option<&Digest>, labels: Labels) -> Result<Digest> {
        if size > 0 && size != self.offset {
            return Err(Error::failed_precondition(format!(
                "{:?} failed size validation: {} != {size}",
                self.ingest.reference, self.offset
            )));
        }
        self.store.shared.blobs.check_commit(&self.ctx, &labels)?;
        let expected = expected.cloned();
        let (writer, digest, _hold) = blocking(move || {
            let (digest, hold) = self.place(expected.as_ref())?;
            Ok((self, digest, hold))
        })
        .await?;
        let blobs = &writer.store.shared.blobs;
        let result = blobs.commit(&writer.ctx, &writer.ingest, &digest, writer.offset, labels).await;
        if result.as_ref().is_err_and(|error| !error.is_already_exists()) {
            return result.map(|()| digest);
        }
        blocking(move || writer.files.remove()).await?;
        result.map(|()| digest)
    }

    /// Gives the ingest up; what was written is gone.
    ///
    /// # Errors
    /// Those of the file system and the database.
    pub async fn abandon(self) -> Result<()> {
        let (store, ctx, reference) = (self.store.clone(), self.ctx.clone(), self.ingest.reference.clone());
        match store.abort(&ctx, &reference).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }

    /// Puts the file in its place, verified and durable. It is held there until there is a record.
    fn place(&mut self, expected: Option<&Digest>) -> Result<(Digest, Hold)> {
        let (digest, offset) = (self.verify(expected)?, self.offset);
        let shared = &self.store.shared;
        let hold = shared.hold(&digest);
        let Source::Own(own) = &self.source else { return Ok((digest, hold)) };
        if self.store.has(&self.ctx, &digest)? {
            return Ok((digest, hold));
        }
        // A write that failed half-way may have left more than was counted.
        own.file.set_len(offset)?;
        if let Some(remote) = &shared.remote {
            let _stays = wait(shared.removing.read());
            let (file, there) = (File::open(self.files.data())?, (remote.as_ref(), &self.ctx));
            self.ahead
                .finish(there, &self.ingest.backend, (&digest, offset), &file)
                .with_context(|| format!("failed to place content {digest}"))?;
            return Ok((digest, hold));
        }
        own.file.set_permissions(Permissions::from_mode(0o444))?;
        own.file.sync_all().context("failed to sync content")?;
        // What lies there without a record of ours was never verified by us: this one was.
        let target = shared.blob_path(&digest);
        corten_durable::create_folders(target.parent().unwrap_or(&shared.root))?;
        corten_durable::rename(&self.files.data(), &target)
            .with_context(|| format!("failed to place content {digest}"))?;
        Ok((digest, hold))
    }

    /// The digest of all bytes, which is the expected one if there is one.
    fn verify(&mut self, expected: Option<&Digest>) -> Result<Digest> {
        let mut digest = self.digest();
        if let (Source::Own(own), Some(expected)) = (&mut self.source, expected)
            && expected.algorithm() != digest.algorithm()
        {
            digest = hash(&mut own.file, expected.algorithm(), self.offset)?.0.finish();
        }
        match expected {
            Some(expected) if *expected != digest => Err(Error::failed_precondition(format!(
                "unexpected commit digest {digest}, expected {expected}"
            ))),
            _ => Ok(digest),
        }
    }
}

impl Own {
    fn open(files: &IngestFiles, backend: &str, total: u64, algorithm: Algorithm) -> Result<(Self, u64)> {
        let mut file = files.open(backend, total)?;
        let (digester, length) = hash(&mut file, algorithm, u64::MAX)?;
        Ok((Self { file, algorithm, digester, unsynced: 0 }, length))
    }
}

/// Hashes a file from its beginning, at most `most` bytes; answers how many there were.
fn hash(file: &mut File, algorithm: Algorithm, most: u64) -> Result<(Digester, u64)> {
    file.rewind()?;
    let mut digester = Digester::new(algorithm);
    let (mut buffer, mut length) = (vec![0; BUFFER], 0);
    let mut data = file.take(most);
    loop {
        match data.read(&mut buffer)? {
            0 => return Ok((digester, length)),
            count => {
                digester.update(buffer.get(..count).unwrap_or_default());
                length += count as u64;
            }
        }
    }
}
