//! The networks of this machine that need no plugin installed: each is a list of CNI's configuration in a folder, attached
//! to by the plugins that are built in. Containers of a network reach each other by name, through their hosts files.
//!
//! What is attached is derived from what is there: a lease whose cable is gone is nobody's, and is swept.

mod definition;
mod names;
mod networks;
mod plan;

pub use definition::{Definition, NewNetwork};
pub use names::Files;
pub use networks::{Attachments, Member, Network};
pub use plan::Plan;

/// Where networks are, unless said otherwise.
pub const FOLDER: &str = "/var/lib/corten/network";
/// The network that is made when it is first used.
pub const DEFAULT: &str = "bridge";
