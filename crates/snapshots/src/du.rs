//! How much a tree takes on disk: allocated blocks, each inode once, mounts left alone.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use corten_types::Result;

use crate::backend::Usage;

pub(crate) fn usage(root: &Path) -> Result<Usage> {
    let device = std::fs::symlink_metadata(root)?.dev();
    let mut usage = Usage::default();
    let mut links = HashSet::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = match std::fs::symlink_metadata(&path) {
            // Live trees change under us.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other?,
        };
        if metadata.dev() != device
            || (metadata.nlink() > 1 && !metadata.is_dir() && !links.insert(metadata.ino()))
        {
            continue;
        }
        usage.size += metadata.blocks() * 512;
        usage.inodes += 1;
        if metadata.is_dir() {
            pending.extend(std::fs::read_dir(&path)?.flatten().map(|entry| entry.path()));
        }
    }
    Ok(usage)
}
