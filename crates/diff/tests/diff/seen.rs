//! What there is to see of a tree, for comparisons.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Something in a tree. Times of folders do not count: a layer tells only those of folders in which something changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    mode: u32,
    owner: (u32, u32),
    device: u64,
    modified: i64,
    content: Vec<u8>,
    capability: Vec<u8>,
    /// The first of its names.
    first: PathBuf,
}

/// Everything in a tree, sockets left out.
pub fn seen(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let (mut found, mut firsts, mut pending) = (BTreeMap::new(), BTreeMap::new(), vec![PathBuf::new()]);
    while let Some(folder) = pending.pop() {
        let mut names: Vec<_> =
            std::fs::read_dir(root.join(&folder)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            let path = folder.join(&name);
            let full = root.join(&path);
            let metadata = std::fs::symlink_metadata(&full).unwrap();
            if metadata.file_type().is_socket() {
                continue;
            }
            if metadata.is_dir() {
                pending.push(path.clone());
            }
            let content = if metadata.is_file() {
                std::fs::read(&full).unwrap()
            } else if metadata.is_symlink() {
                std::fs::read_link(&full).unwrap().into_os_string().into_encoded_bytes()
            } else {
                Vec::new()
            };
            let mut capability = vec![0; 64];
            let length = rustix::fs::lgetxattr(&full, "security.capability", &mut *capability).unwrap_or(0);
            capability.truncate(length);
            let first: &mut PathBuf = firsts.entry(metadata.ino()).or_insert_with(|| path.clone());
            if *first > path {
                first.clone_from(&path);
            }
            let seen = Seen {
                mode: metadata.mode(),
                owner: (metadata.uid(), metadata.gid()),
                device: metadata.rdev(),
                modified: if metadata.is_dir() { 0 } else { metadata.mtime() },
                content,
                capability,
                first: PathBuf::from(metadata.ino().to_string()),
            };
            found.insert(path, seen);
        }
    }
    for seen in found.values_mut() {
        let inode = seen.first.to_string_lossy().parse().unwrap();
        seen.first = firsts[&inode].clone();
    }
    found
}

/// Fails with the first difference of two trees.
pub fn assert_same(one: &Path, other: &Path, what: &str) {
    assert_same_links(one, other, what, |_| true);
}

/// The same, but which other names something has is looked at only where `linked` says so.
pub fn assert_same_links(one: &Path, other: &Path, what: &str, linked: impl Fn(&Path) -> bool) {
    let (mut one, mut other) = (seen(one), seen(other));
    for (path, seen) in one.iter_mut().chain(&mut other).filter(|(path, _)| !linked(path)) {
        seen.first.clone_from(path);
    }
    for path in one.keys().chain(other.keys()) {
        assert_eq!(one.get(path), other.get(path), "{what}: {}", path.display());
    }
}
