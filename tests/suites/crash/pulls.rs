//! Images that are pulled and removed again and again, and whether all that belongs to one is there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use corten_api::services::{images, snapshots};
use corten_tests::{Client, Digest, ImageBuilder, Layer, Node, Registry};

use crate::history::{History, Key, Kind};
use crate::random::Random;
use crate::records::{self, SNAPSHOTTER};

/// An image whose layers' files are known.
#[derive(Debug)]
pub struct Sample {
    reference: String,
    blobs: Vec<Digest>,
    chain: Vec<Digest>,
    /// Names and bytes, by layer.
    layers: Vec<BTreeMap<String, Vec<u8>>>,
}

impl Sample {
    /// Makes an image of three layers, and puts it into a registry.
    pub fn push(registry: &Registry, name: &str) -> Self {
        let layers: Vec<BTreeMap<String, Vec<u8>>> = (0..3).map(|n| files(&format!("{name}-{n}"))).collect();
        let (mut builder, mut chain) = (ImageBuilder::new(), Vec::<Digest>::new());
        for (n, files) in layers.iter().enumerate() {
            let layer = Layer::new().dir(&format!("d{n}/"), 0o755);
            let tar = files.iter().fold(layer, |layer, (name, data)| layer.file(name, 0o644, data)).finish();
            let diff = Digest::sha256(&tar);
            chain.push(match chain.last() {
                Some(below) => Digest::sha256(format!("{below} {diff}").as_bytes()),
                None => diff,
            });
            builder = builder.layer(tar);
        }
        let image = builder.build();
        let blobs = image.blobs.iter().chain([&image.target]).map(|blob| blob.digest()).collect();
        Self { reference: registry.push(&image, &format!("lab/{name}:1")), blobs, chain, layers }
    }

    /// Pulls it.
    pub fn pull(&self, node: &Node) {
        node.ctr(["images", "pull", "--plain-http", &self.reference]).ok();
    }

    fn key(&self) -> Key {
        (Kind::Pull, self.reference.clone())
    }

    /// What is wrong with the lowest layers in these folders, lowest last.
    fn damage(&self, folders: &[PathBuf]) -> Option<String> {
        for (folder, files) in folders.iter().rev().zip(&self.layers) {
            for (name, data) in files {
                match std::fs::read(folder.join(name)) {
                    Ok(found) if found == *data => {}
                    Ok(found) => return Some(format!("{name} has {} bytes of {}", found.len(), data.len())),
                    Err(error) => return Some(format!("{name}: {error}")),
                }
            }
        }
        None
    }
}

/// Many small files and a larger one.
fn files(seed: &str) -> BTreeMap<String, Vec<u8>> {
    let mut random = Random::of(seed);
    let number = &seed[seed.len() - 1..];
    let mut bytes = |length: u64| (0..length).map(|_| random.below(256) as u8).collect::<Vec<u8>>();
    let mut files: BTreeMap<String, Vec<u8>> =
        (0..60).map(|n| (format!("d{number}/{n}"), bytes(1 + n * 100))).collect();
    files.insert(format!("d{number}/large"), bytes(1_000_000));
    files
}

/// Pulls and removes one image until told to stop; counts what it pulled.
pub fn work(node: &Node, sample: &Sample, pulled: &AtomicUsize, stop: impl Fn() -> bool) -> History {
    let (mut history, key) = (History::default(), sample.key());
    while !stop() {
        let next = history.state(&key).is_none().then(|| "whole".to_owned());
        history.begin(&key, next.clone());
        let pulls = next.is_some();
        match pulls {
            true => sample.pull(node),
            false => drop(node.ctr(["images", "rm", &sample.reference]).ok()),
        }
        history.acknowledge(&key);
        pulled.fetch_add(pulls.into(), Ordering::SeqCst);
    }
    history
}

/// The samples that a daemon has, and whether each is whole; also what is unpacked of the others must be.
///
/// # Panics
/// When a snapshot that is there is not whole.
pub fn view(address: &Path, namespace: &str, samples: &[Sample]) -> BTreeMap<Key, String> {
    let client = Client::new(address, Some(namespace));
    let listed = client.wait(client.images().list(images::ListImagesRequest::default())).unwrap();
    let blobs: Vec<String> = records::blobs(&client).into_iter().map(|blob| blob.digest).collect();
    let unpacked: Vec<String> =
        records::snapshots(&client, SNAPSHOTTER).into_iter().map(|info| info.name).collect();
    let mut seen = BTreeMap::new();
    for sample in samples {
        for (depth, name) in
            sample.chain.iter().enumerate().filter(|(_, name)| unpacked.contains(&name.to_string()))
        {
            let Some(folders) = folders(&client, &name.to_string()) else {
                // The collector has come by.
                let known = listed.images.iter().any(|image| image.name == sample.reference);
                assert!(!known, "{} is there and {name} is not", sample.reference);
                continue;
            };
            assert_eq!(folders.len(), depth + 1);
            let damage = sample.damage(&folders);
            assert_eq!(damage, None, "{} is unpacked by half: {name}", sample.reference);
        }
        if !listed.images.iter().any(|image| image.name == sample.reference) {
            continue;
        }
        let missing = sample.blobs.iter().find(|blob| !blobs.contains(&blob.to_string()));
        let top = sample.chain.last().filter(|name| !unpacked.contains(&name.to_string()));
        let state = match (missing, top) {
            (Some(blob), _) => format!("without {blob}"),
            // The record comes before the snapshots: who removes it in between leaves that.
            (None, Some(name)) => format!("without snapshot {name}"),
            (None, None) => "whole".to_owned(),
        };
        seen.insert(sample.key(), state);
    }
    seen
}

/// The folders of a committed snapshot and those below it, topmost first; nothing if it is not there any more.
fn folders(client: &Client, name: &str) -> Option<Vec<PathBuf>> {
    static LOOKS: AtomicUsize = AtomicUsize::new(0);
    let mut service = client.snapshots();
    // Not twice the same: what was removed shortly before damage can come back with the recovery.
    let key = format!("look-{}-{name}", LOOKS.fetch_add(1, Ordering::SeqCst));
    let snapshotter = SNAPSHOTTER.to_owned();
    let request = snapshots::ViewSnapshotRequest {
        snapshotter: snapshotter.clone(),
        key: key.clone(),
        parent: name.into(),
        // Nothing refers to it: the collector may come by.
        labels: BTreeMap::from([("containerd.io/gc.root".into(), "x".into())]),
    };
    let mounts = match client.wait(service.view(request)) {
        Err(status) if status.code() == tonic::Code::NotFound => return None,
        other => other.unwrap().mounts,
    };
    client.wait(service.remove(snapshots::RemoveSnapshotRequest { snapshotter, key })).unwrap();
    let mount = &mounts[0];
    if mount.r#type == "bind" {
        return Some(vec![PathBuf::from(&mount.source)]);
    }
    let lower = mount.options.iter().find_map(|option| option.strip_prefix("lowerdir=")).unwrap();
    Some(lower.split(':').map(PathBuf::from).collect())
}
