//! What the daemon tells the runtime at start.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use corten_mounts::Activations;
use corten_types::{Error, Result};

use crate::connection::GrpcShims;

/// Longest path of a folder for shim sockets: a socket's name is 64 digits, a socket's path at most
/// 107 bytes (spec 02 §3.2).
const MAX_SOCKET_DIR: usize = 42;

/// Where things are, how shims are started and how long they may take.
pub struct Config {
    /// Bundles: `<state>/io.containerd.runtime.v2.task`.
    pub state_dir: PathBuf,
    /// Work folders, which outlive a reboot: `<root>/io.containerd.runtime.v2.task`.
    pub root_dir: PathBuf,
    /// Bundles of sandbox shims: `<state>/io.containerd.sandbox.controller.v1.shim`.
    pub sandbox_dir: PathBuf,
    /// Work folders of sandbox shims: `<root>/io.containerd.sandbox.controller.v1.shim`.
    pub sandbox_root_dir: PathBuf,
    /// Socket of the daemon's gRPC server. Shims derive the names of their sockets from it.
    pub grpc_address: String,
    /// Socket on which shims forward events.
    pub ttrpc_address: String,
    /// The daemon's executable, for shims that publish by executing it.
    pub containerd_binary: PathBuf,
    /// The daemon's version, as told to shims.
    pub containerd_version: String,
    /// Folder of shim sockets.
    pub socket_dir: PathBuf,
    /// `KEY=value` entries added to the environment of shims at start.
    pub env: Vec<String>,
    /// Folders in which shim binaries are looked up; the daemon's `PATH`.
    pub search_path: OsString,
    /// Whether shims log at debug level.
    pub debug: bool,
    /// Receives what shims log; the daemon's standard error.
    pub log: Box<dyn Write + Send + Sync>,
    /// Reaches shims that speak gRPC instead of ttrpc.
    pub grpc: Option<Arc<dyn GrpcShims>>,
    /// Mounts root file systems that need more than mount(2).
    pub activations: Option<Activations>,
    /// Time limits.
    pub timeouts: Timeouts,
}

/// Time limits (spec 00 §5.3, `[timeouts]`).
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// `io.containerd.timeout.shim.load`: finding one shim again.
    pub load: Duration,
    /// `io.containerd.timeout.shim.cleanup`: one step of clearing away.
    pub cleanup: Duration,
    /// `io.containerd.timeout.shim.shutdown`.
    pub shutdown: Duration,
    /// `io.containerd.timeout.task.state`.
    pub state: Duration,
    /// `io.containerd.timeout.metrics.shimstats`.
    pub stats: Duration,
    /// Running a shim's `start`, and connecting to it.
    pub start: Duration,
    /// How long [`crate::Tasks::load`] keeps its caller; slower shims go on in the background.
    pub serving: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            load: Duration::from_secs(5),
            cleanup: Duration::from_secs(5),
            shutdown: Duration::from_secs(3),
            state: Duration::from_secs(2),
            stats: Duration::from_secs(2),
            start: Duration::from_secs(100),
            serving: Duration::from_secs(1),
        }
    }
}

impl Config {
    /// The usual layout below the daemon's state and root folders.
    #[must_use]
    pub fn new(state: &Path, root: &Path, grpc_address: &str, ttrpc_address: &str) -> Self {
        const TASKS: &str = "io.containerd.runtime.v2.task";
        const SANDBOXES: &str = "io.containerd.sandbox.controller.v1.shim";
        Self {
            state_dir: state.join(TASKS),
            root_dir: root.join(TASKS),
            sandbox_dir: state.join(SANDBOXES),
            sandbox_root_dir: root.join(SANDBOXES),
            grpc_address: grpc_address.to_owned(),
            ttrpc_address: ttrpc_address.to_owned(),
            containerd_binary: std::env::current_exe().unwrap_or_else(|_| "containerd".into()),
            containerd_version: env!("CARGO_PKG_VERSION").to_owned(),
            socket_dir: "/run/containerd/s".into(),
            env: Vec::new(),
            search_path: std::env::var_os("PATH").unwrap_or_default(),
            debug: false,
            log: Box::new(std::io::stderr()),
            grpc: None,
            activations: None,
            timeouts: Timeouts::default(),
        }
    }

    /// Checks what would otherwise fail at the first container.
    ///
    /// # Errors
    /// InvalidArgument for an unusable socket folder.
    pub(crate) fn validate(&self) -> Result<()> {
        let folder = &self.socket_dir;
        if !folder.is_absolute() {
            return Err(Error::invalid_argument(format!("socket_dir {folder:?} must be an absolute path")));
        }
        if folder.as_os_str().len() > MAX_SOCKET_DIR {
            return Err(Error::invalid_argument(format!(
                "socket_dir {folder:?} is longer than {MAX_SOCKET_DIR} bytes"
            )));
        }
        Ok(())
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("state_dir", &self.state_dir)
            .field("root_dir", &self.root_dir)
            .field("grpc_address", &self.grpc_address)
            .finish_non_exhaustive()
    }
}
