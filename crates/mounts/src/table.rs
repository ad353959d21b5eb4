//! The kernel's list of mounts.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use corten_types::Result;

/// All mount points, in the order of mounting.
///
/// # Errors
/// When the kernel's list cannot be read.
pub fn mount_points() -> Result<Vec<PathBuf>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    let field = |line: &[u8]| line.split(|byte| *byte == b' ').nth(4).map(unescape);
    Ok(table.split(|byte| *byte == b'\n').filter_map(field).collect())
}

/// Mount points on or below a directory, the last mounted first.
///
/// # Errors
/// When the kernel's list cannot be read.
pub fn mount_points_below(target: &Path) -> Result<Vec<PathBuf>> {
    // The kernel lists real paths. A directory that is gone has nothing mounted on it.
    let Ok(target) = target.canonicalize() else { return Ok(Vec::new()) };
    Ok(mount_points()?.into_iter().rev().filter(|point| point.starts_with(&target)).collect())
}

/// Resolves the kernel's octal escapes.
fn unescape(text: &[u8]) -> PathBuf {
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text);
    while let [first, tail @ ..] = rest {
        let octal = tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        match octal {
            Some(byte) => {
                out.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}
