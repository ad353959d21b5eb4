//! The files of an ingest: `ref`, `data`, `startedat`, `updatedat`, `total`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use corten_types::{Digest, Result, ResultExt, timestamp};

use crate::store::IngestStatus;

/// The folder of one ingest.
#[derive(Clone, Debug)]
pub(crate) struct IngestFiles {
    folder: PathBuf,
}

impl IngestFiles {
    /// The folder for a backend reference, whether it exists or not.
    pub(crate) fn of(root: &Path, backend: &str) -> Self {
        Self { folder: root.join("ingest").join(Self::name(backend)) }
    }

    /// The name of that folder.
    pub(crate) fn name(backend: &str) -> String {
        Digest::sha256(backend.as_bytes()).hex().to_owned()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Opens what is there, or begins. What is there for another total than this one is begun anew.
    pub(crate) fn open(&self, backend: &str, total: u64) -> Result<File> {
        let known = self.number("total").unwrap_or(0);
        if known > 0 && total > 0 && known != total {
            tracing::info!(backend, known, total, "an ingest of another size is begun anew");
            self.remove()?;
        }
        let data = self.data();
        let shown = || self.folder.display().to_string();
        if !data.exists() {
            std::fs::create_dir_all(&self.folder).with_context(shown)?;
            let now = timestamp::rfc3339(SystemTime::now());
            for (name, text) in [("ref", backend), ("startedat", &now), ("updatedat", &now)] {
                std::fs::write(self.folder.join(name), text).with_context(shown)?;
            }
        }
        if total > 0 && known != total {
            std::fs::write(self.folder.join("total"), total.to_string()).with_context(shown)?;
        }
        File::options().read(true).write(true).create(true).truncate(false).open(data).with_context(shown)
    }

    /// Notes that data was added.
    pub(crate) fn touch(&self) {
        // Only shown to people, and the file's own time says the same.
        std::fs::write(self.folder.join("updatedat"), timestamp::rfc3339(SystemTime::now())).ok();
    }

    pub(crate) fn status(&self, reference: &str) -> Option<IngestStatus> {
        let data = std::fs::metadata(self.data()).ok()?;
        let when = |name| {
            let text = std::fs::read_to_string(self.folder.join(name)).unwrap_or_default();
            timestamp::parse_rfc3339(text.trim()).unwrap_or(SystemTime::UNIX_EPOCH)
        };
        let changed = data.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        Some(IngestStatus {
            reference: reference.to_owned(),
            offset: data.len(),
            total: self.number("total").unwrap_or(0),
            expected: None,
            started_at: when("startedat"),
            updated_at: when("updatedat").max(changed),
        })
    }

    pub(crate) fn remove(&self) -> Result<()> {
        remove_folder(&self.folder)
    }

    fn number(&self, name: &str) -> Option<u64> {
        std::fs::read_to_string(self.folder.join(name)).ok()?.trim().parse().ok()
    }
}

/// Removes a folder that somebody else may be removing too.
pub(crate) fn remove_folder(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| folder.display().to_string())
        }
        _ => Ok(()),
    }
}
