//! The block of 512 bytes before each entry.

use std::io;

use super::damaged;

pub(crate) const BLOCK: usize = 512;

/// Which fields there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// Before POSIX.
    Old,
    /// POSIX: the name may have a prefix.
    Ustar,
    /// Schilling's: a shorter prefix.
    Star,
    Gnu,
}

/// A header block.
#[derive(Clone)]
pub(crate) struct Header {
    pub bytes: [u8; BLOCK],
}

impl Header {
    pub(crate) fn is_zero(&self) -> bool {
        self.bytes.iter().all(|byte| *byte == 0)
    }

    /// Some old tars summed signed bytes.
    pub(crate) fn verify(&self) -> io::Result<()> {
        let mut unsigned = 0;
        let mut signed = 0;
        for (index, byte) in self.bytes.iter().enumerate() {
            // The sum itself counts as spaces.
            let byte = if (148..156).contains(&index) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        let sum = number(self.field(148, 8)).map_err(|error| damaged(format!("checksum: {error}")))?;
        if sum != unsigned && sum != signed {
            return Err(damaged("wrong checksum of a header"));
        }
        Ok(())
    }

    fn field(&self, start: usize, length: usize) -> &[u8] {
        self.bytes.get(start..start + length).unwrap_or_default()
    }

    fn format(&self) -> Format {
        match (self.field(257, 6), self.field(263, 2)) {
            (b"ustar\0", _) if self.field(508, 4) == b"tar\0" => Format::Star,
            (b"ustar\0", b"00") => Format::Ustar,
            (b"ustar ", b" \0") => Format::Gnu,
            _ => Format::Old,
        }
    }

    /// The byte that tells the kind of the entry.
    pub(crate) fn kind(&self) -> u8 {
        self.bytes[156]
    }

    pub(crate) fn path(&self) -> Vec<u8> {
        let name = text(self.field(0, 100));
        let prefix = match self.format() {
            Format::Ustar => text(self.field(345, 155)),
            Format::Star => text(self.field(345, 131)),
            Format::Old | Format::Gnu => b"",
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(crate) fn link(&self) -> Vec<u8> {
        text(self.field(157, 100)).to_vec()
    }

    pub(crate) fn mode(&self) -> io::Result<i64> {
        number(self.field(100, 8))
    }

    pub(crate) fn uid(&self) -> io::Result<i64> {
        number(self.field(108, 8))
    }

    pub(crate) fn gid(&self) -> io::Result<i64> {
        number(self.field(116, 8))
    }

    pub(crate) fn size(&self) -> io::Result<u64> {
        let size = number(self.field(124, 12))?;
        u64::try_from(size).map_err(|_| damaged("a negative size"))
    }

    pub(crate) fn time(&self) -> io::Result<i64> {
        number(self.field(136, 12))
    }

    /// Major and minor number of a device.
    pub(crate) fn device(&self) -> io::Result<(i64, i64)> {
        match self.format() {
            Format::Old => Ok((0, 0)),
            _ => Ok((number(self.field(329, 8))?, number(self.field(337, 8))?)),
        }
    }

    /// The fragments of a sparse file that are listed here, whether more follow, and the file's length.
    pub(crate) fn fragments(&self) -> io::Result<(&[u8], bool, u64)> {
        if self.format() != Format::Gnu {
            return Err(damaged("a sparse file in an archive that cannot have any"));
        }
        let length = u64::try_from(number(self.field(483, 12))?).map_err(|_| damaged("a negative size"))?;
        Ok((self.field(386, 96), self.bytes[482] != 0, length))
    }
}

/// The bytes of a field up to its NUL.
pub(crate) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number in octal digits, or for large and negative ones in binary behind a set bit.
pub(crate) fn number(field: &[u8]) -> io::Result<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => binary(field),
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> io::Result<i64> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !is_blank(byte)).unwrap_or(field.len());
    let end = field.iter().rposition(|byte| !is_blank(byte)).map_or(start, |last| last + 1);
    // A field that was left blank is zero.
    let digits = text(field.get(start..end).unwrap_or_default());
    digits.iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => value
            .checked_mul(8)
            .and_then(|value| value.checked_add(i64::from(digit - b'0')))
            .ok_or_else(|| damaged("a number that is too large")),
        _ => Err(damaged("a number with other than octal digits")),
    })
}

/// Two's complement; the topmost bit only marks the form.
fn binary(field: &[u8]) -> io::Result<i64> {
    let negative = field.first().is_some_and(|first| first & 0x40 != 0);
    let mut value: i64 = if negative { -1 } else { 0 };
    for (index, byte) in field.iter().enumerate() {
        let byte = match index {
            0 if negative => byte | 0x80,
            0 => byte & 0x7f,
            _ => *byte,
        };
        let shifted = value.checked_mul(256).ok_or_else(|| damaged("a number that is too large"))?;
        value =
            if index == 0 && negative { i64::from(byte.cast_signed()) } else { shifted | i64::from(byte) };
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_all_their_forms() {
        for (field, value) in [
            (&b"0000644\0"[..], 0o644),
            (b"   644 \0", 0o644),
            (b"\0\0\0\0\0\0\0\0", 0),
            (b"        ", 0),
            (b"77777777777\0", 0o77_777_777_777),
            (b"644\0junk", 0o644),
            (b"\x80\0\0\0\0\0\0\x02\0\0\0\0", 0x2_0000_0000),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", -1),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe\x00", -512),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", i64::MAX),
        ] {
            assert_eq!(number(field).unwrap(), value, "{field:?}");
        }
        for field in [&b"0000648\0"[..], b"-1      ", b"\x81\0\0\0\0\0\0\0\0\0\0\0", b"0x10    "] {
            assert!(number(field).is_err(), "{field:?}");
        }
    }
}
