//! The records of a daemon, as its services use them: answers word by word (spec 01 §18), restarts, and the
//! collector against a model.
#![allow(clippy::unwrap_used, reason = "tests")]

mod collector;
mod damage;
mod model;
mod objects;
mod snapshots;
mod stores;

use std::sync::Arc;
use std::time::Duration;

use corten_events::{Exchange, Subscription};
use corten_metadata::{
    Blobs, Collector, CollectorOptions, Container, Containers, Database, Image, Images, IngestRecord,
    Ingests, Kind, Leases, Namespaces, NewSnapshot, Place, Runtime, Sandboxes, SnapshotRecord,
    SnapshotRecords, Sweeper,
};
use corten_types::{Any, Context, Descriptor, Digest, Labels, Namespace, Result};

/// All stores over one database in a folder of its own.
struct Lab {
    database: Database,
    exchange: Exchange,
    blobs: Blobs,
    containers: Containers,
    images: Images,
    ingests: Ingests,
    leases: Leases,
    namespaces: Namespaces,
    sandboxes: Sandboxes,
    snapshots: SnapshotRecords,
    folder: Arc<tempfile::TempDir>,
}

impl Lab {
    fn new() -> Self {
        Self::at(Arc::new(tempfile::tempdir().unwrap()))
    }

    fn at(folder: Arc<tempfile::TempDir>) -> Self {
        let (database, lost) = Database::open(&folder.path().join("meta.db")).unwrap();
        assert!(lost.is_none());
        let exchange = Exchange::default();
        Self {
            blobs: Blobs::new(database.clone(), exchange.clone()),
            containers: Containers::new(database.clone(), exchange.clone()),
            images: Images::new(database.clone(), exchange.clone()),
            ingests: Ingests::new(database.clone()),
            leases: Leases::new(database.clone()),
            namespaces: Namespaces::new(database.clone(), exchange.clone()),
            sandboxes: Sandboxes::new(database.clone()),
            snapshots: SnapshotRecords::new(database.clone(), exchange.clone()),
            database,
            exchange,
            folder,
        }
    }

    /// As after the daemon was stopped and started.
    fn restarted(self) -> Self {
        let folder = Arc::clone(&self.folder);
        drop(self);
        Self::at(folder)
    }

    fn events(&self) -> Subscription {
        self.exchange.subscribe::<&str>(&[]).unwrap()
    }

    /// A collector that works only when asked.
    fn collector(&self) -> Collector {
        self.collector_with(Vec::new())
    }

    fn collector_with(&self, sweepers: Vec<Arc<dyn Sweeper>>) -> Collector {
        let options =
            CollectorOptions { startup_delay: Duration::from_secs(3600), ..CollectorOptions::default() };
        Collector::start(self.database.clone(), self.exchange.clone(), sweepers, options)
    }

    async fn blob(&self, ctx: &Context, digest: &Digest, labels: Labels) -> Result<()> {
        let reference = format!("ref-{digest}");
        let backend = format!("{}/0/{reference}", ctx.namespace);
        let ingest = IngestRecord { reference, backend, expected: None };
        self.blobs.commit(ctx, &ingest, digest, 1, labels).await
    }

    async fn active(&self, ctx: &Context, key: &str, parent: &str, id: u64) -> Result<SnapshotRecord> {
        self.snapshot(ctx, key, parent, id, Kind::Active, Labels::new()).await
    }

    async fn snapshot(
        &self,
        ctx: &Context,
        key: &str,
        parent: &str,
        id: u64,
        kind: Kind,
        labels: Labels,
    ) -> Result<SnapshotRecord> {
        let (snapshotter, key, parent) = ("overlayfs".to_owned(), key.to_owned(), parent.to_owned());
        let new = NewSnapshot { snapshotter, key, parent, kind, labels };
        self.snapshots.check_new(ctx, &new).await?;
        self.snapshots.create(ctx, new, Place::Id(id)).await
    }

    async fn commit(&self, ctx: &Context, name: &str, key: &str, labels: Labels) -> Result<()> {
        self.snapshots.commit(ctx, "overlayfs", name, key, "", labels, (4096, 1)).await
    }
}

fn namespace(name: &str) -> Namespace {
    Namespace::new(name).unwrap()
}

fn ctx() -> Context {
    Context::new(namespace("lab"))
}

fn digest(text: &str) -> Digest {
    Digest::sha256(text.as_bytes())
}

fn labels(labels: &[(&str, &str)]) -> Labels {
    labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn container(id: &str) -> Container {
    Container {
        id: id.to_owned(),
        runtime: Runtime { name: "io.containerd.runc.v2".to_owned(), options: None },
        spec: Some(Any { type_url: "spec".to_owned(), value: b"{}".to_vec() }),
        ..Container::default()
    }
}

fn image(name: &str, target: &Digest) -> Image {
    Image::new(
        name,
        Descriptor::new("application/vnd.oci.image.manifest.v1+json", target.clone(), 1),
        Labels::new(),
    )
}

/// The text of the error that something must end with.
fn text<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

/// Topics of the events so far.
async fn topics(events: &mut Subscription) -> Vec<String> {
    let mut topics = Vec::new();
    while let Ok(Some(event)) = tokio::time::timeout(Duration::from_millis(20), events.recv()).await {
        topics.push(event.topic.clone());
    }
    topics
}
