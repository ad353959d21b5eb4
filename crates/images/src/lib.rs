//! Images: how they get into the stores of a daemon and out of them, and what is in there of them.
//!
//! A pull is one pipeline: the bytes of a blob are hashed and stored as they arrive, and extracted behind
//! that while they still do; layers are extracted side by side where the snapshotter can put them together
//! afterwards. Nothing is visible before its digest is verified, and a record is made only when all it names
//! is on disk. What many want at once is done once. A failure leaves no record and no snapshot, and what was
//! downloaded is there for the next try. What comes from registries and archives is never believed and never
//! held in memory as a whole, and this crate knows no transport but the registry's.

mod service;

mod destination;
mod export;
mod import;
mod pull;
mod push;
mod select;
mod verify;

mod arrival;
mod blob;
mod flight;
mod unpack;
mod walk;

pub mod labels;
pub mod manifest;
pub mod naming;
mod platforms;
pub mod progress;

pub use corten_metadata::Image;
pub use destination::{Destination, Unpack};
pub use export::ExportRequest;
pub use import::ImportRequest;
pub use naming::ImageReference;
pub use platforms::Platforms;
pub use progress::{Progress, ProgressReceiver, ProgressSender};
pub use pull::{PullRequest, Verifier};
pub use push::PushRequest;
pub use select::Selected;
pub use service::{ImageService, Options, UnpackRule};
pub use verify::VerifierDir;

/// What only the fuzz targets reach.
#[cfg(fuzzing)]
pub mod fuzz {
    /// Reads an archive of images, compressed or not; its files go nowhere. Whether it is one.
    pub fn archive(input: &[u8]) -> bool {
        crate::import::read_for_nothing(input).is_ok()
    }
}
