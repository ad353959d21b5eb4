//! Records of activated mounts (spec 01 §8). They tell of what the kernel has mounted, and so mean nothing
//! once the machine was restarted.

use corten_types::{Context, Error, ErrorClass, Labels, Mount, Namespace, Result};
use prost_types::Timestamp;

use crate::database::Database;
use crate::keys::{Key, Kind};
use crate::records::{self, get, put, scan};
use crate::transaction::{Reader, Tx};
use crate::{leases, namespaces};

/// Under which leases list activations. Clients do not see it there.
pub(crate) const RESOURCE: &str = "mounts";

/// A mount that was made for an activation.
#[derive(Clone, Debug, PartialEq)]
pub struct ActiveMount {
    /// What was mounted, as it was after all transformations.
    pub mount: Mount,
    /// When.
    pub mounted_at: Option<Timestamp>,
    /// Where.
    pub mount_point: String,
}

/// A list of mounts, of which some are made and the rest is for whoever uses them.
#[derive(Clone, Debug, PartialEq)]
pub struct Activation {
    /// Name, any string.
    pub name: String,
    /// Number of its folder.
    pub number: u64,
    /// In which boot of the machine it was made.
    pub boot: String,
    /// What is mounted, in order.
    pub active: Vec<ActiveMount>,
    /// What is left to be mounted.
    pub system: Vec<Mount>,
    /// Labels; `containerd.io/gc.bref.…` names what keeps it.
    pub labels: Labels,
}

/// The records of activations.
#[derive(Clone, Debug)]
pub struct ActivationRecords {
    database: Database,
}

fn key(namespace: &Namespace, name: &str) -> Result<Key> {
    Key::new(Kind::Activation, &[namespace.as_str(), name])
}

/// Says that a namespace had an activation once; messages tell it from one that never had.
fn ever_key(namespace: &str) -> Result<Key> {
    Key::new(Kind::Counter, &[&format!("mounts/{namespace}")])
}

fn missing(reader: &impl Reader, namespace: &Namespace, name: &str) -> Result<Error> {
    let ever =
        |namespace: &str| -> Result<bool> { Ok(reader.get_bytes(ever_key(namespace)?.bytes())?.is_some()) };
    let what = match () {
        () if ever(namespace.as_str())? => format!("mount {name:?}"),
        () if ever("")? => format!("namespace {:?}", namespace.as_str()),
        () => "v1".to_owned(),
    };
    Ok(Error::not_found(format!("missing {what} bucket")))
}

impl ActivationRecords {
    /// Over a database.
    #[must_use]
    pub fn new(database: Database) -> Self {
        Self { database }
    }

    /// An activation.
    ///
    /// # Errors
    /// NotFound `mount "…" not found`.
    pub fn get(&self, ctx: &Context, name: &str) -> Result<Activation> {
        let found: Option<records::Activation> = get(&self.database.read()?, &key(&ctx.namespace, name)?)?;
        let missing = || Error::bare(ErrorClass::NotFound, format!("mount {name:?} not found"));
        found.map(|record| from_record(name.to_owned(), record)).ok_or_else(missing)
    }

    /// The activations of a namespace, by name.
    ///
    /// # Errors
    /// Those of the database.
    pub fn list(&self, ctx: &Context) -> Result<Vec<Activation>> {
        let mut found = Vec::new();
        scan(&self.database.read()?, Kind::Activation, &[ctx.namespace.as_str()], |mut parts, record| {
            found.push(from_record(parts.pop().unwrap_or_default(), record));
            Ok(())
        })?;
        Ok(found)
    }

    /// All activations, with their namespaces.
    ///
    /// # Errors
    /// Those of the database.
    pub fn all(&self) -> Result<Vec<(Namespace, Activation)>> {
        let mut found = Vec::new();
        scan(&self.database.read()?, Kind::Activation, &[], |mut parts, record| {
            let name = parts.pop().unwrap_or_default();
            if let Some(Ok(namespace)) = parts.pop().map(Namespace::new) {
                found.push((namespace, from_record(name, record)));
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Notes an activation; it joins the caller's lease, if that exists.
    ///
    /// # Errors
    /// AlreadyExists `mount "…"`.
    pub async fn create(&self, ctx: &Context, activation: Activation) -> Result<()> {
        let ctx = ctx.clone();
        self.database
            .write(move |tx| {
                let key = key(&ctx.namespace, &activation.name)?;
                if tx.get_bytes(key.bytes())?.is_some() {
                    return Err(Error::already_exists(format!("mount {:?}", activation.name)));
                }
                namespaces::ensure(tx, &ctx.namespace)?;
                for space in ["", ctx.namespace.as_str()] {
                    put(tx, &ever_key(space)?, &records::Number::default());
                }
                let mut record = to_record(&activation);
                match leases::attach(tx, &ctx, RESOURCE, &activation.name) {
                    Ok(()) => record.lease = ctx.lease.unwrap_or_default(),
                    // Without it, the next collection takes the mounts.
                    Err(error) if error.is_not_found() => {}
                    Err(error) => return Err(error),
                }
                put(tx, &key, &record);
                Ok(())
            })
            .await
    }

    /// Removes the record of an activation; what is mounted is found by its number.
    ///
    /// # Errors
    /// NotFound `missing … bucket`.
    pub async fn delete(&self, ctx: &Context, name: &str) -> Result<Activation> {
        let (namespace, name) = (ctx.namespace.clone(), name.to_owned());
        self.database
            .write(move |tx: &mut Tx<'_>| {
                let key = key(&namespace, &name)?;
                let Some(record) = get::<records::Activation>(tx, &key)? else {
                    return Err(missing(tx, &namespace, &name)?);
                };
                let lease = Some(record.lease.clone()).filter(|lease| !lease.is_empty());
                leases::detach(tx, &Context { namespace, lease }, RESOURCE, &name)?;
                tx.remove(&key);
                Ok(from_record(name, record))
            })
            .await
    }

    /// Forgets activations whose mounts are gone.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn forget(&self, gone: Vec<(Namespace, String)>) -> Result<()> {
        if gone.is_empty() {
            return Ok(());
        }
        self.database
            .write(move |tx: &mut Tx<'_>| {
                for (namespace, name) in &gone {
                    tx.remove(&key(namespace, name)?);
                }
                Ok(())
            })
            .await
    }
}

fn from_mount(mount: Mount) -> records::Mount {
    records::Mount { kind: mount.kind, source: mount.source, target: mount.target, options: mount.options }
}

fn to_mount(mount: records::Mount) -> Mount {
    Mount { kind: mount.kind, source: mount.source, target: mount.target, options: mount.options }
}

fn to_record(activation: &Activation) -> records::Activation {
    let this = activation.clone();
    let active = this.active.into_iter().map(|active| records::ActiveMount {
        mount: Some(from_mount(active.mount)),
        mounted_at: active.mounted_at,
        mount_point: active.mount_point,
    });
    records::Activation {
        number: this.number,
        boot: this.boot,
        active: active.collect(),
        system: this.system.into_iter().map(from_mount).collect(),
        labels: this.labels,
        lease: String::new(),
    }
}

fn from_record(name: String, record: records::Activation) -> Activation {
    let active = record.active.into_iter().map(|active| ActiveMount {
        mount: to_mount(active.mount.unwrap_or_default()),
        mounted_at: active.mounted_at,
        mount_point: active.mount_point,
    });
    Activation {
        name,
        number: record.number,
        boot: record.boot,
        active: active.collect(),
        system: record.system.into_iter().map(to_mount).collect(),
        labels: record.labels,
    }
}
