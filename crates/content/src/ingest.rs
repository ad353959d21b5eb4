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
        Self { folder: root.join("ingest").join(Digest::sha256(backend.as_bytes()).hex()) }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Opens what is there for another total than before: not at all, it begins anew.
    pub(crate) fn open(&self, backend: &str, total: u64) -> Result<File> {
        let known = self.number("total");
        if self.folder.exists() && total > 0 && known.is_some_and(|known| known > 0 && known != total) {
            tracing::info!(backend, "an ingest of another size is begun anew");
            self.remove()?;
        }
        if !self.data().exists() {
            std::fs::create_dir_all(&self.folder).with_context(|| self.folder.display().to_string())?;
            let now = timestamp::rfc3339(SystemTime::now());
            for (name, text) in
                [("ref", backend), ("startedat", &now), ("updatedat", &now), ("total", &total.to_string())]
            {
                std::fs::write(self.folder.join(name), text)?;
            }
        } else if total > 0 {
            std::fs::write(self.folder.join("total"), total.to_string())?;
        }
        let data = self.data();
        Ok(File::options().read(true).write(true).create(true).truncate(false).open(data)?)
    }

    pub(crate) fn touch(&self) {
        // Only shown to people; the file's own time would do as well.
        std::fs::write(self.folder.join("updatedat"), timestamp::rfc3339(SystemTime::now())).ok();
    }

    pub(crate) fn status(&self, reference: &str) -> Option<IngestStatus> {
        let offset = std::fs::metadata(self.data()).ok()?.len();
        let when = |name| {
            let text = std::fs::read_to_string(self.folder.join(name)).unwrap_or_default();
            timestamp::parse_rfc3339(text.trim()).unwrap_or(SystemTime::UNIX_EPOCH)
        };
        Some(IngestStatus {
            reference: reference.to_owned(),
            offset,
            total: self.number("total").unwrap_or(0),
            expected: None,
            started_at: when("startedat"),
            updated_at: when("updatedat"),
        })
    }

    pub(crate) fn remove(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn number(&self, name: &str) -> Option<u64> {
        std::fs::read_to_string(self.folder.join(name)).ok()?.trim().parse().ok()
    }
}
