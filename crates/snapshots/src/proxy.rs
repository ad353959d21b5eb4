//! Snapshotters in other processes.

use std::sync::Arc;
use std::time::SystemTime;

use corten_metadata::Kind;
use corten_types::{Context, Labels, Mount, Result};

use crate::backend::Usage;

/// A snapshot as its snapshotter knows it.
#[derive(Clone, Debug)]
pub struct Info {
    /// Its key.
    pub key: String,
    /// Key of its parent; empty for none.
    pub parent: String,
    /// What it is for.
    pub kind: Kind,
    /// Labels.
    pub labels: Labels,
    /// When it was made.
    pub created_at: SystemTime,
    /// When it was last changed.
    pub updated_at: SystemTime,
}

/// A snapshotter that keeps records of its own. It goes by keys, which are unique over all namespaces; an
/// empty key of a parent stands for none. Every call may fail because it is not there.
#[async_trait::async_trait]
pub trait Snapshotter: Send + Sync + std::fmt::Debug {
    /// A writable snapshot. AlreadyExists with the label `containerd.io/snapshot.ref` says that it has what
    /// the label names.
    ///
    /// # Errors
    /// Its own.
    async fn prepare(&self, ctx: &Context, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>>;

    /// One that is only read.
    ///
    /// # Errors
    /// Its own.
    async fn view(&self, ctx: &Context, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>>;

    /// The mounts of either.
    ///
    /// # Errors
    /// Its own.
    async fn mounts(&self, ctx: &Context, key: &str) -> Result<Vec<Mount>>;

    /// Turns the active snapshot `key` into the committed `name`.
    ///
    /// # Errors
    /// Its own.
    async fn commit(&self, ctx: &Context, name: &str, key: &str, parent: &str, labels: Labels) -> Result<()>;

    /// A snapshot.
    ///
    /// # Errors
    /// Its own.
    async fn stat(&self, ctx: &Context, key: &str) -> Result<Info>;

    /// Changes the labels that `paths` names, or all when it names none.
    ///
    /// # Errors
    /// Its own.
    async fn update(&self, ctx: &Context, key: &str, labels: Labels, paths: Vec<String>) -> Result<Info>;

    /// What a snapshot takes on disk, without its parents.
    ///
    /// # Errors
    /// Its own.
    async fn usage(&self, ctx: &Context, key: &str) -> Result<Usage>;

    /// The snapshots that pass, of all namespaces.
    ///
    /// # Errors
    /// Its own.
    async fn list(&self, ctx: Option<&Context>, filters: Vec<String>) -> Result<Vec<Info>>;

    /// Removes a snapshot without children.
    ///
    /// # Errors
    /// Its own.
    async fn remove(&self, key: &str) -> Result<()>;

    /// Frees what removed snapshots held.
    ///
    /// # Errors
    /// Its own; NotImplemented when removal does it.
    async fn cleanup(&self) -> Result<()>;
}

/// A snapshotter in another process, and what it is said to be.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// Its name on the wire.
    pub name: String,
    /// What it can do beyond the rule: `rebase`, …
    pub capabilities: Vec<String>,
    /// The way to it.
    pub snapshotter: Arc<dyn Snapshotter>,
}
