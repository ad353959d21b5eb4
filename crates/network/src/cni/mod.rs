//! The Container Network Interface, version 1.1 and older ones down to 0.1, from the side of a runtime (spec 06 §2):
//! configuration is loaded from files, plugins are executed, results are kept for those who detach later.
//!
//! [`Networks`] is what a daemon or client holds: the loaded networks, and attach and detach by all of them. [`Cni`] is
//! one step below, operations on one [`NetworkConfig`].

mod cache;
mod config;
mod execute;
mod networks;
mod operations;
mod result;
mod version;
mod watch;

pub(crate) use cache::Record;
pub(crate) use config::is_name;
pub use config::{NetworkConfig, PluginConfig, find, load};
pub use execute::{Builtin, Command, Failure, Invocation, Runner};
pub use networks::{Attached, Interface, Networks, Options};
pub use operations::{Attachment, Cni};
pub use result::{Dns, Interface as ResultInterface, Ip, NetworkResult, Route as ResultRoute};
pub use version::{SUPPORTED, Version};
pub use watch::Watch;

/// Where plugins are, unless said otherwise.
pub const PLUGIN_FOLDER: &str = "/opt/cni/bin";
/// Where configuration is, unless said otherwise.
pub const CONFIG_FOLDER: &str = "/etc/cni/net.d";
/// Where results are kept.
pub const CACHE_FOLDER: &str = "/var/lib/cni/results";
