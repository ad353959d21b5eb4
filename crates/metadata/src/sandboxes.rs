//! Sandbox records (spec 01 §10).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::SystemTime;

use corten_types::filter::{Fields, label};
use corten_types::{Any, Context, Error, Labels, Namespace, Result, ResultExt, identifier, labels};

use crate::database::Database;
use crate::filters;
use crate::keys::{Key, Kind};
use crate::mask::apply_map;
use crate::namespaces;
use crate::records::{self, get, put, select, stamp, time};
use crate::transaction::{Reader, Tx};

/// What is known of a sandbox beside its running.
#[derive(Clone, Debug, PartialEq)]
pub struct Sandbox {
    /// Identifier.
    pub id: String,
    /// Labels.
    pub labels: Labels,
    /// Name of the runtime.
    pub runtime: String,
    /// Options of the runtime.
    pub options: Option<Any>,
    /// Its specification.
    pub spec: Option<Any>,
    /// Name of its controller.
    pub sandboxer: String,
    /// When it was made.
    pub created_at: SystemTime,
    /// When it was last changed.
    pub updated_at: SystemTime,
    /// What clients keep beside it.
    pub extensions: BTreeMap<String, Any>,
}

impl Fields for Sandbox {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["id", ..] => Some(Cow::Borrowed(&self.id)),
            ["labels", rest @ ..] => label(rest, &self.labels),
            _ => None,
        }
    }
}

impl Sandbox {
    fn from_record(id: String, record: records::Sandbox) -> Self {
        Self {
            id,
            labels: record.labels,
            runtime: record.runtime,
            options: record.options,
            spec: record.spec,
            sandboxer: record.sandboxer,
            created_at: time(record.created_at.as_ref()),
            updated_at: time(record.updated_at.as_ref()),
            extensions: record.extensions,
        }
    }

    fn record(&self) -> records::Sandbox {
        let this = self.clone();
        records::Sandbox {
            labels: this.labels,
            runtime: this.runtime,
            options: this.options,
            spec: this.spec,
            sandboxer: this.sandboxer,
            created_at: stamp(this.created_at),
            updated_at: stamp(this.updated_at),
            extensions: this.extensions,
        }
    }
}

/// The sandbox records of the daemon.
#[derive(Clone, Debug)]
pub struct Sandboxes {
    database: Database,
}

fn key(ctx: &Context, id: &str) -> Result<Key> {
    Key::new(Kind::Sandbox, &[ctx.namespace.as_str(), id])
}

/// Says that a namespace had a sandbox once; messages tell it from one that never had.
pub(crate) fn ever_key(namespace: &Namespace) -> Result<Key> {
    Key::new(Kind::Counter, &[&format!("sandbox/{namespace}")])
}

fn existing(reader: &impl Reader, ctx: &Context, id: &str) -> Result<Sandbox> {
    if let Some(record) = get(reader, &key(ctx, id)?)? {
        return Ok(Sandbox::from_record(id.to_owned(), record));
    }
    if reader.get_bytes(ever_key(&ctx.namespace)?.bytes())?.is_none() {
        return Err(Error::not_found("no sandbox buckets"));
    }
    Err(Error::not_found(format!("bucket {id:?} not found: not found")))
}

impl Sandboxes {
    /// Over a database.
    #[must_use]
    pub fn new(database: Database) -> Self {
        Self { database }
    }

    /// A sandbox.
    ///
    /// # Errors
    /// NotFound `bucket "ID" not found`, or `no sandbox buckets` when the namespace never had one.
    pub fn get(&self, ctx: &Context, id: &str) -> Result<Sandbox> {
        existing(&self.database.read()?, ctx, id)
    }

    /// The sandboxes that pass, by id.
    ///
    /// # Errors
    /// InvalidArgument for a malformed filter.
    pub fn list(&self, ctx: &Context, filters: &[String]) -> Result<Vec<Sandbox>> {
        let filter = filters::parse(filters)?;
        let mut found = Vec::new();
        let by = (&filter, "id");
        select(&self.database.read()?, Kind::Sandbox, ctx.namespace.as_str(), by, |id, record| {
            let sandbox = Sandbox::from_record(id, record);
            if filter.matches(&sandbox) {
                found.push(sandbox);
            }
        })?;
        Ok(found)
    }

    /// Makes a sandbox's record.
    ///
    /// # Errors
    /// InvalidArgument, AlreadyExists.
    pub async fn create(&self, ctx: &Context, mut sandbox: Sandbox) -> Result<Sandbox> {
        identifier::validate(&sandbox.id)
            .context("invalid sandbox ID")
            .context("failed to validate sandbox")?;
        labels::drop_empty(&mut sandbox.labels);
        sandbox.created_at = SystemTime::now();
        sandbox.updated_at = sandbox.created_at;
        let ctx = ctx.clone();
        self.database
            .write(move |tx| {
                let key = key(&ctx, &sandbox.id)?;
                if tx.get_bytes(key.bytes())?.is_some() {
                    let text = format!(
                        "write error: sandbox bucket {:?} already exists: already exists",
                        sandbox.id
                    );
                    return Err(Error::already_exists(text));
                }
                namespaces::ensure(tx, &ctx.namespace)?;
                put(tx, &ever_key(&ctx.namespace)?, &records::Number::default());
                put(tx, &key, &sandbox.record());
                Ok(sandbox)
            })
            .await
    }

    /// Changes what `paths` names, or labels, extensions, spec and runtime when it names nothing.
    ///
    /// # Errors
    /// InvalidArgument, NotFound.
    pub async fn update(&self, ctx: &Context, new: Sandbox, paths: Vec<String>) -> Result<Sandbox> {
        let ctx = ctx.clone();
        self.database
            .write(move |tx| {
                let before = existing(tx, &ctx, &new.id)?;
                let mut sandbox = before.clone();
                if paths.is_empty() && sandbox.runtime != new.runtime {
                    return Err(Error::invalid_argument("sandbox.Runtime.Name field is immutable"));
                }
                let all = ["labels", "extensions", "spec", "runtime"].map(str::to_owned);
                for path in if paths.is_empty() { &all[..] } else { &paths[..] } {
                    merge(&mut sandbox, &new, path)?;
                }
                labels::drop_empty(&mut sandbox.labels);
                sandbox.updated_at = SystemTime::now();
                // The answer shows what was asked for; what it does not name stays in the record.
                let mut stored = sandbox.clone();
                stored.spec = stored.spec.or(before.spec);
                stored.options = stored.options.or(before.options);
                before.extensions.into_iter().for_each(|(name, value)| {
                    stored.extensions.entry(name).or_insert(value);
                });
                put(tx, &key(&ctx, &new.id)?, &stored.record());
                Ok(sandbox)
            })
            .await
    }

    /// Removes a sandbox's record.
    ///
    /// # Errors
    /// NotFound.
    pub async fn delete(&self, ctx: &Context, id: &str) -> Result<()> {
        let (ctx, id) = (ctx.clone(), id.to_owned());
        self.database
            .write(move |tx: &mut Tx<'_>| {
                let key = key(&ctx, &id)?;
                if tx.get_bytes(key.bytes())?.is_none() {
                    let ever = tx.get_bytes(ever_key(&ctx.namespace)?.bytes())?.is_some();
                    let text = format!("failed to delete sandbox {id:?}");
                    return Err(Error::not_found(if ever { text.as_str() } else { "no sandbox buckets" }));
                }
                tx.remove(&key);
                tx.note_deletion();
                Ok(())
            })
            .await
    }
}

fn merge(sandbox: &mut Sandbox, new: &Sandbox, path: &str) -> Result<()> {
    match path {
        "runtime" => {
            sandbox.runtime.clone_from(&new.runtime);
            sandbox.options.clone_from(&new.options);
        }
        "spec" => sandbox.spec.clone_from(&new.spec),
        path => {
            let known = apply_map("labels", path, &mut sandbox.labels, &new.labels)
                || apply_map("extensions", path, &mut sandbox.extensions, &new.extensions);
            if !known {
                return Err(Error::invalid_argument(format!(
                    "cannot update {path:?} field on sandbox {:?}",
                    new.id
                )));
            }
        }
    }
    Ok(())
}
