//! Activation: lists of mounts that need more than mount(2), as templates that name earlier mounts, images
//! to be formatted, folders to be made, or file systems that only the daemon mounts. What must be done here
//! is done under a folder of the activation's own; the rest of the list is for the caller (spec 01 §8).

mod activations;
mod held;
mod mkdir;
mod mkfs;
mod perform;
mod plan;
mod roots;
mod template;

pub use activations::{Activate, Activations};
pub use held::HeldMounts;
pub use plan::Claims;
