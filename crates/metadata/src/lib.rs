//! The one database: namespaces and the records of containers, images, content, snapshots, leases, ingests
//! and sandboxes, and the collector over what they refer to (spec 01).
//!
//! An answer is given only when the change that it tells of is durable; all changes that wait at a moment
//! share one fsync. Readers see a consistent state and never wait. A damaged database is set aside, named,
//! and replaced by one with what can be read of it. Nothing here touches blobs or directories: who owns those sweeps them.

mod activity;
mod backend;
mod database;
mod keys;
mod mask;
mod records;
mod seal;
mod transaction;
mod writer;

mod pages;
mod recover;
mod salvage;

mod activations;
mod blobs;
mod containers;
mod encoded;
mod images;
mod ingests;
mod leases;
mod namespaces;
mod sandboxes;
mod snapshot;
mod snapshots;

mod collector;
mod condition;
mod filters;
mod graph;
mod mark;

pub use activations::{Activation, ActivationRecords, ActiveMount};
pub use blobs::{BlobRecord, Blobs};
pub use collector::{Collector, CollectorOptions, Runs, Sweeper};
pub use containers::{Container, Containers, Runtime};
pub use database::{Database, Options};
pub use images::{Image, Images};
pub use ingests::{IngestRecord, Ingests};
pub use leases::{Lease, Leases, Resource};
pub use namespaces::Namespaces;
pub use recover::Lost;
pub use sandboxes::{Sandbox, Sandboxes};
pub use snapshot::{Found, Kind, NewSnapshot, Place, SnapshotRecord};
pub use snapshots::SnapshotRecords;
