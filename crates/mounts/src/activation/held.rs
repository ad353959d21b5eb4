//! Mounts for the time of an operation of the daemon itself. No record is needed: what a dead daemon leaves
//! is swept.

use corten_types::Mount;

use super::activations::Folder;
use super::perform::clear;

/// A list that can be mounted as it is, while this lives.
#[derive(Debug)]
pub struct HeldMounts {
    pub(super) mounts: Vec<Mount>,
    pub(super) folder: Option<Folder>,
}

impl HeldMounts {
    /// What is left to be mounted.
    #[must_use]
    pub fn mounts(&self) -> &[Mount] {
        &self.mounts
    }
}

impl Drop for HeldMounts {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder
            && let Err(error) = clear(&folder.path())
        {
            tracing::warn!(folder = %folder.path().display(), %error, "mounts of an operation stay for now");
        }
    }
}
