//! File trees that others filled: opened, measured, copied and removed through directory handles.
//!
//! Whatever the names and links in a tree say, nothing here leaves it, and no depth of folders exhausts
//! descriptors or stack. Errors are those of the kernel; who calls adds what was tried.

mod root;
mod walk;

mod copy;
mod remove;
mod usage;

pub use copy::{Attributes, attributes, copy};
pub use remove::{empty, remove};
pub use root::{Root, clean};
pub use usage::{Usage, usage};
pub use walk::names;
