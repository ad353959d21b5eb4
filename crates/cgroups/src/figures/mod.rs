//! Figures, as the metrics messages of v1 and v2 have them (spec 02 §10).

mod v1;
mod v2;

use std::collections::HashMap;
use std::path::Path;

use corten_types::{Any, Error, Result};

use crate::Cgroups;

/// The figures of a container's cgroups, packed as the message of their version.
///
/// # Errors
/// NotFound `cgroup does not exist`.
pub fn metrics(cgroups: &Cgroups) -> Result<Any> {
    if cgroups.is_unified() {
        let folder = cgroups.unified().filter(|folder| folder.exists());
        let folder = folder.ok_or_else(|| Error::not_found("cgroup does not exist"))?;
        return Ok(corten_api::pack(&v2::metrics(folder)));
    }
    let memory = cgroups.controller("memory").or_else(|| cgroups.controller("pids"));
    if memory.is_none_or(|folder| !folder.exists()) {
        return Err(Error::not_found("cgroup does not exist"));
    }
    Ok(corten_api::pack(&v1::metrics(cgroups)))
}

fn text(folder: &Path, file: &str) -> String {
    std::fs::read_to_string(folder.join(file)).unwrap_or_default()
}

fn number(folder: &Path, file: &str) -> u64 {
    let text = text(folder, file);
    if text.trim() == "max" { u64::MAX } else { text.trim().parse().unwrap_or(0) }
}

/// `key value` lines.
fn table(folder: &Path, file: &str) -> HashMap<String, u64> {
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    text(folder, file).lines().filter_map(pair).collect()
}

/// The sizes of huge pages for which a folder has files `hugetlb.<size>.<suffix>`.
fn page_sizes(folder: &Path, suffix: &str) -> Vec<String> {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |name: &str| Some(name.strip_prefix("hugetlb.")?.strip_suffix(suffix)?.to_owned());
    let mut sizes: Vec<String> = files.filter_map(|file| size(file.file_name().to_str()?)).collect();
    sizes.sort();
    sizes
}

/// `device hca_handle=n hca_object=n` lines, as device, handles and objects; `max` is the largest number.
fn rdma(folder: &Path, file: &str) -> Vec<(String, u32, u32)> {
    let entry = |line: &str| {
        let (device, rest) = line.split_once(' ')?;
        let value = |key: &str| {
            let value = rest.split_whitespace().find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))?;
            if value == "max" { Some(u32::MAX) } else { value.parse().ok() }
        };
        Some((device.to_owned(), value("hca_handle")?, value("hca_object")?))
    };
    text(folder, file).lines().filter_map(entry).collect()
}

#[cfg(test)]
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}
