//! `start`: a server for a container, or the one that its group has already (spec 02 §3.2).

use std::fs::Permissions;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use corten_sys::FolderLock;
use corten_types::{Digest, Error, Result, ResultExt};

use crate::Flags;
use crate::bootstrap::Bootstrap;

/// Under which the server inherits its socket.
pub(crate) const LISTENER: i32 = 3;

/// How long others may take who hold a lock.
const PATIENCE: Duration = Duration::from_secs(5);

const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

pub(crate) fn start(flags: &Flags) -> Result<()> {
    let mut input = Vec::new();
    std::io::stdin().lock().take(4 << 20).read_to_end(&mut input)?;
    let bootstrap = Bootstrap::read(&input, flags);
    // A daemon that clears away what one before it began waits for this; one that has done so already needs no server.
    let _lock = FolderLock::shared(Path::new("."), PATIENCE);
    if bundle_is_gone() {
        return Err(Error::failed_precondition("the bundle is being removed"));
    }
    let socket = socket_path(&bootstrap.socket_dir, flags, &group(&flags.id));
    let address = format!("unix://{}", socket.display());
    if let Some(listener) = listen(&socket)? {
        let pid = spawn(flags, listener).context("failed to start the server")?;
        if !bootstrap.options.shim_cgroup.is_empty() {
            join_cgroup(&bootstrap.options.shim_cgroup, pid).context("failed to add shim to cgroup")?;
        }
        worsen_oom_score(pid);
    }
    link_socket_dir(&bootstrap.socket_dir);
    let mut output = std::io::stdout().lock();
    output.write_all(&bootstrap.answer(&address))?;
    Ok(output.flush()?)
}

/// Whether the folder that this process works in has been removed, or is about to be.
pub(crate) fn bundle_is_gone() -> bool {
    match std::env::current_dir() {
        // What is to be removed is hidden first.
        Ok(path) => path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// The containers that share a server are told by an annotation.
fn group(id: &str) -> String {
    let spec = std::fs::read("config.json").unwrap_or_default();
    let spec: serde_json::Value = serde_json::from_slice(&spec).unwrap_or_default();
    let named = GROUPS.iter().find_map(|name| spec["annotations"][*name].as_str());
    named.unwrap_or(id).to_owned()
}

fn socket_path(folder: &str, flags: &Flags, group: &str) -> PathBuf {
    let name = Path::new(&flags.address).join(&flags.namespace).join(group);
    Path::new(folder).join(Digest::sha256(name.as_os_str().as_encoded_bytes()).hex())
}

/// A new socket; nothing when a server answers there already. A stale one is replaced.
fn listen(path: &Path) -> Result<Option<UnixListener>> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    std::fs::set_permissions(folder, Permissions::from_mode(0o700)).ok();
    // One at a time: a socket that does not listen yet looks like one whose server is dead.
    let _lock = FolderLock::alone(folder, PATIENCE);
    let bind = || UnixListener::bind(path);
    let listener = match bind() {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Ok(None);
            }
            std::fs::remove_file(path)?;
            bind()
        }
        other => other,
    };
    let listener = listener.with_context(|| path.display().to_string())?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(Some(listener))
}

/// Starts the server, from a read-only clone of this program where the kernel lets us: what runs in its
/// children before a container's program must not be writable from inside.
fn spawn(flags: &Flags, listener: UnixListener) -> Result<u32> {
    let program = std::env::current_exe()?;
    let clone = corten_sys::read_only_clone(program.as_os_str()).ok();
    let listener = OwnedFd::from(listener);
    // The clone may lie where the socket has to go.
    let clone = clone
        .map(|clone| rustix::io::fcntl_dupfd_cloexec(clone, 10))
        .transpose()
        .map_err(std::io::Error::from)?;
    let path = match &clone {
        Some(clone) => {
            rustix::io::fcntl_setfd(clone, rustix::io::FdFlags::empty()).map_err(std::io::Error::from)?;
            PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(clone)))
        }
        None => program.clone(),
    };
    corten_sys::bequeath(&listener, LISTENER)?;
    let mut command = Command::new(path);
    command
        .arg0(program.as_os_str())
        .args(["-namespace", &flags.namespace, "-id", &flags.id, "-address", &flags.address])
        .env("OTEL_SERVICE_NAME", format!("containerd-shim-{}", flags.id))
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if flags.debug {
        command.arg("-debug");
    }
    if !flags.publish_binary.is_empty() {
        command.args(["-publish-binary", &flags.publish_binary]);
    }
    let child = command.spawn()?;
    // This process keeps no copy beyond its own short life.
    std::mem::forget(listener);
    Ok(child.id())
}

fn join_cgroup(path: &str, pid: u32) -> Result<()> {
    let path = path.trim_start_matches('/');
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    for line in mounts.lines().filter(|line| line.contains(" - cgroup")) {
        let Some(point) = line.split(' ').nth(4) else { continue };
        let folder = Path::new(point).join(path);
        // Not every hierarchy can be written everywhere.
        if std::fs::create_dir_all(&folder).is_ok() {
            std::fs::write(folder.join("cgroup.procs"), pid.to_string()).ok();
        }
    }
    Ok(())
}

/// The server is ended before the daemon when memory runs out.
fn worsen_oom_score(pid: u32) {
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    let score = own.trim().parse::<i32>().unwrap_or(0);
    std::fs::write(format!("/proc/{pid}/oom_score_adj"), (score + 1).min(1000).to_string()).ok();
}

/// Leaves the folder of the sockets under a short name in the bundle.
fn link_socket_dir(folder: &str) {
    // A server that several containers share has left it already, or nobody needs it.
    std::os::unix::fs::symlink(folder, "s").ok();
}
