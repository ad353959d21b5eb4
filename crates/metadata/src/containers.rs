//! Container records (spec 01 §1).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::SystemTime;

use corten_api::events as told;
use corten_events::Exchange;
use corten_types::filter::{Fields, label, text};
use corten_types::{
    Any, Context, Error, ErrorClass, Labels, Namespace, Result, ResultExt, identifier, labels,
};

use crate::database::Database;
use crate::encoded;
use crate::filters;
use crate::keys::{Key, Kind};
use crate::mask::apply_map;
use crate::namespaces;
use crate::records::{self, get, put, select, stamp, time};
use crate::transaction::{Reader, Tx};

/// What is known of a container beside its running.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    /// Identifier.
    pub id: String,
    /// Labels.
    pub labels: Labels,
    /// Name of its image; not checked.
    pub image: String,
    /// The runtime.
    pub runtime: Runtime,
    /// The OCI specification, verbatim.
    pub spec: Option<Any>,
    /// The snapshotter of its root file system.
    pub snapshotter: String,
    /// The snapshot's key.
    pub snapshot_key: String,
    /// When it was made.
    pub created_at: SystemTime,
    /// When it was last changed.
    pub updated_at: SystemTime,
    /// What clients keep beside it.
    pub extensions: BTreeMap<String, Any>,
    /// Its sandbox.
    pub sandbox: String,
}

/// The runtime that a container is to be run by.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Runtime {
    /// As `io.containerd.runc.v2`, or the path of a shim.
    pub name: String,
    /// Its options.
    pub options: Option<Any>,
}

impl Default for Container {
    fn default() -> Self {
        Self {
            id: String::new(),
            labels: Labels::new(),
            image: String::new(),
            runtime: Runtime::default(),
            spec: None,
            snapshotter: String::new(),
            snapshot_key: String::new(),
            created_at: SystemTime::UNIX_EPOCH,
            updated_at: SystemTime::UNIX_EPOCH,
            extensions: BTreeMap::new(),
            sandbox: String::new(),
        }
    }
}

impl Fields for Container {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["id", ..] => text(&self.id),
            ["runtime", "name", ..] => text(&self.runtime.name),
            ["image", ..] => text(&self.image),
            ["labels", rest @ ..] => label(rest, &self.labels),
            _ => None,
        }
    }
}

impl Container {
    fn from_record(id: String, record: records::Container) -> Self {
        Self {
            id,
            labels: record.labels,
            image: record.image,
            runtime: Runtime { name: record.runtime, options: record.options },
            spec: record.spec,
            snapshotter: record.snapshotter,
            snapshot_key: record.snapshot_key,
            created_at: time(record.created_at.as_ref()),
            updated_at: time(record.updated_at.as_ref()),
            extensions: record.extensions,
            sandbox: record.sandbox,
        }
    }

    fn record(&self) -> records::Container {
        let this = self.clone();
        records::Container {
            labels: this.labels,
            image: this.image,
            runtime: this.runtime.name,
            options: this.runtime.options,
            spec: this.spec,
            snapshotter: this.snapshotter,
            snapshot_key: this.snapshot_key,
            created_at: stamp(this.created_at),
            updated_at: stamp(this.updated_at),
            extensions: this.extensions,
            sandbox: this.sandbox,
        }
    }

    fn validate(&self) -> Result<()> {
        identifier::validate(&self.id).context("container.ID")?;
        if self.extensions.keys().any(String::is_empty) {
            return Err(Error::invalid_argument("container.Extension keys must not be zero-length"));
        }
        labels::validate(&self.labels).context("containers.Labels")?;
        if self.runtime.name.is_empty() {
            return Err(Error::invalid_argument("container.Runtime.Name must be set"));
        }
        if !self.snapshot_key.is_empty() && self.snapshotter.is_empty() {
            return Err(Error::invalid_argument(
                "container.Snapshotter must be set if container.SnapshotKey is set",
            ));
        }
        Ok(())
    }
}

/// The containers of the daemon.
#[derive(Clone, Debug)]
pub struct Containers {
    database: Database,
    exchange: Exchange,
}

fn key(namespace: &Namespace, id: &str) -> Result<Key> {
    Key::new(Kind::Container, &[namespace.as_str(), id])
}

fn read(reader: &impl Reader, namespace: &Namespace, id: &str) -> Result<Option<Container>> {
    Ok(get(reader, &key(namespace, id)?)?.map(|record| Container::from_record(id.to_owned(), record)))
}

impl Containers {
    /// Over a database; changes are told to the exchange.
    #[must_use]
    pub fn new(database: Database, exchange: Exchange) -> Self {
        Self { database, exchange }
    }

    /// A container.
    ///
    /// # Errors
    /// NotFound.
    pub fn get(&self, ctx: &Context, id: &str) -> Result<Container> {
        let missing =
            || Error::not_found(format!("container {id:?} in namespace {:?}", ctx.namespace.as_str()));
        read(&self.database.read()?, &ctx.namespace, id)?.ok_or_else(missing)
    }

    /// The containers that pass, by id.
    ///
    /// # Errors
    /// InvalidArgument for a malformed filter.
    pub fn list(&self, ctx: &Context, filters: &[String]) -> Result<Vec<Container>> {
        let filter = filters::parse(filters)?;
        let mut found = Vec::new();
        let by = (&filter, "id");
        select(&self.database.read()?, Kind::Container, ctx.namespace.as_str(), by, |id, record| {
            let container = Container::from_record(id, record);
            if filter.matches(&container) {
                found.push(container);
            }
        })?;
        Ok(found)
    }

    /// All containers of a namespace by id, as an encoded `ListContainersResponse` of the containers service.
    ///
    /// # Errors
    /// Those of the database.
    pub fn list_all_encoded(&self, ctx: &Context) -> Result<Vec<u8>> {
        let mut answer = Vec::new();
        let prefix = Key::prefix(Kind::Container, &[ctx.namespace.as_str()]);
        self.database.read()?.scan_bytes(prefix.bytes(), &mut |key, record| {
            let id = key.get(prefix.bytes().len()..).unwrap_or_default();
            if let Err(error) = encoded::append(&mut answer, &String::from_utf8_lossy(id), record) {
                tracing::error!(key = %String::from_utf8_lossy(key), %error, "a record is damaged");
            }
            Ok(true)
        })?;
        Ok(answer)
    }

    /// Makes a container's record.
    ///
    /// # Errors
    /// InvalidArgument, AlreadyExists.
    pub async fn create(&self, ctx: &Context, mut container: Container) -> Result<Container> {
        container.validate().context("create container failed validation")?;
        labels::drop_empty(&mut container.labels);
        container.created_at = SystemTime::now();
        container.updated_at = container.created_at;
        let namespace = ctx.namespace.clone();
        let stored = container.clone();
        let change = move |tx: &mut Tx<'_>| {
            let key = key(&namespace, &stored.id)?;
            if tx.get_bytes(key.bytes())?.is_some() {
                return Err(Error::already_exists(format!("container {:?}", stored.id)));
            }
            namespaces::ensure(tx, &namespace)?;
            put(tx, &key, &stored.record());
            Ok(())
        };
        self.database.write(change).await?;
        let runtime = told::container_create::Runtime {
            name: container.runtime.name.clone(),
            options: container.runtime.options.clone(),
        };
        let event = told::ContainerCreate {
            id: container.id.clone(),
            image: container.image.clone(),
            runtime: Some(runtime),
        };
        self.exchange.publish(&ctx.namespace, "/containers/create", &event);
        Ok(container)
    }

    /// Changes what `paths` names, or everything that may change when it names nothing.
    ///
    /// # Errors
    /// InvalidArgument, NotFound.
    pub async fn update(&self, ctx: &Context, new: Container, paths: Vec<String>) -> Result<Container> {
        if new.id.is_empty() {
            return Err(Error::bare(ErrorClass::InvalidArgument, "Container.ID required"));
        }
        let namespace = ctx.namespace.clone();
        let change = move |tx: &mut Tx<'_>| {
            let missing = || Error::not_found(format!("container {:?}", new.id));
            let before = read(tx, &namespace, &new.id)?.ok_or_else(missing)?;
            let mut container = before.clone();
            merge(&mut container, &new, &paths)?;
            container.validate().context("update failed validation")?;
            let named = paths.is_empty() || paths.iter().any(|path| path == "spec");
            if before.spec.is_none() && !named {
                return Err(Error::invalid_argument("update failed validation: container.Spec must be set"));
            }
            labels::drop_empty(&mut container.labels);
            container.updated_at = SystemTime::now();
            // The answer shows what was asked for; what it does not name stays in the record (spec 01 §1).
            let mut stored = container.clone();
            stored.spec = stored.spec.or(before.spec);
            before.extensions.into_iter().for_each(|(name, value)| {
                stored.extensions.entry(name).or_insert(value);
            });
            put(tx, &key(&namespace, &new.id)?, &stored.record());
            Ok(container)
        };
        let container = self.database.write(change).await?;
        let event = told::ContainerUpdate {
            id: container.id.clone(),
            image: container.image.clone(),
            labels: container.labels.clone(),
            snapshot_key: container.snapshot_key.clone(),
        };
        self.exchange.publish(&ctx.namespace, "/containers/update", &event);
        Ok(container)
    }

    /// Removes a container's record, and nothing else.
    ///
    /// # Errors
    /// NotFound.
    pub async fn delete(&self, ctx: &Context, id: &str) -> Result<()> {
        let (namespace, name) = (ctx.namespace.clone(), id.to_owned());
        let change = move |tx: &mut Tx<'_>| {
            let key = key(&namespace, &name)?;
            if tx.get_bytes(key.bytes())?.is_none() {
                return Err(Error::not_found(format!("container {name}")));
            }
            tx.remove(&key);
            tx.note_deletion();
            Ok(())
        };
        self.database.write(change).await?;
        self.exchange.publish(
            &ctx.namespace,
            "/containers/delete",
            &told::ContainerDelete { id: id.to_owned() },
        );
        Ok(())
    }
}

fn merge(old: &mut Container, new: &Container, paths: &[String]) -> Result<()> {
    let all = ["labels", "spec", "extensions", "image", "snapshotkey"].map(str::to_owned);
    if paths.is_empty() {
        for (field, same) in [
            ("container.Snapshotter", old.snapshotter == new.snapshotter),
            ("container.Runtime.Name", old.runtime.name == new.runtime.name),
        ] {
            if !same {
                return Err(Error::invalid_argument(format!("{field} field is immutable")));
            }
        }
    }
    for path in if paths.is_empty() { &all } else { paths } {
        let known = match path.as_str() {
            "spec" => {
                old.spec.clone_from(&new.spec);
                true
            }
            "image" => {
                old.image.clone_from(&new.image);
                true
            }
            "snapshotkey" => {
                old.snapshot_key.clone_from(&new.snapshot_key);
                true
            }
            "extensions" => {
                old.extensions.clone_from(&new.extensions);
                true
            }
            path => {
                apply_map("labels", path, &mut old.labels, &new.labels)
                    || apply_map("extensions", path, &mut old.extensions, &new.extensions)
            }
        };
        if !known {
            return Err(Error::invalid_argument(format!("cannot update {path:?} field on {:?}", new.id)));
        }
    }
    Ok(())
}
