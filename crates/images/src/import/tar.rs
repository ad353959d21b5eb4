//! The entries of a tar stream, with every part that is held in memory bounded.

use std::io::{self, Read};

use corten_types::{Error, Result};
use tar::{EntryType, Header};

const BLOCK: usize = 512;
/// Long names and PAX records; far beyond what paths may be.
const MAX_EXTENSION: u64 = 1 << 20;

/// What an entry is, as far as archives of images need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Symlink,
    Other,
}

/// The head of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub path: String,
    pub kind: Kind,
    pub size: u64,
    /// Where a symbolic link leads.
    pub link: String,
}

/// Reads entry after entry.
pub(super) struct Entries<R> {
    reader: R,
    /// Bytes of the current entry that were not read yet, and its padding.
    left: u64,
    padding: u64,
}

#[derive(Default)]
struct Extension {
    path: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

impl<R: Read> Entries<R> {
    pub fn new(reader: R) -> Self {
        Self { reader, left: 0, padding: 0 }
    }

    /// The next entry; nothing at the end. What is left of the one before is skipped.
    pub fn next(&mut self) -> Result<Option<Entry>> {
        let mut extension = Extension::default();
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = header.entry_size().map_err(|error| invalid(&error))?;
            self.set_size(size);
            match header.entry_type() {
                EntryType::GNULongName => extension.path = Some(text(&self.extension()?)),
                EntryType::GNULongLink => extension.link = Some(text(&self.extension()?)),
                EntryType::XHeader => pax(&self.extension()?, &mut extension)?,
                EntryType::XGlobalHeader => {}
                kind => {
                    if let Some(size) = extension.size {
                        self.set_size(size);
                    }
                    let kind = match kind {
                        EntryType::Regular | EntryType::Continuous => Kind::File,
                        EntryType::Symlink => Kind::Symlink,
                        _ => Kind::Other,
                    };
                    let link = header.link_name_bytes().unwrap_or_default();
                    return Ok(Some(Entry {
                        path: extension.path.unwrap_or_else(|| text(&header.path_bytes())),
                        kind,
                        size: self.left,
                        link: extension.link.unwrap_or_else(|| text(&link)),
                    }));
                }
            }
        }
    }

    /// The whole current entry; an error if it is larger than `limit`.
    pub fn read_all(&mut self, limit: u64) -> Result<Vec<u8>> {
        if self.left > limit {
            return Err(Error::invalid_argument(format!(
                "entry of {} bytes is larger than the limit of {limit}",
                self.left
            )));
        }
        let mut data = Vec::new();
        self.read_to_end(&mut data)?;
        Ok(data)
    }

    fn set_size(&mut self, size: u64) {
        self.left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn skip_rest(&mut self) -> Result<()> {
        let rest = self.left.saturating_add(self.padding);
        let skipped = io::copy(&mut (&mut self.reader).take(rest), &mut io::sink())?;
        (self.left, self.padding) = (0, 0);
        if skipped < rest { Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()) } else { Ok(()) }
    }

    /// The next header; nothing at the end of the archive or of the stream.
    fn header(&mut self) -> Result<Option<Header>> {
        let mut block = [0u8; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.reader.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                read => filled += read,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            // What follows is padding. It is read, so that whoever writes into a pipe is not cut off.
            io::copy(&mut self.reader, &mut io::sink())?;
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(index, byte)| match index {
                148..156 => u32::from(b' '),
                _ => u32::from(*byte),
            })
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(Error::invalid_argument("archive/tar: invalid tar header"));
        }
        Ok(Some(header))
    }

    fn extension(&mut self) -> Result<Vec<u8>> {
        self.read_all(MAX_EXTENSION)
    }
}

impl<R: Read> Read for Entries<R> {
    /// Reads the current entry.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if room == 0 {
            return Ok(0);
        }
        let read = self.reader.read(&mut buffer[..room])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

fn invalid(error: &io::Error) -> Error {
    Error::invalid_argument(format!("archive/tar: invalid tar header: {error}"))
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// PAX records: `<length> <key>=<value>\n`, the length counting all of it.
fn pax(mut data: &[u8], extension: &mut Extension) -> Result<()> {
    let bad = || Error::invalid_argument("archive/tar: invalid PAX record");
    while !data.is_empty() {
        let space = data.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
        let length: usize =
            std::str::from_utf8(&data[..space]).ok().and_then(|text| text.parse().ok()).ok_or_else(bad)?;
        let record = data.get(space + 1..length).ok_or_else(bad)?;
        let record = record.strip_suffix(b"\n").ok_or_else(bad)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
        let value = || text(&record[equals + 1..]);
        match &record[..equals] {
            b"path" => extension.path = Some(value()),
            b"linkpath" => extension.link = Some(value()),
            b"size" => extension.size = Some(value().parse().map_err(|_| bad())?),
            _ => {}
        }
        data = &data[length..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries(data: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>> {
        let mut entries = Entries::new(data);
        let mut all = Vec::new();
        while let Some(entry) = entries.next()? {
            let data = entries.read_all(1 << 20)?;
            all.push((entry, data));
        }
        Ok(all)
    }

    fn sample() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_size(3);
        builder.append_data(&mut header, "a", &b"abc"[..]).unwrap();
        header.set_size(0);
        let long = "d/".repeat(100) + "name";
        builder.append_data(&mut header, &long, &b""[..]).unwrap();
        header.set_entry_type(EntryType::Symlink);
        builder.append_link(&mut header, "link", &long).unwrap();
        builder.append_pax_extensions([("path", &b"from pax"[..]), ("size", b"4")]).unwrap();
        let mut header = Header::new_ustar();
        header.set_path("short").unwrap();
        header.set_size(4);
        header.set_cksum();
        builder.append(&header, &b"1234"[..]).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn entries_are_read_with_their_extensions() {
        let all = entries(&sample()).unwrap();
        let long = "d/".repeat(100) + "name";
        let seen: Vec<_> =
            all.iter().map(|(entry, data)| (entry.path.as_str(), entry.kind, data.len())).collect();
        assert_eq!(
            seen,
            [
                ("a", Kind::File, 3),
                (&long, Kind::File, 0),
                ("link", Kind::Symlink, 0),
                ("from pax", Kind::File, 4)
            ]
        );
        assert_eq!(all[2].0.link, long);
    }

    #[test]
    fn damage_is_an_error() {
        let sample = sample();
        for cut in [100, 600, 1500, sample.len() - 1500] {
            assert!(entries(&sample[..cut]).is_err(), "{cut}");
        }
        let mut flipped = sample.clone();
        flipped[0] ^= 1;
        assert!(entries(&flipped).unwrap_err().to_string().contains("invalid tar header"));
    }

    #[test]
    fn an_extension_of_gigabytes_is_refused() {
        for kind in [EntryType::GNULongName, EntryType::XHeader] {
            let mut header = Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(4 << 30);
            header.set_cksum();
            let error = Entries::new(header.as_bytes().chain(io::repeat(b'x'))).next().unwrap_err();
            assert!(error.to_string().contains("larger than the limit"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut data in proptest::collection::vec(any::<u8>(), 0..2000), pax_data in any::<Vec<u8>>()) {
            let _ = entries(&data);
            data.splice(0..0, sample());
            let _ = entries(&data);
            let _ = pax(&pax_data, &mut Extension::default());
        }
    }
}
