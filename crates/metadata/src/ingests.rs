//! Ingest records: content on its way (spec 01 §2.2).

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use corten_types::{Context, Digest, Error, Result};

use crate::database::Database;
use crate::keys::{Key, Kind};
use crate::records::{self, count, get, put, scan, stamp};
use crate::transaction::Tx;
use crate::{leases, namespaces};

/// How long an ingest lives that no lease keeps.
const LIFE: Duration = Duration::from_secs(24 * 3600);

/// An ingest as a namespace knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngestRecord {
    /// The client's reference.
    pub reference: String,
    /// `<namespace>/<number>/<reference>`: what the store calls it.
    pub backend: String,
    /// The digest that was announced, if one was.
    pub expected: Option<Digest>,
}

/// The ingest records of the daemon.
#[derive(Clone, Debug)]
pub struct Ingests {
    database: Database,
}

fn key(ctx: &Context, reference: &str) -> Result<Key> {
    Key::new(Kind::Ingest, &[ctx.namespace.as_str(), reference])
}

fn from_record(reference: &str, record: records::Ingest) -> IngestRecord {
    IngestRecord {
        reference: reference.to_owned(),
        backend: record.backend,
        expected: record.expected.parse().ok(),
    }
}

/// Removes the record of an ingest that became a blob; not that of another one that was begun under the same
/// reference after this one was given up.
pub(crate) fn end(tx: &mut Tx<'_>, ctx: &Context, ingest: &IngestRecord) -> Result<()> {
    let stored: Option<records::Ingest> = get(tx, &key(ctx, &ingest.reference)?)?;
    match stored {
        Some(stored) if stored.backend == ingest.backend => remove(tx, ctx, &ingest.reference),
        _ => Ok(()),
    }
}

fn remove(tx: &mut Tx<'_>, ctx: &Context, reference: &str) -> Result<()> {
    tx.remove(&key(ctx, reference)?);
    leases::detach(tx, ctx, "ingests", reference)
}

impl Ingests {
    /// Over a database.
    #[must_use]
    pub fn new(database: Database) -> Self {
        Self { database }
    }

    /// An ingest, if there is one under this reference.
    ///
    /// # Errors
    /// Those of the database.
    pub fn get(&self, ctx: &Context, reference: &str) -> Result<Option<IngestRecord>> {
        let record = get(&self.database.read()?, &key(ctx, reference)?)?;
        Ok(record.map(|record| from_record(reference, record)))
    }

    /// All ingests of a namespace.
    ///
    /// # Errors
    /// Those of the database.
    pub fn list(&self, ctx: &Context) -> Result<Vec<IngestRecord>> {
        let mut found = Vec::new();
        scan(&self.database.read()?, Kind::Ingest, &[ctx.namespace.as_str()], |parts, record| {
            found.push(from_record(&parts.last().cloned().unwrap_or_default(), record));
            Ok(())
        })?;
        Ok(found)
    }

    /// Opens an ingest, new or left before, in the caller's lease or for a day.
    ///
    /// # Errors
    /// NotFound for the lease.
    pub async fn open(
        &self,
        ctx: &Context,
        reference: &str,
        expected: Option<&Digest>,
    ) -> Result<IngestRecord> {
        let (ctx, reference, expected) = (ctx.clone(), reference.to_owned(), expected.cloned());
        self.database
            .write(move |tx| {
                leases::check(tx, &ctx)?;
                namespaces::ensure(tx, &ctx.namespace)?;
                let key = key(&ctx, &reference)?;
                let mut record = match get::<records::Ingest>(tx, &key)? {
                    Some(record) => record,
                    None => {
                        let number = count(tx, &format!("ingest/{}", ctx.namespace))?;
                        let backend = format!("{}/{number}/{reference}", ctx.namespace);
                        records::Ingest { backend, ..Default::default() }
                    }
                };
                record.expected = expected.map(|digest| digest.to_string()).unwrap_or_default();
                if ctx.lease.is_none() {
                    record.expires_at = stamp(SystemTime::now() + LIFE);
                }
                put(tx, &key, &record);
                leases::attach(tx, &ctx, "ingests", &reference)?;
                Ok(from_record(&reference, record))
            })
            .await
    }

    /// Removes an ingest's record; answers what it was.
    ///
    /// # Errors
    /// NotFound `reference R`.
    pub async fn remove(&self, ctx: &Context, reference: &str) -> Result<IngestRecord> {
        let (ctx, reference) = (ctx.clone(), reference.to_owned());
        self.database
            .write(move |tx| {
                let record = get::<records::Ingest>(tx, &key(&ctx, &reference)?)?
                    .ok_or_else(|| Error::not_found(format!("reference {reference}")))?;
                remove(tx, &ctx, &reference)?;
                Ok(from_record(&reference, record))
            })
            .await
    }

    /// What the store calls the ingests of all namespaces.
    ///
    /// # Errors
    /// Those of the database.
    pub fn all_backends(&self) -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        scan(&self.database.read()?, Kind::Ingest, &[], |_, record: records::Ingest| {
            found.insert(record.backend);
            Ok(())
        })?;
        Ok(found)
    }
}
