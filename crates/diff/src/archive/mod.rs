//! Tar archives. Writing is in `write`; reading understands V7, USTAR, PAX and GNU, with long names, sparse files and extended attributes.
//!
//! Where tars disagree about an archive, this reads it as the Go standard library does, since that is what
//! makes and inspects most images: two programs that see different files in one archive are a way in. What an
//! archive says of its own sizes is bounded before it is believed. Nothing here touches a file system.

mod entry;
mod header;
mod pax;
mod reader;
mod sparse;
mod write;

pub use entry::{Entry, Kind, Time};
pub use reader::Reader;
pub use sparse::Fragment;
pub use write::{Item, Writer};

use std::io;

/// Largest extended header, long name and list of fragments.
pub(crate) const SPECIAL: u64 = 1 << 20;

/// An archive that says what no archive should.
pub(crate) fn damaged(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("damaged archive: {what}"))
}

/// An archive that ends in the middle.
pub(crate) fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "unexpected EOF: the archive is truncated")
}
