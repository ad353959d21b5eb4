//! The folder of a task and what the daemon keeps in it (spec 02 §2). Everything that is needed to
//! find a shim again after a restart of the daemon is here.

use std::ffi::OsStr;
use std::fs::{DirBuilder, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use corten_types::{Namespace, Result, ResultExt, identifier};

use crate::bootstrap::Endpoint;
use crate::spec::SpecView;

const SHIM_BINARY: &str = "shim-binary-path";
const SANDBOX: &str = "sandbox";
const BOOTSTRAP: &str = "bootstrap.json";
const ADDRESS: &str = "address";
const ROOTFS: &str = "rootfs";
const WORK: &str = "work";

/// Longest of the small files that is read back.
const MAX_FILE: u64 = 64 << 10;

/// A task's folder. The operations block on the disk for a moment.
#[derive(Clone, Debug)]
pub(crate) struct Bundle {
    pub namespace: Namespace,
    pub id: String,
    pub path: PathBuf,
}

impl Bundle {
    /// The bundle of a task, which need not exist.
    pub fn at(state: &Path, namespace: &Namespace, id: &str) -> Self {
        let path = state.join(namespace.as_str()).join(id);
        Self { namespace: namespace.clone(), id: id.to_owned(), path }
    }

    /// Makes a bundle and its work folder; on failure nothing is left.
    pub fn create(state: &Path, root: &Path, namespace: &Namespace, id: &str, spec: &[u8]) -> Result<Self> {
        identifier::validate(id).with_context(|| format!("invalid task id {id}"))?;
        let bundle = Self::at(state, namespace, id);
        let work = root.join(namespace.as_str()).join(id);
        make_parent(&bundle.path)?;
        make_parent(&work)?;
        make_folder(&bundle.path, 0o700)?;
        bundle.fill(&work, spec).inspect_err(|_| {
            let _ = bundle.delete(|_| Ok(()));
        })?;
        Ok(bundle)
    }

    fn fill(&self, work: &Path, spec: &[u8]) -> Result<()> {
        if let Err(error) = make_folder(work, 0o711) {
            if !error.is_already_exists() {
                return Err(error);
            }
            // Left by a task of the same name; what is in it is not ours.
            remove(work)?;
            make_folder(work, 0o711)?;
        }
        make_folder(&self.path.join(ROOTFS), 0o711)?;
        symlink(work, self.path.join(WORK)).with_context(|| format!("symlink {}", work.display()))?;
        if spec.is_empty() {
            return Ok(());
        }
        if let Some(group) = SpecView::parse(spec).remapped_root_group() {
            chown(&self.path, None, Some(group)).with_context(|| format!("chown {}", self.path.display()))?;
            std::fs::set_permissions(&self.path, Permissions::from_mode(0o710))
                .with_context(|| format!("chmod {}", self.path.display()))?;
        }
        self.write("config.json", 0o666, spec)
    }

    /// The group of containers that share a shim, as far as the specification names one.
    pub fn group(&self) -> Option<String> {
        SpecView::parse(&std::fs::read(self.file("config.json")).ok()?).group().map(str::to_owned)
    }

    /// The named file of the bundle.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Notes which binary serves this bundle.
    pub fn write_shim_binary(&self, binary: &Path) -> Result<()> {
        use std::os::unix::ffi::OsStrExt;
        self.write(SHIM_BINARY, 0o600, binary.as_os_str().as_bytes())
    }

    /// The binary that serves this bundle, if noted.
    pub fn shim_binary(&self) -> Option<PathBuf> {
        use std::os::unix::ffi::OsStrExt;
        let bytes = self.read(SHIM_BINARY)?;
        let path = PathBuf::from(OsStr::from_bytes(bytes.trim_ascii()));
        path.is_absolute().then_some(path)
    }

    /// Notes that the task runs inside the shim of a sandbox.
    pub fn write_sandbox(&self, sandbox: &str) -> Result<()> {
        self.write(SANDBOX, 0o600, sandbox.as_bytes())
    }

    /// The sandbox in whose shim the task runs.
    pub fn sandbox(&self) -> Option<String> {
        String::from_utf8(self.read(SANDBOX)?).ok().filter(|sandbox| !sandbox.is_empty())
    }

    /// Notes where the shim listens, at once or not at all.
    pub fn write_bootstrap(&self, endpoint: &Endpoint) -> Result<()> {
        let draft = format!(".{BOOTSTRAP}");
        self.write(&draft, 0o644, &endpoint.to_json())?;
        std::fs::rename(self.file(&draft), self.file(BOOTSTRAP))
            .with_context(|| format!("rename {}", self.file(BOOTSTRAP).display()))
    }

    /// Where the shim listens: `bootstrap.json`, or what older daemons and shims left.
    pub fn endpoint(&self) -> Result<Option<Endpoint>> {
        if let Some(bytes) = self.read(BOOTSTRAP) {
            return Endpoint::parse(&bytes).map(Some).context(BOOTSTRAP);
        }
        self.read(ADDRESS).map(|bytes| Endpoint::parse(&bytes).context(ADDRESS)).transpose()
    }

    /// Whether the folder has nothing in it.
    pub fn is_empty(&self) -> bool {
        std::fs::read_dir(&self.path).is_ok_and(|mut entries| entries.next().is_none())
    }

    /// Removes the bundle and its work folder. `unmount` undoes every mount at or below a path; it
    /// is called only if something may be mounted on the root file system.
    pub fn delete(&self, unmount: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let work = std::fs::read_link(self.file(WORK)).ok();
        let rootfs = self.file(ROOTFS);
        // Fails for a mount point, and for a folder with something in it.
        match std::fs::remove_dir(&rootfs) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(_) => unmount(&rootfs).with_context(|| format!("unmount rootfs {}", rootfs.display()))?,
        }
        let removed = remove(&self.path);
        // The link is the daemon's own, but the shim could have replaced it: the name must fit.
        if let Some(work) = work.filter(|work| work.file_name() == Some(OsStr::new(&self.id))) {
            remove(&work)?;
        }
        removed
    }

    /// Removes what an interrupted removal left, under the hidden name that it has by then.
    pub fn delete_rest(&self, unmount: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let rootfs = self.file(ROOTFS);
        if rootfs.exists() {
            unmount(&rootfs)?;
        }
        std::fs::remove_dir_all(&self.path).with_context(|| format!("remove {}", self.path.display()))
    }

    fn write(&self, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        let path = self.file(name);
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(mode).open(&path);
        file.and_then(|mut file| file.write_all(bytes)).with_context(|| format!("write {}", path.display()))
    }

    fn read(&self, name: &str) -> Option<Vec<u8>> {
        use std::io::Read;
        let mut bytes = Vec::new();
        std::fs::File::open(self.file(name)).ok()?.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }
}

/// Removes a folder so that it never appears half removed: under another name, that a sweep finds.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let Some(name) = path.file_name() else { return Ok(()) };
    let mut hidden = OsStr::new(".").to_owned();
    hidden.push(name);
    let hidden = path.with_file_name(hidden);
    match std::fs::rename(path, &hidden) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {
            // An earlier removal was cut short.
            std::fs::remove_dir_all(&hidden).with_context(|| format!("remove {}", hidden.display()))?;
            std::fs::rename(path, &hidden).with_context(|| format!("rename {}", path.display()))?;
        }
        Err(error) => return Err(error).with_context(|| format!("rename {}", path.display())),
    }
    std::fs::remove_dir_all(&hidden).with_context(|| format!("remove {}", hidden.display()))
}

fn make_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    if parent.is_dir() {
        return Ok(());
    }
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o711);
    builder.create(parent).with_context(|| format!("mkdir {}", parent.display()))
}

/// Makes a folder with exactly this mode.
fn make_folder(path: &Path, mode: u32) -> Result<()> {
    DirBuilder::new().mode(mode).create(path).with_context(|| format!("mkdir {}", path.display()))?;
    std::fs::set_permissions(path, Permissions::from_mode(mode))
        .with_context(|| format!("chmod {}", path.display()))
}

#[cfg(test)]
mod tests {
    use corten_types::Error;

    use super::*;

    fn create(folder: &Path, spec: &[u8]) -> Result<Bundle> {
        let namespace = Namespace::new("lab").unwrap();
        Bundle::create(&folder.join("state"), &folder.join("root"), &namespace, "c1", spec)
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_bundle_has_the_layout_of_the_original() {
        let folder = tempfile::tempdir().unwrap();
        let bundle = create(folder.path(), b"{}").unwrap();
        let state = folder.path().join("state");
        assert_eq!(bundle.path, state.join("lab/c1"));
        assert_eq!(mode(&bundle.path), 0o700);
        assert_eq!(mode(&bundle.file(ROOTFS)), 0o711);
        assert_eq!(mode(&state), 0o711);
        let work = folder.path().join("root/lab/c1");
        assert_eq!(std::fs::read_link(bundle.file(WORK)).unwrap(), work);
        assert_eq!(mode(&work), 0o711);
        assert_eq!(std::fs::read(bundle.file("config.json")).unwrap(), b"{}");

        let again = create(folder.path(), b"{}").unwrap_err();
        assert_eq!(again.to_string(), format!("mkdir {}: file exists", bundle.path.display()));
        assert!(bundle.path.exists(), "a failed second create leaves the first alone");

        bundle.delete(|_| panic!("nothing is mounted")).unwrap();
        assert!(!bundle.path.exists() && !work.exists());
        bundle.delete(|_| Ok(())).unwrap();
    }

    #[test]
    fn a_user_namespace_lets_its_root_traverse() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let spec =
            br#"{"linux":{"namespaces":[{"type":"user"}],"gidMappings":[{"containerID":0,"hostID":4711}]}}"#;
        let bundle = create(folder.path(), spec).unwrap();
        assert_eq!(mode(&bundle.path), 0o710);
        assert_eq!(std::fs::metadata(&bundle.path).unwrap().gid(), 4711);
    }

    #[test]
    fn leftovers_of_a_work_folder_are_emptied() {
        let folder = tempfile::tempdir().unwrap();
        let work = folder.path().join("root/lab/c1");
        std::fs::create_dir_all(&work).unwrap();
        std::fs::write(work.join("old"), "").unwrap();
        let bundle = create(folder.path(), b"").unwrap();
        assert!(work.exists() && !work.join("old").exists());
        assert!(!bundle.file("config.json").exists());
    }

    #[test]
    fn a_root_file_system_that_cannot_be_unmounted_keeps_its_bundle() {
        let folder = tempfile::tempdir().unwrap();
        let bundle = create(folder.path(), b"").unwrap();
        std::fs::write(bundle.file("rootfs/precious"), "").unwrap();
        let error = bundle.delete(|_| Err(Error::unknown("busy"))).unwrap_err();
        assert!(error.to_string().ends_with(": busy"), "{error}");
        assert!(bundle.file("rootfs/precious").exists());
    }

    #[test]
    fn a_replaced_work_link_does_not_remove_other_folders() {
        let folder = tempfile::tempdir().unwrap();
        let other = folder.path().join("other");
        std::fs::create_dir(&other).unwrap();
        let bundle = create(folder.path(), b"").unwrap();
        std::fs::remove_file(bundle.file(WORK)).unwrap();
        symlink(&other, bundle.file(WORK)).unwrap();
        bundle.delete(|_| Ok(())).unwrap();
        assert!(other.exists());
    }
}
