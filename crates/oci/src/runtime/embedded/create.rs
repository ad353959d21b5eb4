//! Creating a container: cgroups, then one clone into all its namespaces, then the process makes itself at
//! home ([`init`](super::init)) while this watches.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use corten_cgroups::{Cgroups, DeviceRule, Pids, Resources, Scope, update};
use corten_sys::{FolderLock, MountChange, NewProcess, change_mount, clone_process, detached_clone};
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::channel::{Channel, Message};
use super::config::Config;
use super::init::Init;
use super::namespaces::{NEW_CGROUP, NEW_PID, NEW_TIME, NEW_USER, Namespaces, join, map_ids, new_time};
use super::options::Options;
use super::process::Proc;
use super::rootfs::{Outside, path_of, words};
use super::seccomp::Listener;
use super::state::{State, start_socket, start_time};
use super::{Failure, Streams, Target, hooks};

/// How long processes may take to end once they are killed.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long they may take before they are killed again.
const GLANCE: Duration = Duration::from_millis(100);

/// What is known of a container before there is a process, and the folder that it is kept in.
pub(super) fn first_state(target: &Target, config: &Config, cgroups: Cgroups) -> Result<State, Failure> {
    std::fs::create_dir_all(target.state())
        .map_err(|error| format!("{}: {error}", target.state().display()))?;
    Ok(State {
        oci_version: config.oci_version.clone(),
        id: target.id.clone(),
        bundle: target.bundle.clone(),
        rootfs: target.bundle.join(&config.root.path),
        annotations: config.annotations.clone(),
        cgroups,
        poststop: config.hooks.poststop.clone(),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        ..State::default()
    })
}

/// Creates a container up to the point where its process waits to be started; answers its pid. The caller's
/// parent becomes the parent of that process.
pub(super) fn create(target: &Target, streams: &Streams) -> Result<i32, Failure> {
    let config = Config::read(&target.bundle)?;
    let process = config.process.as_ref().ok_or("process property must not be empty")?;
    let (cgroups, scope) = cgroups(target, &config)?;
    let mut state = State { scope, ..first_state(target, &config, cgroups)? };
    // Known before there is anything: what is left of a failure or a crash is found by it.
    state.save(target)?;
    let mut resources = config.linux.resources.clone();
    allow_usual_devices(&mut resources.devices);
    // Where a process keeps the place, there may be one more than the container is allowed.
    let pids = state.scope.as_ref().and_then(|_| resources.pids.take());
    let place = state.scope.as_ref().map(|scope| Place::keep(scope, &state, &resources)).transpose()?;
    state.cgroups.create().map_err(|error| format!("unable to create cgroups: {error}"))?;
    let limit = |resources: &Resources| {
        update(&state.cgroups, resources)
            .map_err(|error| format!("unable to apply cgroup configuration: {error}"))
    };
    limit(&resources)?;

    let namespaces = Namespaces::open(&config)?;
    let proc = Proc::open()?;
    let outside = outside(&config, &proc)?;
    let console =
        streams.console.as_ref().filter(|_| process.terminal).map(|path| connect(path)).transpose()?;
    let decides = Listener::connect(config.linux.seccomp.as_ref(), &state)?;
    let (ours, theirs) = Channel::pair()?;
    let init = Init {
        config: &config,
        process,
        target,
        cgroups: &state.cgroups,
        namespaces: &namespaces,
        outside: &outside,
        proc: &proc,
        streams,
        console: console.as_ref(),
        decides: decides.as_ref(),
        listener: listen(&target.state())?,
        channel: theirs,
        others: ours.number(),
        state: &state,
    };
    let pid = launch(&config, &state.cgroups, &namespaces, &proc, init)?;
    let made = watch(&ours, &config, &namespaces, &proc, &mut state, (pid, target.lock.as_deref()));
    drop(place);
    let made = made.and_then(|()| pids.map_or(Ok(()), |pids| limit_pids(&state, pids)));
    if made.is_err() {
        corten_sys::kill(pid, 9).ok();
        return made.map(|()| pid);
    }
    state.save(target)?;
    Ok(pid)
}

fn limit_pids(state: &State, pids: Pids) -> Result<(), Failure> {
    limit(state, &Resources { pids: Some(pids), ..Resources::default() })
}

/// Changes limits, and tells systemd of them if it made the cgroups.
pub(super) fn limit(state: &State, wanted: &Resources) -> Result<(), Failure> {
    let told = state.scope.as_ref().map_or(Ok(()), |scope| scope.set(wanted, state.cgroups.is_unified()));
    told.and_then(|()| update(&state.cgroups, wanted))
        .map_err(|error| format!("unable to apply cgroup configuration: {error}"))
}

/// A process in a scope, which systemd would take away again while it is empty.
struct Place {
    holder: i32,
    /// It ends when this is closed.
    _stay: OwnedFd,
}

impl Place {
    fn keep(scope: &Scope, state: &State, wanted: &Resources) -> Result<Self, Failure> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(words)?;
        let holder = clone_process(NewProcess::default(), || {
            corten_sys::close_all_except(&[read.as_raw_fd()]);
            rustix::io::read(&read, &mut [0_u8; 1]).ok();
            0
        })
        .map_err(words)?;
        let this = Self { holder, _stay: write };
        let started = scope.start(
            holder,
            &format!("container {}", state.id),
            wanted,
            &state.annotations,
            state.cgroups.is_unified(),
        );
        started.map_err(|error| format!("unable to start unit {:?}: {error}", scope.unit))?;
        Ok(this)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        corten_sys::kill(self.holder, 9).ok();
        let options = rustix::process::WaitOptions::empty();
        rustix::process::waitpid(rustix::process::Pid::from_raw(self.holder), options).ok();
    }
}

pub(super) fn cgroups(target: &Target, config: &Config) -> Result<(Cgroups, Option<Scope>), Failure> {
    let path = &config.linux.cgroups_path;
    if target.systemd {
        let told = |error: corten_types::Error| error.to_string();
        let scope = Scope::parse(path, &target.id).map_err(told)?;
        return Ok((Cgroups::at(&scope.path().map_err(told)?).map_err(told)?, Some(scope)));
    }
    let own = Path::new("/").join(&target.id);
    let cgroups = Cgroups::at(if path.as_os_str().is_empty() { &own } else { path })
        .map_err(|error| error.to_string())?;
    if cgroups.is_root() {
        return Err(format!("a container cannot have the root cgroup ({})", path.display()));
    }
    Ok((cgroups, None))
}

/// What every container may do with devices, whatever its rules say: make nodes, and use those that it gets
/// (OCI runtime specification, default devices). Without any rules all else is denied.
pub(super) fn allow_usual_devices(rules: &mut Vec<DeviceRule>) {
    let rule = |allow, kind: &str, major, minor, access: &str| DeviceRule {
        allow,
        kind: kind.into(),
        major,
        minor,
        access: access.into(),
    };
    if rules.is_empty() {
        rules.push(rule(false, "a", None, None, "rwm"));
    }
    rules.push(rule(true, "c", None, None, "m"));
    rules.push(rule(true, "b", None, None, "m"));
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)] {
        rules.push(rule(true, "c", Some(major), Some(minor), "rwm"));
    }
    // Terminals.
    rules.push(rule(true, "c", Some(136), None, "rwm"));
}

/// Makes the process; it has started to make itself at home when this returns.
fn launch(
    config: &Config,
    cgroups: &Cgroups,
    namespaces: &Namespaces,
    proc: &Proc,
    init: Init<'_>,
) -> Result<i32, Failure> {
    let group = cgroups.open_v2().map_err(|error| error.to_string())?;
    if namespaces.new & NEW_TIME != 0 {
        new_time(proc, &config.linux)?;
    }
    for (flag, namespace) in namespaces.joined.iter().filter(|(flag, _)| matches!(*flag, NEW_PID | NEW_TIME))
    {
        join(*flag, namespace)?;
    }
    // The cgroup is entered by the process itself, and its namespace begins there. That of time is waiting.
    let how = NewProcess {
        namespaces: namespaces.new & !(NEW_CGROUP | NEW_TIME),
        sibling: true,
        cgroup: group.as_ref().map(AsFd::as_fd),
    };
    let user = namespaces.joined.iter().find(|(flag, _)| *flag == NEW_USER);
    let cloned = match user {
        None => clone_process(how, || init.run()),
        // The other namespaces have to belong to this one: they are made by a process that has joined it.
        Some((flag, user)) => return in_user_namespace(how, *flag, user, init),
    };
    cloned.map_err(|error| format!("unable to start container process: clone: {}", words(error)))
}

fn in_user_namespace(how: NewProcess<'_>, flag: u64, user: &OwnedFd, init: Init<'_>) -> Result<i32, Failure> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(words)?;
    let between = || {
        let cloned = join(flag, user).and_then(|()| clone_process(how, || init.run()).map_err(words));
        let said = cloned.map_or_else(|error| format!("-{error}"), |pid| pid.to_string());
        rustix::io::write(&write, said.as_bytes()).ok();
        0
    };
    clone_process(NewProcess { sibling: true, ..NewProcess::default() }, between).map_err(words)?;
    drop(write);
    // Not until its end: the new process has the other side open, too, and goes on until it is started.
    let mut said = [0; 1024];
    let count = rustix::io::retry_on_intr(|| rustix::io::read(&read, &mut said)).map_err(words)?;
    let said = String::from_utf8_lossy(said.get(..count).unwrap_or_default());
    said.parse().map_err(|_| format!("unable to start container process: {}", said.trim_start_matches('-')))
}

/// Does what has to be done from outside, until the process waits to be started.
fn watch(
    channel: &Channel,
    config: &Config,
    namespaces: &Namespaces,
    proc: &Proc,
    state: &mut State,
    (pid, lock): (i32, Option<&FolderLock>),
) -> Result<(), Failure> {
    const INIT: &str = "unable to start container process: error during container init";
    state.pid = pid;
    state.started = start_time(pid).unwrap_or(0);
    if namespaces.new & NEW_USER != 0 {
        map_ids(proc, pid, &config.linux.uid_mappings, &config.linux.gid_mappings)?;
        channel.go()?;
    }
    state.rdt = super::rdt::join(config, &state.id, pid)?;
    super::devices::move_in(config, pid)?;
    if needs_hooks(config) {
        told(channel, INIT)?;
        hooks::run(&config.hooks.prestart, state, "creating", "prestart", lock)?;
        hooks::run(&config.hooks.create_runtime, state, "creating", "createRuntime", lock)?;
        channel.go()?;
    }
    told(channel, INIT)
}

/// Whether the process waits for hooks that run outside.
pub(super) fn needs_hooks(config: &Config) -> bool {
    !config.hooks.prestart.is_empty() || !config.hooks.create_runtime.is_empty()
}

fn told(channel: &Channel, context: &str) -> Result<(), Failure> {
    match channel.receive() {
        Message::Go => Ok(()),
        Message::Failed(failure) => Err(format!("{context}: {failure}")),
        Message::Closed => Err(format!("{context}: it ended without a word")),
    }
}

fn outside(config: &Config, proc: &Proc) -> Result<Outside, Failure> {
    let mut mapped = Vec::new();
    for mount in &config.mounts {
        let options = Options::parse(&mount.options)?;
        let wanted = options.id_mapped || !mount.uid_mappings.is_empty();
        let tree = wanted.then(|| id_mapped(config, mount, &options, proc)).transpose()?;
        mapped.push(tree);
    }
    Ok(Outside { mapped, in_user_namespace: config.namespace("user").is_some() })
}

/// A source whose files' owners go through a mapping: the mount's own, or that of the container.
fn id_mapped(
    config: &Config,
    mount: &super::config::Mount,
    options: &Options,
    proc: &Proc,
) -> Result<OwnedFd, Failure> {
    let failed = |error: std::io::Error| {
        format!("failed to set MOUNT_ATTR_IDMAP on {}: {}", mount.source, words(error))
    };
    let source = config_source(mount);
    let tree = detached_clone(CWD, source.as_os_str(), options.recursive).map_err(failed)?;
    let (uids, gids) = if mount.uid_mappings.is_empty() {
        (&config.linux.uid_mappings, &config.linux.gid_mappings)
    } else {
        (&mount.uid_mappings, &mount.gid_mappings)
    };
    // A process that only holds the user namespace for as long as it is needed.
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(words)?;
    let how = NewProcess { namespaces: NEW_USER, ..NewProcess::default() };
    let holder = clone_process(how, || {
        corten_sys::close_all_except(&[read.as_raw_fd()]);
        rustix::io::read(&read, &mut [0_u8; 1]).ok();
        0
    })
    .map_err(failed)?;
    let change = || -> Result<(), Failure> {
        map_ids(proc, holder, uids, gids)?;
        let namespace = std::fs::File::open(format!("/proc/{holder}/ns/user")).map_err(failed)?;
        let recursive = options.id_mapped_recursive || options.recursive;
        let change = MountChange { id_map: Some(namespace.as_fd()), recursive, ..MountChange::default() };
        change_mount(tree.as_fd(), &change).map_err(failed)
    };
    let changed = change();
    drop(write);
    rustix::process::waitpid(rustix::process::Pid::from_raw(holder), rustix::process::WaitOptions::empty())
        .ok();
    changed.map(|()| tree)
}

fn config_source(mount: &super::config::Mount) -> &Path {
    Path::new(&mount.source)
}

fn connect(path: &Path) -> Result<UnixStream, Failure> {
    UnixStream::connect(path).map_err(|error| format!("console socket {}: {}", path.display(), words(error)))
}

/// Where `start` will knock. The folder's own path may be too long for a socket.
fn listen(folder: &Path) -> Result<UnixListener, Failure> {
    let failed = |error: std::io::Error| format!("{}: {}", folder.display(), words(error));
    let handle = openat(CWD, folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| failed(error.into()))?;
    UnixListener::bind(start_socket(&path_of(&handle))).map_err(failed)
}

/// Removes all that a container has: processes, cgroups, state; and runs the hooks that follow. The state goes last: what
/// ends this half-way is begun again by whoever comes next.
pub(super) fn destroy(target: &Target, state: &State) -> Result<(), Failure> {
    if state.is_alive() {
        corten_sys::kill(state.pid, 9).ok();
    }
    let scope = || state.scope.as_ref().map_or(Ok(()), Scope::stop);
    let late = Instant::now() + PATIENCE;
    loop {
        match state.cgroups.signal(9) {
            Err(error) if !error.is_not_found() => return Err(error.to_string()),
            _ => {}
        }
        scope().map_err(|error| error.to_string())?;
        // Once more, for what was on its way in.
        match state.cgroups.remove(GLANCE) {
            Err(error) if Instant::now() > late => return Err(error.to_string()),
            Err(_) => {}
            Ok(()) => break,
        }
    }
    if let Some(group) = &state.rdt {
        super::rdt::remove(group);
    }
    let followed = hooks::run(&state.poststop, state, "stopped", "poststop", target.lock.as_deref());
    std::fs::remove_dir_all(target.state())
        .map_err(|error| format!("{}: {error}", target.state().display()))?;
    followed
}
