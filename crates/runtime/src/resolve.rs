//! From the name of a runtime to the shim's executable (spec 02 §1).

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Access, access};

use corten_types::{Error, Result};

/// Finds shim binaries; what was found is kept for the daemon's life.
#[derive(Debug)]
pub(crate) struct Resolver {
    search_path: OsString,
    /// The folder of the daemon's own executable, searched last.
    beside: Option<PathBuf>,
    found: Mutex<HashMap<String, PathBuf>>,
}

impl Resolver {
    pub fn new(search_path: OsString, daemon: &Path) -> Self {
        Self { search_path, beside: daemon.parent().map(Path::to_owned), found: Mutex::default() }
    }

    /// The executable that serves `runtime`: an absolute path, or a name as `io.containerd.runc.v2`.
    /// Failures are of no class, as clients know them.
    pub fn resolve(&self, runtime: &str) -> Result<PathBuf> {
        if runtime.is_empty() {
            return Err(Error::unknown("no runtime name"));
        }
        if runtime.starts_with('/') {
            return custom(runtime);
        }
        let binary = binary_name(runtime)?;
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = found.get(runtime) {
            return Ok(path.clone());
        }
        let path = self.search(&binary).ok_or_else(|| {
            Error::unknown(format!(
                "runtime {runtime:?} binary not installed {binary:?}: file does not exist"
            ))
        })?;
        found.insert(runtime.to_owned(), path.clone());
        Ok(path)
    }

    fn search(&self, binary: &str) -> Option<PathBuf> {
        let here = std::env::current_dir().ok().map(|folder| folder.join(binary));
        let here = here.filter(|path| path.is_file());
        here.or_else(|| search_path(&self.search_path, binary))
            .or_else(|| self.beside.as_ref().map(|folder| folder.join(binary)).filter(|path| path.is_file()))
    }
}

fn custom(path: &str) -> Result<PathBuf> {
    match std::fs::metadata(path) {
        Ok(_) => Ok(path.into()),
        Err(error) => {
            Err(Error::unknown(format!("invalid custom binary path: stat {path}: {}", Error::from(error))))
        }
    }
}

/// `io.containerd.runc.v2` is served by `containerd-shim-runc-v2`.
fn binary_name(runtime: &str) -> Result<String> {
    let parts: Vec<_> = runtime.split('.').collect();
    match parts[..] {
        [first, .., version] if !first.is_empty() && !runtime.contains('/') => {
            let name = parts.get(parts.len() - 2).copied().unwrap_or_default();
            Ok(format!("containerd-shim-{name}-{version}"))
        }
        _ => Err(Error::unknown(format!(
            "invalid runtime name {runtime}, correct runtime name should be either format like \
             `io.containerd.runc.v2` or a full path to the binary"
        ))),
    }
}

fn search_path(path: &OsStr, binary: &str) -> Option<PathBuf> {
    std::env::split_paths(path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(binary))
        .find(|candidate| candidate.is_file() && access(candidate, Access::EXEC_OK).is_ok())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn resolver(path: &Path) -> Resolver {
        Resolver::new(path.as_os_str().to_owned(), Path::new("/nonexistent/containerd"))
    }

    #[test]
    fn names_become_binaries() {
        for (runtime, binary) in [
            ("io.containerd.runc.v2", "containerd-shim-runc-v2"),
            ("a.b", "containerd-shim-a-b"),
            ("io.containerd.runsc.v1", "containerd-shim-runsc-v1"),
        ] {
            assert_eq!(binary_name(runtime).unwrap(), binary);
        }
        for bad in ["badname", ".b", "a/b.c", "./a.b"] {
            let text = binary_name(bad).unwrap_err().to_string();
            assert_eq!(
                text,
                format!(
                    "invalid runtime name {bad}, correct runtime name should be either format like \
                     `io.containerd.runc.v2` or a full path to the binary"
                )
            );
        }
    }

    #[test]
    fn binaries_are_found_on_the_path_and_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let resolver = resolver(folder.path());
        assert_eq!(resolver.resolve("").unwrap_err().to_string(), "no runtime name");
        let text = resolver.resolve("io.containerd.nope.v2").unwrap_err().to_string();
        assert_eq!(
            text,
            "runtime \"io.containerd.nope.v2\" binary not installed \"containerd-shim-nope-v2\": \
             file does not exist"
        );
        let binary = folder.path().join("containerd-shim-nope-v2");
        std::fs::write(&binary, "").unwrap();
        assert!(resolver.resolve("io.containerd.nope.v2").is_err(), "not executable");
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(resolver.resolve("io.containerd.nope.v2").unwrap(), binary);
        std::fs::remove_file(&binary).unwrap();
        assert_eq!(resolver.resolve("io.containerd.nope.v2").unwrap(), binary);
    }

    #[test]
    fn a_custom_path_must_exist() {
        let resolver = resolver(Path::new(""));
        assert_eq!(resolver.resolve("/proc/self/exe").unwrap(), Path::new("/proc/self/exe"));
        let text = resolver.resolve("/nonexistent/shim").unwrap_err().to_string();
        assert_eq!(text, "invalid custom binary path: stat /nonexistent/shim: no such file or directory");
    }
}
