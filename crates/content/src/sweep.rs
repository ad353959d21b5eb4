//! Removes files that no record knows.

use std::collections::BTreeSet;
use std::time::Duration;

use corten_metadata::Sweeper;
use corten_types::{Error, Result};

use crate::Store;
use crate::ingest::{IngestFiles, remove_folder};
use crate::remote::RemoteBlobs;

/// A sweep does not wait longer than this for another process.
const PATIENCE: Duration = Duration::from_secs(30);

#[async_trait::async_trait]
impl Sweeper for Store {
    async fn sweep(&self) -> Result<()> {
        if let Some(remote) = &self.shared.remote {
            self.sweep_remote(remote.as_ref()).await;
        }
        let store = self.clone();
        let sweep = move || store.sweep_blobs().and_then(|()| store.sweep_ingests());
        tokio::task::spawn_blocking(sweep)
            .await
            .map_err(|error| Error::internal(format!("sweep: {error}")))?
    }
}

impl Store {
    /// A store that is not there, or slow, does not keep the rest from being swept.
    async fn sweep_remote(&self, remote: &dyn RemoteBlobs) {
        let sweep = async {
            for digest in remote.list().await? {
                let _alone = self.shared.removing.write().await;
                if self.shared.is_unknown(&digest)? {
                    remote.delete(&digest).await?;
                }
            }
            Ok(())
        };
        let swept = tokio::time::timeout(PATIENCE, sweep).await;
        if let Err(error) = swept.unwrap_or_else(|_| Err(Error::unavailable("it takes too long"))) {
            tracing::warn!(%error, "blobs of another process could not be removed yet");
        }
    }

    fn sweep_blobs(&self) -> Result<()> {
        let known = self.shared.blobs.all_digests()?;
        for algorithm in std::fs::read_dir(self.shared.root.join("blobs"))?.flatten() {
            for file in std::fs::read_dir(algorithm.path())?.flatten() {
                let name = format!("{}:{}", algorithm.file_name().display(), file.file_name().display());
                if !known.contains(&name) {
                    self.shared.remove_unknown(&name, &file.path())?;
                }
            }
        }
        Ok(())
    }

    fn sweep_ingests(&self) -> Result<()> {
        // The folders first: whatever is begun later is not among them.
        let folders: Vec<_> = std::fs::read_dir(self.shared.root.join("ingest"))?.flatten().collect();
        let mut backends = self.shared.ingests.all_backends()?;
        // A writer whose record has run out may still finish.
        backends.extend(self.shared.locked());
        let known: BTreeSet<String> = backends.iter().map(|backend| IngestFiles::name(backend)).collect();
        for folder in folders {
            if !known.contains(folder.file_name().to_string_lossy().as_ref()) {
                tracing::debug!(folder = %folder.path().display(), "an ingest that nobody knows is removed");
                remove_folder(&folder.path())?;
            }
        }
        Ok(())
    }
}
