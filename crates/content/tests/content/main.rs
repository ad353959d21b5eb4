//! The content store on real files: spec 01 §2, word by word, over restarts, and beside sweeps.
#![allow(clippy::unwrap_used, reason = "tests")]

mod histories;
mod reading;
mod sharing;
mod sweeping;
mod writing;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use corten_content::{Policy, Store, Writer, WriterOptions};
use corten_events::Exchange;
use corten_metadata::{Collector, CollectorOptions, Database, Leases, Namespaces, Sweeper};
use corten_types::{Context, Digest, Labels, Namespace, Result};

/// A store and its database in a folder of their own.
struct Lab {
    store: Store,
    database: Database,
    exchange: Exchange,
    leases: Leases,
    namespaces: Namespaces,
    folder: Arc<tempfile::TempDir>,
    policy: Policy,
}

impl Lab {
    fn new() -> Self {
        Self::at(Arc::new(tempfile::tempdir().unwrap()), Policy::Shared)
    }

    fn at(folder: Arc<tempfile::TempDir>, policy: Policy) -> Self {
        let (database, lost) = Database::open(&folder.path().join("meta.db")).unwrap();
        assert!(lost.is_none());
        let exchange = Exchange::default();
        let store = Store::open(&folder.path().join("content"), &database, &exchange, policy).unwrap();
        let leases = Leases::new(database.clone());
        let namespaces = Namespaces::new(database.clone(), exchange.clone());
        Self { store, database, exchange, leases, namespaces, folder, policy }
    }

    /// As after the daemon was stopped and started.
    fn restarted(self) -> Self {
        let (folder, policy) = (Arc::clone(&self.folder), self.policy);
        drop(self);
        Self::at(folder, policy)
    }

    /// A collector that works only when asked, and then sweeps the store.
    fn collector(&self) -> Collector {
        let options =
            CollectorOptions { startup_delay: Duration::from_secs(3600), ..CollectorOptions::default() };
        let sweepers: Vec<Arc<dyn Sweeper>> = vec![Arc::new(self.store.clone())];
        Collector::start(self.database.clone(), self.exchange.clone(), sweepers, options)
    }

    async fn open(&self, ctx: &Context, reference: &str, total: u64) -> Result<Writer> {
        let options = WriterOptions { reference: reference.to_owned(), total, expected: None };
        self.store.writer(ctx, options).await
    }

    async fn expecting(&self, ctx: &Context, reference: &str, total: u64, digest: &Digest) -> Result<Writer> {
        let expected = Some(digest.clone());
        self.store.writer(ctx, WriterOptions { reference: reference.to_owned(), total, expected }).await
    }

    /// Stores a blob.
    async fn put(&self, ctx: &Context, data: &[u8]) -> Digest {
        let mut writer = self.open(ctx, &format!("put-{}", Digest::sha256(data)), 0).await.unwrap();
        writer.write(data).unwrap();
        writer.commit(0, None, Labels::new()).await.unwrap()
    }

    fn blob_file(&self, digest: &Digest) -> PathBuf {
        self.folder.path().join("content/blobs").join(digest.algorithm().as_str()).join(digest.hex())
    }

    fn ingest_folder(&self, backend: &str) -> PathBuf {
        self.folder.path().join("content/ingest").join(Digest::sha256(backend.as_bytes()).hex())
    }

    fn held(&self, lease: &str) -> Vec<String> {
        let held = self.leases.resources(&ctx(), lease).unwrap();
        held.into_iter().map(|resource| format!("{} {}", resource.kind, resource.id)).collect()
    }
}

fn ctx() -> Context {
    in_namespace("lab")
}

fn in_namespace(name: &str) -> Context {
    Context::new(Namespace::new(name).unwrap())
}

/// The text of the error that something must end with.
fn text<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}
