//! The kernel's list of mounts.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use corten_types::{Result, ResultExt};

/// All mount points, in the order of mounting.
///
/// # Errors
/// When the kernel's list cannot be read.
pub fn mount_points() -> Result<Vec<PathBuf>> {
    read(|_| true)
}

/// Mount points on or below a folder, the last mounted first.
///
/// # Errors
/// When the kernel's list cannot be read.
pub fn mount_points_below(target: &Path) -> Result<Vec<PathBuf>> {
    let target = real(target);
    // Most lines are about something else, and are not even copied.
    let plain = target.as_os_str().as_bytes();
    let start = plain.iter().position(|byte| is_escaped(*byte)).unwrap_or(plain.len());
    let start = plain.get(..start).unwrap_or_default();
    let mut points = read(|point| point.starts_with(start))?;
    points.retain(|point| point.starts_with(&target));
    points.reverse();
    Ok(points)
}

/// The path as the kernel lists it. What is mounted on it need not answer.
fn real(target: &Path) -> PathBuf {
    let absolute = std::path::absolute(target).unwrap_or_else(|_| target.to_owned());
    let (Some(folder), Some(name)) = (absolute.parent(), absolute.file_name()) else { return absolute };
    let is_link = absolute.is_symlink();
    match if is_link { absolute.canonicalize() } else { folder.canonicalize().map(|path| path.join(name)) } {
        Ok(path) => path,
        Err(_) => absolute,
    }
}

/// Reads the mount points whose text, which is still escaped, is `wanted`.
fn read(wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<PathBuf>> {
    let table = std::fs::read("/proc/thread-self/mountinfo").context("the list of mounts")?;
    // 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
    let point =
        |line: &[u8]| line.split(|byte| *byte == b' ').nth(4).filter(|point| wanted(point)).map(unescape);
    Ok(table.split(|byte| *byte == b'\n').filter_map(point).collect())
}

fn is_escaped(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\\' | b'#')
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_resolved() {
        assert_eq!(unescape(br"/a\040b\134\011c\012\9"), Path::new("/a b\\\tc\n\\9"));
        assert_eq!(unescape(br"/end\04"), Path::new(r"/end\04"));
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(mount_points().unwrap().contains(&PathBuf::from("/")));
        assert!(mount_points_below(Path::new("/proc")).unwrap().contains(&PathBuf::from("/proc")));
    }
}
