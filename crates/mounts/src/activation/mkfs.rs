//! Image files with an empty file system, made when they are first mounted.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use corten_types::{Error, Mount, Result, ResultExt};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, ftruncate, openat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;

use super::roots::Roots;
use crate::system;

const PREFIX: &str = "X-containerd.mkfs.";

/// One at a time, so that drafts do not meet.
static TURN: Mutex<()> = Mutex::new(());

/// Makes the mount's source if it is not there, and takes the options that say how away.
pub(crate) fn make(mount: &Mount, roots: &Roots) -> Result<Mount> {
    let image = Image::parse(&mount.options)?;
    let path = Path::new(&mount.source);
    image.make(path, roots).with_context(|| format!("mkfs {}", path.display()))?;
    let options = mount.options.iter().filter(|option| !option.starts_with(PREFIX)).cloned().collect();
    Ok(Mount { options, ..mount.clone() })
}

/// An image to be made.
#[derive(Debug, PartialEq)]
struct Image<'a> {
    size: u64,
    kind: &'a str,
    uuid: Option<&'a str>,
}

impl<'a> Image<'a> {
    fn parse(options: &'a [String]) -> Result<Self> {
        let (mut size, mut kind, mut uuid) = (None, "ext4", None);
        for option in options.iter().filter_map(|option| option.strip_prefix(PREFIX)) {
            match option.split_once('=') {
                Some(("size", text)) => size = Some(bytes(text)?),
                Some(("fs", text @ ("ext2" | "ext3" | "ext4" | "xfs"))) => kind = text,
                Some(("uuid", text)) if text.bytes().all(|c| c.is_ascii_hexdigit() || c == b'-') => {
                    uuid = Some(text);
                }
                _ => return Err(Error::invalid_argument(format!("mkfs option \"{PREFIX}{option}\""))),
            }
        }
        let size = size.filter(|size| *size > 0);
        let size = size.ok_or_else(|| Error::invalid_argument(format!("{PREFIX}size must be set")))?;
        Ok(Self { size, kind, uuid: uuid.filter(|uuid| !uuid.is_empty()) })
    }

    /// It appears under its name when it is whole.
    fn make(&self, path: &Path, roots: &Roots) -> Result<()> {
        let (parent, name) = roots.parent(path)?;
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::RegularFile => return Ok(()),
            Ok(_) => return Err(Error::failed_precondition("it is there and no regular file")),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(system(error)),
        }
        let mut draft = OsString::from(".");
        draft.push(name);
        draft.push(".mkfs");
        let made = self.format(&parent, &draft).and_then(|()| {
            renameat_with(&parent, &draft, &parent, name, RenameFlags::NOREPLACE).map_err(system)
        });
        if made.is_err() {
            unlinkat(&parent, &draft, AtFlags::empty()).ok();
        }
        made
    }

    fn format(&self, parent: &OwnedFd, draft: &OsString) -> Result<()> {
        // An earlier attempt was cut short.
        unlinkat(parent, draft, AtFlags::empty()).ok();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(parent, draft, flags, Mode::RUSR | Mode::WUSR).map_err(system)?;
        ftruncate(&file, self.size).map_err(system)?;
        let program = format!("mkfs.{}", self.kind);
        let mut command = Command::new(&program);
        match (self.kind, self.uuid) {
            ("xfs", Some(uuid)) => command.args(["-q", "-f", "-m", &format!("uuid={uuid}")]),
            ("xfs", None) => command.args(["-q", "-f"]),
            (_, Some(uuid)) => command.args(["-q", "-F", "-U", uuid]),
            (_, None) => command.args(["-q", "-F"]),
        };
        // The name could lead elsewhere by now, the handle cannot.
        let folder = format!("/proc/{}/fd/{}", std::process::id(), parent.as_raw_fd());
        let output = command.arg(Path::new(&folder).join(draft)).output();
        let output = output.with_context(|| program.clone())?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Error::unknown(format!("{program}: {}: {}", output.status, said.trim())));
        }
        rustix::fs::fsync(&file).map_err(system)
    }
}

/// A number of bytes, with a unit of 1024: `64MiB`, `1.5g`, `4096`.
fn bytes(text: &str) -> Result<u64> {
    let bad = || Error::invalid_argument(format!("invalid size: {text:?}"));
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: f64 = number.parse().map_err(|_| bad())?;
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return Err(bad()),
    };
    let bytes = number * f64::from(2).powi(shift);
    // More than any file system takes.
    if !(0.0..2f64.powi(62)).contains(&bytes) {
        return Err(bad());
    }
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use corten_types::ErrorClass;

    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, wanted) in
            [("4096", 4096), ("16MiB", 16 << 20), ("1.5k", 1536), ("2 GB", 2 << 30), ("1t", 1 << 40)]
        {
            assert_eq!(bytes(text).unwrap(), wanted, "{text}");
        }
        for text in ["", "x", "1x", "-1", "1e3", "9999999p", "..", "NaN"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn images_are_made_once_and_whole() {
        let scratch = tempfile::tempdir().unwrap();
        let roots = Roots(vec![scratch.path().to_owned()]);
        let mount = |name: &str, options: &str| Mount {
            kind: "ext4".into(),
            source: scratch.path().join(name).display().to_string(),
            target: String::new(),
            options: options.split(',').map(str::to_owned).collect(),
        };
        let uuid = "550e8400-e29b-41d4-a716-446655440000";
        let options = format!("{PREFIX}size=8MiB,rw,{PREFIX}fs=ext2,{PREFIX}uuid={uuid},loop");
        let made = make(&mount("sub/disk.img", &options), &roots).unwrap();
        assert_eq!(made.options, ["rw", "loop"]);
        let image = std::fs::read(scratch.path().join("sub/disk.img")).unwrap();
        assert_eq!(image.len(), 8 << 20);
        // The magic number of ext2 and the UUID, in the superblock.
        assert_eq!(image[1024 + 56..1024 + 58], [0x53, 0xef]);
        assert_eq!(image[1024 + 104..1024 + 108], [0x55, 0x0e, 0x84, 0x00]);
        make(&mount("sub/disk.img", &format!("{PREFIX}size=1MiB")), &roots).unwrap();
        assert_eq!(std::fs::read(scratch.path().join("sub/disk.img")).unwrap(), image);

        for (name, options, class) in [
            ("x", "rw".to_owned(), ErrorClass::InvalidArgument),
            ("x", format!("{PREFIX}size=1MiB,{PREFIX}fs=ntfs"), ErrorClass::InvalidArgument),
            ("x", format!("{PREFIX}size=1MiB,{PREFIX}uuid=-; x"), ErrorClass::InvalidArgument),
            ("x", format!("{PREFIX}size=1"), ErrorClass::Unknown),
            ("sub", format!("{PREFIX}size=1MiB"), ErrorClass::FailedPrecondition),
            ("../x", format!("{PREFIX}size=1MiB"), ErrorClass::NotImplemented),
        ] {
            let error = make(&mount(name, &options), &roots).unwrap_err();
            assert_eq!(error.class(), class, "{name} {options}: {error}");
        }
        let left: Vec<_> = std::fs::read_dir(scratch.path()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
}
