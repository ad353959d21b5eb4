//! Namespaces (spec 01 §9). They come into being with the first object in them.

use std::collections::BTreeSet;

use corten_api::events as told;
use corten_events::Exchange;
use corten_types::{Error, ErrorClass, Labels, Namespace, Result, ResultExt, labels};

use crate::database::Database;
use crate::keys::{Key, Kind};
use crate::records::{self, get, put, scan};
use crate::sandboxes;
use crate::transaction::{Reader, Tx};

/// The namespaces of the daemon.
#[derive(Clone, Debug)]
pub struct Namespaces {
    database: Database,
    exchange: Exchange,
}

/// Makes sure that a namespace exists.
pub(crate) fn ensure(tx: &mut Tx<'_>, namespace: &Namespace) -> Result<()> {
    let key = Key::new(Kind::Namespace, &[namespace.as_str()])?;
    if tx.get_bytes(key.bytes())?.is_none() {
        put(tx, &key, &records::Namespace::default());
    }
    Ok(())
}

/// The names of all namespaces.
pub(crate) fn names(reader: &impl Reader) -> Result<Vec<Namespace>> {
    let mut found = Vec::new();
    scan(reader, Kind::Namespace, &[], |mut parts, _: records::Namespace| {
        found.extend(parts.pop().and_then(|name| Namespace::new(name).ok()));
        Ok(())
    })?;
    Ok(found)
}

pub(crate) fn labels_of(reader: &impl Reader, namespace: &Namespace) -> Result<Labels> {
    let key = Key::new(Kind::Namespace, &[namespace.as_str()])?;
    Ok(get::<records::Namespace>(reader, &key)?.unwrap_or_default().labels)
}

impl Namespaces {
    /// Over a database; changes are told to the exchange.
    #[must_use]
    pub fn new(database: Database, exchange: Exchange) -> Self {
        Self { database, exchange }
    }

    /// The labels of a namespace: none for one that does not exist.
    ///
    /// # Errors
    /// Those of the database.
    pub fn labels(&self, namespace: &Namespace) -> Result<Labels> {
        labels_of(&self.database.read()?, namespace)
    }

    /// All namespaces with their labels.
    ///
    /// # Errors
    /// Those of the database.
    pub fn list(&self) -> Result<Vec<(Namespace, Labels)>> {
        let view = self.database.read()?;
        names(&view)?.into_iter().map(|name| Ok((name.clone(), labels_of(&view, &name)?))).collect()
    }

    /// Makes a namespace.
    ///
    /// # Errors
    /// AlreadyExists; InvalidArgument for labels that are too long.
    pub async fn create(&self, namespace: Namespace, labels: Labels) -> Result<()> {
        labels::validate(&labels).context("namespace.Labels")?;
        let event = told::NamespaceCreate { name: namespace.to_string(), labels: labels.clone() };
        let (name, mut stored) = (namespace.clone(), labels);
        labels::drop_empty(&mut stored);
        let change = move |tx: &mut Tx<'_>| {
            let key = Key::new(Kind::Namespace, &[name.as_str()])?;
            if tx.get_bytes(key.bytes())?.is_some() {
                return Err(Error::already_exists(format!("namespace {:?}", name.as_str())));
            }
            put(tx, &key, &records::Namespace { labels: stored });
            Ok(())
        };
        self.database.write(change).await?;
        self.exchange.publish(&namespace, "/namespaces/create", &event);
        Ok(())
    }

    /// Sets labels: those that `paths` names (`labels.K`), or all when it names none.
    ///
    /// # Errors
    /// InvalidArgument for another path.
    pub async fn update(&self, namespace: Namespace, new: Labels, paths: Vec<String>) -> Result<Labels> {
        labels::validate(&new).context("namespace.Labels")?;
        if let Some(path) = paths.iter().find(|path| !path.starts_with("labels.")) {
            return Err(Error::bare(ErrorClass::InvalidArgument, format!("cannot update {path:?} field")));
        }
        let name = namespace.clone();
        let change = move |tx: &mut Tx<'_>| {
            let mut labels = labels_of(tx, &name)?;
            if paths.is_empty() {
                labels = new;
            } else {
                for path in &paths {
                    crate::mask::apply_map("labels", path, &mut labels, &new);
                }
            }
            labels::drop_empty(&mut labels);
            let key = Key::new(Kind::Namespace, &[name.as_str()])?;
            put(tx, &key, &records::Namespace { labels: labels.clone() });
            Ok(labels)
        };
        let labels = self.database.write(change).await?;
        let event = told::NamespaceUpdate { name: namespace.to_string(), labels: labels.clone() };
        self.exchange.publish(&namespace, "/namespaces/update", &event);
        Ok(labels)
    }

    /// Removes an empty namespace.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition with what it still holds.
    pub async fn delete(&self, namespace: Namespace) -> Result<()> {
        let name = namespace.clone();
        let change = move |tx: &mut Tx<'_>| {
            let key = Key::new(Kind::Namespace, &[name.as_str()])?;
            if tx.get_bytes(key.bytes())?.is_none() {
                return Err(Error::not_found(format!("namespace {:?}", name.as_str())));
            }
            let held = contents(tx, &name)?;
            if !held.is_empty() {
                return Err(Error::failed_precondition(format!(
                    "namespace {:?} must be empty, but it still has {}",
                    name.as_str(),
                    held.join(", ")
                )));
            }
            tx.remove(&key);
            tx.remove(&sandboxes::ever_key(&name)?);
            tx.note_deletion();
            for kind in [Kind::Lease, Kind::Resource, Kind::Ingest, Kind::Sandbox, Kind::Activation] {
                let mut keys = Vec::new();
                tx.scan_bytes(Key::prefix(kind, &[name.as_str()]).bytes(), &mut |key, _| {
                    keys.push(Key::parts(key));
                    Ok(true)
                })?;
                for parts in keys {
                    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
                    tx.remove(&Key::new(kind, &parts)?);
                }
            }
            Ok(())
        };
        self.database.write(change).await?;
        let event = told::NamespaceDelete { name: namespace.to_string() };
        self.exchange.publish(&namespace, "/namespaces/delete", &event);
        Ok(())
    }
}

/// What keeps a namespace from being removed, in the words of the original.
fn contents(reader: &impl Reader, namespace: &Namespace) -> Result<Vec<String>> {
    let mut held = Vec::new();
    for (kind, word) in [(Kind::Image, "images"), (Kind::Blob, "blobs"), (Kind::Container, "containers")] {
        reader.scan_bytes(Key::prefix(kind, &[namespace.as_str()]).bytes(), &mut |_, _| {
            held.push(word.to_owned());
            Ok(false)
        })?;
    }
    let mut snapshotters = BTreeSet::new();
    reader.scan_bytes(Key::prefix(Kind::Snapshot, &[namespace.as_str()]).bytes(), &mut |key, _| {
        snapshotters.extend(Key::parts(key).into_iter().nth(1));
        Ok(true)
    })?;
    held.extend(snapshotters.iter().map(|name| format!("snapshots on {name:?} snapshotter")));
    Ok(held)
}
