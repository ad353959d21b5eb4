//! Extended headers: `<length> <key>=<value>\n`, one after the other.

use std::io;

use super::damaged;
use super::sparse::Fragment;

/// Prefix of the keys of extended attributes.
const ATTRIBUTE: &[u8] = b"SCHILY.xattr.";

/// The records of an extended header, as far as they matter here. The last one of a key counts; an empty one
/// counts as not there.
#[derive(Debug, Default)]
pub(crate) struct Records {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub uid: Option<i64>,
    pub gid: Option<i64>,
    pub size: Option<u64>,
    pub modified: Option<(i64, u32)>,
    pub accessed: Option<(i64, u32)>,
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: Sparse,
}

/// What the records say of a sparse file.
#[derive(Debug, Default)]
pub(crate) struct Sparse {
    pub version: (Option<Vec<u8>>, Option<Vec<u8>>),
    pub name: Option<Vec<u8>>,
    pub length: Option<u64>,
    pub fragments: Vec<Fragment>,
    /// Offset of a fragment whose length comes next.
    offset: Option<u64>,
}

impl Records {
    /// Reads them by their lengths: values may have any byte, line ends included.
    pub(crate) fn parse(mut data: &[u8]) -> io::Result<Self> {
        let mut records = Self::default();
        while !data.is_empty() {
            let (key, value, rest) = record(data).ok_or_else(|| damaged("malformed extended header"))?;
            records.add(key, value)?;
            data = rest;
        }
        if records.sparse.offset.is_some() {
            return Err(damaged("a fragment of a sparse file without a length"));
        }
        Ok(records)
    }

    fn add(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let given = (!value.is_empty()).then_some(value);
        let name = || -> io::Result<Option<Vec<u8>>> {
            match given {
                Some(value) if value.contains(&0) => Err(damaged("a name with NUL in it")),
                given => Ok(given.map(<[u8]>::to_vec)),
            }
        };
        match key {
            b"path" => self.path = name()?,
            b"linkpath" => self.link = name()?,
            b"uid" => self.uid = given.map(integer).transpose()?,
            b"gid" => self.gid = given.map(integer).transpose()?,
            b"size" => self.size = given.map(size).transpose()?,
            b"mtime" => self.modified = given.map(time).transpose()?,
            b"atime" => self.accessed = given.map(time).transpose()?,
            key => {
                if let Some(attribute) = key.strip_prefix(ATTRIBUTE) {
                    // An attribute may be empty.
                    self.attributes.push((attribute.to_vec(), value.to_vec()));
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.add(key, value, name)?;
                }
            }
        }
        Ok(())
    }
}

impl Sparse {
    fn add(
        &mut self,
        key: &[u8],
        value: &[u8],
        name: impl Fn() -> io::Result<Option<Vec<u8>>>,
    ) -> io::Result<()> {
        match key {
            b"major" => self.version.0 = Some(value.to_vec()),
            b"minor" => self.version.1 = Some(value.to_vec()),
            b"name" => self.name = name()?,
            b"size" | b"realsize" => self.length = Some(size(value)?),
            // Version 0.0: pairs of records.
            b"offset" => match self.offset.replace(size(value)?) {
                None => {}
                Some(_) => return Err(damaged("a fragment of a sparse file without a length")),
            },
            b"numbytes" => {
                let offset = self.offset.take();
                let offset =
                    offset.ok_or_else(|| damaged("a fragment of a sparse file without an offset"))?;
                self.fragments.push(Fragment { offset, length: size(value)? });
            }
            // Version 0.1: one list.
            b"map" => {
                let numbers: Vec<u64> =
                    value.split(|byte| *byte == b',').map(size).collect::<io::Result<_>>()?;
                let pairs = numbers.chunks_exact(2);
                if !pairs.remainder().is_empty() {
                    return Err(damaged("a fragment of a sparse file without a length"));
                }
                let pairs = pairs.filter_map(|pair| <[u64; 2]>::try_from(pair).ok());
                self.fragments = pairs.map(|[offset, length]| Fragment { offset, length }).collect();
            }
            _ => {}
        }
        Ok(())
    }
}

/// Key and value of the first record, and what follows it.
fn record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().position(|byte| *byte == b' ')?;
    let (length, _) = data.split_at(space);
    let length = usize::try_from(size(length).ok()?).ok()?;
    let (whole, rest) = data.split_at_checked(length)?;
    let (end, record) = whole.get(space + 1..)?.split_last()?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (record.get(..equals)?, record.get(equals + 1..)?);
    (*end == b'\n' && !key.is_empty() && !key.contains(&0)).then_some((key, value, rest))
}

fn integer(text: &[u8]) -> io::Result<i64> {
    let text = std::str::from_utf8(text).ok();
    text.and_then(|text| text.parse().ok()).ok_or_else(|| damaged("a number in an extended header"))
}

/// Decimal digits and nothing else.
pub(crate) fn size(text: &[u8]) -> io::Result<u64> {
    if text.iter().all(u8::is_ascii_digit)
        && let Ok(size) = u64::try_from(integer(text)?)
    {
        return Ok(size);
    }
    Err(damaged("a number in an extended header"))
}

/// Seconds with a fraction, as seconds and nanoseconds forward from them.
fn time(text: &[u8]) -> io::Result<(i64, u32)> {
    let malformed = || damaged("a time in an extended header");
    let text = std::str::from_utf8(text).map_err(|_| malformed())?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(malformed());
    }
    let whole: i64 = match seconds {
        "" | "-" | "+" if !fraction.is_empty() => 0,
        seconds => seconds.parse().map_err(|_| malformed())?,
    };
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().map_err(|_| malformed())?;
    if text.starts_with('-') && nanos > 0 {
        return Ok((whole.checked_sub(1).ok_or_else(malformed)?, 1_000_000_000 - nanos));
    }
    Ok((whole, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(key: &str, value: &[u8]) -> Vec<u8> {
        let rest = key.len() + value.len() + 3;
        let length =
            (1..=7).map(|digits| rest + digits).find(|length| length.to_string().len() + rest == *length);
        [format!("{} {key}=", length.unwrap()).as_bytes(), value, b"\n"].concat()
    }

    #[test]
    fn a_line_end_in_a_value_is_no_end_of_the_record() {
        let hidden = b"\x01\n13 size=9999\n12 path=/etc\n";
        let data = [of("SCHILY.xattr.user.x", hidden), of("path", b"a\nb"), of("size", b"5")].concat();
        let records = Records::parse(&data).unwrap();
        assert_eq!(records.attributes, [(b"user.x".to_vec(), hidden.to_vec())]);
        assert_eq!((records.path.as_deref(), records.size), (Some(&b"a\nb"[..]), Some(5)));
    }

    #[test]
    fn the_last_record_of_a_key_counts_and_an_empty_one_as_none() {
        let data = [of("path", b"a"), of("path", b"b"), of("size", b"1"), of("size", b"")].concat();
        let records = Records::parse(&data).unwrap();
        assert_eq!((records.path.as_deref(), records.size), (Some(&b"b"[..]), None));
    }

    #[test]
    fn malformed_records_are_refused() {
        for data in [
            &b"99 path=a\n"[..],
            b"10 path=aa",
            b"11 path=a\n",
            b"+9 path=a\n",
            b"9 path a\n",
            b"8 =aaaa\n",
            b"x",
            b" \n",
            b"12 size=-1x\n",
            b"11 size=-1\n",
            b"13 path=a\0bc\n",
            b"18446744073709551617 path=a\n",
        ] {
            assert!(Records::parse(data).is_err(), "{}", String::from_utf8_lossy(data));
        }
    }

    #[test]
    fn times_have_fractions_and_lie_before_1970_too() {
        assert_eq!(time(b"1350244992.023960108").unwrap(), (1_350_244_992, 23_960_108));
        assert_eq!(time(b"1.5").unwrap(), (1, 500_000_000));
        assert_eq!(time(b"-1.25").unwrap(), (-2, 750_000_000));
        assert_eq!(time(b"-0.1").unwrap(), (-1, 900_000_000));
        assert_eq!(time(b"7.0000000019").unwrap(), (7, 1));
        assert!(time(b"1.x").is_err() && time(b"").is_err() && time(b"-").is_err());
    }
}
