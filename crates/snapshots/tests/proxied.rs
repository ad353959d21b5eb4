//! Snapshots of a snapshotter in another process, when calls get lost.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use async_trait::async_trait;
use corten_events::Exchange;
use corten_metadata::{Database, Sweeper};
use corten_snapshots::{Commit, Info, Kind, Proxy, Snapshots, Snapshotter, Usage};
use corten_types::{Context, Error, Labels, Mount, Namespace, Result};

/// Keeps snapshots in memory. Answers to preparations and commits get lost while it is told so.
#[derive(Debug, Default)]
struct Far {
    snapshots: Mutex<BTreeMap<String, Info>>,
    loses: AtomicBool,
}

impl Far {
    fn keys(&self) -> Vec<String> {
        self.snapshots.lock().unwrap().keys().cloned().collect()
    }

    fn answer<T>(&self, answer: T) -> Result<T> {
        if self.loses.load(Ordering::SeqCst) { Err(Error::unavailable("gone")) } else { Ok(answer) }
    }

    fn info(&self, key: &str) -> Result<Info> {
        self.snapshots.lock().unwrap().get(key).cloned().ok_or_else(|| Error::not_found(key))
    }

    fn put(&self, key: &str, parent: &str, kind: Kind, labels: Labels) {
        let now = SystemTime::now();
        let (key, parent) = (key.to_owned(), parent.to_owned());
        let info = Info { key: key.clone(), parent, kind, labels, created_at: now, updated_at: now };
        self.snapshots.lock().unwrap().insert(key, info);
    }
}

#[async_trait]
impl Snapshotter for Far {
    async fn prepare(&self, _: &Context, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>> {
        self.put(key, parent, Kind::Active, labels);
        self.answer(Vec::new())
    }

    async fn view(&self, _: &Context, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>> {
        self.put(key, parent, Kind::View, labels);
        self.answer(Vec::new())
    }

    async fn mounts(&self, _: &Context, key: &str) -> Result<Vec<Mount>> {
        self.info(key).map(|_| Vec::new())
    }

    async fn commit(&self, _: &Context, name: &str, key: &str, _: &str, labels: Labels) -> Result<()> {
        let info = self.info(key)?;
        self.snapshots.lock().unwrap().remove(key);
        self.put(name, &info.parent, Kind::Committed, labels);
        self.answer(())
    }

    async fn stat(&self, _: &Context, key: &str) -> Result<Info> {
        self.info(key)
    }

    async fn update(&self, _: &Context, key: &str, _: Labels, _: Vec<String>) -> Result<Info> {
        self.info(key)
    }

    async fn usage(&self, _: &Context, key: &str) -> Result<Usage> {
        self.info(key).map(|_| Usage::default())
    }

    async fn list(&self, _: Option<&Context>, _: Vec<String>) -> Result<Vec<Info>> {
        Ok(self.snapshots.lock().unwrap().values().cloned().collect())
    }

    async fn remove(&self, key: &str) -> Result<()> {
        self.snapshots.lock().unwrap().remove(key).map(drop).ok_or_else(|| Error::not_found(key))
    }

    async fn cleanup(&self) -> Result<()> {
        Err(Error::not_implemented("cleanup"))
    }
}

struct Lab {
    _folder: tempfile::TempDir,
    far: Arc<Far>,
    snapshots: Snapshots,
    ctx: Context,
}

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (database, _) = Database::open(&folder.path().join("db")).unwrap();
        let far = Arc::new(Far::default());
        let proxy = Proxy { name: "far".into(), capabilities: Vec::new(), snapshotter: far.clone() };
        let snapshots =
            Snapshots::with_proxies(&database, &Exchange::default(), Vec::new(), vec![proxy]).unwrap();
        Self { _folder: folder, far, snapshots, ctx: Context::new(Namespace::new("lab").unwrap()) }
    }

    async fn prepare(&self, key: &str) -> Result<Vec<Mount>> {
        self.snapshots.prepare(&self.ctx, "far", key, "", Labels::new()).await
    }

    async fn commit(&self, name: &str, key: &str) -> Result<()> {
        let commit = Commit { snapshotter: "far", name, key, ..Commit::default() };
        self.snapshots.commit(&self.ctx, commit).await
    }
}

#[tokio::test]
async fn a_preparation_whose_answer_was_lost_leaves_what_the_next_collection_removes() {
    let lab = Lab::new();
    lab.far.loses.store(true, Ordering::SeqCst);
    assert!(lab.prepare("a").await.is_err());
    assert_eq!(lab.far.keys(), ["lab/1/a"]);
    lab.far.loses.store(false, Ordering::SeqCst);
    lab.prepare("a").await.unwrap();
    lab.snapshots.sweep().await.unwrap();
    assert_eq!(lab.far.keys(), ["lab/2/a"]);
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_goes_on_where_it_was() {
    let lab = Lab::new();
    lab.prepare("a").await.unwrap();
    lab.far.loses.store(true, Ordering::SeqCst);
    assert!(lab.commit("A", "a").await.is_err());
    assert_eq!(lab.far.keys(), ["lab/2/A"], "the snapshotter has committed it");
    lab.far.loses.store(false, Ordering::SeqCst);
    lab.snapshots.sweep().await.unwrap();
    assert_eq!(lab.far.keys(), ["lab/2/A"], "a collection keeps what a record means to name");
    // Even under another name.
    lab.commit("B", "a").await.unwrap();
    assert_eq!(lab.snapshots.stat(&lab.ctx, "far", "B").await.unwrap().key, "lab/2/A");
    lab.snapshots.remove(&lab.ctx, "far", "B").await.unwrap();
    lab.snapshots.sweep().await.unwrap();
    assert!(lab.far.keys().is_empty());
}
