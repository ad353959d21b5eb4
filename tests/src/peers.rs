//! The real programs that ours are held against, unpacked from Debian's packages by `make peers`.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The folder with Debian's containerd 1.6 and 2.1, runc, crun, busybox and a registry.
#[derive(Clone, Debug)]
pub struct Peers {
    root: PathBuf,
}

impl Peers {
    /// `$PEERS`, or `target/peers` in the workspace.
    ///
    /// # Panics
    /// When it is not there: these tests are not skipped, `make test` unpacks the folder.
    pub fn find() -> Self {
        let root = std::env::var_os("PEERS").map_or_else(|| workspace().join("target/peers"), PathBuf::from);
        assert!(root.join("containerd-2.1/usr").is_dir(), "no peers in {}: run `make peers`", root.display());
        Self { root }
    }

    /// The folder that holds them all.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of a group of packages: `docker-26.1`, as scripts/peers names them.
    ///
    /// # Panics
    /// When it is not there.
    pub fn folder(&self, group: &str) -> PathBuf {
        let folder = self.root.join(group);
        assert!(folder.join("usr").is_dir(), "no {group} in {}: run `make peers`", self.root.display());
        folder
    }

    /// Debian's containerd 1.6: `containerd`, `ctr`, shims.
    pub fn containerd_1_6(&self) -> PathBuf {
        self.root.join("containerd-1.6/usr/bin")
    }

    /// Debian's containerd 2.1: `containerd`, `ctr`, shim.
    pub fn containerd_2_1(&self) -> PathBuf {
        self.root.join("containerd-2.1/usr/bin")
    }

    /// The folder that holds runc.
    pub fn runc(&self) -> PathBuf {
        self.root.join("oci/usr/sbin")
    }

    /// Debian's crun; see [`Peers::beside_crun`].
    pub fn crun(&self) -> PathBuf {
        self.folder("crun").join("usr/bin/crun")
    }

    /// Writes a script that runs a program, crun itself or one that starts it, as this crun needs it: with a library of
    /// its own, and where both versions of cgroups are mounted with those of v1 alone.
    pub fn beside_crun(&self, program: &Path, script: &Path) {
        let text = format!(
            "#!/bin/sh\nexport LD_LIBRARY_PATH={}/usr/lib/x86_64-linux-gnu\nexec unshare --mount sh -c \
             'umount /sys/fs/cgroup/unified 2>/dev/null; exec \"$0\" \"$@\"' {} \"$@\"\n",
            self.folder("crun").display(),
            program.display()
        );
        std::fs::write(script, text).unwrap();
        std::fs::set_permissions(script, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The folder of Debian's plugins of CNI.
    pub fn cni(&self) -> PathBuf {
        self.root.join("cni/usr/lib/cni")
    }

    /// A static busybox.
    pub fn busybox(&self) -> PathBuf {
        self.root.join("tools/bin/busybox")
    }

    /// Debian's docker-registry.
    pub fn registry(&self) -> PathBuf {
        self.root.join("tools/usr/bin/docker-registry")
    }

    /// Debian's skopeo.
    pub fn skopeo(&self) -> PathBuf {
        self.root.join("tools/usr/bin/skopeo")
    }

    /// Debian's umoci.
    pub fn umoci(&self) -> PathBuf {
        self.root.join("tools/usr/bin/umoci")
    }
}

/// The root of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// The folder with our own programs: `$CORTEN_BIN`, or the one that holds the running test.
///
/// # Panics
/// When `containerd` is not there.
pub fn programs() -> PathBuf {
    let folder = std::env::var_os("CORTEN_BIN").map_or_else(
        || {
            let test = std::env::current_exe().unwrap();
            test.ancestors().nth(2).unwrap().to_owned()
        },
        PathBuf::from,
    );
    assert!(folder.join("containerd").is_file(), "no containerd in {}: run `make build`", folder.display());
    folder
}
