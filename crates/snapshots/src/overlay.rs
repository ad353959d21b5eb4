//! Snapshots as overlayfs layers: `snapshots/<number>/{fs,work}` (spec 01 §11.2).

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use corten_types::{Error, Labels, Mount, Result, ResultExt};

use crate::backend::{self, Backend, Snapshot, Usage};
use crate::du;

/// Label of an active snapshot's mapping of users, `container:host:size[,…]`.
const USERS: &str = "containerd.io/snapshot/uidmapping";
/// The same for groups.
const GROUPS: &str = "containerd.io/snapshot/gidmapping";
/// Label that tells clients where a snapshot's own files are.
const UPPER: &str = "containerd.io/snapshot/overlay.upperdir";

/// Settings of the snapshotter.
#[derive(Clone, Debug, Default)]
pub struct OverlayOptions {
    /// Tell clients in a label where a snapshot's own files are.
    pub upperdir_label: bool,
    /// Directories are removed with the call, not by the collector. Since a removed record may be needed by
    /// no one, and its directory goes with the collection that the removal asks for, this makes no
    /// difference here.
    pub sync_remove: bool,
    /// Clients may copy a tree to change its owners where the kernel cannot map them.
    pub slow_chown: bool,
    /// Options added to every overlay.
    pub mount_options: Vec<String>,
}

/// The overlayfs snapshotter.
#[derive(Debug)]
pub struct Overlay {
    root: PathBuf,
    options: OverlayOptions,
    /// Options of every overlay: those of the settings, then those that this kernel needs.
    mount_options: Vec<String>,
    maps_identities: bool,
    in_user_namespace: bool,
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
        let in_user_namespace = in_user_namespace();
        let mut mount_options = options.mount_options.clone();
        let configured = |name: &str| options.mount_options.iter().any(|option| option.starts_with(name));
        if in_user_namespace && !configured("userxattr") {
            mount_options.push("userxattr".into());
        }
        if !configured("index=") && Path::new("/sys/module/overlay/parameters/index").exists() {
            mount_options.push("index=off".into());
        }
        let maps_identities = corten_mounts::can_map_identities(root);
        Ok(Self { root: root.to_owned(), options, mount_options, maps_identities, in_user_namespace })
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
        let mut mode = 0o755;
        let (mut user, mut group) = mapped_root(&snapshot.labels)?;
        if let Some(parent) = snapshot.parents.first() {
            // The top directory is not merged: it is the parent's, but for a mapped owner.
            let metadata = std::fs::metadata(self.fs(*parent))?;
            user = user.or(Some(metadata.uid()));
            group = group.or(Some(metadata.gid()));
            mode = metadata.mode() & 0o7777;
        }
        chown(&fs, user, group)?;
        std::fs::set_permissions(&fs, Permissions::from_mode(mode))?;
        if snapshot.is_active() {
            std::fs::create_dir(new.join("work"))?;
            std::fs::set_permissions(new.join("work"), Permissions::from_mode(0o711))?;
        }
        Ok(())
    }
}

/// Whether the daemon's root is not that of the machine.
fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let numbers: Vec<&str> = map.split_whitespace().collect();
    !map.is_empty() && numbers != ["0", "0", "4294967295"]
}

/// Who root of the container is on the host: the user and the group that are mapped, each by itself.
fn mapped_root(labels: &Labels) -> Result<(Option<u32>, Option<u32>)> {
    let root = |key: &str| -> Result<Option<u32>> {
        let Some(text) = labels.get(key) else { return Ok(None) };
        let mappings = corten_mounts::id_mappings(text)?;
        let root = mappings.iter().find(|mapping| mapping.container == 0 && mapping.size > 0);
        let missing = || Error::invalid_argument(format!("{text:?} does not map root"));
        Ok(Some(root.ok_or_else(missing)?.host))
    };
    Ok((root(USERS)?, root(GROUPS)?))
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
        let able = [
            ("remap-ids", self.maps_identities),
            ("only-remap-ids", !self.options.slow_chown),
            ("rebase", !self.in_user_namespace),
        ];
        able.iter().filter(|(_, able)| *able).map(|(name, _)| (*name).to_owned()).collect()
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
        let mut options = Vec::new();
        for (key, option) in [(USERS, "uidmap"), (GROUPS, "gidmap")] {
            if let Some(mapping) = snapshot.labels.get(key).filter(|_| self.maps_identities) {
                options.push(format!("{option}={mapping}"));
            }
        }
        let bind = |id: u64, mut options: Vec<String>| {
            options.extend([mode.into(), "rbind".into()]);
            Ok(mount("bind", self.fs(id), options))
        };
        match (parents.as_slice(), writable) {
            ([], _) => return bind(id, options),
            ([parent], false) => return bind(*parent, options),
            _ => {}
        }
        if writable {
            options.push(format!("workdir={}", self.folder().join(id.to_string()).join("work").display()));
            options.push(format!("upperdir={}", self.fs(id)));
        }
        let lower: Vec<String> = parents.iter().map(|parent| self.fs(*parent)).collect();
        options.push(format!("lowerdir={}", lower.join(":")));
        options.extend(self.mount_options.iter().cloned());
        Ok(mount("overlay", "overlay".into(), options))
    }

    fn commit(&self, snapshot: &Snapshot) -> Result<Usage> {
        backend::settle(snapshot, self.fs(snapshot.id).as_ref())
    }

    fn usage(&self, snapshot: &Snapshot) -> Result<Usage> {
        du::usage(self.fs(snapshot.id).as_ref())
    }

    fn labels(&self, id: u64) -> Labels {
        let shown = self.options.upperdir_label.then(|| (UPPER.to_owned(), self.fs(id)));
        shown.into_iter().collect()
    }

    fn holds(&self, id: u64) -> bool {
        self.folder().join(id.to_string()).exists()
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
