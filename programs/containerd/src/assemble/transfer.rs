//! What moves images, with the options of `io.containerd.transfer.v1.local`.

use std::path::PathBuf;
use std::sync::Arc;

use corten_config::{Config, duration};
use corten_diff::Differs;
use corten_images::{Platforms, UnpackRule, VerifierDir};
use corten_registry::Parts;
use corten_snapshots::Snapshots;
use corten_types::{Error, Platform, Result};
use serde::Deserialize;

use super::{KnownDiffers, uri};
use crate::plugins::Plugins;
use crate::plugins::parts::{DIFFER, TRANSFER, VERIFIER};
use crate::services::Settings;

/// One entry of `unpack_config`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct UnpackConfig {
    platform: String,
    snapshotter: String,
    differ: String,
}

/// How images come in. Entries that cannot be followed fail the part.
pub fn image_options(
    config: &Config,
    plugins: &mut Plugins,
    snapshots: &Snapshots,
    known: &KnownDiffers,
) -> Result<corten_images::Options> {
    let uri = uri(TRANSFER, "local");
    let usual = corten_images::Options::default();
    let or = |key: &str, usual: usize| match config.number(&uri, key) {
        0 => usual,
        number => number,
    };
    let unpack = plugins.load(TRANSFER, "local", |_| unpack_rules(config, snapshots, known))?;
    Ok(corten_images::Options {
        max_concurrent_downloads: or("max_concurrent_downloads", usual.max_concurrent_downloads),
        max_concurrent_unpacks: or("max_concurrent_unpacks", usual.max_concurrent_unpacks),
        max_unpacked_layer_size: match config.number(&uri, "max_unpacked_layer_size") {
            0 => usual.max_unpacked_layer_size,
            size => size,
        },
        unpack: unpack.unwrap_or_default(),
        only_by_rules: config.flag(&uri, "check_platform_supported"),
        ..usual
    })
}

/// The entries of `unpack_config`. Their platforms count only where these are to be checked.
fn unpack_rules(config: &Config, snapshots: &Snapshots, known: &KnownDiffers) -> Result<Vec<UnpackRule>> {
    let uri = uri(TRANSFER, "local");
    let Some(entries) = config.plugin(&uri).get("unpack_config") else {
        let platforms = Platforms::like(&[Platform::host()]);
        let snapshotter = corten_images::Options::default().default_snapshotter;
        return Ok(vec![UnpackRule { platforms, snapshotter, differs: None }]);
    };
    let entries: Vec<UnpackConfig> =
        entries.clone().try_into().map_err(|error| Error::unknown(format!("unpack_config: {error}")))?;
    let strict = config.flag(&uri, "check_platform_supported");
    let rule = |entry: UnpackConfig| {
        let invalid =
            |_| Error::unknown(format!("{TRANSFER}: platform configuration {} invalid", entry.platform));
        let platform: Platform = entry.platform.parse().map_err(invalid)?;
        if snapshots.capabilities(&entry.snapshotter).is_err() {
            return Err(Error::not_found(format!("snapshotter {:?} not found", entry.snapshotter)));
        }
        let differs = match (entry.differ.as_str(), known.get(&entry.differ)) {
            ("", _) => None,
            (_, Some(differ)) => Some(Differs::new(vec![Arc::clone(differ)])),
            (name, None) => {
                return Err(Error::unknown(format!(
                    "failed to get instance for diff plugin {name:?}: no plugins registered for {DIFFER}.{name}: \
                     plugin: not found"
                )));
            }
        };
        let platforms = if strict { Platforms::like(&[platform]) } else { Platforms::all() };
        Ok(UnpackRule { platforms, snapshotter: entry.snapshotter, differs })
    };
    entries.into_iter().map(rule).collect()
}

/// What transfers are done with.
pub fn settings(config: &Config, plugins: &mut Plugins) -> Result<Settings> {
    let (transfer, bindir) = (uri(TRANSFER, "local"), uri(VERIFIER, "bindir"));
    let verifier = plugins.load(VERIFIER, "bindir", |_| {
        Ok(VerifierDir {
            name: "bindir".into(),
            dir: config.text(&bindir, "bin_dir").into(),
            max_verifiers: usize::try_from(config.number::<i64>(&bindir, "max_verifiers")).ok(),
            timeout: duration::parse(config.text(&bindir, "per_verifier_timeout"))?,
        })
    })?;
    let hosts = config.text(&transfer, "config_path");
    let size = config.number::<u64>(&transfer, "concurrent_layer_fetch_buffer");
    let count = config.number::<usize>(&transfer, "max_concurrent_downloads");
    Ok(Settings {
        uploads: config.number::<usize>(&transfer, "max_concurrent_uploaded_layers").max(1),
        hosts_dirs: std::env::split_paths(hosts)
            .filter(|path| !path.as_os_str().is_empty())
            .collect::<Vec<PathBuf>>(),
        parts: (size > 0).then_some(Parts { size, count }),
        limits: Arc::default(),
        verifier: verifier.map(Arc::new),
    })
}
