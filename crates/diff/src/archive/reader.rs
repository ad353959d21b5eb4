//! The entries of an archive, one after the other, with their data.

use std::io::{self, BufRead};

use super::entry::{Entry, Extensions, Kind};
use super::header::{BLOCK, Header, text};
use super::pax::{Records, Sparse};
use super::sparse::{self, ended};
use super::{SPECIAL, damaged, truncated};

/// Reads an archive from a stream, without copying the data of its files.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    /// Bytes of the current entry that are still to come.
    left: u64,
    /// Bytes after them up to the next header.
    padding: u64,
}

impl<R: BufRead> Reader<R> {
    /// An archive from its beginning.
    pub fn new(input: R) -> Self {
        Self { input, left: 0, padding: 0 }
    }

    /// The next entry; what was not read of the data of the one before is skipped.
    ///
    /// # Errors
    /// InvalidData for what is no archive, UnexpectedEof for one that is cut off; those of the stream.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        let mut is_extended = false;
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return if is_extended { Err(truncated()) } else { Ok(None) };
            };
            is_extended = true;
            match header.kind() {
                b'x' => extensions.records = Some(Records::parse(&self.special(&header)?)?),
                b'L' => extensions.long_path = Some(text(&self.special(&header)?).to_vec()),
                b'K' => extensions.long_link = Some(text(&self.special(&header)?).to_vec()),
                // What would count for all entries counts for none, as with the original.
                b'g' => self.begin(header.size()?)?,
                _ => return self.entry(&header, extensions).map(Some),
            }
        }
    }

    /// Some of the data of the current entry; nothing at its end.
    ///
    /// # Errors
    /// UnexpectedEof when the archive ends before; those of the stream.
    pub fn data(&mut self) -> io::Result<&[u8]> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let data = self.input.fill_buf()?;
        if data.is_empty() {
            return Err(truncated());
        }
        let length = data.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        Ok(data.get(..length).unwrap_or_default())
    }

    /// Marks bytes of the data as read.
    pub fn consume(&mut self, length: usize) {
        self.input.consume(length);
        self.left -= length as u64;
    }

    /// Expects so many bytes of data.
    fn begin(&mut self, size: u64) -> io::Result<()> {
        self.left = size;
        let whole = size.checked_next_multiple_of(BLOCK as u64);
        self.padding = whole.ok_or_else(|| damaged("an entry that is too large"))? - size;
        Ok(())
    }

    fn skip(&mut self) -> io::Result<()> {
        loop {
            match self.data()?.len() {
                0 => break,
                length => self.consume(length),
            }
        }
        // Some archives end without the padding of their last entry.
        while self.padding > 0 {
            let length = self.input.fill_buf()?.len().min(usize::try_from(self.padding).unwrap_or(BLOCK));
            if length == 0 {
                break;
            }
            self.input.consume(length);
            self.padding -= length as u64;
        }
        Ok(())
    }

    /// The next header; nothing at the end, which is marked by two blocks of zeros or not at all.
    fn header(&mut self) -> io::Result<Option<Header>> {
        let Some(header) = self.block()? else { return Ok(None) };
        if header.is_zero() {
            return match self.block()? {
                Some(next) if !next.is_zero() => Err(damaged("a header of zeros")),
                _ => Ok(None),
            };
        }
        header.verify()?;
        Ok(Some(header))
    }

    fn block(&mut self) -> io::Result<Option<Header>> {
        if self.input.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let mut header = Header { bytes: [0; BLOCK] };
        self.input.read_exact(&mut header.bytes).map_err(ended)?;
        Ok(Some(header))
    }

    /// The data of an extension, which belongs to the next entry.
    fn special(&mut self, header: &Header) -> io::Result<Vec<u8>> {
        let size = header.size()?;
        if size > SPECIAL {
            return Err(damaged(format!("an extended header of {size} bytes")));
        }
        self.begin(size)?;
        let mut data = Vec::new();
        loop {
            let some = self.data()?;
            let length = some.len();
            if length == 0 {
                return Ok(data);
            }
            data.extend_from_slice(some);
            self.consume(length);
        }
    }

    fn entry(&mut self, header: &Header, mut extensions: Extensions) -> io::Result<Entry> {
        let pax = extensions.records.as_mut();
        let size = pax.as_ref().and_then(|records| records.size).map_or_else(|| header.size(), Ok)?;
        let sparse = pax.map(|records| std::mem::take(&mut records.sparse)).unwrap_or_default();
        let mut entry = Entry::new(header, extensions)?;
        // Other entries have no data, whatever their headers say.
        let has_data = matches!(entry.kind, Kind::File | Kind::Other(_));
        self.begin(if has_data { size } else { 0 })?;
        entry.size = self.left;
        if header.kind() == b'S' {
            self.old_sparse(header, &mut entry)?;
        } else if entry.kind == Kind::File {
            self.new_sparse(sparse, &mut entry)?;
        }
        Ok(entry)
    }

    fn old_sparse(&mut self, header: &Header, entry: &mut Entry) -> io::Result<()> {
        let (first, more, length) = header.fragments()?;
        let mut fragments = Vec::new();
        sparse::old_list(first, &mut fragments)?;
        if more {
            sparse::old_blocks(&mut self.input, &mut fragments)?;
        }
        sparse::check(&fragments, length, self.left)?;
        (entry.size, entry.fragments) = (length, Some(fragments));
        Ok(())
    }

    fn new_sparse(&mut self, mut list: Sparse, entry: &mut Entry) -> io::Result<()> {
        match (list.version.0.as_deref(), list.version.1.as_deref()) {
            (Some(b"1"), Some(b"0")) => {
                let taken = sparse::new_list(&mut self.input, &mut list.fragments)?;
                let left = self.left.checked_sub(taken);
                self.left = left.ok_or_else(|| damaged("a list of fragments longer than its entry"))?;
            }
            (None | Some(b"0"), None | Some(b"0" | b"1")) => {
                if list.fragments.is_empty() {
                    return Ok(());
                }
            }
            _ => return Err(damaged("a sparse file of an unknown version")),
        }
        let length = list.length.ok_or_else(|| damaged("a sparse file without a length"))?;
        sparse::check(&list.fragments, length, self.left)?;
        if let Some(name) = list.name {
            entry.path = name;
        }
        (entry.size, entry.fragments) = (length, Some(list.fragments));
        Ok(())
    }
}
