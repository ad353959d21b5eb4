//! Images made for tests.

use std::io::Write;

use corten_registry::testing::ScriptedRegistry;
use corten_types::{Descriptor, Digest, media_type};
use serde_json::{Value, json};

/// A layer: its plain tar and its blob.
#[derive(Clone)]
pub struct Layer {
    pub diff_id: Digest,
    pub media_type: &'static str,
    pub blob: Vec<u8>,
}

/// Entries by path: a path that ends in `/` is a folder, a text of `-> x` a symbolic link.
pub fn tar(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, text) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(1);
        header.set_uid(0);
        header.set_gid(0);
        if path.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
            // The text of a folder is its mode.
            header.set_mode(u32::from_str_radix(text, 8).unwrap_or(0o755));
            header.set_size(0);
            builder.append_data(&mut header, path, &b""[..]).unwrap();
        } else if let Some(target) = text.strip_prefix("-> ") {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            builder.append_link(&mut header, path, target).unwrap();
        } else {
            header.set_size(text.len() as u64);
            builder.append_data(&mut header, path, text.as_bytes()).unwrap();
        }
    }
    builder.into_inner().unwrap()
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

impl Layer {
    pub fn gzip(entries: &[(&str, &str)]) -> Self {
        let tar = tar(entries);
        Self { diff_id: Digest::sha256(&tar), media_type: media_type::OCI_LAYER_GZIP, blob: gzip(&tar) }
    }

    pub fn plain(entries: &[(&str, &str)]) -> Self {
        let tar = tar(entries);
        Self { diff_id: Digest::sha256(&tar), media_type: media_type::OCI_LAYER, blob: tar }
    }

    pub fn zstd(entries: &[(&str, &str)]) -> Self {
        let tar = tar(entries);
        let blob = zstd::encode_all(tar.as_slice(), 1).unwrap();
        Self { diff_id: Digest::sha256(&tar), media_type: media_type::OCI_LAYER_ZSTD, blob }
    }

    /// A layer of one file of so many bytes that do not compress well.
    pub fn large(path: &str, size: usize) -> Self {
        let mut state = 7u64;
        let text: String = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(b'!' + ((state >> 57) as u8 % 90))
        })
        .take(size)
        .collect();
        Self::plain(&[(path, &text)])
    }

    pub fn descriptor(&self) -> Descriptor {
        Descriptor::new(self.media_type, Digest::sha256(&self.blob), self.blob.len() as i64)
    }
}

/// An image for one platform.
#[derive(Clone)]
pub struct Image {
    pub architecture: String,
    pub layers: Vec<Layer>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
}

impl Image {
    pub fn new(layers: &[Layer]) -> Self {
        Self::on(&corten_types::Platform::host().architecture, layers)
    }

    pub fn on(architecture: &str, layers: &[Layer]) -> Self {
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        Self::with_diff_ids(architecture, layers, &diff_ids)
    }

    pub fn with_diff_ids(architecture: &str, layers: &[Layer], diff_ids: &[Digest]) -> Self {
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {"Env": [architecture]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        })
        .to_string()
        .into_bytes();
        let descriptors: Vec<_> = layers.iter().map(Layer::descriptor).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
            "config": Descriptor::new(media_type::OCI_CONFIG, Digest::sha256(&config), config.len() as i64),
            "layers": descriptors,
        });
        let manifest = manifest.to_string().into_bytes();
        Self { architecture: architecture.to_owned(), layers: layers.to_vec(), config, manifest }
    }

    pub fn descriptor(&self) -> Descriptor {
        let size = self.manifest.len() as i64;
        Descriptor::new(media_type::OCI_MANIFEST, Digest::sha256(&self.manifest), size)
    }

    pub fn config_digest(&self) -> Digest {
        Digest::sha256(&self.config)
    }

    pub fn chain(&self) -> Vec<Digest> {
        let diff_ids: Vec<_> = self.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        corten_images::manifest::chain_ids(&diff_ids)
    }

    /// Puts it into a registry under a tag, or under none.
    pub fn push(&self, registry: &ScriptedRegistry, tag: &str) -> Descriptor {
        for layer in &self.layers {
            registry.blob("lab/img", layer.media_type, &layer.blob);
        }
        registry.blob("lab/img", media_type::OCI_CONFIG, &self.config);
        registry.manifest("lab/img", tag, media_type::OCI_MANIFEST, &self.manifest)
    }
}

/// An index entry.
pub fn entry(image: &Image) -> Value {
    let mut descriptor = image.descriptor();
    descriptor.platform = Some(format!("linux/{}", image.architecture).parse().unwrap());
    serde_json::to_value(descriptor).unwrap()
}

/// Puts an index of images into a registry.
pub fn push_index(registry: &ScriptedRegistry, tag: &str, images: &[Image]) -> Descriptor {
    for image in images {
        image.push(registry, "");
    }
    let entries: Vec<_> = images.iter().map(entry).collect();
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": entries});
    registry.manifest("lab/img", tag, media_type::OCI_INDEX, index.to_string().as_bytes())
}

/// An OCI layout as a tar; `annotations` are those of the entries of index.json.
pub fn layout(images: &[(&Image, &[(&str, &str)])]) -> Vec<u8> {
    let mut files: Vec<(String, Vec<u8>)> =
        vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    let mut entries = Vec::new();
    let mut blob =
        |data: &[u8]| files.push((format!("blobs/sha256/{}", Digest::sha256(data).hex()), data.to_vec()));
    for (image, annotations) in images {
        for layer in &image.layers {
            blob(&layer.blob);
        }
        blob(&image.config);
        blob(&image.manifest);
        let mut descriptor = image.descriptor();
        for (key, value) in *annotations {
            descriptor.annotations.insert((*key).to_owned(), (*value).to_owned());
        }
        entries.push(descriptor);
    }
    let index = json!({"schemaVersion": 2, "manifests": entries}).to_string();
    files.push(("index.json".to_owned(), index.into_bytes()));
    archive(&files)
}

/// A tar of files.
pub fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, data.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}
