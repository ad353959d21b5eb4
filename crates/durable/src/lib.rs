//! The only place that makes files durable: what is written through here is on the disk, whole, before its
//! name is visible; and a name that is visible stays after a loss of power.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};

/// Tells apart the names of files on their way.
static WRITTEN: AtomicU64 = AtomicU64::new(0);

/// Writes a file so that after any crash there is either the old or the new one, with these permissions.
///
/// # Errors
/// Those of the file system.
pub fn write_file(path: &Path, data: &[u8], mode: u32) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
    let new = folder_of(path).join(format!(".{name}.{}-{number}", std::process::id()));
    let write = || {
        let mut file = File::options().write(true).create(true).truncate(true).open(&new)?;
        // Whatever the mask of the process is.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(data)?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().inspect_err(|_| drop(std::fs::remove_file(&new)))?;
    sync_folder(folder_of(path))
}

/// Moves a file whose data is synced already to its final name, and makes the name durable. Both lie in the
/// same file system.
///
/// # Errors
/// Those of the file system.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)?;
    sync_folder(folder_of(to))
}

/// As [`rename`], but fails with AlreadyExists rather than replace something.
///
/// # Errors
/// Those of the file system.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?;
    sync_folder(folder_of(to))
}

/// Gives a file another name beside its own, durable; fails with AlreadyExists rather than replace something.
///
/// # Errors
/// Those of the file system.
pub fn link_new(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::hard_link(from, to)?;
    sync_folder(folder_of(to))
}

/// Makes a folder and those above it that do not exist, and their names durable.
///
/// # Errors
/// Those of the file system.
pub fn create_folders(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let above = folder_of(path);
    create_folders(above)?;
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    sync_folder(above)
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

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => Path::new("/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let path = folder.join("file");
        write_file(&path, b"one", 0o600).unwrap();
        write_file(&path, b"two", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(write_file(&folder.join("file/below"), b"three", 0o600).is_err());
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 1);
        std::fs::write(folder.join("other"), b"x").unwrap();
        assert!(rename_new(&folder.join("other"), &path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert!(link_new(&folder.join("other"), &path).is_err());
        link_new(&folder.join("other"), &folder.join("again")).unwrap();
        rename(&folder.join("other"), &path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
        assert_eq!(std::fs::read(folder.join("again")).unwrap(), b"x");
    }

    #[test]
    fn a_file_that_cannot_be_replaced_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("folder");
        create_folders(&path.join("deep/er")).unwrap();
        create_folders(&path.join("deep/er")).unwrap();
        assert!(write_file(&path, b"one", 0o600).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
