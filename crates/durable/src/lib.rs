//! The only place that makes files durable: what is written through here is on the disk, whole, before its
//! name is visible; and a name that is visible stays after a loss of power.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};

/// Writes a file so that after any crash there is either the old or the new one, with these permissions.
///
/// # Errors
/// Those of the file system.
pub fn write_file(path: &Path, data: &[u8], mode: u32) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = folder.join(format!(".{name}.{}", std::process::id()));
    let mut file = File::options().write(true).create(true).truncate(true).mode(mode).open(&new)?;
    file.write_all(data)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    sync_folder(folder)
}

/// Moves a file whose data is synced already to its final name, and makes the name durable. Both lie in the
/// same file system.
///
/// # Errors
/// Those of the file system.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)?;
    sync_folder(to.parent().unwrap_or(Path::new("/")))
}

/// As [`rename`], but fails with AlreadyExists rather than replace something.
///
/// # Errors
/// Those of the file system.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?;
    sync_folder(to.parent().unwrap_or(Path::new("/")))
}

/// Makes the names in a folder durable.
///
/// # Errors
/// Those of the file system.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Makes everything durable that was written to the file system that holds `path`.
///
/// # Errors
/// Those of the file system.
pub fn sync_file_system(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(path)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_replaced_whole() {
        let folder = std::env::temp_dir().join(format!("corten-durable-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("file");
        write_file(&path, b"one", 0o600).unwrap();
        write_file(&path, b"two", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        std::fs::write(folder.join("other"), b"x").unwrap();
        assert!(rename_new(&folder.join("other"), &path).is_err());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
