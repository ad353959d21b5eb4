//! Cgroups of containers: where they are, what is in them, limits, figures, and what the kernel tells about
//! memory that ran out. v1, v2, and both side by side, as this host has them mounted.
//!
//! Paths are made inside of the hierarchies only; nothing is ever killed or removed in a root cgroup.
//! With systemd a container's cgroup is a scope of its.

mod devices;
mod figures;
mod groups;
mod hierarchies;
mod limits;
mod oom;
mod resources;
mod systemd;

pub use figures::metrics;
pub use groups::{Cgroups, V1};
pub use hierarchies::{Hierarchies, Hierarchy};
pub use limits::update;
pub use oom::OomWatch;
pub use resources::{
    BlockIo, Cpu, DeviceRule, HugePages, Memory, Network, Pids, Priority, Rdma, Resources, Throttle, Weight,
};
pub use systemd::Scope;
