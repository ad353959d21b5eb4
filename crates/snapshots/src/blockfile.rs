//! Snapshots as files with a file system in them: `snapshots/<number>` is a copy of its parent, or of the
//! scratch file.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use corten_types::{Error, ErrorClass, Mount, Result, ResultExt};
use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

use crate::backend::{self, Backend, Snapshot, Usage};

/// Settings of the snapshotter.
#[derive(Clone, Debug)]
pub struct BlockfileOptions {
    /// A file with an empty file system.
    pub scratch_file: PathBuf,
    /// Its kind.
    pub fs_type: String,
    /// Options of every mount: `loop` where there are none.
    pub mount_options: Vec<String>,
    /// Whether the copy of the scratch file is made again at each start.
    pub recreate_scratch: bool,
}

impl Default for BlockfileOptions {
    fn default() -> Self {
        Self {
            scratch_file: PathBuf::new(),
            fs_type: "ext4".to_owned(),
            mount_options: Vec::new(),
            recreate_scratch: false,
        }
    }
}

/// The blockfile snapshotter.
#[derive(Debug)]
pub struct Blockfile {
    root: PathBuf,
    options: BlockfileOptions,
}

impl Blockfile {
    /// Opens it in a folder, which is made if need be.
    ///
    /// # Errors
    /// FailedPrecondition with `skip plugin` without a scratch file; those of the file system.
    pub fn open(root: &Path, options: BlockfileOptions) -> Result<Self> {
        let scratch = root.join("scratch");
        let from = &options.scratch_file;
        if from.as_os_str().is_empty() && !scratch.exists() {
            let text = "no scratch file generator: skip plugin";
            return Err(Error::bare(ErrorClass::FailedPrecondition, text));
        }
        std::fs::create_dir_all(root.join("snapshots")).with_context(|| root.display().to_string())?;
        for folder in [root.to_owned(), root.join("snapshots")] {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
        }
        if !from.as_os_str().is_empty() && (options.recreate_scratch || !scratch.exists()) {
            copy(from, &root.join("new-scratch")).context("failed to create scratch file")?;
            std::fs::rename(root.join("new-scratch"), &scratch)?;
        }
        Ok(Self { root: root.to_owned(), options })
    }

    fn folder(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    fn path(&self, id: u64) -> PathBuf {
        self.folder().join(id.to_string())
    }
}

impl Backend for Blockfile {
    fn name(&self) -> &str {
        "blockfile"
    }

    fn root(&self) -> &Path {
        &self.root
    }

    fn capabilities(&self) -> Vec<String> {
        Vec::new()
    }

    fn create(&self, snapshot: &Snapshot) -> Result<()> {
        let from = match snapshot.parents.first() {
            // A view shows its parent; an empty file stands for it.
            Some(_) if !snapshot.is_active() => return Ok(File::create(self.path(snapshot.id)).map(drop)?),
            Some(parent) => self.path(*parent),
            None => self.root.join("scratch"),
        };
        let new = self.folder().join(format!("new-{}", snapshot.id));
        let made = copy(&from, &new).and_then(|()| std::fs::rename(&new, self.path(snapshot.id)));
        if made.is_err() {
            std::fs::remove_file(&new).ok();
        }
        made.context("failed to create block file")
    }

    fn mounts(&self, snapshot: &Snapshot) -> Result<Vec<Mount>> {
        let own = snapshot.is_active() || snapshot.parents.is_empty();
        let shown = snapshot.parents.first().copied().filter(|_| !own).unwrap_or(snapshot.id);
        let mut options = self.options.mount_options.clone();
        if options.is_empty() {
            options.push("loop".to_owned());
        }
        options.push(if snapshot.is_active() { "rw" } else { "ro" }.to_owned());
        Ok(vec![Mount {
            kind: self.options.fs_type.clone(),
            source: self.path(shown).display().to_string(),
            target: String::new(),
            options,
        }])
    }

    fn commit(&self, snapshot: &Snapshot) -> Result<Usage> {
        File::open(self.path(snapshot.id))?.sync_all().context("failed to sync the block file")?;
        File::open(self.folder())?.sync_all()?;
        self.usage(snapshot)
    }

    fn usage(&self, snapshot: &Snapshot) -> Result<Usage> {
        let blocks = |id: u64| std::fs::metadata(self.path(id)).map(|metadata| metadata.blocks() * 512);
        let below = match snapshot.parents.first() {
            Some(parent) => blocks(*parent)?,
            None => 0,
        };
        Ok(Usage { size: blocks(snapshot.id)?.saturating_sub(below), inodes: 1 })
    }

    fn ids(&self) -> Result<BTreeSet<u64>> {
        backend::numbers(&self.folder())
    }

    fn holds(&self, id: u64) -> bool {
        self.path(id).exists()
    }

    fn remove(&self, id: u64) -> Result<()> {
        for name in [id.to_string(), format!("new-{id}")] {
            match std::fs::remove_file(self.folder().join(name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn clean(&self) -> Result<()> {
        Ok(())
    }
}

/// Copies a file: its blocks are shared where the file system can, else what is not a hole is copied.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = File::options().write(true).create(true).truncate(true).open(to)?;
    if ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    let size = source.metadata()?.len();
    target.set_len(size)?;
    let mut position = 0;
    while position < size {
        let start = match seek(&source, SeekFrom::Data(position)) {
            Ok(start) => start,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(&source, SeekFrom::Hole(start))?;
        copy_part(&source, &target, start, end)?;
        position = end;
    }
    Ok(())
}

fn copy_part(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut read, mut written) = (start, start);
    while read < end {
        let length = usize::try_from(end - read).unwrap_or(usize::MAX).min(1 << 30);
        match copy_file_range(source.as_fd(), Some(&mut read), target.as_fd(), Some(&mut written), length) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            // Between file systems that cannot do it by themselves.
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                return by_hand(source, target, read, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn by_hand(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 1 << 20];
    let mut position = start;
    while position < end {
        let length = usize::try_from(end - position).unwrap_or(usize::MAX).min(buffer.len());
        let part = buffer.get_mut(..length).unwrap_or_default();
        source.read_exact_at(part, position)?;
        target.write_all_at(part, position)?;
        position += length as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_keep_contents_and_holes() {
        use std::os::unix::fs::FileExt;
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        for at in [0, 5 << 20, (64 << 20) - 4096] {
            file.write_all_at(&[9; 4096], at).unwrap();
        }
        copy(&from, &to).unwrap();
        assert!(std::fs::read(&from).unwrap() == std::fs::read(&to).unwrap());
        assert!(std::fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
        // Between file systems.
        let (source, target) = (File::open(&from).unwrap(), File::create(&to).unwrap());
        target.set_len(64 << 20).unwrap();
        by_hand(&source, &target, 0, 8192).unwrap();
        assert!(std::fs::read(&to).unwrap().starts_with(&[9; 4096]));
    }

    #[test]
    fn without_a_scratch_file_the_plugin_is_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let error = Blockfile::open(folder.path(), BlockfileOptions::default()).unwrap_err();
        assert_eq!(error.message(), "no scratch file generator: skip plugin");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
