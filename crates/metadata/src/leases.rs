//! Leases: what they name is kept from the collector (spec 01 §7).

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::SystemTime;

use base64::Engine as _;
use corten_types::filter::{Fields, label, text};
use corten_types::{Context, Digest, Error, ErrorClass, Labels, Namespace, Result, labels, timestamp};

use crate::database::Database;
use crate::filters;
use crate::keys::{Key, Kind};
use crate::records::{self, get, put, scan, select, stamp, time};
use crate::transaction::{Reader, Tx};
use crate::{activations, mark, namespaces};

/// A lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Any string.
    pub id: String,
    /// When it was made.
    pub created_at: SystemTime,
    /// Labels; `containerd.io/gc.expire` ends it, `containerd.io/gc.flat` keeps only what it names.
    pub labels: Labels,
}

/// Something that a lease keeps.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resource {
    /// `content`, `images`, `ingests` or `snapshots/<snapshotter>`.
    pub kind: String,
    /// Digest, name, reference or key.
    pub id: String,
}

impl Fields for Lease {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["id", ..] => text(&self.id),
            ["labels", rest @ ..] => label(rest, &self.labels),
            _ => None,
        }
    }
}

/// The leases of the daemon.
#[derive(Clone, Debug)]
pub struct Leases {
    database: Database,
}

fn key(namespace: &Namespace, id: &str) -> Result<Key> {
    Key::new(Kind::Lease, &[namespace.as_str(), id])
}

fn resource_key(namespace: &Namespace, lease: &str, kind: &str, id: &str) -> Result<Key> {
    Key::new(Kind::Resource, &[namespace.as_str(), lease, kind, id])
}

/// Puts a new object into the caller's lease, if there is one.
pub(crate) fn attach(tx: &mut Tx<'_>, ctx: &Context, kind: &str, id: &str) -> Result<()> {
    let Some(lease) = &ctx.lease else { return Ok(()) };
    if tx.get_bytes(key(&ctx.namespace, lease)?.bytes())?.is_none() {
        return Err(Error::not_found("lease does not exist"));
    }
    put(tx, &resource_key(&ctx.namespace, lease, kind, id)?, &records::Number::default());
    Ok(())
}

/// Takes an object out of the caller's lease, if it is there.
pub(crate) fn detach(tx: &mut Tx<'_>, ctx: &Context, kind: &str, id: &str) -> Result<()> {
    if let Some(lease) = &ctx.lease {
        tx.remove(&resource_key(&ctx.namespace, lease, kind, id)?);
    }
    Ok(())
}

/// Whether the caller's lease exists; an ingest without one gets an expiry.
pub(crate) fn check(reader: &impl Reader, ctx: &Context) -> Result<()> {
    match &ctx.lease {
        Some(lease) if reader.get_bytes(key(&ctx.namespace, lease)?.bytes())?.is_none() => {
            Err(Error::not_found("lease does not exist"))
        }
        _ => Ok(()),
    }
}

pub(crate) fn resources_of(
    reader: &impl Reader,
    namespace: &Namespace,
    lease: &str,
) -> Result<Vec<Resource>> {
    let mut found = Vec::new();
    scan(reader, Kind::Resource, &[namespace.as_str(), lease], |parts, _: records::Number| {
        if let [_, _, kind, id] = parts.as_slice() {
            found.push(Resource { kind: kind.clone(), id: id.clone() });
        }
        Ok(())
    })?;
    Ok(found)
}

fn missing(id: &str) -> Error {
    Error::not_found(format!("lease {id:?}"))
}

impl Leases {
    /// Over a database.
    #[must_use]
    pub fn new(database: Database) -> Self {
        Self { database }
    }

    /// Makes a lease; an empty id gets a generated one.
    ///
    /// # Errors
    /// AlreadyExists. Labels of leases may be of any length.
    pub async fn create(&self, ctx: &Context, id: &str, mut labels: Labels) -> Result<Lease> {
        labels::drop_empty(&mut labels);
        let id = if id.is_empty() { generated() } else { id.to_owned() };
        let (namespace, lease) = (ctx.namespace.clone(), Lease { id, created_at: SystemTime::now(), labels });
        self.database
            .write(move |tx| {
                let key = key(&namespace, &lease.id)?;
                if tx.get_bytes(key.bytes())?.is_some() {
                    return Err(Error::already_exists(format!("lease {:?}", lease.id)));
                }
                namespaces::ensure(tx, &namespace)?;
                put(
                    tx,
                    &key,
                    &records::Lease { labels: lease.labels.clone(), created_at: stamp(lease.created_at) },
                );
                Ok(lease)
            })
            .await
    }

    /// Ends a lease. What only it kept goes with the next collection.
    ///
    /// # Errors
    /// NotFound.
    pub async fn delete(&self, ctx: &Context, id: &str) -> Result<()> {
        let (namespace, id) = (ctx.namespace.clone(), id.to_owned());
        let change = move |tx: &mut Tx<'_>| {
            tx.note_deletion();
            remove(tx, &namespace, &id)
        };
        self.database.write(change).await
    }

    /// The leases that pass, by id.
    ///
    /// # Errors
    /// InvalidArgument for a malformed filter.
    pub fn list(&self, ctx: &Context, filters: &[String]) -> Result<Vec<Lease>> {
        let filter = filters::parse(filters)?;
        let mut found = Vec::new();
        let by = (&filter, "id");
        select(
            &self.database.read()?,
            Kind::Lease,
            ctx.namespace.as_str(),
            by,
            |id, record: records::Lease| {
                let lease = Lease { id, created_at: time(record.created_at.as_ref()), labels: record.labels };
                if filter.matches(&lease) {
                    found.push(lease);
                }
            },
        )?;
        Ok(found)
    }

    /// Adds something to a lease; it need not exist yet.
    ///
    /// # Errors
    /// NotFound for the lease; InvalidArgument, NotImplemented for the type.
    pub async fn add_resource(&self, ctx: &Context, id: &str, resource: Resource) -> Result<()> {
        check_type(&resource)?;
        let (namespace, id) = (ctx.namespace.clone(), id.to_owned());
        self.database
            .write(move |tx| {
                get::<records::Lease>(tx, &key(&namespace, &id)?)?.ok_or_else(|| missing(&id))?;
                put(
                    tx,
                    &resource_key(&namespace, &id, &resource.kind, &resource.id)?,
                    &records::Number::default(),
                );
                Ok(())
            })
            .await
    }

    /// Takes something out of a lease.
    ///
    /// # Errors
    /// As [`Leases::add_resource`]; that it was not there is none.
    pub async fn remove_resource(&self, ctx: &Context, id: &str, resource: Resource) -> Result<()> {
        check_type(&resource)?;
        let (namespace, id) = (ctx.namespace.clone(), id.to_owned());
        self.database
            .write(move |tx| {
                get::<records::Lease>(tx, &key(&namespace, &id)?)?.ok_or_else(|| missing(&id))?;
                tx.remove(&resource_key(&namespace, &id, &resource.kind, &resource.id)?);
                tx.note_deletion();
                Ok(())
            })
            .await
    }

    /// What a lease keeps: content, images, ingests, snapshots.
    ///
    /// # Errors
    /// NotFound.
    pub fn resources(&self, ctx: &Context, id: &str) -> Result<Vec<Resource>> {
        let view = self.database.read()?;
        get::<records::Lease>(&view, &key(&ctx.namespace, id)?)?.ok_or_else(|| missing(id))?;
        let mut held = resources_of(&view, &ctx.namespace, id)?;
        held.retain(|resource| resource.kind != activations::RESOURCE);
        Ok(held)
    }

    /// Streams that a label `containerd.io/gc.ref.stream` of anything kept names (spec 01 §12, §16).
    ///
    /// # Errors
    /// Those of the store.
    pub fn referenced_streams(&self, namespace: &Namespace) -> Result<BTreeSet<String>> {
        mark::streams(&self.database.read()?, namespace, SystemTime::now())
    }
}

/// Removes a lease with what it lists.
pub(crate) fn remove(tx: &mut Tx<'_>, namespace: &Namespace, id: &str) -> Result<()> {
    let key = key(namespace, id)?;
    if tx.get_bytes(key.bytes())?.is_none() {
        return Err(missing(id));
    }
    tx.remove(&key);
    for resource in resources_of(tx, namespace, id)? {
        tx.remove(&resource_key(namespace, id, &resource.kind, &resource.id)?);
    }
    Ok(())
}

fn check_type(resource: &Resource) -> Result<()> {
    match resource.kind.split('/').collect::<Vec<_>>().as_slice() {
        ["content"] => match resource.id.parse::<Digest>() {
            Ok(_) => Ok(()),
            Err(error) => {
                Err(Error::invalid_argument(format!("invalid content resource id {}: {error}", resource.id)))
            }
        },
        ["images" | "ingests" | "snapshots", ..] if resource.id.is_empty() => {
            Err(Error::invalid_argument("key required"))
        }
        ["images" | "ingests"] => Ok(()),
        ["snapshots", name] if !name.is_empty() => Ok(()),
        ["snapshots", ..] => {
            Err(Error::invalid_argument(format!("invalid snapshot resource type {}", resource.kind)))
        }
        ["content" | "images" | "ingests", ..] => {
            Err(Error::invalid_argument(format!("invalid resource type {}", resource.kind)))
        }
        _ => Err(Error::new(
            ErrorClass::NotImplemented,
            format!("resource type {} not supported yet", resource.kind),
        )),
    }
}

/// Nanoseconds and four random letters, as the original makes ids.
fn generated() -> String {
    let mut random = [0; 3];
    if getrandom::fill(&mut random).is_err() {
        random = [timestamp::nanos() as u8, std::process::id() as u8, 0];
    }
    format!("{}-{}", timestamp::nanos(), base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(random))
}
