//! Snapshots as plain copies: for file systems that overlayfs cannot stand on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use corten_types::{Error, Mount, Result, ResultExt};

use crate::backend::{self, Backend, Snapshot, Usage};
use crate::du;

/// The native snapshotter.
#[derive(Debug)]
pub struct Native {
    root: PathBuf,
}

impl Native {
    /// Opens it in a folder, which is made if need be.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(root: &Path) -> Result<Self> {
        std::fs::create_dir_all(root.join("snapshots")).with_context(|| root.display().to_string())?;
        Ok(Self { root: root.to_owned() })
    }

    fn path(&self, id: u64) -> PathBuf {
        self.root.join("snapshots").join(id.to_string())
    }
}

impl Backend for Native {
    fn name(&self) -> &str {
        "native"
    }

    fn root(&self) -> &Path {
        &self.root
    }

    fn capabilities(&self) -> Vec<String> {
        Vec::new()
    }

    fn create(&self, snapshot: &Snapshot) -> Result<()> {
        let (id, parents) = (snapshot.id, &snapshot.parents);
        if !snapshot.is_active() && !parents.is_empty() {
            // A view shows its parent.
            return Ok(std::fs::create_dir(self.path(id))?);
        }
        let new = self.root.join("snapshots").join(format!("new-{id}"));
        std::fs::remove_dir_all(&new).ok();
        std::fs::create_dir(&new)?;
        if let Some(parent) = parents.first() {
            // cp(1) keeps owners, links, attributes, holes and devices, and shares blocks where it can.
            let copy = Command::new("cp")
                .args(["-a", "--reflink=auto", "--sparse=auto", "-T"])
                .arg(self.path(*parent))
                .arg(&new)
                .output()
                .context("cp")?;
            if !copy.status.success() {
                std::fs::remove_dir_all(&new).ok();
                let text = String::from_utf8_lossy(&copy.stderr).trim().to_owned();
                return Err(Error::unknown(format!("failed to copy the parent: {text}")));
            }
        }
        Ok(std::fs::rename(&new, self.path(id))?)
    }

    fn mounts(&self, snapshot: &Snapshot) -> Result<Vec<Mount>> {
        let own = snapshot.is_active() || snapshot.parents.is_empty();
        let shown = snapshot.parents.first().copied().filter(|_| !own).unwrap_or(snapshot.id);
        let mode = if snapshot.is_active() { "rw" } else { "ro" };
        let source = self.path(shown).display().to_string();
        let options = vec!["rbind".into(), mode.into()];
        Ok(vec![Mount { kind: "bind".into(), source, target: String::new(), options }])
    }

    fn commit(&self, snapshot: &Snapshot) -> Result<Usage> {
        backend::settle(snapshot, &self.path(snapshot.id))
    }

    fn usage(&self, snapshot: &Snapshot) -> Result<Usage> {
        du::usage(&self.path(snapshot.id))
    }

    fn holds(&self, id: u64) -> bool {
        self.path(id).exists()
    }

    fn ids(&self) -> Result<BTreeSet<u64>> {
        backend::numbers(&self.root.join("snapshots"))
    }

    fn remove(&self, id: u64) -> Result<()> {
        backend::remove(&self.root.join("snapshots"), id)
    }

    fn clean(&self) -> Result<()> {
        backend::clean(&self.root.join("snapshots"))
    }
}
