//! Sandboxes: groups of containers that somebody else keeps a place for, as a virtual machine or a pod
//! (spec 01 §10, spec 02 §9). Who does that is a [`SandboxController`], known by its name.

mod controller;
mod controllers;
mod load;
mod shim;
mod table;

pub use controller::SandboxController;
pub use controllers::SandboxControllers;
pub use shim::ShimSandboxes;
