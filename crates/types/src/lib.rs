//! The vocabulary of corten: the nouns that every other crate speaks in.
//!
//! Values here are checked when they are made, so holding a [`Digest`] or a [`Namespace`] is proof
//! of its form. Nothing here does input or output, and nothing here knows a transport.

pub mod context;
pub mod descriptor;
pub mod digest;
pub mod error;
pub mod filter;
pub mod identifier;
pub mod labels;
pub mod media_type;
pub mod mount;
pub mod platform;
pub mod reference;
pub mod timestamp;

pub use context::Context;
pub use descriptor::Descriptor;
pub use digest::{Digest, Digester};
pub use error::{Error, ErrorClass, Result, ResultExt};
pub use filter::Filter;
pub use identifier::Namespace;
pub use labels::Labels;
pub use mount::Mount;
pub use platform::Platform;
pub use reference::Reference;

/// A message of some type, opaque to whoever carries it: bare type URL and bytes, kept verbatim.
pub type Any = prost_types::Any;
