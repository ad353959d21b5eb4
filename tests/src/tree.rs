//! File trees as text, so that two of them can be compared.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use corten_types::Digest;
use rustix::fs::{lgetxattr, llistxattr};

/// Everything that a tree is, by path: kind and mode, owner, device, time, size and content or target,
/// extended attributes, and which names are the same file. Times after `since` are `now`: nobody set them.
///
/// # Panics
/// When it cannot be read.
pub fn describe(root: &Path, since: SystemTime) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut files: HashMap<u64, String> = HashMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().escape_ascii().to_string();
        let mut line = format!(
            "{:o} {}:{} {:x} {}",
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            metadata.rdev(),
            if (since..=SystemTime::now()).contains(&metadata.modified().unwrap()) {
                "now".to_owned()
            } else {
                format!("{}.{:09}", metadata.mtime(), metadata.mtime_nsec())
            }
        );
        if metadata.is_file() {
            let data = std::fs::read(&path).unwrap();
            line.push_str(&format!(" {} {}", data.len(), &Digest::sha256(&data).hex()[..12]));
        } else if metadata.is_symlink() {
            let target = std::fs::read_link(&path).unwrap();
            line.push_str(&format!(" -> {}", target.as_os_str().as_bytes().escape_ascii()));
        } else if metadata.is_dir() {
            let mut inner: Vec<PathBuf> =
                std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
            // In an order of their own, so that the first name of a file is always the same one.
            inner.sort();
            pending.extend(inner.into_iter().rev());
        }
        for (key, value) in attributes(&path) {
            line.push_str(&format!(" {key}={}", value.escape_ascii()));
        }
        if metadata.nlink() > 1 && !metadata.is_dir() {
            let first = files.entry(metadata.ino()).or_insert_with(|| name.clone());
            line.push_str(&format!(" {} names, first {first}", metadata.nlink()));
        }
        found.insert(name, line);
    }
    found
}

/// How two trees differ, in words; empty if they do not.
pub fn differences(left: &BTreeMap<String, String>, right: &BTreeMap<String, String>) -> Vec<String> {
    let mut found = Vec::new();
    for name in left.keys().chain(right.keys().filter(|name| !left.contains_key(*name))) {
        let (left, right) = (left.get(name), right.get(name));
        if left != right {
            let show = |line: Option<&String>| line.map_or("nothing", String::as_str).to_owned();
            found.push(format!("{name:?}:\n    {}\n    {}", show(left), show(right)));
        }
    }
    found
}

fn attributes(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut names = vec![0; 64 << 10];
    let length = llistxattr(&path, names.as_mut_slice()).unwrap_or(0);
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let length = lgetxattr(&path, OsStr::from_bytes(name), value.as_mut_slice()).unwrap_or(0);
            (String::from_utf8_lossy(name).into_owned(), value[..length].to_vec())
        })
        .collect()
}
