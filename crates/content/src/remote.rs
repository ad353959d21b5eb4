//! Blobs that another process keeps. Ingests are here too, so that they can be resumed and read while they arrive; the
//! other process gets the bytes meanwhile, and is told to keep them as a blob when they are verified.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use corten_types::{Context, Digest, Result};

/// Where blobs are instead of in files of this daemon. Every call may fail because it is not there.
#[async_trait::async_trait]
pub trait RemoteBlobs: Send + Sync + std::fmt::Debug {
    /// The size of a blob; nothing if there is none.
    ///
    /// # Errors
    /// Its own.
    async fn size(&self, ctx: Option<&Context>, digest: &Digest) -> Result<Option<u64>>;

    /// At most `most` bytes of a blob, at least one before its end.
    ///
    /// # Errors
    /// Its own.
    async fn read(&self, ctx: &Context, digest: &Digest, offset: u64, most: u64) -> Result<Bytes>;

    /// Begins an ingest of `total` bytes, 0 when that is not known, and forgets what there was of it.
    ///
    /// # Errors
    /// Its own.
    async fn ingest(&self, ctx: &Context, reference: &str, total: u64) -> Result<Box<dyn RemoteIngest>>;

    /// Gives an ingest up, if there is one.
    ///
    /// # Errors
    /// Its own.
    async fn abort(&self, ctx: &Context, reference: &str) -> Result<()>;

    /// Digests of all blobs.
    ///
    /// # Errors
    /// Its own.
    async fn list(&self) -> Result<BTreeSet<String>>;

    /// Removes a blob, if there is one.
    ///
    /// # Errors
    /// Its own.
    async fn delete(&self, digest: &str) -> Result<()>;
}

/// An ingest of another process.
#[async_trait::async_trait]
pub trait RemoteIngest: Send + Sync + std::fmt::Debug {
    /// Appends.
    ///
    /// # Errors
    /// Its own.
    async fn write(&mut self, data: Bytes) -> Result<()>;

    /// Makes it a blob, durably. What is there already stays.
    ///
    /// # Errors
    /// Its own.
    async fn commit(&mut self, digest: &Digest) -> Result<()>;
}

/// Bytes that are handed over at once.
const PIECE: usize = 1 << 20;

/// What another process has of an ingest while it arrives.
#[derive(Debug)]
pub(crate) enum Ahead {
    /// Nothing yet.
    Nothing,
    /// All but what is kept here for the next piece.
    Most(Box<dyn RemoteIngest>, Vec<u8>),
    /// It gets the whole file at the end.
    Lost,
}

impl Ahead {
    /// Hands bytes over that are stored here behind `offset` others. May block.
    pub(crate) fn pass_on(
        &mut self,
        (remote, ctx): (&dyn RemoteBlobs, &Context),
        (reference, total): (&str, u64),
        offset: u64,
        data: &[u8],
    ) {
        if matches!(self, Self::Nothing) {
            // What was written before a restart is here alone.
            let begun = (offset == 0).then(|| wait(remote.ingest(ctx, reference, total)));
            *self = match begun {
                Some(Ok(ingest)) => Self::Most(ingest, Vec::new()),
                _ => Self::Lost,
            };
        }
        let Self::Most(ingest, rest) = self else { return };
        rest.extend_from_slice(data);
        if rest.len() >= PIECE
            && let Err(error) = wait(ingest.write(Bytes::from(std::mem::take(rest))))
        {
            tracing::debug!(%error, reference, "the content store gets the whole blob at its end");
            *self = Self::Lost;
        }
    }

    /// Makes it a blob; answers whether that is one now. May block.
    fn commit(&mut self, digest: &Digest) -> bool {
        let Self::Most(ingest, rest) = self else { return false };
        let rest = Bytes::from(std::mem::take(rest));
        let done = wait(async {
            if !rest.is_empty() {
                ingest.write(rest).await?;
            }
            ingest.commit(digest).await
        });
        // Whoever is asked next begins anew.
        *self = Self::Lost;
        done.is_ok()
    }

    /// Makes a file's bytes a blob there, of which it may have most. May block.
    ///
    /// # Errors
    /// Those of the other process.
    pub(crate) fn finish(
        &mut self,
        (remote, ctx): (&dyn RemoteBlobs, &Context),
        reference: &str,
        (digest, size): (&Digest, u64),
        file: &File,
    ) -> Result<()> {
        if self.commit(digest) || wait(remote.size(Some(ctx), digest))? == Some(size) {
            return Ok(());
        }
        let mut ingest = wait(remote.ingest(ctx, reference, size))?;
        let mut offset = 0;
        while offset < size {
            let mut piece = vec![0; PIECE.min(usize::try_from(size - offset).unwrap_or(PIECE))];
            file.read_exact_at(&mut piece, offset)?;
            offset += piece.len() as u64;
            wait(ingest.write(Bytes::from(piece)))?;
        }
        wait(ingest.commit(digest))
    }
}

/// Waits for another process on a thread that may be the runtime's.
pub(crate) fn wait<T>(call: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| runtime.block_on(call))
}
