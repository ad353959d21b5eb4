//! The database's file.
//!
//! A place of a file that was never written costs the file system a change of its own when it is made durable: on
//! ext4 a commit of the journal, for which the data of all files that others are writing must be on the disk. So the
//! file is filled with zeros where it is about to be used, and making a change durable is a flush of data in place.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use redb::backends::FileBackend;
use redb::{BackendError, DatabaseError, StorageBackend};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Bytes that are filled at once: those of the pieces that a write touches, and of the one after them. Few, since who
/// writes waits for it.
const PIECE: u64 = 256 << 10;

/// The library's own file, filled ahead; and without the waiting if that is not wanted: what was written survives the
/// daemon then, not the machine.
#[derive(Debug)]
pub(crate) struct Backend {
    inner: FileBackend,
    /// The same file.
    file: File,
    sync: bool,
    /// Pieces that are not filled any more: whoever writes there adds them first, so that no zeros come later.
    filled: Mutex<BTreeSet<u64>>,
}

impl Backend {
    /// Opens or makes the file.
    pub fn open(path: &Path, sync: bool) -> Result<Self, DatabaseError> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let same = file.try_clone()?;
        Ok(Self { inner: FileBackend::new(file)?, file: same, sync, filled: Mutex::default() })
    }

    /// Prepares for a write.
    fn fill(&self, begin: u64, end: u64) -> io::Result<()> {
        let mut filled = self.filled.lock().unwrap_or_else(PoisonError::into_inner);
        for piece in begin / PIECE..=end.saturating_sub(1) / PIECE + 1 {
            if !filled.insert(piece) {
                continue;
            }
            let end = (piece + 1).saturating_mul(PIECE).min(self.inner.len()?);
            // Without zeros it is only slower, and the write itself tells what is wrong with the disk.
            if let Err(error) = self.fill_holes(piece * PIECE, end) {
                tracing::debug!(%error, "the database is not filled ahead");
            }
        }
        Ok(())
    }

    /// Writes zeros where there is nothing yet.
    fn fill_holes(&self, mut at: u64, end: u64) -> io::Result<()> {
        while at < end {
            let hole = seek(&self.file, SeekFrom::Hole(at))?;
            let data = match seek(&self.file, SeekFrom::Data(hole)) {
                Err(Errno::NXIO) => end,
                other => other?.min(end),
            };
            if hole < data {
                let zeros = vec![0; usize::try_from(data - hole).unwrap_or(0)];
                self.inner.write(hole, &zeros)?;
            }
            at = data;
        }
        Ok(())
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut filled = self.filled.lock().unwrap_or_else(PoisonError::into_inner);
        // What was filled only up to the end may go on now.
        drop(filled.split_off(&(len.min(self.inner.len()?) / PIECE)));
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.sync { self.inner.sync_data() } else { Ok(()) }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.fill(offset, offset.saturating_add(data.len() as u64))?;
        self.inner.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Length(u64),
        Write(u64, u8),
        Reopen,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1..2_000_000u64).prop_map(Step::Length),
            (0..500u64, 1..=u8::MAX).prop_map(|(page, byte)| Step::Write(page * 4096, byte)),
            Just(Step::Reopen),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_file_that_is_filled_ahead_holds_what_was_written(steps in proptest::collection::vec(step(), 1..40)) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("file");
            let mut backend = Backend::open(&path, false).unwrap();
            let mut model = Vec::new();
            for step in steps {
                match step {
                    Step::Length(length) => {
                        backend.set_len(length).unwrap();
                        model.resize(length as usize, 0);
                    }
                    Step::Write(offset, byte) => {
                        backend.write(offset, &[byte; 4096]).unwrap();
                        let end = offset as usize + 4096;
                        model.resize(model.len().max(end), 0);
                        model[offset as usize..end].fill(byte);
                    }
                    Step::Reopen => {
                        drop(backend);
                        backend = Backend::open(&path, false).unwrap();
                    }
                }
            }
            prop_assert!(std::fs::read(&path).unwrap() == model);
        }
    }

    #[test]
    fn what_lies_ahead_is_on_the_disk_already() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let backend = Backend::open(&path, true).unwrap();
        backend.set_len(64 << 20).unwrap();
        backend.write(0, &[1; 4096]).unwrap();
        backend.sync_data().unwrap();
        let filled = || std::fs::metadata(&path).unwrap().blocks() * 512;
        assert!((PIECE..4 * PIECE).contains(&filled()), "{}", filled());
        let before = filled();
        backend.write(PIECE - 4096, &[1; 4096]).unwrap();
        backend.sync_data().unwrap();
        assert_eq!(filled(), before);
    }

    #[test]
    fn a_write_far_away_fills_little() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let backend = Backend::open(&path, true).unwrap();
        backend.set_len(1 << 30).unwrap();
        for far in [1000 << 20, 500 << 20, 100 << 20] {
            backend.write(far, &[1; 4096]).unwrap();
        }
        let filled = std::fs::metadata(&path).unwrap().blocks() * 512;
        assert!((3 * PIECE..9 * PIECE).contains(&filled), "{filled}");
    }
}
