//! Calls on a snapshot that another call removes meanwhile.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use corten_events::Exchange;
use corten_metadata::Database;
use corten_snapshots::{Backend, Commit, Native, Snapshot, Snapshots, Usage};
use corten_types::{Context, Labels, Mount, Namespace, Result};
use tokio::runtime::Handle;

/// Does something before it measures or commits a snapshot.
#[derive(Debug)]
struct Racing {
    native: Native,
    /// The snapshots, of which it removes the one of this name.
    removes: Mutex<Option<(Snapshots, &'static str)>>,
}

impl Racing {
    fn race(&self) {
        let Some((snapshots, name)) = self.removes.lock().unwrap().take() else { return };
        Handle::current().block_on(snapshots.remove(&context(), "native", name)).unwrap();
        // As the collector does afterwards.
        for id in self.native.ids().unwrap() {
            self.native.remove(id).unwrap();
        }
    }
}

impl Backend for Racing {
    fn name(&self) -> &str {
        self.native.name()
    }
    fn root(&self) -> &Path {
        self.native.root()
    }
    fn capabilities(&self) -> Vec<String> {
        self.native.capabilities()
    }
    fn create(&self, snapshot: &Snapshot) -> Result<()> {
        self.native.create(snapshot)
    }
    fn mounts(&self, snapshot: &Snapshot) -> Result<Vec<Mount>> {
        self.native.mounts(snapshot)
    }
    fn commit(&self, snapshot: &Snapshot) -> Result<Usage> {
        self.race();
        self.native.commit(snapshot)
    }
    fn usage(&self, snapshot: &Snapshot) -> Result<Usage> {
        self.race();
        self.native.usage(snapshot)
    }
    fn holds(&self, id: u64) -> bool {
        self.native.holds(id)
    }
    fn ids(&self) -> Result<BTreeSet<u64>> {
        self.native.ids()
    }
    fn remove(&self, id: u64) -> Result<()> {
        self.native.remove(id)
    }
    fn clean(&self) -> Result<()> {
        self.native.clean()
    }
}

fn context() -> Context {
    Context::new(Namespace::new("lab").unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_removed_meanwhile_is_not_found() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::open(&folder.path().join("db")).unwrap().0;
    let native = Native::open(&folder.path().join("native")).unwrap();
    let backend = Arc::new(Racing { native, removes: Mutex::default() });
    let snapshots = Snapshots::new(&database, &Exchange::default(), vec![backend.clone()]).unwrap();
    let ctx = context();
    let commit = || Commit { snapshotter: "native", name: "c", key: "k", ..Commit::default() };
    for measured in [false, true] {
        snapshots.prepare(&ctx, "native", "k", "", Labels::new()).await.unwrap();
        *backend.removes.lock().unwrap() = Some((snapshots.clone(), "k"));
        let error = match measured {
            true => snapshots.usage(&ctx, "native", "k").await.unwrap_err(),
            false => snapshots.commit(&ctx, commit()).await.unwrap_err(),
        };
        assert_eq!(error.to_string(), "snapshot k does not exist: not found");
    }
    // What is lost without that says whose it was.
    snapshots.prepare(&ctx, "native", "k", "", Labels::new()).await.unwrap();
    backend.native.ids().unwrap().into_iter().for_each(|id| backend.native.remove(id).unwrap());
    let error = snapshots.commit(&ctx, commit()).await.unwrap_err();
    assert!(error.to_string().starts_with("failed to commit snapshot k: "), "{error}");
}
