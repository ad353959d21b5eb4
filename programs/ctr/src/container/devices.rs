//! Devices of the host as containers get them: nodes with numbers, modes and owners.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use corten_oci::spec::Spec;
use corten_types::{Error, Result};
use serde_json::{Value, json};

/// Folders of `/dev` that a container has of its own.
const OWN: [&str; 7] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];

/// Gives a container what is at `path`: a device, or all devices below a folder.
pub fn add(spec: &mut Spec, path: &str) -> Result<()> {
    let found = std::fs::metadata(path).map_err(|failed| {
        Error::unknown(format!("error stating device path: stat {path}: {}", Error::from(failed).message()))
    })?;
    let nodes = match found.is_dir() {
        true => below(Path::new(path)),
        false => {
            vec![node(Path::new(path)).ok_or_else(|| Error::unknown(format!("{path}: not a device node")))?]
        }
    };
    for node in nodes {
        let number = |field: &str| u32::try_from(node[field].as_u64().unwrap_or(0)).unwrap_or(0);
        let kind = node["type"].as_str().unwrap_or_default();
        spec.allow_device(kind, number("major"), number("minor"), "rwm");
        spec.add_device(node);
    }
    Ok(())
}

/// Every device of the host.
pub fn add_all(spec: &mut Spec) {
    below(Path::new("/dev")).into_iter().for_each(|node| spec.add_device(node));
}

/// Devices below a folder, in the order of their names.
fn below(folder: &Path) -> Vec<Value> {
    let mut nodes = Vec::new();
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match std::fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() && !OWN.contains(&name.as_str()) => nodes.extend(below(&path)),
            // The terminal of the host is nobody else's.
            Ok(found) if !found.is_dir() && name != "console" => nodes.extend(node(&path)),
            _ => {}
        }
    }
    nodes
}

fn node(path: &Path) -> Option<Value> {
    let found = std::fs::symlink_metadata(path).ok()?;
    let found =
        if found.is_symlink() && !path.starts_with("/dev") { std::fs::metadata(path).ok()? } else { found };
    let kind = match found.file_type() {
        kind if kind.is_block_device() => "b",
        kind if kind.is_char_device() => "c",
        kind if kind.is_fifo() => "p",
        _ => return None,
    };
    let device = found.rdev();
    Some(json!({
        "path": path, "type": kind, "major": rustix::fs::major(device), "minor": rustix::fs::minor(device),
        "fileMode": found.mode() & 0o777, "uid": found.uid(), "gid": found.gid(),
    }))
}
