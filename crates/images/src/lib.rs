//! Images.
mod arrival;
mod flight;
mod import;
pub mod labels;
pub mod manifest;
pub mod naming;
pub mod progress;
