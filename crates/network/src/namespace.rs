//! Network namespaces: made, joined for a moment, pinned to files, listed, removed (spec 06 §3).

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use corten_types::{Error, Result, ResultExt};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// What statfs(2) says of namespaces.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// A network namespace, which lives at least as long as this.
#[derive(Debug)]
pub struct NetworkNamespace {
    file: OwnedFd,
}

impl NetworkNamespace {
    /// A new one, of the user namespace that this process is in.
    ///
    /// # Errors
    /// Those of unshare(2).
    pub fn new() -> Result<Self> {
        let made = on_a_thread(|| -> Result<Self> {
            corten_sys::unshare(0x4000_0000).context("unshare")?;
            // Not that of the process, which is that of its first thread (spec 06 §7.10).
            Self::open(Path::new("/proc/thread-self/ns/net"))
        });
        made?.context("create a network namespace")
    }

    /// A new one whose owner is another user namespace: who is root there may change it.
    ///
    /// # Errors
    /// Those of setns(2) and unshare(2).
    pub fn new_owned_by(user_namespace: BorrowedFd<'_>) -> Result<Self> {
        let file = corten_sys::network_namespace_of(user_namespace)
            .context("create a network namespace of a user namespace")?;
        Ok(Self { file })
    }

    /// That of the calling thread.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn current() -> Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// That of a process.
    ///
    /// # Errors
    /// NotFound when the process has ended.
    pub fn of_process(pid: u32) -> Result<Self> {
        Self::open(Path::new(&format!("/proc/{pid}/ns/net")))
    }

    /// That behind a path: a pin, or `/proc/<pid>/ns/net`.
    ///
    /// # Errors
    /// NotFound; InvalidArgument for a file that is no namespace.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        if !is_namespace(file.as_fd()) {
            let text = format!("{}: not a network namespace", path.display());
            return Err(Error::invalid_argument(text));
        }
        Ok(Self { file: file.into() })
    }

    /// What tells it from all others that live: device and number of its file.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn id(&self) -> Result<(u64, u64)> {
        let found = rustix::fs::fstat(&self.file).map_err(std::io::Error::from)?;
        Ok((found.st_dev, found.st_ino))
    }

    /// The user namespace that owns it.
    ///
    /// # Errors
    /// PermissionDenied when that lies outside of the caller's.
    pub fn owner(&self) -> Result<OwnedFd> {
        Ok(corten_sys::owner_of_namespace(self.file.as_fd())?)
    }

    /// Does `work` in it, on a thread that ends with the work.
    ///
    /// # Errors
    /// Those of setns(2): InvalidArgument when this is a namespace of another kind.
    ///
    /// # Panics
    /// When the work does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        on_a_thread(|| {
            move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network)).map_err(
                |errno| Error::from(std::io::Error::from(errno)).context("join the network namespace"),
            )?;
            Ok(work())
        })?
    }

    /// Keeps it alive under a path, which must not exist; its folder is made.
    ///
    /// # Errors
    /// AlreadyExists; those of mount(2).
    pub fn pin(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("mkdir {}", folder.display()))?;
        }
        File::options()
            .write(true)
            .create_new(true)
            .open(path)
            .with_context(|| format!("create {}", path.display()))?;
        let from = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.file));
        mount_bind(from.as_str(), path)
            .map_err(std::io::Error::from)
            .with_context(|| format!("pin a network namespace to {}", path.display()))
            .inspect_err(|_| drop(std::fs::remove_file(path)))
    }
}

impl AsFd for NetworkNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn is_namespace(file: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|found| u64::try_from(found.f_type) == Ok(NSFS_MAGIC))
}

/// Does `work` on a thread of its own, which nobody uses afterwards.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into());
        let thread = thread.spawn_scoped(scope, work).context("start a thread")?;
        match thread.join() {
            Ok(done) => Ok(done),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// A name that was pinned.
#[derive(Debug, Clone)]
pub struct Pinned {
    /// The file's name.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// Nothing where the file is only a file: after a reboot, or while it is being pinned (spec 06 §7.13).
    pub id: Option<(u64, u64)>,
}

/// What is pinned in a folder, by name; nothing when there is none.
///
/// # Errors
/// Those of readdir(3).
pub fn pinned(folder: &Path) -> Result<Vec<Pinned>> {
    let entries = match std::fs::read_dir(folder) {
        Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("open {}", folder.display()))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let Ok(status) = std::fs::metadata(&path) else { continue };
        let id = NetworkNamespace::open(&path).is_ok().then(|| (status.dev(), status.ino()));
        found.push(Pinned { name: name.to_owned(), path, id });
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// Lets a pinned namespace go, and removes the file; it lives on while processes are in it. A pin that is not there,
/// or a file that never was one, is no failure.
///
/// # Errors
/// Those of umount(2) and unlink(2).
pub fn unpin(path: &Path) -> Result<()> {
    // The table of mounts knows the resolved path (spec 06 §7.12).
    let resolved = match path.canonicalize() {
        Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("open {}", path.display()))?,
    };
    // Several may lie one above the other.
    while File::open(&resolved).is_ok_and(|file| is_namespace(file.as_fd())) {
        match unmount(&resolved, UnmountFlags::DETACH) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => break,
            Err(errno) => {
                return Err(std::io::Error::from(errno)).context(format!("unmount {}", path.display()));
            }
        }
    }
    match std::fs::remove_file(&resolved) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context(format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A name that nobody has: `cni-` and a random UUID, as those of pods.
///
/// # Errors
/// When the kernel gives no random numbers.
pub fn random_name() -> Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| Error::internal(format!("random numbers: {error}")))?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let [a, b, c, d, e] = [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]];
    Ok(format!("cni-{a}-{b}-{c}-{d}-{e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_namespace_outlives_its_maker_until_it_is_unpinned() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/a");
        let id = {
            let made = NetworkNamespace::new().unwrap();
            made.pin(&path).unwrap();
            assert!(made.pin(&path).unwrap_err().is_already_exists());
            made.id().unwrap()
        };
        std::fs::write(folder.path().join("deep/stale"), "").unwrap();
        let found = pinned(&folder.path().join("deep")).unwrap();
        let listed: Vec<_> = found.iter().map(|pin| (pin.name.as_str(), pin.id)).collect();
        assert_eq!(listed, [("a", Some(id)), ("stale", None)]);
        assert_eq!(NetworkNamespace::open(&path).unwrap().id().unwrap(), id);
        for name in ["a", "stale", "missing"] {
            unpin(&folder.path().join("deep").join(name)).unwrap();
        }
        assert!(pinned(&folder.path().join("deep")).unwrap().is_empty());
        assert!(pinned(&folder.path().join("nothing")).unwrap().is_empty());
    }

    #[test]
    fn work_in_a_namespace_leaves_the_caller_where_it_was() {
        let before = NetworkNamespace::current().unwrap().id().unwrap();
        let made = NetworkNamespace::new().unwrap();
        let inside = made.run(|| NetworkNamespace::current().unwrap().id().unwrap()).unwrap();
        assert_eq!(
            (inside, NetworkNamespace::current().unwrap().id().unwrap()),
            (made.id().unwrap(), before)
        );
        assert_ne!(inside, before);
    }

    #[test]
    fn what_is_no_network_namespace_is_refused() {
        let other = NetworkNamespace::open(Path::new("/proc/self/ns/uts")).unwrap();
        assert!(other.run(|| ()).is_err());
        assert!(NetworkNamespace::open(Path::new("/dev/null")).is_err());
        assert!(NetworkNamespace::open(Path::new("/nonexistent")).unwrap_err().is_not_found());
    }

    #[test]
    fn a_namespace_belongs_to_the_user_namespace_that_was_asked_for() {
        let user = corten_sys::user_namespace("0 1000 10\n", "0 1000 10\n").unwrap();
        let made = NetworkNamespace::new_owned_by(user.as_fd()).unwrap();
        let number = |file: &OwnedFd| rustix::fs::fstat(file).unwrap().st_ino;
        assert_eq!(number(&made.owner().unwrap()), number(&user));
        assert_ne!(number(&NetworkNamespace::new().unwrap().owner().unwrap()), number(&user));
        assert!(NetworkNamespace::new_owned_by(made.as_fd()).is_err());
    }

    #[test]
    fn random_names_look_like_those_of_pods() {
        let name = random_name().unwrap();
        let lengths: Vec<usize> = name.split('-').map(str::len).collect();
        assert_eq!(lengths, [3, 8, 4, 4, 4, 12], "{name}");
    }
}
