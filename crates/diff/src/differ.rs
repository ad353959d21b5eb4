//! Who turns layers into trees and trees into layers: differs, tried in the order of the configuration.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use corten_types::{Any, Context, Descriptor, Digest, Error, ErrorClass, Labels, Mount, Result};

/// Something that applies layers and makes them.
#[async_trait]
pub trait Differ: Send + Sync + fmt::Debug {
    /// The name that configurations know it by.
    fn id(&self) -> &str;

    /// Whether it reads [`ApplyRequest::source`]; otherwise the blob has to be in the content store before a
    /// layer can be applied.
    fn is_streaming(&self) -> bool;

    /// Applies a layer to mounts that are not mounted yet.
    ///
    /// # Errors
    /// NotImplemented for a layer that is not of its kind, which another differ may know; NotFound for a blob
    /// that is not stored. After a failure the caller removes the snapshot.
    async fn apply(&self, ctx: &Context, request: &ApplyRequest) -> Result<Applied>;

    /// Writes what `upper` has other than `lower` into the content store, as a layer.
    ///
    /// # Errors
    /// NotImplemented for a media type or mounts that it does not know.
    async fn diff(&self, ctx: &Context, request: &DiffRequest) -> Result<Descriptor>;
}

/// A layer to be applied.
#[derive(Clone, Debug)]
pub struct ApplyRequest {
    /// What it is.
    pub layer: Descriptor,
    /// What it is applied to.
    pub mounts: Vec<Mount>,
    /// Where its bytes are read, while they arrive; the content store when there is nothing.
    pub source: Option<Source>,
    /// Messages for stream processors, by their id.
    pub payloads: BTreeMap<String, Any>,
    /// Everything is on the disk when the call returns.
    pub sync: bool,
    /// Bytes that the uncompressed layer may have.
    pub limit: u64,
}

impl ApplyRequest {
    /// A stored layer without anything special.
    #[must_use]
    pub fn new(layer: Descriptor, mounts: Vec<Mount>) -> Self {
        let (source, payloads) = (None, BTreeMap::new());
        Self { layer, mounts, source, payloads, sync: false, limit: u64::MAX }
    }
}

/// What was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Media type of what was applied in the end: that of an uncompressed layer, mostly.
    pub media_type: String,
    /// Digest of the uncompressed layer.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// Folders that the layer has entries in but does not list, made with default attributes because no
    /// layer below was there to copy them from; see [`inherit`](crate::inherit).
    pub implied: Vec<PathBuf>,
}

/// Two trees to be compared.
#[derive(Clone, Debug, Default)]
pub struct DiffRequest {
    /// What there was.
    pub lower: Vec<Mount>,
    /// What there is.
    pub upper: Vec<Mount>,
    /// Type of the layer; gzip when empty.
    pub media_type: String,
    /// Name of the ingest; one of its own when empty. What an earlier ingest left there is thrown away.
    pub reference: String,
    /// Labels of the blob.
    pub labels: Labels,
    /// Whatever is newer gets this time.
    pub source_date_epoch: Option<SystemTime>,
}

type Open = dyn Fn() -> Result<Box<dyn Read + Send>> + Send + Sync;

/// Bytes that can be read from their beginning, as often as is wanted.
#[derive(Clone)]
pub struct Source(Arc<Open>);

impl Source {
    /// What `open` opens.
    pub fn new(open: impl Fn() -> Result<Box<dyn Read + Send>> + Send + Sync + 'static) -> Self {
        Self(Arc::new(open))
    }

    /// Opens it.
    ///
    /// # Errors
    /// Those of the opening.
    pub fn open(&self) -> Result<Box<dyn Read + Send>> {
        (self.0)()
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Source")
    }
}

/// Differs in the order in which they are tried: the next one only after NotImplemented.
#[derive(Clone, Debug, Default)]
pub struct Differs(Vec<Arc<dyn Differ>>);

impl Differs {
    /// These, in this order.
    #[must_use]
    pub fn new(list: Vec<Arc<dyn Differ>>) -> Self {
        Self(list)
    }

    /// Whether layers can be applied while they arrive.
    #[must_use]
    pub fn is_streaming(&self) -> bool {
        self.0.iter().all(|differ| differ.is_streaming())
    }

    /// Applies a layer with the first one that can.
    ///
    /// # Errors
    /// Those of that differ, or of the last one.
    pub async fn apply(&self, ctx: &Context, request: &ApplyRequest) -> Result<Applied> {
        let mut result = Err(none());
        for differ in &self.0 {
            result = differ.apply(ctx, request).await;
            if !is_passed_on(&result) {
                break;
            }
        }
        result
    }

    /// Compares two trees with the first one that can.
    ///
    /// # Errors
    /// Those of that differ, or of the last one.
    pub async fn diff(&self, ctx: &Context, request: &DiffRequest) -> Result<Descriptor> {
        let mut result = Err(none());
        for differ in &self.0 {
            result = differ.diff(ctx, request).await;
            if !is_passed_on(&result) {
                break;
            }
        }
        result
    }
}

fn none() -> Error {
    Error::not_implemented("no differ is configured")
}

fn is_passed_on<T>(result: &Result<T>) -> bool {
    result.as_ref().is_err_and(|error| error.class() == ErrorClass::NotImplemented)
}
