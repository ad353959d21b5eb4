//! Whether something is the same in both trees.

use std::ffi::CStr;
use std::fs::File;
use std::io::Read;

use corten_types::Result;
use rustix::fs::{FileType, Stat};

use super::side::{CAPABILITY, Folder, is_folder, kind};

const BUFFER: usize = 64 << 10;

/// Whether nothing that counts is other in `upper` than in `lower`.
pub(crate) fn same(lower: (&Folder, &Stat), upper: (&Folder, &Stat), name: &CStr) -> Result<bool> {
    let ((lower_folder, lower), (upper_folder, upper)) = (lower, upper);
    if (lower.st_dev, lower.st_ino) == (upper.st_dev, upper.st_ino) {
        return Ok(true);
    }
    let fixed = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev);
    if fixed(lower) != fixed(upper)
        || lower_folder.attribute(name, CAPABILITY)? != upper_folder.attribute(name, CAPABILITY)?
    {
        return Ok(false);
    }
    if is_folder(upper) {
        return Ok(true);
    }
    let changing = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    if changing(lower) != changing(upper) {
        return Ok(false);
    }
    // Archives hold whole seconds: what came from one and was changed within the same second looks the same.
    match kind(upper) {
        _ if upper.st_mtime_nsec != 0 => Ok(true),
        FileType::Symlink => Ok(lower_folder.link(name)? == upper_folder.link(name)?),
        FileType::RegularFile if upper.st_size > 0 => {
            same_content(lower_folder.file(name)?, upper_folder.file(name)?)
        }
        _ => Ok(true),
    }
}

fn same_content(mut one: File, mut other: File) -> Result<bool> {
    let (mut first, mut second) = (vec![0; BUFFER], vec![0; BUFFER]);
    loop {
        let count = full(&mut one, &mut first)?;
        if count != full(&mut other, &mut second)? || first.get(..count) != second.get(..count) {
            return Ok(false);
        }
        if count < BUFFER {
            return Ok(true);
        }
    }
}

/// Reads until the buffer is full or the file ends.
fn full(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while let Some(room @ [_, ..]) = buffer.get_mut(length..) {
        match file.read(room) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}
