//! Content records: which blobs a namespace may see (spec 01 §2). Files are the content store's.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::SystemTime;

use corten_api::events as told;
use corten_events::Exchange;
use corten_types::filter::{Fields, label};
use corten_types::{Context, Digest, Error, Filter, Labels, Result, ResultExt, labels};

use crate::database::Database;
use crate::ingests::{self, IngestRecord};
use crate::keys::{Key, Kind};
use crate::mask::apply_map;
use crate::records::{self, get, put, scan, stamp, time};
use crate::transaction::{Reader, Tx};
use crate::{leases, namespaces};

/// Label of a namespace whose blobs others may share although the policy is isolation.
const SHAREABLE: &str = "containerd.io/namespace.shareable";

/// A blob as a namespace knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobRecord {
    /// Digest.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// When it was committed here.
    pub created_at: SystemTime,
    /// When it was last changed.
    pub updated_at: SystemTime,
    /// Labels.
    pub labels: Labels,
}

impl BlobRecord {
    fn from_record(digest: Digest, record: records::Blob) -> Self {
        Self {
            digest,
            size: record.size,
            created_at: time(record.created_at.as_ref()),
            updated_at: time(record.updated_at.as_ref()),
            labels: record.labels,
        }
    }

    fn record(&self) -> records::Blob {
        records::Blob {
            labels: self.labels.clone(),
            size: self.size,
            created_at: stamp(self.created_at),
            updated_at: stamp(self.updated_at),
        }
    }
}

impl Fields for BlobRecord {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["digest", ..] => Some(Cow::Borrowed(self.digest.as_str())),
            ["labels", rest @ ..] => label(rest, &self.labels),
            _ => None,
        }
    }
}

/// The content records of the daemon.
#[derive(Clone, Debug)]
pub struct Blobs {
    database: Database,
    exchange: Exchange,
}

fn key(ctx: &Context, digest: &Digest) -> Result<Key> {
    Key::new(Kind::Blob, &[ctx.namespace.as_str(), digest.as_str()])
}

fn read(reader: &impl Reader, ctx: &Context, digest: &Digest) -> Result<Option<BlobRecord>> {
    Ok(get(reader, &key(ctx, digest)?)?.map(|record| BlobRecord::from_record(digest.clone(), record)))
}

fn missing(digest: &Digest) -> Error {
    Error::not_found(format!("content digest {digest}"))
}

impl Blobs {
    /// Over a database; changes are told to the exchange.
    #[must_use]
    pub fn new(database: Database, exchange: Exchange) -> Self {
        Self { database, exchange }
    }

    /// A blob.
    ///
    /// # Errors
    /// NotFound `content digest D`.
    pub fn get(&self, ctx: &Context, digest: &Digest) -> Result<BlobRecord> {
        read(&self.database.read()?, ctx, digest)?.ok_or_else(|| missing(digest))
    }

    /// The blobs that pass, by digest.
    ///
    /// # Errors
    /// InvalidArgument for a malformed filter.
    pub fn list(&self, ctx: &Context, filters: &[String]) -> Result<Vec<BlobRecord>> {
        let filter = Filter::parse(filters)?;
        let mut found = Vec::new();
        scan(&self.database.read()?, Kind::Blob, &[ctx.namespace.as_str()], |mut parts, record| {
            // Only damage makes a key that is no digest.
            let Ok(digest) = parts.pop().unwrap_or_default().parse() else { return Ok(()) };
            let blob = BlobRecord::from_record(digest, record);
            if filter.matches(&blob) {
                found.push(blob);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Whether some namespace that shares its blobs holds this one.
    ///
    /// # Errors
    /// Those of the database.
    pub fn is_shareable(&self, digest: &Digest) -> Result<bool> {
        let view = self.database.read()?;
        for namespace in namespaces::names(&view)? {
            let shares = namespaces::labels_of(&view, &namespace)?;
            if shares.get(SHAREABLE).map(String::as_str) == Some("true")
                && read(&view, &Context::new(namespace), digest)?.is_some()
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a blob could be recorded now, as far as its labels and the caller's lease go.
    ///
    /// # Errors
    /// InvalidArgument; NotFound for the lease.
    pub fn check_commit(&self, ctx: &Context, labels: &Labels) -> Result<()> {
        labels::validate(labels).context("info.Labels")?;
        leases::check(&self.database.read()?, ctx)
    }

    /// Records a blob whose file is in place, ends its ingest, and puts it into the caller's lease: all at
    /// once.
    ///
    /// # Errors
    /// AlreadyExists `content D`, the lease and the ingest being dealt with all the same; InvalidArgument.
    pub async fn commit(
        &self,
        ctx: &Context,
        ingest: &IngestRecord,
        digest: &Digest,
        size: u64,
        mut labels: Labels,
    ) -> Result<()> {
        labels::validate(&labels).context("info.Labels")?;
        labels::drop_empty(&mut labels);
        let (owned, ingest, stored) = (ctx.clone(), ingest.clone(), digest.clone());
        let change = move |tx: &mut Tx<'_>| {
            leases::attach(tx, &owned, "content", stored.as_str())?;
            ingests::end(tx, &owned, &ingest)?;
            if read(tx, &owned, &stored)?.is_some() {
                return Ok(false);
            }
            namespaces::ensure(tx, &owned.namespace)?;
            let now = SystemTime::now();
            let blob = BlobRecord { digest: stored.clone(), size, created_at: now, updated_at: now, labels };
            put(tx, &key(&owned, &stored)?, &blob.record());
            Ok(true)
        };
        if !self.database.write(change).await? {
            return Err(Error::already_exists(format!("content {digest}")));
        }
        let event = told::ContentCreate {
            digest: digest.to_string(),
            size: i64::try_from(size).unwrap_or(i64::MAX),
            media_type: String::new(),
        };
        self.exchange.publish(&ctx.namespace, "/content/create", &event);
        Ok(())
    }

    /// Puts a blob that exists into the caller's lease. False when it does not exist.
    ///
    /// # Errors
    /// NotFound for the lease.
    pub async fn lease_existing(&self, ctx: &Context, digest: &Digest) -> Result<bool> {
        if read(&self.database.read()?, ctx, digest)?.is_none() {
            return Ok(false);
        }
        if ctx.lease.is_none() {
            return Ok(true);
        }
        let (ctx, digest) = (ctx.clone(), digest.clone());
        self.database
            .write(move |tx| {
                let known = read(tx, &ctx, &digest)?.is_some();
                if known {
                    leases::attach(tx, &ctx, "content", digest.as_str())?;
                }
                Ok(known)
            })
            .await
    }

    /// Changes labels: those that `paths` names (`labels`, `labels.K`), or all when it names none.
    ///
    /// # Errors
    /// InvalidArgument, NotFound.
    pub async fn update(
        &self,
        ctx: &Context,
        digest: &Digest,
        new: Labels,
        paths: Vec<String>,
    ) -> Result<BlobRecord> {
        let (ctx, digest) = (ctx.clone(), digest.clone());
        self.database
            .write(move |tx| {
                let mut blob = read(tx, &ctx, &digest)?.ok_or_else(|| missing(&digest))?;
                if paths.is_empty() {
                    blob.labels.clone_from(&new);
                }
                for path in &paths {
                    if !apply_map("labels", path, &mut blob.labels, &new) {
                        let text =
                            format!("cannot update {path:?} field on content info {:?}", digest.as_str());
                        return Err(Error::invalid_argument(text));
                    }
                }
                labels::validate(&blob.labels).context("info.Labels")?;
                labels::drop_empty(&mut blob.labels);
                blob.updated_at = SystemTime::now();
                put(tx, &key(&ctx, &digest)?, &blob.record());
                Ok(blob)
            })
            .await
    }

    /// Removes the record; the file goes with a later collection.
    ///
    /// # Errors
    /// NotFound.
    pub async fn delete(&self, ctx: &Context, digest: &Digest) -> Result<()> {
        let (owned, gone) = (ctx.clone(), digest.clone());
        let change = move |tx: &mut Tx<'_>| {
            read(tx, &owned, &gone)?.ok_or_else(|| missing(&gone))?;
            tx.remove(&key(&owned, &gone)?);
            tx.note_deletion();
            leases::detach(tx, &owned, "content", gone.as_str())
        };
        self.database.write(change).await?;
        let event = told::ContentDelete { digest: digest.to_string() };
        self.exchange.publish(&ctx.namespace, "/content/delete", &event);
        Ok(())
    }

    /// Whether any namespace knows a digest.
    ///
    /// # Errors
    /// Those of the database.
    pub fn is_known(&self, digest: &str) -> Result<bool> {
        let view = self.database.read()?;
        for namespace in namespaces::names(&view)? {
            let key = Key::new(Kind::Blob, &[namespace.as_str(), digest])?;
            if view.get_bytes(key.bytes())?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Digests that any namespace knows.
    ///
    /// # Errors
    /// Those of the database.
    pub fn all_digests(&self) -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        self.database.read()?.scan_bytes(Key::prefix(Kind::Blob, &[]).bytes(), &mut |key, _| {
            found.extend(Key::parts(key).pop());
            Ok(true)
        })?;
        Ok(found)
    }
}
