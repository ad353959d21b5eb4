//! Cgroups of containers: where they are, what is in them, and their figures. v1, v2, and both side by side,
//! as this host has them mounted.
//!
//! Paths are made inside of the hierarchies only; nothing is ever killed or removed in a root cgroup.
//! Delegation to systemd is not known here.

mod figures;
mod groups;
mod hierarchies;

pub use figures::metrics;
pub use groups::{Cgroups, V1};
pub use hierarchies::{Hierarchies, Hierarchy};
