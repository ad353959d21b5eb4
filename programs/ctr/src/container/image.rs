//! Images as far as containers need them: config and layers, read from the daemon's content.

use corten_api::services::{content, diff, images, snapshots};
use corten_api::types::Descriptor;
use corten_types::{Digest, Error, Labels, Platform, Reference, Result, ResultExt, media_type};
use serde_json::Value;

use crate::client::{Daemon, error};

/// An image as far as a container needs it.
#[derive(Debug)]
pub struct Image {
    /// Its record; empty for a bare manifest.
    pub record: images::Image,
    /// The `config` object of its config.
    pub config: Value,
    layers: Vec<Descriptor>,
    diff_ids: Vec<String>,
    config_digest: String,
}

impl Image {
    /// What a manifest says.
    pub async fn from_manifest(daemon: &Daemon, digest: &str, manifest: &Value) -> Result<Self> {
        let named = manifest["config"]["digest"].as_str().unwrap_or_default();
        let config = read_json(daemon, named).await.with_context(|| format!("config of {digest}"))?;
        let descriptor = |layer: &Value| Descriptor {
            media_type: layer["mediaType"].as_str().unwrap_or_default().into(),
            digest: layer["digest"].as_str().unwrap_or_default().into(),
            size: layer["size"].as_i64().unwrap_or(0),
            ..Descriptor::default()
        };
        let layers = manifest["layers"].as_array().map(|layers| layers.iter().map(descriptor).collect());
        let diff_ids = serde_json::from_value(config["rootfs"]["diff_ids"].clone()).unwrap_or_default();
        let record = images::Image::default();
        Ok(Self {
            record,
            config: config["config"].clone(),
            layers: layers.unwrap_or_default(),
            diff_ids,
            config_digest: named.into(),
        })
    }

    /// The layers, the lowest first.
    pub fn layers(&self) -> &[Descriptor] {
        &self.layers
    }

    /// The digest of its config.
    pub fn config_digest(&self) -> &str {
        &self.config_digest
    }

    /// The chain id of each layer, the lowest first.
    pub fn chain(&self) -> Vec<String> {
        let mut chain: Vec<String> = Vec::new();
        for diff_id in &self.diff_ids {
            let next = match chain.last() {
                Some(parent) => Digest::sha256(format!("{parent} {diff_id}").as_bytes()).to_string(),
                None => diff_id.clone(),
            };
            chain.push(next);
        }
        chain
    }
}

/// A whole small blob.
pub async fn read_blob(daemon: &Daemon, digest: &str) -> Result<Vec<u8>> {
    let request = content::ReadContentRequest { digest: digest.into(), offset: 0, size: 0 };
    let mut stream = daemon.content().read(request).await.map_err(error)?.into_inner();
    let mut data = Vec::new();
    while let Some(message) = stream.message().await.map_err(error)? {
        data.extend_from_slice(&message.data);
    }
    Ok(data)
}

/// A whole small document.
pub async fn read_json(daemon: &Daemon, digest: &str) -> Result<Value> {
    let data = read_blob(daemon, digest).await?;
    serde_json::from_slice(&data).map_err(|bad| Error::invalid_argument(format!("{digest}: {bad}")))
}

/// The platform of an entry of an index; where the index does not tell it, the config does.
pub async fn platform_of(daemon: &Daemon, entry: &Value) -> Option<Platform> {
    if !entry["platform"].is_null() {
        return serde_json::from_value(entry["platform"].clone()).ok();
    }
    let manifest = read_json(daemon, entry["digest"].as_str()?).await.ok()?;
    let config = read_json(daemon, manifest["config"]["digest"].as_str()?).await.ok()?;
    serde_json::from_value(config).ok()
}

/// The manifest of an image for a platform.
pub async fn manifest(daemon: &Daemon, target: &Descriptor, platform: &Platform) -> Result<Value> {
    let mut document = read_json(daemon, &target.digest).await?;
    if media_type::is_index(&target.media_type) || document["manifests"].is_array() {
        let list = document["manifests"].as_array().cloned().unwrap_or_default();
        let mut ranked = Vec::new();
        for one in &list {
            let known = platform_of(daemon, one).await;
            ranked.extend(known.and_then(|known| platform.rank(&known)).map(|rank| (rank, one)));
        }
        let best = ranked.into_iter().min_by_key(|(rank, _)| *rank);
        let missing = || Error::not_found(format!("no match for platform in manifest {}", target.digest));
        let digest = best.and_then(|(_, one)| one["digest"].as_str()).ok_or_else(missing)?;
        document = read_json(daemon, digest).await?;
    }
    Ok(document)
}

/// The record of an image. At a terminal a short name is completed as docker completes it, where no image has it.
async fn record(daemon: &Daemon, name: &str) -> Result<images::Image> {
    let get = async |name: &str| {
        let request = images::GetImageRequest { name: name.into() };
        let found = daemon.images().get(request).await.map_err(error)?.into_inner().image;
        found.ok_or_else(|| Error::not_found(format!("image {name:?}")))
    };
    let missing = match get(name).await {
        Err(missing) if missing.is_not_found() => missing,
        other => return other,
    };
    let full = Reference::familiar(name).map(|full| full.to_string()).unwrap_or_else(|_| name.to_owned());
    if crate::output::is_terminal()
        && full != name
        && let Ok(found) = get(&full).await
    {
        return Ok(found);
    }
    Err(missing.with_hint(format!("pull it: ctr images pull {full}")))
}

/// Finds an image and what it consists of for a platform.
pub async fn find(daemon: &Daemon, name: &str, platform: &Platform) -> Result<Image> {
    let record = record(daemon, name).await?;
    let target = record.target.clone().unwrap_or_default();
    let manifest = manifest(daemon, &target, platform).await?;
    Ok(Image { record, ..Image::from_manifest(daemon, &target.digest, &manifest).await? })
}

/// Unpacks what is missing of an image, layer by layer, and has its config keep the result from the collector.
pub async fn unpack(daemon: &Daemon, image: &Image, snapshotter: &str, sync_fs: bool) -> Result<()> {
    let mut parent = String::new();
    for (layer, chain_id) in image.layers.iter().zip(image.chain()) {
        let stat = snapshots::StatSnapshotRequest { snapshotter: snapshotter.into(), key: chain_id.clone() };
        if daemon.snapshots().stat(stat).await.is_err() {
            let key = format!("extract-{} {chain_id}", corten_types::timestamp::nanos());
            let made = unpack_layer(daemon, layer, snapshotter, [&key, &chain_id, &parent], sync_fs).await;
            if let Err(failed) = made {
                let request = snapshots::RemoveSnapshotRequest { snapshotter: snapshotter.into(), key };
                daemon.snapshots().remove(request).await.ok();
                if !failed.is_already_exists() {
                    return Err(failed);
                }
            }
        }
        parent = chain_id;
    }
    let label = format!("containerd.io/gc.ref.snapshot.{snapshotter}");
    let info = content::Info {
        digest: image.config_digest.clone(),
        labels: Labels::from([(label.clone(), parent)]),
        ..Default::default()
    };
    let update_mask = Some(prost_types::FieldMask { paths: vec![format!("labels.{label}")] });
    let request = content::UpdateRequest { info: Some(info), update_mask };
    daemon.content().update(request).await.map_err(error).map(drop)
}

/// Extracts a layer under a key of its own, and commits it as its chain id.
async fn unpack_layer(
    daemon: &Daemon,
    layer: &Descriptor,
    snapshotter: &str,
    [key, chain_id, parent]: [&String; 3],
    sync_fs: bool,
) -> Result<()> {
    let request = snapshots::PrepareSnapshotRequest {
        snapshotter: snapshotter.into(),
        key: key.clone(),
        parent: parent.clone(),
        labels: Labels::from([("containerd.io/gc.root".into(), "unpack".into())]),
    };
    let mounts = daemon.snapshots().prepare(request).await.map_err(error)?.into_inner().mounts;
    let request = diff::ApplyRequest { diff: Some(layer.clone()), mounts, sync_fs, ..Default::default() };
    daemon.diff().apply(request).await.map_err(error).context("failed to unpack the image")?;
    let request = snapshots::CommitSnapshotRequest {
        snapshotter: snapshotter.into(),
        name: chain_id.clone(),
        key: key.clone(),
        ..Default::default()
    };
    daemon.snapshots().commit(request).await.map_err(error).map(drop)
}
