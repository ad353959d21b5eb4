//! Layers whose files can be had one by one, without the rest: eStargz and zstd:chunked. Both are ordinary layers for
//! whoever reads them from the beginning: each file is compressed by itself, and a list at the end says where.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use corten_types::{Digest, Digester, Error, Result, timestamp};
use serde::Serialize;

use super::tape::{BLOCK, Item, Tape};
use super::{Made, ZSTD_LEVEL};

/// Bytes of a file that are compressed as one in eStargz.
const CHUNK: u64 = 4 << 20;
const STARGZ_LIST: &str = "stargz.index.json";
/// Frames of Zstandard that readers skip.
const SKIPPABLE: u32 = 0x184D_2A50;

/// One file, or a part of one.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(rename = "type")]
    kind: &'static str,
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    link_name: String,
    #[serde(skip_serializing_if = "is_zero")]
    mode: u64,
    #[serde(skip_serializing_if = "is_zero")]
    size: u64,
    #[serde(skip_serializing_if = "is_zero")]
    uid: u64,
    #[serde(skip_serializing_if = "is_zero")]
    gid: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    user_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    group_name: String,
    #[serde(rename = "modtime", skip_serializing_if = "String::is_empty")]
    modified: String,
    #[serde(skip_serializing_if = "is_zero")]
    dev_major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    dev_minor: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    digest: String,
    #[serde(skip_serializing_if = "is_zero")]
    offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    end_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_size: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    chunk_digest: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Serialize)]
struct List {
    version: u32,
    entries: Vec<Entry>,
}

impl Entry {
    fn of(item: &Item) -> Option<Self> {
        use base64::Engine as _;
        let encode = |value: &Vec<u8>| base64::engine::general_purpose::STANDARD.encode(value);
        Some(Self {
            kind: item.word()?,
            name: item.name.clone(),
            link_name: item.link.clone(),
            mode: item.mode,
            size: if item.is_file() { item.size } else { 0 },
            uid: item.uid,
            gid: item.gid,
            user_name: item.user.clone(),
            group_name: item.group.clone(),
            modified: timestamp::rfc3339(timestamp::to_system(&prost_types::Timestamp {
                seconds: item.modified,
                nanos: 0,
            })),
            dev_major: item.device.0,
            dev_minor: item.device.1,
            xattrs: item.xattrs.iter().map(|(key, value)| (key.clone(), encode(value))).collect(),
            ..Self::default()
        })
    }
}

/// Counts what it passes on.
struct Counting<W> {
    output: W,
    count: u64,
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = self.output.write(data)?;
        self.count += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// What both kinds have in common: compressed pieces, one after the other.
enum Piece<W: Write> {
    None,
    Between(Counting<W>),
    Gzip(flate2::write::GzEncoder<Counting<W>>),
    Zstd(zstd::stream::write::Encoder<'static, Counting<W>>),
}

/// Pieces on their way out; all of them together are the layer.
struct Pieces<W: Write> {
    piece: Piece<W>,
    is_zstd: bool,
    digester: Digester,
    size: u64,
}

impl<W: Write> Pieces<W> {
    fn new(output: W, is_zstd: bool) -> Self {
        let piece = Piece::Between(Counting { output, count: 0 });
        Self { piece, is_zstd, digester: Digester::default(), size: 0 }
    }

    /// Ends the piece; answers where the next one begins.
    fn cut(&mut self) -> io::Result<u64> {
        let output = match std::mem::replace(&mut self.piece, Piece::None) {
            Piece::None => return Err(io::Error::other("an earlier piece failed")),
            Piece::Between(output) => output,
            Piece::Gzip(encoder) => encoder.finish()?,
            Piece::Zstd(encoder) => encoder.finish()?,
        };
        let at = output.count;
        self.piece = Piece::Between(output);
        Ok(at)
    }

    /// Bytes as they are, between pieces.
    fn raw(&mut self, data: &[u8]) -> io::Result<()> {
        self.cut()?;
        match &mut self.piece {
            Piece::Between(output) => output.write_all(data),
            _ => Ok(()),
        }
    }

    /// Passes bytes of the input on.
    fn copy(&mut self, input: &mut impl Read, length: u64) -> io::Result<()> {
        if io::copy(&mut input.by_ref().take(length), self)? < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

impl<W: Write> Write for Pieces<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if let Piece::Between(_) = self.piece
            && let Piece::Between(output) = std::mem::replace(&mut self.piece, Piece::None)
        {
            self.piece = match self.is_zstd {
                true => {
                    let mut encoder = zstd::stream::write::Encoder::new(output, ZSTD_LEVEL)?;
                    encoder.include_checksum(true)?;
                    Piece::Zstd(encoder)
                }
                false => Piece::Gzip(flate2::write::GzEncoder::new(output, flate2::Compression::default())),
            };
        }
        match &mut self.piece {
            Piece::Gzip(encoder) => encoder.write_all(data)?,
            Piece::Zstd(encoder) => encoder.write_all(data)?,
            _ => return Err(io::Error::other("an earlier piece failed")),
        }
        self.digester.update(data);
        self.size += data.len() as u64;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Passes an archive on with each file in pieces of its own; answers the list of them. The end of the archive is
/// left to the caller.
fn cut_into_pieces<R: Read, W: Write>(
    tape: &mut Tape<R>,
    pieces: &mut Pieces<W>,
    chunk: u64,
) -> io::Result<List> {
    let mut entries = Vec::new();
    while let Some(item) = tape.next()? {
        pieces.write_all(&item.raw)?;
        let mut entry = Entry::of(&item);
        if !item.is_file() || item.size == 0 {
            pieces.copy(&mut tape.input, item.size + item.padding())?;
            entries.extend(entry);
            continue;
        }
        let (mut whole, mut at, mut parts) = (Digester::default(), 0, Vec::new());
        while at < item.size {
            let length = chunk.min(item.size - at);
            let offset = pieces.cut()?;
            let mut part = Digester::default();
            let mut left = length;
            let mut buffer = vec![0; 64 << 10];
            while left > 0 {
                let room = usize::try_from(left.min(buffer.len() as u64)).unwrap_or(0);
                let count = tape.input.read(buffer.get_mut(..room).unwrap_or_default())?;
                let data = buffer.get(..count).unwrap_or_default();
                if data.is_empty() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                part.update(data);
                whole.update(data);
                pieces.write_all(data)?;
                left -= count as u64;
            }
            let end_offset = if pieces.is_zstd { pieces.cut()? } else { 0 };
            parts.push(Entry {
                kind: "chunk",
                name: item.name.clone(),
                offset,
                end_offset,
                chunk_offset: at,
                // What reaches to the end of its file does not say how long it is.
                chunk_size: if length == item.size { 0 } else { length },
                chunk_digest: part.finish().to_string(),
                ..Entry::default()
            });
            at += length;
        }
        let mut parts = parts.into_iter();
        if let (Some(entry), Some(first)) = (&mut entry, parts.next()) {
            entry.digest = whole.finish().to_string();
            (entry.offset, entry.end_offset) = (first.offset, first.end_offset);
            (entry.chunk_size, entry.chunk_digest) = (first.chunk_size, first.chunk_digest);
        }
        entries.extend(entry);
        entries.extend(parts);
        pieces.copy(&mut tape.input, item.padding())?;
    }
    Ok(List { version: 1, entries })
}

fn json(list: &List) -> Result<Vec<u8>> {
    serde_json::to_vec(list).map_err(|bad| Error::internal(bad.to_string()))
}

/// eStargz: gzip members, the list as the last entry of the archive, and a footer that says where it is.
pub fn estargz(input: impl Read, output: impl Write) -> Result<Made> {
    let mut pieces = Pieces::new(output, false);
    let mut tape = Tape::new(input);
    let list = json(&cut_into_pieces(&mut tape, &mut pieces, CHUNK)?)?;
    // A reader may still be at work on what fills the end.
    io::copy(&mut tape.input, &mut io::sink())?;
    let at = pieces.cut()?;
    let mut header = tar::Header::new_gnu();
    header.set_path(STARGZ_LIST)?;
    header.set_size(list.len() as u64);
    header.set_mode(0o444);
    header.set_cksum();
    pieces.write_all(header.as_bytes())?;
    pieces.write_all(&list)?;
    pieces.write_all(&vec![0; list.len().next_multiple_of(BLOCK) - list.len() + 2 * BLOCK])?;
    pieces.raw(&footer(at))?;
    pieces_end(&mut pieces)?;
    let annotations = BTreeMap::from([
        ("containerd.io/snapshot/stargz/toc.digest".to_owned(), Digest::sha256(&list).to_string()),
        ("io.containers.estargz.uncompressed-size".to_owned(), pieces.size.to_string()),
    ]);
    Ok(Made { diff_id: pieces.digester.finish(), annotations })
}

/// An empty gzip member that holds an address.
fn footer(at: u64) -> Vec<u8> {
    let mut footer = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 26, 0, b'S', b'G', 22, 0];
    footer.extend_from_slice(format!("{at:016x}STARGZ").as_bytes());
    footer.extend_from_slice(&[1, 0, 0, 0xff, 0xff]);
    footer.extend_from_slice(&[0; 8]);
    footer
}

/// zstd:chunked: frames, the list in a frame that readers skip, and a footer in another one.
pub fn chunked(input: impl Read, output: impl Write) -> Result<Made> {
    let mut pieces = Pieces::new(output, true);
    let mut tape = Tape::new(input);
    let list = json(&cut_into_pieces(&mut tape, &mut pieces, u64::MAX)?)?;
    let tail = std::mem::take(&mut tape.tail);
    pieces.write_all(&tail)?;
    io::copy(&mut tape.input, &mut pieces)?;
    let packed = zstd::encode_all(list.as_slice(), ZSTD_LEVEL)?;
    let frame = |data: &[u8]| -> Vec<u8> {
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        [&SKIPPABLE.to_le_bytes()[..], &length.to_le_bytes(), data].concat()
    };
    let at = pieces.cut()? + 8;
    pieces.raw(&frame(&packed))?;
    let (short, long) = (packed.len() as u64, list.len() as u64);
    // Where the list is, what kind it is of, and where what rebuilds headers is, which there is none of.
    let figures = [at, short, long, 1, 0, 0, 0].map(u64::to_le_bytes).concat();
    pieces.raw(&frame(&[&figures[..], b"GNUlInUx"].concat()))?;
    pieces_end(&mut pieces)?;
    let prefix = "io.github.containers.zstd-chunked.";
    let annotations = BTreeMap::from([
        (format!("{prefix}manifest-checksum"), Digest::sha256(&packed).to_string()),
        (format!("{prefix}manifest-position"), format!("{at}:{short}:{long}:1")),
    ]);
    Ok(Made { diff_id: pieces.digester.finish(), annotations })
}

fn pieces_end<W: Write>(pieces: &mut Pieces<W>) -> Result<()> {
    pieces.cut()?;
    if let Piece::Between(output) = &mut pieces.piece {
        output.flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive with long names, a file of some chunks, an empty one, and one with an attribute of two lines.
    fn archive() -> Vec<u8> {
        let mut out = tar::Builder::new(Vec::new());
        let long = format!("{}/file", "d".repeat(150));
        let large: Vec<u8> = (0..9_000_000_u32).map(|n| (n / 7 % 251) as u8).collect();
        for (name, data) in [("empty", &b""[..]), ("small", b"hello"), (&long, b"long"), ("large", &large)] {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o640);
            header.set_uid(7);
            out.append_data(&mut header, name, data).unwrap();
        }
        out.append_pax_extensions([("SCHILY.xattr.user.a", &b"b\nc="[..]), ("mtime", b"12.5")]).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(1);
        out.append_data(&mut header, "attributed", &b"x"[..]).unwrap();
        out.into_inner().unwrap()
    }

    fn names(entries: &[serde_json::Value]) -> Vec<(String, String)> {
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        entries.iter().map(|one| (text(&one["name"]), text(&one["type"]))).collect()
    }

    #[test]
    fn estargz_is_a_layer_whose_files_are_where_its_list_says() {
        let mut layer = Vec::new();
        let made = estargz(archive().as_slice(), &mut layer).unwrap();
        let mut plain = Vec::new();
        flate2::read::MultiGzDecoder::new(layer.as_slice()).read_to_end(&mut plain).unwrap();
        assert_eq!(made.diff_id, Digest::sha256(&plain));
        assert_eq!(made.annotations["io.containers.estargz.uncompressed-size"], plain.len().to_string());
        let mut listed: Vec<String> = Vec::new();
        for entry in tar::Archive::new(plain.as_slice()).entries().unwrap() {
            listed.push(entry.unwrap().path().unwrap().display().to_string());
        }
        assert_eq!((listed.len(), listed.last().unwrap().as_str()), (6, STARGZ_LIST));

        let footer = &layer[layer.len() - 51..];
        assert_eq!(&footer[..4], [0x1f, 0x8b, 8, 4]);
        let at = usize::from_str_radix(std::str::from_utf8(&footer[16..32]).unwrap(), 16).unwrap();
        let mut end = Vec::new();
        flate2::read::GzDecoder::new(&layer[at..]).read_to_end(&mut end).unwrap();
        let size = usize::try_from(number_of(&end[124..136])).unwrap();
        let list = &end[BLOCK..BLOCK + size];
        let digest = Digest::sha256(list).to_string();
        assert_eq!(made.annotations["containerd.io/snapshot/stargz/toc.digest"], digest);
        let list: serde_json::Value = serde_json::from_slice(list).unwrap();
        let entries = list["entries"].as_array().unwrap();
        assert_eq!(names(entries).iter().filter(|(_, kind)| kind == "chunk").count(), 2, "{list}");
        let attributed = entries.last().unwrap();
        assert_eq!(
            (&attributed["xattrs"]["user.a"], &attributed["modtime"]),
            (&"YgpjPQ==".into(), &"1970-01-01T00:00:12Z".into())
        );
        for entry in entries.iter().filter(|one| one["chunkDigest"].is_string()) {
            let at = usize::try_from(entry["offset"].as_u64().unwrap()).unwrap();
            let size = entry["chunkSize"].as_u64().or(entry["size"].as_u64()).unwrap();
            let mut data = Vec::new();
            flate2::read::GzDecoder::new(&layer[at..]).take(size).read_to_end(&mut data).unwrap();
            assert_eq!(entry["chunkDigest"], Digest::sha256(&data).to_string(), "{entry}");
        }
    }

    fn number_of(digits: &[u8]) -> u64 {
        let text = std::str::from_utf8(digits).unwrap();
        u64::from_str_radix(text.trim_end_matches('\0').trim(), 8).unwrap()
    }

    #[test]
    fn zstd_chunked_is_the_same_archive_in_frames() {
        let (mut layer, archive) = (Vec::new(), archive());
        let made = chunked(archive.as_slice(), &mut layer).unwrap();
        assert_eq!(made.diff_id, Digest::sha256(&archive));
        assert!(zstd::decode_all(layer.as_slice()).unwrap() == archive);
        let footer = &layer[layer.len() - 72..];
        assert_eq!((&footer[..4], &footer[64..]), (&SKIPPABLE.to_le_bytes()[..], &b"GNUlInUx"[..]));
        let figure = |n: usize| u64::from_le_bytes(footer[8 + 8 * n..16 + 8 * n].try_into().unwrap());
        let range = |from: u64, length: u64| {
            let from = usize::try_from(from).unwrap();
            &layer[from..from + usize::try_from(length).unwrap()]
        };
        let packed = range(figure(0), figure(1));
        let checksum = &made.annotations["io.github.containers.zstd-chunked.manifest-checksum"];
        assert_eq!(*checksum, Digest::sha256(packed).to_string());
        let list = zstd::decode_all(packed).unwrap();
        assert_eq!(list.len() as u64, figure(2));
        let list: serde_json::Value = serde_json::from_slice(&list).unwrap();
        for entry in list["entries"].as_array().unwrap().iter().filter(|one| one["size"].as_u64() > Some(0)) {
            let (from, to) = (entry["offset"].as_u64().unwrap(), entry["endOffset"].as_u64().unwrap());
            let data = zstd::decode_all(range(from, to - from)).unwrap();
            assert_eq!(entry["digest"], Digest::sha256(&data).to_string(), "{entry}");
        }
    }

    #[test]
    fn what_is_cut_off_or_sparse_is_refused() {
        let archive = archive();
        let half = &archive[..archive.len() / 2];
        assert!(estargz(half, Vec::new()).is_err() && chunked(half, Vec::new()).is_err());
        let mut sparse = archive.clone();
        sparse[156] = b'S';
        let error = estargz(sparse.as_slice(), Vec::new()).unwrap_err();
        assert!(error.message().contains("sparse"), "{error}");
    }
}
