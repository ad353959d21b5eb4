//! Blobs that another process keeps. Ingests stay here until they are whole: they can be resumed and read
//! while they arrive, and what is handed over is verified.

use std::collections::BTreeSet;
use std::fs::File;

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

    /// Stores a file's bytes as a blob, durably. What is there already stays.
    ///
    /// # Errors
    /// Its own.
    async fn write(
        &self,
        ctx: &Context,
        reference: &str,
        digest: &Digest,
        size: u64,
        data: File,
    ) -> Result<()>;

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

/// Waits for another process on a thread that may be the runtime's.
pub(crate) fn wait<T>(call: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| runtime.block_on(call))
}
