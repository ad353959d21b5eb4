//! The daemon's own process: its folders, the lock on its root, its environment, its weight with the kernel.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use corten_cgroups::Cgroups;
use corten_config::Config;
use corten_types::{Error, ErrorClass, Result, ResultExt};
use rustix::fs::FlockOperation;

/// How often a root that another daemon holds is tried again.
const RETRY: Duration = Duration::from_millis(100);
/// After which waiting for it is told.
const PATIENCE: Duration = Duration::from_secs(10);

/// What keeps a second daemon from the root, until it is dropped.
#[derive(Debug)]
pub struct Root {
    _folder: File,
}

/// Makes the folders, with the modes that containers in user namespaces need and other users must not have,
/// and waits until no other daemon uses the root. To be called before there are threads.
///
/// # Errors
/// Those of the file system; Unavailable when `io.containerd.timeout.bolt.open` has passed.
pub fn prepare(config: &Config) -> Result<Root> {
    folder(&config.root, 0o700)?;
    folder(&config.state, 0o711)?;
    if !config.temp.as_os_str().is_empty() {
        folder(&config.temp, 0o700)?;
        corten_sys::set_variable("TMPDIR", config.temp.as_os_str())?;
    }
    let root = lock(&config.root, config.timeout("io.containerd.timeout.bolt.open"))?;
    let temporary = config.root.join("tmpmounts");
    std::fs::create_dir_all(&temporary)?;
    if let Err(error) = corten_mounts::TempMount::clear(&temporary) {
        tracing::warn!(%error, "mounts of an earlier run could not be taken away");
    }
    Ok(root)
}

fn folder(path: &Path, mode: u32) -> Result<()> {
    std::fs::create_dir_all(path).with_context(|| path.display().to_string())?;
    std::fs::set_permissions(path, Permissions::from_mode(mode)).with_context(|| path.display().to_string())
}

/// The lock lies on the folder itself, and so leaves nothing behind.
fn lock(root: &Path, limit: Duration) -> Result<Root> {
    let folder = File::open(root).with_context(|| root.display().to_string())?;
    let begun = Instant::now();
    let mut told = false;
    while rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive).is_err() {
        if !limit.is_zero() && begun.elapsed() >= limit {
            let text = format!("root {} is in use by another daemon", root.display());
            return Err(Error::new(ErrorClass::Unavailable, text));
        }
        if !told && begun.elapsed() >= PATIENCE {
            told = true;
            tracing::warn!(root = %root.display(), "waiting for another daemon that uses this root");
        }
        std::thread::sleep(RETRY);
    }
    Ok(Root { _folder: folder })
}

/// Puts programs and libraries that were installed for containers first. To be called before there are
/// threads.
///
/// # Errors
/// Those of the file system.
pub fn use_installed(path: &Path) -> Result<()> {
    for (name, variable) in [("bin", "PATH"), ("lib", "LD_LIBRARY_PATH")] {
        let within = path.join(name);
        if !within.is_dir() {
            std::fs::create_dir_all(&within).with_context(|| within.display().to_string())?;
            std::fs::set_permissions(&within, Permissions::from_mode(0o711))?;
        }
        let old = std::env::var_os(variable).filter(|old| !old.is_empty());
        let rest: Vec<PathBuf> = old.iter().flat_map(|old| std::env::split_paths(old)).collect();
        if rest.contains(&within) {
            continue;
        }
        let joined = std::env::join_paths([within].into_iter().chain(rest));
        corten_sys::set_variable(
            variable,
            &joined.map_err(|error| Error::invalid_argument(error.to_string()))?,
        )?;
    }
    Ok(())
}

/// Applies what the kernel is to think of the daemon: whom to end when memory runs out, and its cgroup.
///
/// # Errors
/// Those of the file system.
pub fn weigh(config: &Config) -> Result<()> {
    if config.oom_score != 0 {
        let text = config.oom_score.to_string();
        std::fs::write("/proc/self/oom_score_adj", text).context("failed to change OOM score")?;
    }
    if !config.cgroup.path.is_empty() {
        let cgroups = Cgroups::at(Path::new(&config.cgroup.path))?;
        cgroups.create()?;
        cgroups.enter_v1()?;
        cgroups.enter_v2()?;
    }
    Ok(())
}
