//! Labels that keep an image together: of content, so that the collector finds what belongs to it
//! (spec 03 §4), and of snapshots (spec 03 §5, §13).

use std::collections::BTreeSet;

use corten_types::{Descriptor, Digest, Labels, media_type};

/// Digest of the uncompressed form, on a layer's blob.
pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// The chain id that an extraction is for, on its snapshot.
pub const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";
/// Annotation of manifests that are about another one.
pub const SUBJECT: &str = "io.containerd.manifest.subject";

const CONTENT_REF: &str = "containerd.io/gc.ref.content";
const SNAPSHOT_GC_REF: &str = "containerd.io/gc.ref.snapshot";
const SOURCE: &str = "containerd.io/distribution.source";
const SNAPSHOT_PREFIX: &str = "containerd.io/snapshot/";
const MAX_LABEL: usize = 4096;

/// The labels with which a blob names its children, numbered in their order. `layers` tells whether layers
/// are named too, so that they outlive their extraction.
#[must_use]
pub fn of_children<'a>(children: impl IntoIterator<Item = &'a Descriptor>, layers: bool) -> Labels {
    let mut counts = std::collections::HashMap::<&str, usize>::new();
    let mut labels = Labels::new();
    for child in children {
        let kind = child.media_type.as_str();
        if let Some(key) = child.annotations.get(SUBJECT).and(referrer_key(child)) {
            labels.insert(key, child.digest.to_string());
            continue;
        }
        let prefix = if media_type::is_manifest(kind) || media_type::is_index(kind) {
            ".m."
        } else if media_type::is_layer(kind) {
            if !layers {
                continue;
            }
            ".l."
        } else if media_type::is_config(kind) {
            ".config"
        } else {
            "."
        };
        let count = counts.entry(prefix).or_default();
        let key = match (prefix, *count) {
            (".config", 0) => format!("{CONTENT_REF}.config"),
            (prefix, count) => format!("{CONTENT_REF}{prefix}{count}"),
        };
        *count += 1;
        labels.insert(key, child.digest.to_string());
    }
    labels
}

fn referrer_key(child: &Descriptor) -> Option<String> {
    let short = child.digest.hex().get(..12)?;
    Some(format!("{CONTENT_REF}.referrer.{}.{short}", child.digest.algorithm().as_str()))
}

/// The label of a config blob that keeps the snapshots of its image.
#[must_use]
pub fn of_snapshot(snapshotter: &str) -> String {
    format!("{SNAPSHOT_GC_REF}.{snapshotter}")
}

/// The label that says from where a blob came: of `registry` (a port is left out) the `repository`, added
/// to those that `known` names. Nothing if there is nothing to change.
#[must_use]
pub fn of_source(known: &Labels, registry: &str, repository: &str) -> Option<(String, String)> {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.split(':').next().unwrap_or_default(),
    };
    let key = format!("{SOURCE}.{host}");
    let before = known.get(&key).map_or("", String::as_str);
    let mut repositories: BTreeSet<&str> = before.split(',').filter(|name| !name.is_empty()).collect();
    repositories.insert(repository);
    let value = repositories.into_iter().collect::<Vec<_>>().join(",");
    (value != before && key.len() + value.len() <= MAX_LABEL).then_some((key, value))
}

/// Whether a label says from where a blob came.
#[must_use]
pub fn is_source(key: &str) -> bool {
    key.strip_prefix(SOURCE).is_some_and(|rest| rest.starts_with('.'))
}

/// Another repository of the same registry that a blob came from: the one with the longest path in common.
#[must_use]
pub fn neighbour(known: &Labels, registry: &str, repository: &str) -> Option<String> {
    let (key, _) = of_source(&Labels::new(), registry, repository)?;
    let common = |one: &str| {
        one.split('/').zip(repository.split('/')).take_while(|(left, right)| left == right).count()
    };
    let names = known.get(&key)?.split(',').filter(|name| !name.is_empty() && *name != repository);
    names.max_by_key(|name| common(name)).map(str::to_owned)
}

/// The labels of the snapshot of one layer.
#[must_use]
pub fn of_layer(layer: &Descriptor, diff_id: &Digest, chain_id: &Digest, parent: Option<&Digest>) -> Labels {
    let mut labels: Labels = layer
        .annotations
        .iter()
        .filter(|(key, _)| key.starts_with(SNAPSHOT_PREFIX))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    labels.insert(SNAPSHOT_REF.to_owned(), chain_id.to_string());
    labels.insert(format!("{SNAPSHOT_PREFIX}diff-id"), diff_id.to_string());
    if let Some(parent) = parent {
        labels.insert(format!("{SNAPSHOT_PREFIX}parent-chain-id"), parent.to_string());
    }
    labels
}

/// What a snapshotter that fetches layers by itself wants to know about one: the image, its manifest, the
/// layer, and the layers from it on upwards as far as a label holds.
#[must_use]
pub fn of_remote_layer(reference: &str, manifest: &Digest, layers: &[Descriptor], index: usize) -> Labels {
    let Some(layer) = layers.get(index) else {
        return Labels::new();
    };
    let key = |name: &str| format!("{SNAPSHOT_PREFIX}cri.{name}");
    let list_key = key("image-layers");
    let mut list = String::new();
    for layer in layers.iter().skip(index).filter(|layer| media_type::is_layer(&layer.media_type)) {
        let comma = usize::from(!list.is_empty());
        if list_key.len() + list.len() + comma + layer.digest.as_str().len() > MAX_LABEL {
            break;
        }
        if comma == 1 {
            list.push(',');
        }
        list.push_str(layer.digest.as_str());
    }
    Labels::from([
        (key("image-ref"), reference.to_owned()),
        (key("manifest-digest"), manifest.to_string()),
        (key("layer-digest"), layer.digest.to_string()),
        (list_key, list),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(media_type: &str, n: u8) -> Descriptor {
        Descriptor::new(media_type, Digest::sha256(&[n]), 1)
    }

    #[test]
    fn children_are_numbered_by_kind() {
        let mut referrer = descriptor(media_type::OCI_MANIFEST, 9);
        referrer.annotations.insert(SUBJECT.to_owned(), "sha256:x".to_owned());
        let children = [
            descriptor(media_type::OCI_CONFIG, 0),
            descriptor(media_type::DOCKER_CONFIG, 1),
            descriptor(media_type::OCI_LAYER_GZIP, 2),
            descriptor(media_type::DOCKER_LAYER, 3),
            descriptor("application/vnd.in-toto+json", 4),
            descriptor(media_type::OCI_MANIFEST, 5),
            descriptor(media_type::OCI_INDEX, 6),
            descriptor("application/other", 7),
            referrer.clone(),
        ];
        let keys: Vec<_> = of_children(&children, true)
            .into_keys()
            .map(|key| key.trim_start_matches("containerd.io/gc.ref.content").to_owned())
            .collect();
        let short = format!(".referrer.sha256.{}", &referrer.digest.hex()[..12]);
        assert_eq!(keys, [".0", ".1", ".config", ".config1", ".l.0", ".l.1", ".m.0", ".m.1", &short]);
        assert!(of_children(&children[2..4], false).is_empty());
    }

    #[test]
    fn sources_are_a_sorted_list_without_the_port() {
        let mut labels = Labels::new();
        for repository in ["b", "a", "b"] {
            labels.extend(of_source(&labels, "reg.example:5000", repository));
        }
        assert_eq!(labels["containerd.io/distribution.source.reg.example"], "a,b");
        assert_eq!(of_source(&labels, "reg.example", "a"), None);
        assert_eq!(of_source(&labels, "reg.example", &"x".repeat(4096)), None);
        let label = of_source(&Labels::new(), "[::1]:5000", "a").unwrap();
        assert_eq!(label.0, "containerd.io/distribution.source.::1");
    }

    #[test]
    fn a_blob_is_mounted_from_the_nearest_neighbour() {
        let mut known = Labels::new();
        for repository in ["a/b/c", "x/y", "a/b"] {
            known.extend(of_source(&known, "reg.example:5000", repository));
        }
        assert_eq!(neighbour(&known, "reg.example:1", "x/z").as_deref(), Some("x/y"));
        assert_eq!(neighbour(&known, "reg.example", "a/b/d").as_deref(), Some("a/b/c"));
        assert_eq!(neighbour(&known, "other.example", "x/z"), None);
    }

    #[test]
    fn layers_inherit_only_what_is_for_snapshots() {
        let mut layer = descriptor(media_type::OCI_LAYER, 1);
        layer.annotations.insert("containerd.io/snapshot/x".to_owned(), "1".to_owned());
        layer.annotations.insert("containerd.io/gc.root".to_owned(), "1".to_owned());
        let labels = of_layer(&layer, &Digest::sha256(b"d"), &Digest::sha256(b"c"), None);
        let keys: Vec<_> = labels.keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            ["containerd.io/snapshot.ref", "containerd.io/snapshot/diff-id", "containerd.io/snapshot/x"]
        );
    }

    #[test]
    fn the_list_of_layers_fits_into_a_label() {
        let layers: Vec<_> = (0..100).map(|n| descriptor(media_type::OCI_LAYER, n)).collect();
        let labels = of_remote_layer("ref", &Digest::sha256(b"m"), &layers, 1);
        let list = &labels["containerd.io/snapshot/cri.image-layers"];
        assert!(list.starts_with(layers[1].digest.as_str()) && !list.ends_with(','));
        assert!(list.len() + "containerd.io/snapshot/cri.image-layers".len() <= 4096);
        assert_eq!(list.split(',').count(), 56);
    }
}
