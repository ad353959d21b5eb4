//! Entries of tar archives, byte by byte as a test wants them: PAX and GNU headers, sparse files, names and
//! kinds that no library would write.

/// A block of an archive.
const BLOCK: usize = 512;

/// One entry under construction. What is not set is 0 or empty.
#[derive(Clone, Debug)]
pub struct Entry {
    name: Vec<u8>,
    kind: u8,
    mode: u32,
    owner: (u64, u64),
    link: Vec<u8>,
    seconds: u64,
    device: (u32, u32),
    records: Vec<(Vec<u8>, Vec<u8>)>,
    data: Vec<u8>,
}

impl Entry {
    /// An entry of the kind that a letter stands for in ustar: `0` file, `5` folder, `2` symbolic link …
    pub fn new(kind: u8, name: impl AsRef<[u8]>, mode: u32) -> Self {
        Self {
            name: name.as_ref().to_vec(),
            kind,
            mode,
            owner: (0, 0),
            link: Vec::new(),
            seconds: 1_600_000_000,
            device: (0, 0),
            records: Vec::new(),
            data: Vec::new(),
        }
    }

    /// A file.
    pub fn file(name: impl AsRef<[u8]>, mode: u32, data: &[u8]) -> Self {
        Self { data: data.to_vec(), ..Self::new(b'0', name, mode) }
    }

    /// A folder.
    pub fn dir(name: impl AsRef<[u8]>, mode: u32) -> Self {
        Self::new(b'5', name, mode)
    }

    /// A symbolic link.
    pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self { link: target.as_ref().to_vec(), ..Self::new(b'2', name, 0o777) }
    }

    /// Another name of an earlier entry.
    pub fn link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self { link: target.as_ref().to_vec(), ..Self::new(b'1', name, 0o644) }
    }

    /// A device: kind `3` for characters, `4` for blocks.
    pub fn device(kind: u8, name: impl AsRef<[u8]>, mode: u32, major: u32, minor: u32) -> Self {
        Self { device: (major, minor), ..Self::new(kind, name, mode) }
    }

    /// The removal of something below.
    pub fn whiteout(folder: &str, name: &str) -> Self {
        Self::file(format!("{folder}.wh.{name}"), 0o644, b"")
    }

    /// User and group.
    #[must_use]
    pub fn owner(mut self, user: u64, group: u64) -> Self {
        self.owner = (user, group);
        self
    }

    /// Seconds since 1970 of the last change.
    #[must_use]
    pub fn time(mut self, seconds: u64) -> Self {
        self.seconds = seconds;
        self
    }

    /// A record of a PAX header in front of the entry.
    #[must_use]
    pub fn pax(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.records.push((key.as_bytes().to_vec(), value.as_ref().to_vec()));
        self
    }

    /// An extended attribute.
    #[must_use]
    pub fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax(&format!("SCHILY.xattr.{name}"), value)
    }

    /// Bytes that follow the header, whatever the kind.
    #[must_use]
    pub fn data(mut self, data: &[u8]) -> Self {
        self.data = data.to_vec();
        self
    }

    /// The entry, with a PAX header if it has records. Names that do not fit into the ustar header get GNU's
    /// `././@LongLink` unless there is a `path` or `linkpath` record.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (kind, key, text) in [(b'L', "path", &self.name), (b'K', "linkpath", &self.link)] {
            if text.len() > 100 && !self.records.iter().any(|(name, _)| name == key.as_bytes()) {
                let long = Self::new(kind, "././@LongLink", 0).data(&[text.as_slice(), b"\0"].concat());
                bytes.extend(long.encode());
            }
        }
        if !self.records.is_empty() {
            bytes.extend(Self::new(b'x', "PaxHeaders/x", 0o644).data(&records(&self.records)).encode());
        }
        bytes.extend(self.header(self.data.len() as u64));
        bytes.extend(&self.data);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    /// A sparse file as PAX 1.0 has it: the map stands before the data.
    pub fn pax_sparse(name: &str, fragments: &[(u64, &[u8])], size: u64) -> Self {
        let mut map = format!("{}\n", fragments.len());
        for (offset, data) in fragments {
            map.push_str(&format!("{offset}\n{}\n", data.len()));
        }
        let mut stored = map.into_bytes();
        stored.resize(stored.len().next_multiple_of(BLOCK), 0);
        stored.extend(fragments.iter().flat_map(|(_, data)| data.iter().copied()));
        Self::file(format!("GNUSparseFile.0/{}", name.replace('/', "_")), 0o644, &stored)
            .pax("GNU.sparse.major", "1")
            .pax("GNU.sparse.minor", "0")
            .pax("GNU.sparse.name", name)
            .pax("GNU.sparse.realsize", size.to_string())
    }

    fn header(&self, size: u64) -> Vec<u8> {
        let mut header = vec![0; BLOCK];
        for (at, length, text) in [(0, 100, &self.name), (157, 100, &self.link)] {
            let length = text.len().min(length);
            header[at..at + length].copy_from_slice(&text[..length]);
        }
        octal(&mut header[100..108], self.mode.into());
        number(&mut header[108..116], self.owner.0);
        number(&mut header[116..124], self.owner.1);
        number(&mut header[124..136], size);
        number(&mut header[136..148], self.seconds);
        header[156] = self.kind;
        header[257..265].copy_from_slice(b"ustar\x0000");
        if self.name.len() > 100 || self.link.len() > 100 || self.owner.0.max(self.owner.1) > 0o7_777_777 {
            header[257..265].copy_from_slice(b"ustar  \0");
        }
        octal(&mut header[329..337], self.device.0.into());
        octal(&mut header[337..345], self.device.1.into());
        seal(&mut header);
        header
    }
}

/// Records of a PAX header: `length key=value\n`, the length counting itself.
fn records(records: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in records {
        let rest = [b" ", key.as_slice(), b"=", value.as_slice(), b"\n"].concat();
        let mut length = rest.len() + 1;
        while length != rest.len() + length.to_string().len() {
            length = rest.len() + length.to_string().len();
        }
        bytes.extend(length.to_string().into_bytes());
        bytes.extend(rest);
    }
    bytes
}

fn octal(field: &mut [u8], value: u64) {
    let text = format!("{value:0>width$o}\0", width = field.len() - 1);
    field.copy_from_slice(text.as_bytes());
}

/// Octal where it fits, else GNU's binary form.
fn number(field: &mut [u8], value: u64) {
    if value < 1 << (3 * (field.len() - 1)) {
        return octal(field, value);
    }
    field.fill(0);
    let start = field.len() - 8;
    field[start..].copy_from_slice(&value.to_be_bytes());
    field[0] |= 0x80;
}

fn seal(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:0>6o}\0 ").as_bytes());
}
