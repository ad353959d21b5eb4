//! What an archive says of one of its entries.

use std::io;

use super::damaged;
use super::header::Header;
use super::pax::Records;
use super::sparse::Fragment;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File,
    /// Another name of an entry before it.
    Link,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A folder.
    Folder,
    /// A pipe.
    Fifo,
    /// Something else, by its byte.
    Other(u8),
}

/// Seconds since 1970 and nanoseconds forward from them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds.
    pub seconds: i64,
    /// 0 to 999 999 999.
    pub nanos: u32,
}

/// An entry.
#[derive(Debug)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// As the archive has it: it may lead anywhere.
    pub path: Vec<u8>,
    /// Target of a link, likewise.
    pub link: Vec<u8>,
    /// Permissions, with setuid and its like.
    pub mode: u32,
    /// User that it belongs to.
    pub uid: u32,
    /// Group that it belongs to.
    pub gid: u32,
    /// When its contents were changed.
    pub modified: Time,
    /// When it was read.
    pub accessed: Time,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Length of a file.
    pub size: u64,
    /// Where the data of a sparse file belong.
    pub fragments: Option<Vec<Fragment>>,
    /// Names and values of extended attributes.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Everything that came before the header of an entry.
#[derive(Debug, Default)]
pub(crate) struct Extensions {
    pub long_path: Option<Vec<u8>>,
    pub long_link: Option<Vec<u8>>,
    pub records: Option<Records>,
}

impl Entry {
    /// Puts together what the header and its extensions say.
    pub(crate) fn new(header: &Header, extensions: Extensions) -> io::Result<Self> {
        let records = extensions.records.unwrap_or_default();
        let path = extensions.long_path.or(records.path).unwrap_or_else(|| header.path());
        let link = extensions.long_link.or(records.link).unwrap_or_else(|| header.link());
        let kind = match header.kind() {
            // Before there was a kind of their own, the name told folders.
            0 if path.ends_with(b"/") => Kind::Folder,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::Link,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Folder,
            b'6' => Kind::Fifo,
            other => Kind::Other(other),
        };
        let modified = match records.modified {
            Some((seconds, nanos)) => Time { seconds, nanos },
            None => Time { seconds: header.time()?, nanos: 0 },
        };
        let accessed = records.accessed.map_or(modified, |(seconds, nanos)| Time { seconds, nanos });
        let (major, minor) = header.device()?;
        Ok(Self {
            kind,
            path,
            link,
            mode: u32::try_from(header.mode()? & 0o7777).unwrap_or(0),
            uid: id("uid", records.uid.map_or_else(|| header.uid(), Ok)?)?,
            gid: id("gid", records.gid.map_or_else(|| header.gid(), Ok)?)?,
            modified,
            accessed: accessed.max(modified),
            device: (number("device", major)?, number("device", minor)?),
            size: 0,
            fragments: None,
            attributes: records.attributes,
        })
    }
}

/// The largest number would mean that the owner stays as it is.
fn id(what: &str, value: i64) -> io::Result<u32> {
    match number(what, value)? {
        u32::MAX => Err(damaged(format!("{what} {value} is out of range"))),
        id => Ok(id),
    }
}

fn number(what: &str, value: i64) -> io::Result<u32> {
    u32::try_from(value).map_err(|_| damaged(format!("{what} {value} is out of range")))
}
