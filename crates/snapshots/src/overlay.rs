//! Snapshots as overlayfs layers: `snapshots/<number>/{fs,work}` (spec 01 §11.2).

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use corten_types::{Mount, Result, ResultExt};

use crate::backend::{self, Backend, Snapshot, Usage};
use crate::du;

/// Settings of the snapshotter.
#[derive(Clone, Debug, Default)]
pub struct OverlayOptions {
    /// Options added to every overlay.
    pub mount_options: Vec<String>,
}

/// The overlayfs snapshotter.
#[derive(Debug)]
pub struct Overlay {
    root: PathBuf,
    options: OverlayOptions,
    index_off: bool,
}

impl Overlay {
    /// Opens it in a folder, which is made if need be.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(root: &Path, options: OverlayOptions) -> Result<Self> {
        std::fs::create_dir_all(root.join("snapshots")).with_context(|| root.display().to_string())?;
        std::fs::set_permissions(root, Permissions::from_mode(0o700))?;
        std::fs::set_permissions(root.join("snapshots"), Permissions::from_mode(0o700))?;
        let configured = options.mount_options.iter().any(|option| option.starts_with("index="));
        let index_off = !configured && Path::new("/sys/module/overlay/parameters/index").exists();
        Ok(Self { root: root.to_owned(), options, index_off })
    }

    fn folder(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    fn fs(&self, id: u64) -> String {
        self.folder().join(id.to_string()).join("fs").display().to_string()
    }

    fn make(&self, new: &Path, snapshot: &Snapshot) -> Result<()> {
        std::fs::create_dir_all(new)?;
        std::fs::set_permissions(new, Permissions::from_mode(0o700))?;
        let fs = new.join("fs");
        std::fs::create_dir(&fs)?;
        std::fs::set_permissions(&fs, Permissions::from_mode(0o755))?;
        if let Some(parent) = snapshot.parents.first() {
            // The top directory is not merged: it is the parent's.
            let metadata = std::fs::metadata(self.fs(*parent))?;
            chown(&fs, Some(metadata.uid()), Some(metadata.gid()))?;
            std::fs::set_permissions(&fs, Permissions::from_mode(metadata.mode() & 0o7777))?;
        }
        if snapshot.is_active() {
            std::fs::create_dir(new.join("work"))?;
            std::fs::set_permissions(new.join("work"), Permissions::from_mode(0o711))?;
        }
        Ok(())
    }
}

fn mount(kind: &str, source: String, options: Vec<String>) -> Vec<Mount> {
    vec![Mount { kind: kind.into(), source, target: String::new(), options }]
}

impl Backend for Overlay {
    fn name(&self) -> &str {
        "overlayfs"
    }

    fn root(&self) -> &Path {
        &self.root
    }

    fn capabilities(&self) -> Vec<String> {
        vec!["rebase".into()]
    }

    fn create(&self, snapshot: &Snapshot) -> Result<()> {
        let id = snapshot.id;
        let (new, path) = (self.folder().join(format!("new-{id}")), self.folder().join(id.to_string()));
        std::fs::remove_dir_all(&new).ok();
        let made = self.make(&new, snapshot).and_then(|()| Ok(std::fs::rename(&new, path)?));
        if made.is_err() {
            std::fs::remove_dir_all(&new).ok();
        }
        made.context("failed to create snapshot directory")
    }

    fn mounts(&self, snapshot: &Snapshot) -> Result<Vec<Mount>> {
        let (id, parents, writable) = (snapshot.id, &snapshot.parents, snapshot.is_active());
        let mode = if writable { "rw" } else { "ro" };
        let bind = |id: u64| Ok(mount("bind", self.fs(id), vec![mode.into(), "rbind".into()]));
        match (parents.as_slice(), writable) {
            ([], _) => return bind(id),
            ([parent], false) => return bind(*parent),
            _ => {}
        }
        let mut options = Vec::new();
        if writable {
            options.push(format!("workdir={}", self.folder().join(id.to_string()).join("work").display()));
            options.push(format!("upperdir={}", self.fs(id)));
        }
        let lower: Vec<String> = parents.iter().map(|parent| self.fs(*parent)).collect();
        options.push(format!("lowerdir={}", lower.join(":")));
        options.extend(self.options.mount_options.iter().cloned());
        if self.index_off {
            options.push("index=off".into());
        }
        Ok(mount("overlay", "overlay".into(), options))
    }

    fn commit(&self, snapshot: &Snapshot) -> Result<Usage> {
        backend::settle(self.fs(snapshot.id).as_ref())
    }

    fn usage(&self, snapshot: &Snapshot) -> Result<Usage> {
        du::usage(self.fs(snapshot.id).as_ref())
    }

    fn ids(&self) -> Result<BTreeSet<u64>> {
        backend::numbers(&self.folder())
    }

    fn remove(&self, id: u64) -> Result<()> {
        backend::remove(&self.folder(), id)
    }

    fn clean(&self) -> Result<()> {
        backend::clean(&self.folder())
    }
}
