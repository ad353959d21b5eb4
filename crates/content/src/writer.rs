//! Writing: hashed on the way, durable before it has a name.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::time::SystemTime;

use corten_types::digest::Algorithm;
use corten_types::{Context, Digest, Digester, Error, ErrorClass, Labels, Result, ResultExt};

use crate::ingest::IngestFiles;
use crate::store::{IngestStatus, Lock, Store, WriterOptions};

/// An open ingest. Dropped without a commit it stays and can be resumed.
#[derive(Debug)]
pub struct Writer {
    store: Store,
    ctx: Context,
    reference: String,
    backend: String,
    files: IngestFiles,
    source: Source,
    offset: u64,
    total: u64,
    started_at: SystemTime,
    updated_at: SystemTime,
    _lock: Lock,
}

/// Where the bytes are.
#[derive(Debug)]
enum Source {
    /// In a file of the ingest.
    Own { file: File, digester: Digester },
    /// In a blob that exists already.
    Shared { digest: Digest },
}

impl Writer {
    pub(crate) async fn open(
        store: Store,
        ctx: Context,
        options: WriterOptions,
        backend: String,
        lock: Lock,
        existing: Option<u64>,
    ) -> Result<Self> {
        let files = IngestFiles::of(&store.shared.root, &backend);
        let now = SystemTime::now();
        let mut writer = Self {
            reference: options.reference,
            source: Source::Shared { digest: Digest::sha256(b"") },
            offset: 0,
            total: options.total,
            started_at: now,
            updated_at: now,
            store,
            ctx,
            backend,
            files,
            _lock: lock,
        };
        if let (Some(size), Some(digest)) = (existing, options.expected.clone()) {
            writer.source = Source::Shared { digest };
            (writer.offset, writer.total) = (size, size);
            return Ok(writer);
        }
        let algorithm = options.expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        tokio::task::spawn_blocking(move || {
            writer.open_own(algorithm)?;
            Ok(writer)
        })
        .await
        .map_err(|error| Error::internal(format!("writer: {error}")))?
    }

    fn open_own(&mut self, algorithm: Algorithm) -> Result<()> {
        let mut file = self.files.open(&self.backend, self.total)?;
        let mut digester = Digester::new(algorithm);
        self.offset = hash(&mut file, &mut digester)?;
        self.source = Source::Own { file, digester };
        if let Some(status) = self.files.status(&self.reference) {
            (self.started_at, self.updated_at) = (status.started_at, status.updated_at);
            self.total = self.total.max(status.total);
        }
        Ok(())
    }

    /// How far it is; the digest is that of the bytes so far.
    #[must_use]
    pub fn status(&self) -> IngestStatus {
        let expected = match &self.source {
            Source::Shared { digest } => Some(digest.clone()),
            Source::Own { .. } => None,
        };
        IngestStatus {
            reference: self.reference.clone(),
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
            Source::Own { digester, .. } => digester.clone().finish(),
            Source::Shared { digest } => digest.clone(),
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

    /// A handle of its own on the bytes, to read them while they arrive.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn reader(&self) -> Result<File> {
        let path = match &self.source {
            Source::Own { .. } => self.files.data(),
            Source::Shared { digest } => self.store.shared.blob_path(digest),
        };
        File::open(&path).with_context(|| path.display().to_string())
    }

    /// Appends. Blocks for the disk.
    ///
    /// # Errors
    /// Those of the file system; ResourceExhausted when it is full.
    pub fn write(&mut self, data: &[u8]) -> Result<()> {
        self.unshare(false)?;
        let Source::Own { file, digester } = &mut self.source else {
            return Err(Error::internal("a shared blob cannot be written"));
        };
        file.write_all_at(data, self.offset)
            .with_context(|| format!("failed to write {:?}", self.reference))?;
        digester.update(data);
        self.offset += data.len() as u64;
        self.updated_at = SystemTime::now();
        Ok(())
    }

    /// Begins anew.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn truncate(&mut self) -> Result<()> {
        self.unshare(true)?;
        if let Source::Own { file, digester } = &mut self.source {
            file.set_len(0)?;
            *digester = Digester::default();
            self.offset = 0;
        }
        Ok(())
    }

    /// What was shared gets a file of its own, with the same bytes or empty.
    fn unshare(&mut self, empty: bool) -> Result<()> {
        let Source::Shared { digest } = &self.source else { return Ok(()) };
        let blob = self.store.shared.blob_path(digest);
        let algorithm = digest.algorithm();
        self.files.open(&self.backend, self.total)?;
        if empty {
            File::create(self.files.data())?;
        } else {
            std::fs::copy(blob, self.files.data())?;
            std::fs::set_permissions(self.files.data(), std::fs::Permissions::from_mode(0o644))?;
        }
        self.open_own(algorithm)
    }

    /// Verifies, makes durable, and makes visible. `size` 0 and no `expected` accept what was written.
    ///
    /// # Errors
    /// FailedPrecondition for another size or digest, the ingest staying; AlreadyExists, the ingest going.
    pub async fn commit(mut self, size: u64, expected: Option<&Digest>, labels: Labels) -> Result<Digest> {
        if size > 0 && size != self.offset {
            return Err(Error::failed_precondition(format!(
                "{:?} failed size validation: {} != {size}",
                self.reference, self.offset
            )));
        }
        let expected = expected.cloned();
        let (writer, digest) = tokio::task::spawn_blocking(move || {
            let digest = self.place(expected.as_ref());
            self.files.touch();
            digest.map(|digest| (self, digest))
        })
        .await
        .map_err(|error| Error::internal(format!("commit: {error}")))??;
        let blobs = &writer.store.shared.blobs;
        let result = blobs.commit(&writer.ctx, &writer.reference, &digest, writer.offset, labels).await;
        match &result {
            Err(error) if !error.is_already_exists() => {}
            _ => writer.files.remove()?,
        }
        result.map(|()| digest)
    }

    /// Puts the file in its place, durable; what is there already is as good.
    fn place(&mut self, expected: Option<&Digest>) -> Result<Digest> {
        let (file, digester) = match &mut self.source {
            Source::Shared { digest } if expected.is_none_or(|expected| expected == digest) => {
                return Ok(digest.clone());
            }
            Source::Shared { digest } => return Err(unexpected(digest, expected)),
            Source::Own { file, digester } => (file, digester),
        };
        let mut digest = digester.clone().finish();
        if let Some(expected) = expected.filter(|expected| expected.algorithm() != digest.algorithm()) {
            let mut digester = Digester::new(expected.algorithm());
            hash(file, &mut digester)?;
            digest = digester.finish();
        }
        if expected.is_some_and(|expected| *expected != digest) {
            return Err(unexpected(&digest, expected));
        }
        let target = self.store.shared.blob_path(&digest);
        if std::fs::metadata(&target).is_ok_and(|there| there.len() == self.offset) {
            return Ok(digest);
        }
        if let Some(folder) = target.parent() {
            std::fs::create_dir_all(folder)?;
        }
        file.sync_all().context("failed to sync content")?;
        file.set_permissions(std::fs::Permissions::from_mode(0o444))?;
        corten_durable::rename(&self.files.data(), &target)
            .with_context(|| format!("failed to place content {digest}"))?;
        Ok(digest)
    }
}

fn unexpected(digest: &Digest, expected: Option<&Digest>) -> Error {
    let expected = expected.map(Digest::as_str).unwrap_or_default();
    Error::new(
        ErrorClass::FailedPrecondition,
        format!("unexpected commit digest {digest}, expected {expected}"),
    )
}

/// Adds a whole file to a hash; answers its length.
fn hash(file: &mut File, digester: &mut Digester) -> Result<u64> {
    use std::io::Seek;
    file.rewind()?;
    let (mut buffer, mut length) = (vec![0; 256 << 10], 0);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(length),
            count => {
                digester.update(buffer.get(..count).unwrap_or_default());
                length += count as u64;
            }
        }
    }
}
