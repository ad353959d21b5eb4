//! Snapshots: the file trees that containers stand on, each a change over its parent (spec 01 §11).
//!
//! Records lie in the metadata database, directories with a [`Backend`] under the numbers that the records
//! give; a directory exists before its record and goes after it. A [`Proxy`] is a snapshotter in another
//! process, which has records of its own. Nothing here mounts anything, but for the images of erofs, which
//! their children stand on.

mod backend;
mod blockfile;
mod btrfs;
mod du;
mod erofs;
mod local;
mod mend;
mod native;
mod overlay;
mod proxied;
mod proxy;
mod service;

pub use backend::{Backend, Snapshot, Usage};
pub use blockfile::{Blockfile, BlockfileOptions};
pub use btrfs::Btrfs;
pub use corten_metadata::Kind;
pub use erofs::{Erofs, ErofsOptions};
pub use native::Native;
pub use overlay::{Overlay, OverlayOptions};
pub use proxy::{Info, Proxy, Snapshotter};
pub use service::{Commit, Snapshots};
