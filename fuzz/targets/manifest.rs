//! Manifests, indexes and configurations of images. The first byte chooses the media type.
#![no_main]

use corten_images::manifest::{Config, Index, Manifest, chain_ids, with_proper_config_type};
use corten_types::{Descriptor, Digest, media_type};
use libfuzzer_sys::fuzz_target;

const TYPES: [&str; 6] = [
    media_type::OCI_MANIFEST,
    media_type::DOCKER_MANIFEST,
    media_type::OCI_INDEX,
    media_type::DOCKER_INDEX,
    media_type::OCI_CONFIG,
    "application/x",
];

fuzz_target!(|input: &[u8]| {
    let Some((which, data)) = input.split_first() else { return };
    let size = i64::try_from(data.len()).unwrap_or(i64::MAX);
    let descriptor = Descriptor::new(TYPES[usize::from(*which) % TYPES.len()], Digest::sha256(data), size);
    if let Ok(manifest) = Manifest::read(&descriptor, data) {
        assert_eq!(manifest.children().count(), manifest.layers.len() + 1);
    }
    drop(Index::read(&descriptor, data));
    if let Ok(config) = Config::read(&descriptor, data) {
        assert_eq!(chain_ids(&config.rootfs.diff_ids).len(), config.rootfs.diff_ids.len());
        assert!(!config.platform().to_string().is_empty());
    }
    drop(with_proper_config_type(&descriptor, data));
});
