//! Names in archives.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use corten_tree::clean;
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
}

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Longest path that anybody could use.
const PATH: usize = 4095;

impl Name {
    /// Reads a name: `.` and empty parts are dropped, `..` goes up but never out.
    ///
    /// # Errors
    /// InvalidArgument for whiteouts of what is no name, and for paths that are too long.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let mut path = clean(bytes);
        if path.as_os_str().len() > PATH {
            return Err(Error::invalid_argument(format!("a path of more than {PATH} bytes")));
        }
        let Some(name) = path.file_name().map(OsStr::to_owned) else { return Ok(Self::Root) };
        path.pop();
        let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) else {
            return Ok(Self::Entry { folder: path, name });
        };
        if name.as_bytes() == OPAQUE {
            return Ok(Self::Opaque { folder: path });
        }
        match hidden {
            b"" | b"." | b".." => {
                Err(Error::invalid_argument(format!("invalid whiteout name: {}", name.display())))
            }
            hidden => Ok(Self::Whiteout { folder: path, name: OsString::from_vec(hidden.to_vec()) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_never_lead_out_and_whiteouts_have_a_subject() {
        let entry = |folder: &str, name: &str| Name::Entry { folder: folder.into(), name: name.into() };
        let whiteout = |folder: &str, name: &str| Name::Whiteout { folder: folder.into(), name: name.into() };
        assert_eq!(Name::parse(b"./a/../../../etc/passwd").unwrap(), entry("etc", "passwd"));
        assert_eq!(Name::parse(b"/abs//x/").unwrap(), entry("abs", "x"));
        assert_eq!(Name::parse(b"./").unwrap(), Name::Root);
        assert_eq!(Name::parse(b"a/../..").unwrap(), Name::Root);
        assert_eq!(Name::parse(b"a/.wh.b").unwrap(), whiteout("a", "b"));
        assert_eq!(Name::parse(b"a/.wh..wh..opq").unwrap(), Name::Opaque { folder: "a".into() });
        assert_eq!(Name::parse(b".wh..wh..opq").unwrap(), Name::Opaque { folder: "".into() });
        // A file that is itself named like a whiteout can be removed.
        assert_eq!(Name::parse(b"a/.wh..wh.b").unwrap(), whiteout("a", ".wh.b"));
        assert_eq!(Name::parse(b".wh..wh.plnk/1.2").unwrap(), entry(".wh..wh.plnk", "1.2"));
        for bad in [&b"a/.wh..."[..], b"a/.wh.", b".wh..", &b"x/".repeat(2049)] {
            assert!(Name::parse(bad).is_err());
        }
    }
}
