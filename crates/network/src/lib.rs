//! Networks of containers: network namespaces, the links, addresses, routes and neighbours in them, and the ways to
//! attach a container.
//!
//! All calls block and are short; who may not block calls them from a thread that may. A thread that has changed its
//! network namespace ends there and is never given back, see [`NetworkNamespace::run`]. Nothing here knows gRPC.

mod addresses;
pub mod builtin;
mod cidr;
pub mod cni;
mod links;
mod namespace;
mod neighbours;
mod netlink;
pub mod nft;
pub mod plugins;
mod routes;
pub mod sysctl;

pub use addresses::Address;
pub use cidr::Cidr;
pub use links::{Kind, Link, LinkChange, MacAddress, NewLink, Peer, Statistics, validate_link_name};
pub use namespace::{NetworkNamespace, Pinned, pinned, random_name, unpin};
pub use neighbours::Neighbour;
pub use netlink::Netlink;
pub use routes::Route;
