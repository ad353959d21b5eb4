//! Layers made of trees and applied again: real file systems, real overlays.
#![allow(clippy::unwrap_used, reason = "tests")]

mod edits;
mod layers;
mod processors;
mod race;
mod round_trip;
mod seen;

use std::path::Path;

use corten_content::{Policy, Store, WriterOptions};
use corten_diff::{ApplyRequest, DiffRequest, Differ, StreamProcessor, Walking};
use corten_events::Exchange;
use corten_metadata::Database;
use corten_types::{Context, Descriptor, Digest, Labels, Mount, Namespace, Result, media_type};

/// A content store and a differ in a folder of their own.
struct Lab {
    store: Store,
    differ: Walking,
    folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Lab {
    fn new() -> Self {
        Self::with(Vec::new())
    }

    fn with(processors: Vec<StreamProcessor>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (database, _) = Database::open(&folder.path().join("meta.db")).unwrap();
        let content = folder.path().join("content");
        let store = Store::open(&content, &database, &Exchange::default(), Policy::Shared).unwrap();
        let differ = Walking::new(store.clone(), folder.path().join("mounts")).with_processors(processors);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { store, differ, folder, runtime }
    }

    /// A new folder.
    fn new_folder(&self, name: &str) -> std::path::PathBuf {
        let path = self.folder.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    }

    fn diff(&self, request: &DiffRequest) -> Result<Descriptor> {
        self.runtime.block_on(self.differ.diff(&ctx(), request))
    }

    /// The bytes of the layer from one tree to the other.
    fn layer(&self, lower: &[Mount], upper: &[Mount]) -> Vec<u8> {
        let request = DiffRequest {
            lower: lower.to_vec(),
            upper: upper.to_vec(),
            media_type: media_type::OCI_LAYER.to_owned(),
            ..DiffRequest::default()
        };
        self.bytes(&self.diff(&request).unwrap().digest)
    }

    fn bytes(&self, digest: &Digest) -> Vec<u8> {
        self.store.read(&ctx(), digest, 1 << 30).unwrap()
    }

    /// Puts bytes into the content store.
    fn store(&self, media_type: &str, data: &[u8]) -> Descriptor {
        let digest = Digest::sha256(data);
        let options = WriterOptions { reference: digest.to_string(), ..WriterOptions::default() };
        self.runtime.block_on(async {
            let mut writer = self.store.writer(&ctx(), options).await.unwrap();
            writer.write(data).unwrap();
            match writer.commit(0, None, Labels::new()).await {
                Err(error) if !error.is_already_exists() => panic!("{error}"),
                _ => {}
            }
        });
        Descriptor::new(media_type, digest, i64::try_from(data.len()).unwrap())
    }

    fn apply(&self, layer: Descriptor, mounts: &[Mount]) -> Result<corten_diff::Applied> {
        self.runtime.block_on(self.differ.apply(&ctx(), &ApplyRequest::new(layer, mounts.to_vec())))
    }
}

fn ctx() -> Context {
    Context::new(Namespace::new("lab").unwrap())
}

fn bind(path: &Path) -> Vec<Mount> {
    let options = vec!["rbind".to_owned(), "rw".to_owned()];
    vec![Mount { kind: "bind".into(), source: path.display().to_string(), target: String::new(), options }]
}

/// An overlay of layers, the top first; with a work folder the topmost can be written. `more` is a further option.
fn overlay(layers: &[&Path], work: Option<&Path>, more: Option<&str>) -> Vec<Mount> {
    let shown = |layers: &[&Path]| {
        layers.iter().map(|layer| layer.display().to_string()).collect::<Vec<_>>().join(":")
    };
    let mut options = match work {
        Some(work) => vec![
            format!("workdir={}", work.display()),
            format!("upperdir={}", layers[0].display()),
            format!("lowerdir={}", shown(&layers[1..])),
        ],
        None => vec![format!("lowerdir={}", shown(layers))],
    };
    options.push("index=off".to_owned());
    options.extend(more.map(str::to_owned));
    vec![Mount { kind: "overlay".into(), source: "overlay".into(), target: String::new(), options }]
}

/// Names of the entries of an archive, with those of folders ending in a slash.
fn names(archive: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().unwrap();
    entries.map(|entry| String::from_utf8(entry.unwrap().path_bytes().to_vec()).unwrap()).collect()
}
