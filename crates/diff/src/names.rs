//! Names in archives.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use corten_types::{Error, Result};

/// What an entry's name asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Name {
    /// The root itself: nothing to do.
    Root,
    /// Something in a folder.
    Entry { folder: PathBuf, name: OsString },
    /// The removal of something in a folder.
    Whiteout { folder: PathBuf, name: OsString },
    /// What lower layers have in a folder is hidden.
    Opaque { folder: PathBuf },
    /// Book-keeping of another file system.
    Ignored,
}

const WHITEOUT: &[u8] = b".wh.";

impl Name {
    /// Reads a name: `.` and empty parts are dropped, `..` goes up but never out.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let mut path = clean(bytes)?;
        let Some(name) = path.file_name().map(OsStr::to_owned) else { return Ok(Self::Root) };
        path.pop();
        let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) else {
            return Ok(Self::Entry { folder: path, name });
        };
        match hidden {
            b".wh..opq" => Ok(Self::Opaque { folder: path }),
            hidden if hidden.starts_with(WHITEOUT) => Ok(Self::Ignored),
            b"" | b"." | b".." => {
                Err(Error::invalid_argument(format!("invalid whiteout name: {}", name.display())))
            }
            hidden => Ok(Self::Whiteout { folder: path, name: OsStr::from_bytes(hidden).to_owned() }),
        }
    }
}

/// A relative path without `.` and `..`.
pub(crate) fn clean(bytes: &[u8]) -> Result<PathBuf> {
    let mut path = PathBuf::new();
    for part in bytes.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                path.pop();
            }
            part if part.contains(&0) => {
                return Err(Error::invalid_argument("a name in the archive contains NUL"));
            }
            part if part.len() > 255 => {
                return Err(Error::invalid_argument("a name in the archive is longer than 255 bytes"));
            }
            part => path.push(Path::new(OsStr::from_bytes(part))),
        }
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_never_lead_out() {
        let entry = |folder: &str, name: &str| Name::Entry { folder: folder.into(), name: name.into() };
        assert_eq!(Name::parse(b"./a/../../../etc/passwd").unwrap(), entry("etc", "passwd"));
        assert_eq!(Name::parse(b"/abs//x").unwrap(), entry("abs", "x"));
        assert_eq!(Name::parse(b"./").unwrap(), Name::Root);
        assert_eq!(Name::parse(b"a/.wh.b").unwrap(), Name::Whiteout { folder: "a".into(), name: "b".into() });
        assert_eq!(Name::parse(b"a/.wh..wh..opq").unwrap(), Name::Opaque { folder: "a".into() });
        assert_eq!(Name::parse(b".wh..wh.plnk").unwrap(), Name::Ignored);
        assert!(Name::parse(b"a/.wh...").is_err());
        assert!(Name::parse(b"a/.wh.").is_err());
    }
}
