//! Mounts: makes a list of them on a folder and takes them away again.
//!
//! Options are those of mount(8); sub-paths of the target are resolved inside of it. A list is mounted whole
//! or not at all. Nothing here decides what to mount, and nothing changes the state of the calling thread.

mod options;
mod target;

mod identities;
mod loop_device;
mod mount;
mod overlay;

mod table;
mod unmount;

mod read_only;
mod temporary;

#[cfg(feature = "activation")]
mod activation;

#[cfg(feature = "activation")]
pub use activation::{Activate, Activations, Claims, HeldMounts};
pub use identities::{IdMapping, can_map_identities, id_mappings};
pub use mount::mount_all;
pub use overlay::overlay_layers;
pub use read_only::read_only;
pub use table::{mount_points, mount_points_below};
pub use temporary::TempMount;
pub use unmount::{unmount_all, unmount_one};

fn system(error: rustix::io::Errno) -> corten_types::Error {
    corten_types::Error::from(std::io::Error::from(error))
}
