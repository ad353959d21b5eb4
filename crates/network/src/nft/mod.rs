//! The packet filter's table of ours: which networks are isolated, what leaves under the host's address, and which ports
//! of the host lead to containers.
//!
//! All rules are made once, with the table; networks and ports are elements of its sets and maps. So attaching a
//! container changes one element of a hash, however many there are, and a change is one transaction of the kernel's.

mod expression;
mod message;
mod table;

pub use table::{Filter, NetworkRules, PublishedPort};

/// The name of the table, of family inet.
pub const TABLE: &str = "corten";
