//! Containers written down by CRIU, and made again from that. CRIU is a program of the host; it is told what leads out
//! of the container: mounts, namespaces and streams that are not its own.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use corten_cgroups::update;
use corten_sys::{NewProcess, clone_process};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{Pid, WaitOptions, waitpid};

use super::config::{Config, Mount};
use super::create::{allow_usual_devices, cgroups, first_state};
use super::namespaces::NEW_MOUNT;
use super::rootfs::words;
use super::state::{State, Status, start_time};
use super::{Checkpoint, Failure, Streams, Target};

/// What the standard streams led to when they were written down.
const DESCRIPTORS: &str = "descriptors.json";

/// Writes the processes of a container down; they end unless they are to go on.
pub(super) fn checkpoint(target: &Target, wanted: &Checkpoint) -> Result<(), Failure> {
    let state = State::load(target)?;
    if !matches!(state.status(target), Status::Running | Status::Paused) {
        return Err("container not running".into());
    }
    let config = Config::read(&state.bundle)?;
    std::fs::create_dir_all(&wanted.images)
        .map_err(|error| format!("{}: {error}", wanted.images.display()))?;
    let links: Vec<String> = (0..3).map(|number| link(state.pid, number)).collect();
    let text = serde_json::Value::from(links).to_string();
    std::fs::write(wanted.images.join(DESCRIPTORS), text).map_err(words)?;
    let mut command = criu("dump", wanted);
    command.arg("--tree").arg(state.pid.to_string());
    for place in external(&config) {
        command.arg("--external").arg(format!("mnt[{place}]:{place}"));
    }
    for (kind, name) in [("network", "net"), ("pid", "pid")] {
        if config.namespace(kind).is_some_and(|one| !one.path.as_os_str().is_empty()) {
            let inode = inode_of(&format!("/proc/{}/ns/{name}", state.pid))?;
            command.arg("--external").arg(format!("{name}[{inode}]:{name}"));
        }
    }
    if let Some(parent) = &wanted.parent {
        command.arg("--prev-images-dir").arg(parent).arg("--track-mem");
    }
    if wanted.leave_running {
        command.arg("--leave-running");
    }
    if !wanted.cgroups_mode.is_empty() {
        command.arg(format!("--manage-cgroups={}", wanted.cgroups_mode));
    }
    run(command, wanted, "dump")
}

/// Makes a container from what was written down; answers the pid of its first process, which runs.
pub(super) fn restore(target: &Target, from: &Checkpoint, streams: &Streams) -> Result<i32, Failure> {
    let config = Config::read(&target.bundle)?;
    let (cgroups, scope) = cgroups(target, &config)?;
    if scope.is_some() {
        return Err("a checkpoint cannot be restored into a cgroup of systemd".into());
    }
    let mut state = first_state(target, &config, cgroups)?;
    state.save(target)?;
    state.cgroups.create().map_err(|error| format!("unable to create cgroups: {error}"))?;
    let mut resources = config.linux.resources.clone();
    allow_usual_devices(&mut resources.devices);
    update(&state.cgroups, &resources)
        .map_err(|error| format!("unable to apply cgroup configuration: {error}"))?;
    state.pid = restore_processes(&config, &state, from, streams)?;
    state.started = start_time(state.pid).unwrap_or(0);
    state.save(target)?;
    Ok(state.pid)
}

fn restore_processes(
    config: &Config,
    state: &State,
    from: &Checkpoint,
    streams: &Streams,
) -> Result<i32, Failure> {
    let pid_file = from.work.join("restored.pid");
    std::fs::remove_file(&pid_file).ok();
    let mut command = criu("restore", from);
    command.args(["--restore-detached", "--restore-sibling", "--manage-cgroups=ignore"]);
    command.arg("--pidfile").arg(&pid_file).arg("--root").arg(&state.rootfs);
    for mount in config.mounts.iter().filter(|mount| is_bind(mount)) {
        command.arg("--external").arg(format!("mnt[{}]:{}", mount.destination.display(), mount.source));
    }
    for path in masked_files(config) {
        command.arg("--external").arg(format!("mnt[{path}]:/dev/null"));
    }
    let mut kept: Vec<OwnedFd> = Vec::new();
    let mut inherit = |command: &mut Command, fd: OwnedFd, name: &str| -> Result<(), Failure> {
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty()).map_err(words)?;
        command.arg("--inherit-fd").arg(format!("fd[{}]:{name}", fd.as_raw_fd()));
        kept.push(fd);
        Ok(())
    };
    let links = std::fs::read(from.images.join(DESCRIPTORS)).unwrap_or_default();
    let links: Vec<String> = serde_json::from_slice(&links).unwrap_or_default();
    let Streams { stdin, stdout, stderr, .. } = streams;
    for (link, stream) in links.iter().zip([stdin, stdout, stderr]) {
        // What is no pipe is found by its own path.
        if let (true, Some(stream)) = (link.starts_with("pipe:"), stream) {
            inherit(&mut command, rustix::io::fcntl_dupfd_cloexec(stream, 10).map_err(words)?, link)?;
        }
    }
    for (kind, name) in [("network", "net"), ("pid", "pid")] {
        if let Some(one) = config.namespace(kind).filter(|one| !one.path.as_os_str().is_empty()) {
            let file = File::open(&one.path).map_err(|error| format!("{}: {error}", one.path.display()))?;
            inherit(&mut command, rustix::io::fcntl_dupfd_cloexec(&file, 10).map_err(words)?, name)?;
        }
    }
    within(state, || run(command, from, "restore"))?;
    let pid = std::fs::read_to_string(&pid_file).unwrap_or_default();
    std::fs::remove_file(pid_file).ok();
    pid.trim().parse().map_err(|_| "CRIU told no pid".into())
}

/// Does something as a process of a container's cgroups, with mounts that are not passed on to the host: what it makes
/// is a child of the caller, and in these cgroups.
fn within(state: &State, work: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(words)?;
    let inside = || -> Result<(), Failure> {
        state
            .cgroups
            .enter_v1()
            .and_then(|()| state.cgroups.enter_v2())
            .map_err(|error| error.to_string())?;
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).map_err(words)?;
        // CRIU wants a root that is a mount.
        rustix::mount::mount_bind_recursive(&state.rootfs, &state.rootfs).map_err(words)?;
        work()
    };
    // What CRIU restores beside itself becomes ours when this process has gone.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(words)?;
    let child =
        clone_process(NewProcess { namespaces: NEW_MOUNT, ..NewProcess::default() }, || match inside() {
            Ok(()) => 0,
            Err(failure) => {
                rustix::io::write(&write, failure.as_bytes()).ok();
                1
            }
        })
        .map_err(words)?;
    drop(write);
    let ended = waitpid(Pid::from_raw(child), WaitOptions::empty()).map_err(words)?;
    if ended.is_some_and(|(_, status)| status.exit_status() == Some(0)) {
        return Ok(());
    }
    let mut failure = String::new();
    File::from(read).read_to_string(&mut failure).map_err(words)?;
    Err(failure)
}

fn criu(verb: &str, wanted: &Checkpoint) -> Command {
    let mut command = Command::new("criu");
    command.arg(verb).arg("--images-dir").arg(&wanted.images).arg("--work-dir").arg(&wanted.work);
    command.args(["-v4", "--log-file"]).arg(format!("{verb}.log"));
    for (flag, is_set) in [
        ("--tcp-established", wanted.open_tcp),
        ("--ext-unix-sk", wanted.external_unix_sockets),
        ("--shell-job", wanted.terminal),
        ("--file-locks", wanted.file_locks),
    ] {
        if is_set {
            command.arg(flag);
        }
    }
    for kind in &wanted.empty_namespaces {
        command.arg("--empty-ns").arg(if kind == "network" { "net" } else { kind });
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn run(mut command: Command, wanted: &Checkpoint, verb: &str) -> Result<(), Failure> {
    let status = command.status().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            "checkpoints need CRIU: exec: \"criu\": executable file not found in $PATH".to_owned()
        }
        _ => format!("criu: {error}"),
    })?;
    if status.success() {
        return Ok(());
    }
    let log = wanted.work.join(format!("{verb}.log"));
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    let error = text.lines().rev().find(|line| line.contains("Error")).unwrap_or("it did not say why").trim();
    Err(format!("criu failed: {error}\nlog file: {}", log.display()))
}

/// Places in a container at which mounts come from elsewhere.
fn external(config: &Config) -> Vec<String> {
    let binds = config.mounts.iter().filter(|mount| is_bind(mount));
    binds.map(|mount| mount.destination.display().to_string()).chain(masked_files(config)).collect()
}

fn is_bind(mount: &Mount) -> bool {
    mount.kind == "bind" || mount.options.iter().any(|option| matches!(option.as_str(), "bind" | "rbind"))
}

/// Files that the null device hides; folders are hidden by a file system of their own.
fn masked_files(config: &Config) -> Vec<String> {
    let is_file =
        |path: &&std::path::PathBuf| Path::new("/").join(path).metadata().is_ok_and(|one| !one.is_dir());
    config.linux.masked_paths.iter().filter(is_file).map(|path| path.display().to_string()).collect()
}

fn link(pid: i32, number: i32) -> String {
    let link = std::fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap_or_default();
    link.to_string_lossy().into_owned()
}

fn inode_of(path: &str) -> Result<u64, Failure> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map(|metadata| metadata.ino()).map_err(|error| format!("{path}: {error}"))
}
