//! Image records: a name for a descriptor (spec 01 §5).

use std::borrow::Cow;
use std::time::SystemTime;

use corten_api::services::images as told;
use corten_events::Exchange;
use corten_types::filter::{Fields, label, text};
use corten_types::{
    Context, Descriptor, Digest, Error, ErrorClass, Labels, Namespace, Result, ResultExt, labels,
};

use crate::database::Database;
use crate::filters;
use crate::graph::EXPIRE;
use crate::keys::{Key, Kind};
use crate::mask::apply_map;
use crate::records::{self, get, put, select, stamp, time};
use crate::transaction::{Reader, Tx};
use crate::{leases, namespaces};

/// A name and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Any string that is not empty.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// What it stands for; only media type, digest, size and annotations are kept.
    pub target: Descriptor,
    /// When it was made.
    pub created_at: SystemTime,
    /// When it was last changed.
    pub updated_at: SystemTime,
}

impl Image {
    /// A new record, not stored yet.
    #[must_use]
    pub fn new(name: impl Into<String>, target: Descriptor, labels: Labels) -> Self {
        let now = SystemTime::now();
        Self { name: name.into(), labels, target, created_at: now, updated_at: now }
    }

    fn from_record(name: String, record: records::Image) -> Result<Self> {
        let mut target = Descriptor::new(record.media_type, record.digest.parse::<Digest>()?, record.size);
        target.annotations = record.annotations;
        Ok(Self {
            name,
            labels: record.labels,
            target,
            created_at: time(record.created_at.as_ref()),
            updated_at: time(record.updated_at.as_ref()),
        })
    }

    fn record(&self) -> records::Image {
        records::Image {
            labels: self.labels.clone(),
            media_type: self.target.media_type.clone(),
            digest: self.target.digest.to_string(),
            size: self.target.size,
            annotations: self.target.annotations.clone(),
            created_at: stamp(self.created_at),
            updated_at: stamp(self.updated_at),
        }
    }

    fn validate(&self) -> Result<()> {
        if self.name.is_empty() {
            return Err(Error::bare(ErrorClass::InvalidArgument, "Image.Name required"));
        }
        labels::validate(&self.labels).context("image.Labels")?;
        if self.target.size <= 0 {
            return Err(Error::invalid_argument("target.Size must be greater than zero"));
        }
        if self.target.media_type.is_empty() {
            return Err(Error::invalid_argument("target.MediaType must be set"));
        }
        Ok(())
    }
}

impl Fields for Image {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["name", ..] => text(&self.name),
            ["target", "digest", ..] => text(self.target.digest.as_str()),
            ["target", "mediatype", ..] => text(&self.target.media_type),
            ["labels", rest @ ..] => label(rest, &self.labels),
            ["annotations", rest @ ..] => label(rest, &self.target.annotations),
            _ => None,
        }
    }
}

/// The images of the daemon.
#[derive(Clone, Debug)]
pub struct Images {
    database: Database,
    exchange: Exchange,
}

fn key(namespace: &Namespace, name: &str) -> Result<Key> {
    Key::new(Kind::Image, &[namespace.as_str(), name])
}

fn read(reader: &impl Reader, namespace: &Namespace, name: &str) -> Result<Image> {
    let record: Option<records::Image> = get(reader, &key(namespace, name)?)?;
    Image::from_record(name.to_owned(), record.ok_or_else(|| Error::not_found(format!("image {name:?}")))?)
}

impl Images {
    /// Over a database; changes are told to the exchange.
    #[must_use]
    pub fn new(database: Database, exchange: Exchange) -> Self {
        Self { database, exchange }
    }

    /// An image.
    ///
    /// # Errors
    /// NotFound.
    pub fn get(&self, ctx: &Context, name: &str) -> Result<Image> {
        read(&self.database.read()?, &ctx.namespace, name)
    }

    /// The images that pass, by name.
    ///
    /// # Errors
    /// InvalidArgument for a malformed filter.
    pub fn list(&self, ctx: &Context, filters: &[String]) -> Result<Vec<Image>> {
        let filter = filters::parse(filters)?;
        let mut found = Vec::new();
        let by = (&filter, "name");
        select(&self.database.read()?, Kind::Image, ctx.namespace.as_str(), by, |name, record| {
            match Image::from_record(name, record) {
                Ok(image) if filter.matches(&image) => found.push(image),
                Ok(_) => {}
                Err(error) => tracing::error!(%error, "the record of an image is damaged"),
            }
        })?;
        Ok(found)
    }

    /// Makes an image; `now` replaces the clock.
    ///
    /// # Errors
    /// InvalidArgument, AlreadyExists.
    pub async fn create(&self, ctx: &Context, mut image: Image, now: Option<SystemTime>) -> Result<Image> {
        image.validate()?;
        labels::drop_empty(&mut image.labels);
        image.created_at = now.unwrap_or_else(SystemTime::now);
        image.updated_at = image.created_at;
        let (ctx2, stored) = (ctx.clone(), image.clone());
        let change = move |tx: &mut Tx<'_>| {
            let key = key(&ctx2.namespace, &stored.name)?;
            if tx.get_bytes(key.bytes())?.is_some() {
                return Err(Error::already_exists(format!("image {:?}", stored.name)));
            }
            if stored.labels.contains_key(EXPIRE) {
                leases::attach(tx, &ctx2, "images", &stored.name)?;
            }
            namespaces::ensure(tx, &ctx2.namespace)?;
            put(tx, &key, &stored.record());
            Ok(())
        };
        self.database.write(change).await?;
        let event = told::ImageCreate { name: image.name.clone(), labels: image.labels.clone() };
        self.exchange.publish(&ctx.namespace, "/images/create", &event);
        Ok(image)
    }

    /// Changes what `paths` names, or labels and target when it names nothing.
    ///
    /// # Errors
    /// InvalidArgument, NotFound.
    pub async fn update(
        &self,
        ctx: &Context,
        new: Image,
        paths: Vec<String>,
        now: Option<SystemTime>,
    ) -> Result<Image> {
        if new.name.is_empty() {
            return Err(Error::bare(ErrorClass::InvalidArgument, "Image.Name required"));
        }
        let namespace = ctx.namespace.clone();
        let change = move |tx: &mut Tx<'_>| {
            let mut image = read(tx, &namespace, &new.name)?;
            let before = image.target.digest.clone();
            if paths.is_empty() {
                image.labels.clone_from(&new.labels);
                image.target.clone_from(&new.target);
            }
            for path in &paths {
                let known = match path.as_str() {
                    "target" => {
                        image.target.clone_from(&new.target);
                        true
                    }
                    path => {
                        apply_map("labels", path, &mut image.labels, &new.labels)
                            || apply_map(
                                "annotations",
                                path,
                                &mut image.target.annotations,
                                &new.target.annotations,
                            )
                    }
                };
                if !known {
                    return Err(Error::invalid_argument(format!(
                        "cannot update {path:?} field on image {:?}",
                        new.name
                    )));
                }
            }
            image.validate()?;
            labels::drop_empty(&mut image.labels);
            image.updated_at = now.unwrap_or_else(SystemTime::now);
            if image.target.digest != before {
                tx.note_deletion();
            }
            put(tx, &key(&namespace, &new.name)?, &image.record());
            Ok(image)
        };
        let image = self.database.write(change).await?;
        let event = told::ImageUpdate { name: image.name.clone(), labels: image.labels.clone() };
        self.exchange.publish(&ctx.namespace, "/images/update", &event);
        Ok(image)
    }

    /// Removes an image; with `target`, only while it stands for that digest.
    ///
    /// # Errors
    /// NotFound.
    pub async fn delete(&self, ctx: &Context, name: &str, target: Option<String>) -> Result<()> {
        let (ctx2, owned) = (ctx.clone(), name.to_owned());
        let change = move |tx: &mut Tx<'_>| {
            let image = read(tx, &ctx2.namespace, &owned)?;
            if let Some(target) = target.filter(|target| target != image.target.digest.as_str()) {
                return Err(Error::not_found(format!(
                    "image {owned:?} has target {}, not {target}",
                    image.target.digest
                )));
            }
            tx.remove(&key(&ctx2.namespace, &owned)?);
            tx.note_deletion();
            leases::detach(tx, &ctx2, "images", &owned)
        };
        self.database.write(change).await?;
        self.exchange.publish(&ctx.namespace, "/images/delete", &told::ImageDelete { name: name.to_owned() });
        Ok(())
    }
}
