//! Writing tar archives: USTAR, and PAX where that cannot tell something. The same trees give the same bytes as with
//! the Go standard library, so that layers have the digests that others would give them.

use std::io::{self, Write};

use super::header::BLOCK;

/// Longest name and prefix in a header.
const NAME: usize = 100;
const PREFIX: usize = 155;
/// Largest number of an id or a device, and of a size or a time.
const SHORT: u64 = (1 << 21) - 1;
const LONG: u64 = (1 << 33) - 1;
const EXTENDED: u8 = b'x';

/// An entry to be written.
#[derive(Clone, Debug, Default)]
pub struct Item {
    /// Its kind, as the byte in the header.
    pub kind: u8,
    /// With a slash at its end for a folder.
    pub name: Vec<u8>,
    /// Target of a link.
    pub link: Vec<u8>,
    /// Permissions.
    pub mode: u32,
    /// User that it belongs to.
    pub uid: u32,
    /// Group that it belongs to.
    pub gid: u32,
    /// Seconds since 1970.
    pub modified: i64,
    /// Major and minor number.
    pub device: (u32, u32),
    /// Bytes that follow.
    pub size: u64,
    /// Names and values of extended attributes.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// An archive on its way.
#[derive(Debug)]
pub struct Writer<W> {
    output: W,
    /// Bytes of the entry's data that are missing, and zeros after them.
    left: u64,
    padding: usize,
}

impl<W: Write> Writer<W> {
    /// An archive without entries.
    pub fn new(output: W) -> Self {
        Self { output, left: 0, padding: 0 }
    }

    /// Begins an entry.
    pub fn entry(&mut self, item: &Item) -> io::Result<()> {
        self.end_entry()?;
        let mut item = item.clone();
        let records = records(&item);
        let mut prefix = Vec::new();
        if records.is_empty() {
            if let Some(at) = split(&item.name) {
                prefix = item.name.get(..at).unwrap_or_default().to_vec();
                item.name.drain(..=at);
            }
        } else {
            self.extended(&item.name, &records)?;
            ascii(&mut item.name);
            ascii(&mut item.link);
        }
        self.output.write_all(&header(&item, &prefix))?;
        self.begin_data(item.size);
        Ok(())
    }

    /// Writes data of the entry.
    pub fn data(&mut self, data: &[u8]) -> io::Result<()> {
        let left = self.left.checked_sub(data.len() as u64);
        self.left = left.ok_or_else(|| io::Error::other("more data than the entry's size"))?;
        self.output.write_all(data)
    }

    /// Ends the archive.
    pub fn finish(mut self) -> io::Result<W> {
        self.end_entry()?;
        self.output.write_all(&[0; 2 * BLOCK])?;
        Ok(self.output)
    }

    fn begin_data(&mut self, size: u64) {
        self.left = size;
        self.padding = usize::try_from(size.next_multiple_of(BLOCK as u64) - size).unwrap_or(0);
    }

    fn end_entry(&mut self) -> io::Result<()> {
        if self.left > 0 {
            return Err(io::Error::other(format!("{} bytes of an entry are missing", self.left)));
        }
        let zeros = [0; BLOCK];
        self.output.write_all(zeros.get(..std::mem::take(&mut self.padding)).unwrap_or_default())
    }

    /// The entry that holds the records of the next one.
    fn extended(&mut self, name: &[u8], records: &[u8]) -> io::Result<()> {
        let at = name.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let (folder, file) = name.split_at(at);
        let mut name = [folder, b"PaxHeaders.0/", file].concat();
        ascii(&mut name);
        name.truncate(NAME);
        while name.last() == Some(&b'/') {
            name.pop();
        }
        let mut header = [0; BLOCK];
        put(&mut header, 0, NAME, &name);
        for (start, length) in [(100, 8), (108, 8), (116, 8), (136, 12)] {
            octal(&mut header, start, length, 0);
        }
        octal(&mut header, 124, 12, records.len() as u64);
        header[156] = EXTENDED;
        seal(&mut header);
        self.output.write_all(&header)?;
        self.begin_data(records.len() as u64);
        self.data(records)?;
        self.end_entry()
    }
}

fn header(item: &Item, prefix: &[u8]) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let within = |number: u64, largest: u64| if number > largest { 0 } else { number };
    put(&mut header, 0, NAME, &item.name);
    octal(&mut header, 100, 8, item.mode.into());
    octal(&mut header, 108, 8, within(item.uid.into(), SHORT));
    octal(&mut header, 116, 8, within(item.gid.into(), SHORT));
    octal(&mut header, 124, 12, within(item.size, LONG));
    octal(&mut header, 136, 12, within(u64::try_from(item.modified).unwrap_or(0), LONG));
    header[156] = item.kind;
    put(&mut header, 157, NAME, &item.link);
    octal(&mut header, 329, 8, item.device.0.into());
    octal(&mut header, 337, 8, item.device.1.into());
    put(&mut header, 345, PREFIX, prefix);
    seal(&mut header);
    header
}

/// What a header cannot tell, as `<length> <key>=<value>\n`, ordered by key.
fn records(item: &Item) -> Vec<u8> {
    let mut list: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut needed = !item.attributes.is_empty();
    let mut add = |key: &[u8], value: &[u8]| list.push((key.to_vec(), value.to_vec()));
    if item.name.len() > NAME || !is_ascii(&item.name) {
        // Once there are records, a name that could have been split stands among them too.
        needed |= split(&item.name).is_none();
        add(b"path", &item.name);
    }
    if item.link.len() > NAME || !is_ascii(&item.link) {
        needed = true;
        add(b"linkpath", &item.link);
    }
    for (key, number, largest) in
        [("uid", item.uid.into(), SHORT), ("gid", item.gid.into(), SHORT), ("size", item.size, LONG)]
    {
        if number > largest {
            needed = true;
            add(key.as_bytes(), number.to_string().as_bytes());
        }
    }
    if u64::try_from(item.modified).map_or(true, |time| time > LONG) {
        needed = true;
        add(b"mtime", item.modified.to_string().as_bytes());
    }
    for (name, value) in &item.attributes {
        add(&[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    if !needed {
        return Vec::new();
    }
    list.sort();
    list.iter().flat_map(|(key, value)| record(key, value)).collect()
}

fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    // The length counts its own digits.
    let mut length = rest + rest.to_string().len();
    length = rest + length.to_string().len();
    [format!("{length} ").as_bytes(), key, b"=", value, b"\n"].concat()
}

/// Where a long name can be split into prefix and name.
fn split(name: &[u8]) -> Option<usize> {
    if name.len() <= NAME || !is_ascii(name) {
        return None;
    }
    let end = match name.len() {
        length if length > PREFIX + 1 => PREFIX + 1,
        length if name.last() == Some(&b'/') => length - 1,
        length => length,
    };
    let at = name.get(..end)?.iter().rposition(|byte| *byte == b'/')?;
    let rest = name.len() - at - 1;
    (at > 0 && at <= PREFIX && rest > 0 && rest <= NAME).then_some(at)
}

fn is_ascii(text: &[u8]) -> bool {
    text.iter().all(|byte| byte.is_ascii() && *byte != 0)
}

fn ascii(text: &mut Vec<u8>) {
    text.retain(|byte| byte.is_ascii() && *byte != 0);
}

fn put(header: &mut [u8; BLOCK], start: usize, length: usize, text: &[u8]) {
    let Some(field) = header.get_mut(start..start + length) else { return };
    let fits = text.len().min(length);
    field[..fits].copy_from_slice(&text[..fits]);
    if text.len() > length && field.last() == Some(&b'/') {
        // Readers take a regular file for a folder when its name seems to end with a slash.
        let kept = field.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
        field[kept] = 0;
    }
}

fn octal(header: &mut [u8; BLOCK], start: usize, length: usize, number: u64) {
    let text = format!("{number:0width$o}", width = length - 1);
    put(header, start, length, text.as_bytes());
}

/// Magic and checksum.
fn seal(header: &mut [u8; BLOCK]) {
    put(header, 257, 8, b"ustar\x0000");
    put(header, 148, 8, b"        ");
    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    octal(header, 148, 7, sum);
    header[154] = 0;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::{Kind, Reader};

    fn item(name: &str) -> Item {
        let (kind, name) = (b'0', name.as_bytes().to_vec());
        Item { kind, name, mode: 0o644, modified: 1_700_000_000, ..Item::default() }
    }

    fn archive(items: &[Item]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        for item in items {
            writer.entry(item).unwrap();
            writer.data(&vec![b'd'; usize::try_from(item.size).unwrap()]).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let long = |length: usize| format!("{}/{}", "d".repeat(90), "f".repeat(length));
        let mut items =
            vec![item("a"), item("größe"), item(&long(20)), item(&long(150)), item(&"x".repeat(300))];
        items[0].size = 513;
        items[1].modified = -5;
        items[2].uid = 3_000_000;
        items[3].link = "l".repeat(101).into();
        items[4].attributes = vec![(b"security.capability".to_vec(), b"\x01\0\n=\xff".to_vec())];
        let data = archive(&items);
        assert_eq!(data.len() % BLOCK, 0);
        let mut reader = Reader::new(data.as_slice());
        for item in &items {
            let entry = reader.next_entry().unwrap().unwrap();
            assert_eq!(entry.kind, Kind::File);
            assert_eq!((&entry.path, &entry.link), (&item.name, &item.link));
            assert_eq!((entry.mode, entry.uid, entry.size), (item.mode, item.uid, item.size));
            assert_eq!((entry.modified.seconds, &entry.attributes), (item.modified, &item.attributes));
        }
        assert!(reader.next_entry().unwrap().is_none());
    }

    #[test]
    fn a_name_is_split_only_where_nothing_else_needs_records() {
        let name = format!("{}/{}", "d".repeat(90), "f".repeat(90));
        let plain = archive(&[item(&name)]);
        assert_eq!(plain.len(), 3 * BLOCK);
        assert_eq!(&plain[345..435], "d".repeat(90).as_bytes());
        let extended = archive(&[Item { uid: 1 << 21, ..item(&name) }]);
        assert_eq!(extended[156], b'x');
        let records = String::from_utf8(extended[BLOCK..2 * BLOCK].to_vec()).unwrap();
        assert_eq!(records.trim_end_matches('\0'), format!("191 path={name}\n15 uid=2097152\n"));
    }

    #[test]
    fn an_entry_is_as_long_as_it_says() {
        let mut writer = Writer::new(Vec::new());
        writer.entry(&Item { size: 3, ..item("a") }).unwrap();
        assert!(writer.data(b"abcd").is_err());
        assert!(writer.data(b"ab").is_ok());
        assert!(writer.entry(&item("b")).is_err());
    }
}
