//! Layers onto file trees, and the differences of file trees as layers (spec 01 §3).
//!
//! A layer is decompressed, hashed and extracted in one pass; one that is made is compared, compressed, hashed and
//! stored in one. Archives are hostile: every name is resolved by the kernel inside of the tree (`openat2` with
//! `RESOLVE_IN_ROOT`), leaves are made with `O_EXCL` and never followed, and no list that an archive makes long grows
//! without bound. Nothing here verifies the digest; the caller compares what comes out before it makes the tree
//! visible.

mod differ;
mod erofs;
mod walking;

mod apply;
mod processor;

mod make;
mod trees;

mod compare;
mod compress;

pub mod archive;
mod stream;

mod names;
mod place;
mod tree;
mod write;

pub use apply::{ApplyOptions, apply, inherit};
pub use differ::{Applied, ApplyRequest, DiffRequest, Differ, Differs, Source};
pub use erofs::Erofs;
pub use processor::StreamProcessor;
pub use walking::Walking;
