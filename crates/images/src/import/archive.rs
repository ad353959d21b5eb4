//! An archive as it streams by (spec 03 §8): its files become blobs, its few documents are kept.

use std::collections::BTreeMap;
use std::io::Read;

use corten_types::{Descriptor, Digest, Error, Result, ResultExt, media_type};
use serde::Deserialize;

use super::tar::{Entries, Kind};

/// The largest document that is held in memory (CVE-2023-25153).
pub(super) const MAX_JSON: u64 = 20 << 20;
/// More files than any image has.
const MAX_FILES: usize = 100_000;
const LAYOUT_VERSION: &str = "1.0.0";
const INDEX: &str = "index.json";

/// What an archive turned out to be.
#[derive(Debug)]
pub(super) enum Archive {
    /// An OCI layout: the blob of its index.
    Layout(Descriptor),
    /// What `docker save` writes.
    Docker(Vec<DockerImage>, Blobs),
}

/// One image of `docker save`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DockerImage {
    pub config: String,
    #[serde(default)]
    pub repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub layers: Option<Vec<String>>,
}

/// The files of an archive by path.
#[derive(Debug, Default)]
pub(super) struct Blobs {
    files: BTreeMap<String, (Digest, u64)>,
    links: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layout {
    image_layout_version: String,
}

impl Blobs {
    /// The blob of a path, through symbolic links.
    pub fn get(&self, path: &str) -> Result<(Digest, u64)> {
        let mut path = clean(path);
        // A link may lead to a link, but not in circles.
        for _ in 0..16 {
            if let Some(found) = self.files.get(&path) {
                return Ok(found.clone());
            }
            match self.links.get(&path) {
                Some(target) => path.clone_from(target),
                None => break,
            }
        }
        Err(Error::not_found(format!("no file {path:?} in the archive")))
    }
}

/// Reads a whole archive. Each regular file is given to `store` with its path and size, and comes back as a
/// digest.
pub(super) fn read(
    reader: impl Read,
    mut store: impl FnMut(&str, u64, &mut dyn Read) -> Result<Digest>,
) -> Result<Archive> {
    let mut entries = Entries::new(reader);
    let mut blobs = Blobs::default();
    let (mut layout, mut manifest) = (None::<Layout>, None::<Vec<DockerImage>>);
    while let Some(entry) = entries.next()? {
        let path = clean(&entry.path);
        if blobs.files.len() + blobs.links.len() >= MAX_FILES {
            return Err(Error::invalid_argument(format!("more than {MAX_FILES} files in the archive")));
        }
        match (entry.kind, path.as_str()) {
            (Kind::Symlink, _) => {
                let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
                blobs.links.insert(path.clone(), clean(&format!("{folder}/{}", entry.link)));
            }
            (Kind::File, "oci-layout") => layout = Some(document(&mut entries, &path)?),
            (Kind::File, "manifest.json") => manifest = Some(document(&mut entries, &path)?),
            (Kind::File, INDEX) if entry.size > MAX_JSON => {
                entries.read_all(MAX_JSON).context(&path)?;
            }
            (Kind::File, _) => {
                let digest = store(&path, entry.size, &mut entries)
                    .with_context(|| format!("failed to ingest {path:?}"))?;
                blobs.files.insert(path, (digest, entry.size));
            }
            (Kind::Other, _) => {}
        }
    }
    match (layout, manifest) {
        (Some(layout), _) if layout.image_layout_version != LAYOUT_VERSION => {
            Err(Error::unknown(format!("unsupported OCI version {}", layout.image_layout_version)))
        }
        (Some(_), _) => {
            let (digest, size) = blobs
                .files
                .remove(INDEX)
                .ok_or_else(|| Error::not_found("missing index.json in OCI layout"))?;
            Ok(Archive::Layout(Descriptor::new(
                media_type::OCI_INDEX,
                digest,
                i64::try_from(size).unwrap_or(i64::MAX),
            )))
        }
        (None, Some(images)) => Ok(Archive::Docker(images, blobs)),
        (None, None) => Err(Error::unknown("unrecognized image format")),
    }
}

fn document<T: for<'a> Deserialize<'a>, R: Read>(entries: &mut Entries<R>, path: &str) -> Result<T> {
    let data = entries.read_all(MAX_JSON).context(path)?;
    serde_json::from_slice(&data).map_err(|error| Error::unknown(format!("{path}: {error}")))
}

/// A path without empty, `.` and `..` parts, relative to the archive.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(files: &[(&str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, text) in files {
            let mut header = ::tar::Header::new_gnu();
            if let Some(target) = text.strip_prefix("-> ") {
                header.set_entry_type(::tar::EntryType::Symlink);
                header.set_size(0);
                builder.append_link(&mut header, path, target).unwrap();
            } else {
                header.set_size(text.len() as u64);
                builder.append_data(&mut header, path, text.as_bytes()).unwrap();
            }
        }
        builder.into_inner().unwrap()
    }

    use ::tar;

    fn open(files: &[(&str, &str)]) -> Result<Archive> {
        read(archive(files).as_slice(), |_, _, reader| {
            let mut data = Vec::new();
            reader.read_to_end(&mut data)?;
            Ok(Digest::sha256(&data))
        })
    }

    #[test]
    fn an_oci_layout_is_its_index() {
        let layout = r#"{"imageLayoutVersion":"1.0.0"}"#;
        let files = [
            ("blobs/sha256/x", "x"),
            ("./index.json", "{}"),
            ("manifest.json", "[]"),
            ("oci-layout", layout),
        ];
        let Archive::Layout(index) = open(&files).unwrap() else { panic!("not a layout") };
        assert_eq!(index, Descriptor::new(media_type::OCI_INDEX, Digest::sha256(b"{}"), 2));
        let error = open(&[("oci-layout", r#"{"imageLayoutVersion":"2"}"#)]).unwrap_err();
        assert_eq!(error.to_string(), "unsupported OCI version 2");
        assert!(open(&[("oci-layout", layout)]).unwrap_err().to_string().contains("missing index.json"));
    }

    #[test]
    fn docker_archives_resolve_their_links() {
        let manifest = r#"[{"Config":"c.json","RepoTags":null,"Layers":["b/layer.tar"]}]"#;
        let files = [
            ("a/layer.tar", "data"),
            ("b/layer.tar", "-> ../a/layer.tar"),
            ("loop", "-> loop"),
            ("out", "-> ../../../etc/passwd"),
            ("c.json", "{}"),
            ("manifest.json", manifest),
        ];
        let Archive::Docker(images, blobs) = open(&files).unwrap() else { panic!("not from docker") };
        assert_eq!(images.len(), 1);
        assert_eq!(blobs.get("b/layer.tar").unwrap(), (Digest::sha256(b"data"), 4));
        for path in ["loop", "out", "none"] {
            assert!(blobs.get(path).unwrap_err().is_not_found(), "{path}");
        }
    }

    #[test]
    fn anything_else_is_no_image() {
        assert_eq!(open(&[("a", "b")]).unwrap_err().to_string(), "unrecognized image format");
        assert_eq!(
            read(&b""[..], |_, _, _| unreachable!()).unwrap_err().to_string(),
            "unrecognized image format"
        );
        assert!(open(&[("manifest.json", "{")]).is_err());
    }

    /// CVE-2023-25153.
    #[test]
    fn a_document_of_gigabytes_is_refused_without_reading_it() {
        for path in ["index.json", "manifest.json", "oci-layout"] {
            let mut header = ::tar::Header::new_gnu();
            header.set_path(path).unwrap();
            header.set_size(4 << 30);
            header.set_cksum();
            let reader = header.as_bytes().chain(std::io::repeat(b' '));
            let error = read(reader, |_, _, _| unreachable!()).unwrap_err();
            assert!(error.to_string().contains("larger than the limit"), "{error}");
        }
    }
}
