//! Sparse files: what is between their fragments is zero and not in the archive.

use std::io::{self, BufRead};

use super::header::{BLOCK, number};
use super::pax::size;
use super::{SPECIAL, damaged, truncated};

/// A run of bytes that is in the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Where in the file it belongs.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
}

/// Checks that fragments are in order, lie in the file and are what the archive has of it.
pub(crate) fn check(fragments: &[Fragment], length: u64, stored: u64) -> io::Result<()> {
    let (mut end, mut sum) = (0_u64, 0_u64);
    for fragment in fragments {
        let next = fragment.offset.checked_add(fragment.length);
        match next {
            Some(next) if fragment.offset >= end && next <= length => end = next,
            _ => return Err(damaged("fragments of a sparse file that overlap or lie outside")),
        }
        sum += fragment.length;
    }
    if sum != stored {
        return Err(damaged("fragments of a sparse file that are not what is stored of it"));
    }
    Ok(())
}

/// The fragments in one of the old GNU headers: pairs of 12 digits.
pub(crate) fn old_list(field: &[u8], fragments: &mut Vec<Fragment>) -> io::Result<()> {
    for pair in field.chunks_exact(24) {
        let (offset, length) = pair.split_at(12);
        if offset.first() == Some(&0) {
            break;
        }
        let unsigned = |field| u64::try_from(number(field)?).map_err(|_| damaged("a negative size"));
        fragments.push(Fragment { offset: unsigned(offset)?, length: unsigned(length)? });
    }
    Ok(())
}

/// The blocks that follow an old GNU header as long as they say that there are more.
pub(crate) fn old_blocks(input: &mut impl BufRead, fragments: &mut Vec<Fragment>) -> io::Result<()> {
    let mut block = [0; BLOCK];
    for _ in 0..SPECIAL / BLOCK as u64 {
        input.read_exact(&mut block).map_err(ended)?;
        old_list(block.get(..504).unwrap_or_default(), fragments)?;
        if block[504] == 0 {
            return Ok(());
        }
    }
    Err(damaged("a sparse file of too many fragments"))
}

/// The list before the data in PAX version 1.0: lines with their number, then offset and length of each.
/// Answers the bytes that it took, whole blocks.
pub(crate) fn new_list(input: &mut impl BufRead, fragments: &mut Vec<Fragment>) -> io::Result<u64> {
    let mut lines = Lines { input, taken: 0 };
    let count = lines.number()?;
    // Each takes four bytes at least.
    if count > SPECIAL / 4 {
        return Err(damaged("a sparse file of too many fragments"));
    }
    for _ in 0..count {
        let offset = lines.number()?;
        fragments.push(Fragment { offset, length: lines.number()? });
    }
    lines.finish()
}

struct Lines<'a, R> {
    input: &'a mut R,
    taken: u64,
}

impl<R: BufRead> Lines<'_, R> {
    fn number(&mut self) -> io::Result<u64> {
        let mut digits = Vec::new();
        loop {
            let mut byte = [0];
            self.input.read_exact(&mut byte).map_err(ended)?;
            self.taken += 1;
            match byte {
                [b'\n'] if !digits.is_empty() => return size(&digits),
                [byte] if digits.len() < 20 && self.taken <= SPECIAL => digits.push(byte),
                _ => return Err(damaged("a malformed list of fragments")),
            }
        }
    }

    /// The list is padded to a whole block.
    fn finish(self) -> io::Result<u64> {
        let whole = self.taken.next_multiple_of(BLOCK as u64);
        let mut rest = [0; BLOCK];
        let padding = usize::try_from(whole - self.taken).unwrap_or(0);
        self.input.read_exact(rest.get_mut(..padding).unwrap_or_default()).map_err(ended)?;
        Ok(whole)
    }
}

pub(crate) fn ended(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::UnexpectedEof { truncated() } else { error }
}
