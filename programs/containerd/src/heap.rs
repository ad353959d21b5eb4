//! Memory that a collection has freed goes back to the kernel.

use corten_metadata::Sweeper;
use corten_types::{Error, Result};

/// Comes after the other sweepers.
pub struct TrimHeap;

#[async_trait::async_trait]
impl Sweeper for TrimHeap {
    async fn sweep(&self) -> Result<()> {
        tokio::task::spawn_blocking(corten_sys::trim_heap).await.map_err(Error::internal)
    }
}
