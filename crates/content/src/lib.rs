//! Blobs by digest, and ingests on their way to become some (spec 01 §2).
//!
//! A blob's file is whole, verified and durable before any record of it exists; an ingest can be resumed
//! after anything. Files lie as the original lays them: `blobs/<algorithm>/<hex>`, `ingest/<hash>/…`.
//! Nothing here fetches or interprets content.

mod ingest;
mod remote;
mod store;
mod sweep;
mod writer;

pub use remote::{RemoteBlobs, RemoteIngest};
pub use store::{BlobReader, BlobStream, IngestStatus, Policy, Store, WriterOptions};
pub use writer::Writer;
