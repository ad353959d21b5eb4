//! Documents of an image: index, manifest, config (spec 03 §2). They come from strangers, so they are
//! checked before anything in them is believed.

use corten_types::{Descriptor, Digest, Error, Platform, Result, ResultExt, media_type};
use serde::{Deserialize, Serialize};

/// One platform's image: its config and its layers, the lowest first.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// What containers of the image are made like.
    pub config: Descriptor,
    /// File systems to be laid one over the other.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub layers: Vec<Descriptor>,
    /// What this manifest is about (signatures, attestations).
    #[serde(default)]
    pub subject: Option<Descriptor>,
}

/// The manifests of an image, one for each platform.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Index {
    /// In the order of the document.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub manifests: Vec<Descriptor>,
}

/// What is needed here of an image config.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Config {
    /// What it is made for.
    #[serde(flatten)]
    pub platform: ConfigPlatform,
    /// Its layers.
    #[serde(default)]
    pub rootfs: RootFs,
}

/// The platform fields of a config; unlike those of an index, all of them may be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ConfigPlatform {
    architecture: String,
    os: String,
    #[serde(rename = "os.version")]
    os_version: String,
    #[serde(rename = "os.features", deserialize_with = "null_as_empty")]
    os_features: Vec<String>,
    variant: String,
}

impl From<ConfigPlatform> for Platform {
    fn from(platform: ConfigPlatform) -> Self {
        Self {
            architecture: platform.architecture,
            os: platform.os,
            os_version: platform.os_version,
            os_features: platform.os_features,
            variant: platform.variant,
        }
    }
}

/// The layers of a config.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Digests of the uncompressed layers, the lowest first.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub diff_ids: Vec<Digest>,
}

/// Go writes `null` for a list that is empty.
fn null_as_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default())
}

/// What a document shows of its kind, whatever its media type says.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Shape {
    media_type: Option<String>,
    config: Option<serde::de::IgnoredAny>,
    layers: Option<Vec<serde::de::IgnoredAny>>,
    manifests: Option<Vec<serde::de::IgnoredAny>>,
    fs_layers: Option<Vec<serde::de::IgnoredAny>>,
}

/// Checks that a document is of the kind that its media type says, and of no other (CVE-2021-41190).
fn check_shape(media_type: &str, data: &[u8]) -> Result<()> {
    let shape: Shape = parse(data)?;
    let declared = shape.media_type.as_deref().unwrap_or_default();
    if shape.fs_layers.is_some() {
        return Err(Error::unknown("media-type: schema 1 not supported"));
    }
    if media_type::is_manifest(media_type) && (shape.manifests.is_some() || media_type::is_index(declared)) {
        return Err(Error::unknown(format!("media-type: expected manifest but found index ({media_type})")));
    }
    let like_manifest = shape.config.is_some() || shape.layers.is_some();
    if media_type::is_index(media_type) && (like_manifest || media_type::is_manifest(declared)) {
        return Err(Error::unknown(format!("media-type: expected index but found manifest ({media_type})")));
    }
    Ok(())
}

fn parse<'a, T: Deserialize<'a>>(data: &'a [u8]) -> Result<T> {
    serde_json::from_slice(data).map_err(|error| Error::unknown(error.to_string()))
}

fn check_descriptor(descriptor: &Descriptor) -> Result<()> {
    if descriptor.size < 0 {
        return Err(Error::invalid_argument(format!("negative size of {}", descriptor.digest)));
    }
    Ok(())
}

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// Unknown, naming the manifest and what is wrong with it.
    pub fn read(descriptor: &Descriptor, data: &[u8]) -> Result<Self> {
        let read = || -> Result<Self> {
            check_shape(&descriptor.media_type, data)?;
            let manifest: Self = parse(data)?;
            manifest.layers.iter().chain([&manifest.config]).try_for_each(check_descriptor)?;
            Ok(manifest)
        };
        read().with_context(|| format!("manifest: invalid desc {}", descriptor.digest))
    }

    /// The blobs in the order in which they are numbered: config, then layers.
    pub fn children(&self) -> impl Iterator<Item = &Descriptor> {
        std::iter::once(&self.config).chain(&self.layers)
    }
}

impl Index {
    /// Reads and checks an index.
    ///
    /// # Errors
    /// Unknown, naming the index and what is wrong with it.
    pub fn read(descriptor: &Descriptor, data: &[u8]) -> Result<Self> {
        let read = || -> Result<Self> {
            check_shape(&descriptor.media_type, data)?;
            let index: Self = parse(data)?;
            index.manifests.iter().try_for_each(check_descriptor)?;
            Ok(index)
        };
        read().with_context(|| format!("index: invalid desc {}", descriptor.digest))
    }
}

impl Config {
    /// Reads a config.
    ///
    /// # Errors
    /// Unknown, naming the config and what is wrong with it.
    pub fn read(descriptor: &Descriptor, data: &[u8]) -> Result<Self> {
        parse(data).with_context(|| format!("config: invalid desc {}", descriptor.digest))
    }

    /// The platform.
    #[must_use]
    pub fn platform(&self) -> Platform {
        self.platform.clone().into()
    }
}

/// The name of a stack of layers: of its lowest layer the digest, of each further one the digest of the
/// name below, a space and the layer's digest.
#[must_use]
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chain.push(match chain.last() {
            None => diff_id.clone(),
            Some(below) => Digest::sha256(format!("{below} {diff_id}").as_bytes()),
        });
    }
    chain
}

/// The manifest of a registry that serves configs as `application/octet-stream`, with the media type that
/// it should have; nothing if the manifest needs no such change. Written as the original writes it, so
/// that the digest is the same.
///
/// # Errors
/// Unknown for a manifest that cannot be read.
pub fn with_proper_config_type(descriptor: &Descriptor, data: &[u8]) -> Result<Option<Vec<u8>>> {
    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Document {
        schema_version: i64,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        media_type: String,
        config: Descriptor,
        #[serde(default, deserialize_with = "null_as_empty")]
        layers: Vec<Descriptor>,
        #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
        annotations: std::collections::BTreeMap<String, String>,
    }

    if descriptor.media_type != media_type::DOCKER_MANIFEST {
        return Ok(None);
    }
    let mut document: Document =
        parse(data).with_context(|| format!("manifest: invalid desc {}", descriptor.digest))?;
    if document.config.media_type != "application/octet-stream" {
        return Ok(None);
    }
    media_type::DOCKER_CONFIG.clone_into(&mut document.config.media_type);
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"   ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    document.serialize(&mut serializer).map_err(|error| Error::unknown(error.to_string()))?;
    Ok(Some(out))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn digest(n: u8) -> Digest {
        Digest::sha256(&[n])
    }

    fn of(media_type: &str) -> Descriptor {
        Descriptor::new(media_type, digest(0), 1)
    }

    fn descriptor(n: u8) -> serde_json::Value {
        json!({"mediaType": "t", "digest": digest(n), "size": n})
    }

    #[test]
    fn documents_of_two_kinds_are_refused() {
        let both = json!({"config": descriptor(1), "layers": [descriptor(2)], "manifests": [descriptor(3)]});
        let both = both.to_string();
        let error = Manifest::read(&of(media_type::OCI_MANIFEST), both.as_bytes()).unwrap_err().to_string();
        assert!(
            error.ends_with(&format!("expected manifest but found index ({})", media_type::OCI_MANIFEST))
        );
        let error = Index::read(&of(media_type::OCI_INDEX), both.as_bytes()).unwrap_err().to_string();
        assert!(error.ends_with(&format!("expected index but found manifest ({})", media_type::OCI_INDEX)));
    }

    #[test]
    fn a_declared_type_of_the_other_kind_is_refused() {
        let text = json!({"mediaType": media_type::DOCKER_INDEX, "config": descriptor(1)}).to_string();
        Manifest::read(&of(media_type::OCI_MANIFEST), text.as_bytes()).unwrap_err();
        let text = json!({"mediaType": media_type::OCI_MANIFEST, "manifests": []}).to_string();
        Index::read(&of(media_type::DOCKER_INDEX), text.as_bytes()).unwrap_err();
        let text = json!({"fsLayers": [{"blobSum": "x"}], "config": descriptor(1)}).to_string();
        let error = Manifest::read(&of(media_type::DOCKER_MANIFEST), text.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("schema 1 not supported"), "{error}");
    }

    #[test]
    fn manifests_are_read() {
        let text = json!({"schemaVersion": 2, "config": descriptor(1), "layers": null}).to_string();
        let manifest = Manifest::read(&of(media_type::OCI_MANIFEST), text.as_bytes()).unwrap();
        assert_eq!((manifest.config.size, manifest.layers.len()), (1, 0));
        for bad in [
            "<html>".to_owned(),
            "{}".to_owned(),
            json!({"config": {"mediaType": "t", "digest": "sha256:../../etc", "size": 1}}).to_string(),
            json!({"config": {"mediaType": "t", "digest": digest(1), "size": -1}}).to_string(),
        ] {
            let error = Manifest::read(&of(media_type::OCI_MANIFEST), bad.as_bytes()).unwrap_err();
            assert!(error.to_string().starts_with("manifest: invalid desc sha256:"), "{error}");
        }
    }

    #[test]
    fn configs_are_read() {
        let text = json!({
            "architecture": "arm64", "os": "linux", "variant": "v8", "os.features": null,
            "rootfs": {"type": "layers", "diff_ids": [digest(1)]}, "config": {}
        });
        let config = Config::read(&of(media_type::OCI_CONFIG), text.to_string().as_bytes()).unwrap();
        assert_eq!(config.platform().variant, "v8");
        assert_eq!(config.rootfs.diff_ids, [digest(1)]);
        assert!(Config::read(&of(media_type::OCI_CONFIG), b"{}").unwrap().rootfs.diff_ids.is_empty());
    }

    #[test]
    fn chain_ids_follow_the_specification() {
        let [a, b] = [digest(1), digest(2)];
        let below = Digest::sha256(format!("{a} {b}").as_bytes());
        let top = Digest::sha256(format!("{below} {a}").as_bytes());
        assert_eq!(chain_ids(&[a.clone(), b, a.clone()]), [a, below, top]);
        assert!(chain_ids(&[]).is_empty());
    }

    #[test]
    fn a_config_type_of_old_registries_is_mended() {
        let config = json!({"mediaType": "application/octet-stream", "digest": digest(1), "size": 1});
        let text = json!({"schemaVersion": 2, "config": config, "layers": []}).to_string();
        let mended = with_proper_config_type(&of(media_type::DOCKER_MANIFEST), text.as_bytes()).unwrap();
        let mended = String::from_utf8(mended.unwrap()).unwrap();
        let start = format!(
            "{{\n   \"schemaVersion\": 2,\n   \"config\": {{\n      \"mediaType\": \"{}\",",
            media_type::DOCKER_CONFIG
        );
        assert!(mended.starts_with(&start), "{mended}");
        assert!(with_proper_config_type(&of(media_type::OCI_MANIFEST), text.as_bytes()).unwrap().is_none());
        assert!(
            with_proper_config_type(&of(media_type::DOCKER_MANIFEST), mended.as_bytes()).unwrap().is_none()
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Manifest::read(&of(media_type::OCI_MANIFEST), &data);
            let _ = Index::read(&of(media_type::OCI_INDEX), &data);
            let _ = Config::read(&of(media_type::OCI_CONFIG), &data);
        }
    }
}
