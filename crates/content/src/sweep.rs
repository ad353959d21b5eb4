//! Removes files that no record knows.

use std::time::{Duration, SystemTime};

use corten_metadata::Sweeper;
use corten_types::{Digest, Error, Result};

use crate::Store;

/// A file this young may belong to a commit whose record is just being written.
const YOUNG: Duration = Duration::from_secs(60);

#[async_trait::async_trait]
impl Sweeper for Store {
    async fn sweep(&self) -> Result<()> {
        let store = self.clone();
        tokio::task::spawn_blocking(move || store.sweep_files())
            .await
            .map_err(|error| Error::internal(format!("sweep: {error}")))?
    }
}

impl Store {
    fn sweep_files(&self) -> Result<()> {
        let root = &self.shared.root;
        let mut blobs = Vec::new();
        for algorithm in std::fs::read_dir(root.join("blobs"))?.flatten() {
            for file in std::fs::read_dir(algorithm.path())?.flatten() {
                let name = format!("{}:{}", algorithm.file_name().display(), file.file_name().display());
                blobs.push((name, file));
            }
        }
        // Records are read after the folder: a blob that is committed in between is known by then, unless
        // its rename and its record straddle this moment, for which youth protects it.
        let known = self.shared.blobs.all_digests()?;
        for (name, file) in blobs {
            if !known.contains(&name) && (!is_young(&file) || !self.may_be_committing()) {
                std::fs::remove_file(file.path()).ok();
            }
        }
        let ingests: Vec<_> = std::fs::read_dir(root.join("ingest"))?.flatten().collect();
        let known = self.shared.ingests.all_backends()?;
        let folders: std::collections::BTreeSet<String> =
            known.iter().map(|backend| Digest::sha256(backend.as_bytes()).hex().to_owned()).collect();
        for folder in ingests {
            let backend = std::fs::read_to_string(folder.path().join("ref")).unwrap_or_default();
            let unknown = !folders.contains(&folder.file_name().to_string_lossy().into_owned());
            if unknown && !self.shared.is_locked(&backend) {
                std::fs::remove_dir_all(folder.path()).ok();
            }
        }
        Ok(())
    }

    /// Whether any writer is open.
    fn may_be_committing(&self) -> bool {
        self.shared.has_writers()
    }
}

fn is_young(file: &std::fs::DirEntry) -> bool {
    let changed = file.metadata().and_then(|metadata| {
        use std::os::unix::fs::MetadataExt;
        Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(metadata.ctime()).unwrap_or(0)))
    });
    changed.is_ok_and(|changed| changed.elapsed().unwrap_or_default() < YOUNG)
}
