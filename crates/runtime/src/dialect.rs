//! What a shim wants to read on standard input at `start`: the bare runtime options (containerd up
//! to 2.2) or the bootstrap parameters (2.3 and newer; spec 02 §3.1, trap 2). The two decode as
//! each other, and shims of either kind may refuse the other's, so it is decided per binary: one
//! that knows the message of the parameters has its name inside. That costs reading the binary
//! once; a binary that is replaced is looked at again.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Package of the bootstrap messages.
const MARK: &[u8] = b"containerd.runtime.bootstrap.v1";
/// Binaries that get the bare options although they know better.
const OLD: [&str; 2] = ["shim-runc-v1", "shim-runhcs-v1"];
const CHUNK: usize = 256 << 10;

/// Form of what a shim reads at `start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// A protobuf Any of the runtime options, or nothing.
    Options,
    /// `BootstrapParams`, in which the options are an extension.
    Bootstrap,
}

/// Which binary speaks what, as far as known.
#[derive(Debug, Default)]
pub(crate) struct Dialects {
    known: Mutex<HashMap<PathBuf, (Stamp, Dialect)>>,
}

type Stamp = (u64, u64, u64, i64, i64);

impl Dialects {
    /// What the binary speaks. Blocks to read it if it has not been seen before.
    pub async fn of(&self, binary: &Path) -> Dialect {
        let Some(stamp) = stamp(binary) else { return Dialect::Options };
        if let Some((_, dialect)) = self.lock().get(binary).filter(|(known, _)| *known == stamp) {
            return *dialect;
        }
        let path = binary.to_owned();
        let dialect = tokio::task::spawn_blocking(move || detect(&path)).await.unwrap_or(Dialect::Options);
        self.lock().insert(binary.to_owned(), (stamp, dialect));
        dialect
    }

    /// Notes what turned out to be right.
    pub fn learn(&self, binary: &Path, dialect: Dialect) {
        if let Some(stamp) = stamp(binary) {
            self.lock().insert(binary.to_owned(), (stamp, dialect));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, (Stamp, Dialect)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stamp(binary: &Path) -> Option<Stamp> {
    let of = |data: Metadata| (data.dev(), data.ino(), data.size(), data.mtime(), data.mtime_nsec());
    std::fs::metadata(binary).ok().map(of)
}

fn detect(binary: &Path) -> Dialect {
    let name = binary.file_name().unwrap_or_default().to_string_lossy();
    let knows = !OLD.iter().any(|old| name.contains(old)) && contains(binary, MARK).unwrap_or(false);
    if knows { Dialect::Bootstrap } else { Dialect::Options }
}

fn contains(file: &Path, text: &[u8]) -> std::io::Result<bool> {
    let finder = memchr::memmem::Finder::new(text);
    let mut file = File::open(file)?;
    let mut buffer = vec![0; CHUNK];
    let mut filled = 0;
    loop {
        let read = file.read(buffer.get_mut(filled..).unwrap_or_default())?;
        let seen = buffer.get(..filled + read).unwrap_or_default();
        if finder.find(seen).is_some() {
            return Ok(true);
        }
        if read == 0 {
            return Ok(false);
        }
        // The text may lie across two reads.
        let keep = (filled + read).min(text.len() - 1);
        buffer.copy_within(filled + read - keep..filled + read, 0);
        filled = keep;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_dialect_is_read_from_the_binary_and_follows_it() {
        let folder = tempfile::tempdir().unwrap();
        let binary = folder.path().join("containerd-shim-x-v1");
        let dialects = Dialects::default();
        assert_eq!(dialects.of(&binary).await, Dialect::Options, "no such file");
        for (offset, mark, dialect) in [
            (0, MARK, Dialect::Bootstrap),
            (CHUNK - 7, MARK, Dialect::Bootstrap),
            (3 * CHUNK - 100, MARK, Dialect::Bootstrap),
            (CHUNK, &MARK[1..], Dialect::Options),
        ] {
            let mut bytes = vec![b'x'; offset];
            bytes.extend_from_slice(mark);
            std::fs::write(&binary, bytes).unwrap();
            assert_eq!(dialects.of(&binary).await, dialect, "at {offset}");
        }
        dialects.learn(&binary, Dialect::Bootstrap);
        assert_eq!(dialects.of(&binary).await, Dialect::Bootstrap);
        let old = folder.path().join("containerd-shim-runc-v1");
        std::fs::write(&old, MARK).unwrap();
        assert_eq!(dialects.of(&old).await, Dialect::Options);
    }
}
