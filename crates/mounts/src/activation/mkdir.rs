//! Folders that a mount needs, as an overlay's upper one.

use std::path::Path;

use corten_types::{Error, Mount, Result, ResultExt};
use rustix::fs::{Gid, Mode, Uid, fchmod, fchown, mkdirat};
use rustix::io::Errno;

use super::roots::{Roots, open};
use crate::system;

const PATH: &str = "X-containerd.mkdir.path=";

/// Makes the folders that the options name, and takes those options away.
pub(crate) fn make(mount: &Mount, roots: &Roots) -> Result<Mount> {
    let mut options = Vec::new();
    for option in &mount.options {
        match option.strip_prefix(PATH) {
            Some(folder) => Folder::parse(folder)?.make(roots).with_context(|| format!("mkdir {folder}"))?,
            None if option.starts_with("X-containerd.mkdir.") => {
                return Err(Error::invalid_argument(format!("mkdir option {option:?} is not known")));
            }
            None => options.push(option.clone()),
        }
    }
    Ok(Mount { options, ..mount.clone() })
}

/// A folder to be made.
#[derive(Debug, PartialEq)]
struct Folder<'a> {
    path: &'a Path,
    mode: u32,
    owner: Option<(u32, u32)>,
}

impl<'a> Folder<'a> {
    /// `path[:mode[:uid:gid]]`, the mode octal.
    fn parse(text: &'a str) -> Result<Self> {
        let bad = || Error::invalid_argument(format!("mkdir path {text:?}"));
        let octal = |text| u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777).ok_or_else(bad);
        let id = |text: &str| text.parse::<u32>().ok().filter(|id| *id != u32::MAX).ok_or_else(bad);
        let (path, mode, owner) = match text.split(':').collect::<Vec<_>>().as_slice() {
            [path] => (*path, 0o700, None),
            [path, mode] => (*path, octal(mode)?, None),
            [path, mode, uid, gid] => (*path, octal(mode)?, Some((id(uid)?, id(gid)?))),
            _ => return Err(bad()),
        };
        if path.is_empty() {
            return Err(bad());
        }
        Ok(Self { path: Path::new(path), mode, owner })
    }

    /// One that is there stays as it is: somebody may have changed it since.
    fn make(&self, roots: &Roots) -> Result<()> {
        let (parent, name) = roots.parent(self.path)?;
        match mkdirat(&parent, name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => return open(&parent, name).map(drop),
            Err(error) => return Err(system(error)),
        }
        let folder = open(&parent, name)?;
        if let Some((uid, gid)) = self.owner {
            fchown(&folder, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(system)?;
        }
        fchmod(&folder, Mode::from_raw_mode(self.mode)).map_err(system)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use corten_types::ErrorClass;

    use super::*;

    fn with(options: &[String]) -> Mount {
        Mount { kind: "overlay".into(), options: options.to_vec(), ..Mount::default() }
    }

    #[test]
    fn folders_are_made_as_told_and_never_through_links() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let roots = Roots(vec![root.clone()]);
        let path = |rest: &str| format!("{PATH}{}/{rest}", root.display());
        let made = make(&with(&[path("a/b"), path("c:1751:7:8"), "ro".into(), path("c:0700")]), &roots);
        assert_eq!(made.unwrap().options, ["ro"]);
        let facts = |name: &str| {
            let data = std::fs::metadata(root.join(name)).unwrap();
            (data.mode() & 0o7777, data.uid(), data.gid())
        };
        assert_eq!(facts("a/b").0, 0o700);
        if rustix::process::geteuid().is_root() {
            assert_eq!(facts("c"), (0o1751, 7, 8));
        }
        symlink(scratch.path(), root.join("link")).unwrap();
        for (text, class) in [
            (path("link"), ErrorClass::Unknown),
            (path("link/x"), ErrorClass::Unknown),
            (path("../x"), ErrorClass::NotImplemented),
            (format!("{PATH}{}/x", scratch.path().display()), ErrorClass::NotImplemented),
            (path(""), ErrorClass::NotImplemented),
            (path("x:888"), ErrorClass::InvalidArgument),
            (path("x:0700:1"), ErrorClass::InvalidArgument),
            (format!("{PATH}:0700"), ErrorClass::InvalidArgument),
            ("X-containerd.mkdir.mode=1".into(), ErrorClass::InvalidArgument),
        ] {
            let error = make(&with(std::slice::from_ref(&text)), &roots).unwrap_err();
            assert_eq!(error.class(), class, "{text}: {error}");
        }
        assert!(!scratch.path().join("x").exists());
    }
}
