//! The process of a container between its clone and its program.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use corten_cgroups::Cgroups;
use rustix::fs::Mode;

use super::channel::Channel;
use super::config::{Config, Process};
use super::create::needs_hooks;
use super::namespaces::{
    NEW_CGROUP, NEW_NETWORK, NEW_PID, NEW_TIME, NEW_USER, Namespaces, join, set_parameters,
};
use super::process::{Proc, place_streams, set_personality};
use super::rootfs::{Outside, Rootfs, words};
use super::state::{State, start_socket};
use super::{Failure, Streams, Target, console, hooks, seccomp};

/// What it inherits.
pub(super) struct Init<'a> {
    pub config: &'a Config,
    pub process: &'a Process,
    pub target: &'a Target,
    pub cgroups: &'a Cgroups,
    pub namespaces: &'a Namespaces,
    pub outside: &'a Outside,
    pub proc: &'a Proc,
    pub streams: &'a Streams,
    pub console: Option<&'a UnixStream>,
    pub decides: Option<&'a seccomp::Listener>,
    pub listener: UnixListener,
    pub channel: Channel,
    /// The creator's end of the channel, which is not for this process.
    pub others: RawFd,
    pub state: &'a State,
}

impl Init<'_> {
    /// Ends as the container's program, or with a word about what failed.
    pub(super) fn run(&self) -> i32 {
        Channel::forget(self.others);
        let failure = match self.settle() {
            Ok(program) => match self.channel.go().and_then(|()| self.started()) {
                Ok(mut starter) => {
                    let failure = self.execute(&program);
                    starter.write_all(failure.as_bytes()).ok();
                    return 1;
                }
                Err(failure) => failure,
            },
            Err(failure) => failure,
        };
        self.channel.fail(&failure);
        1
    }

    /// Everything up to the point where only the start is missing.
    fn settle(&self) -> Result<std::path::PathBuf, Failure> {
        let (config, process) = (self.config, self.process);
        rustix::process::umask(Mode::empty());
        self.cgroups.enter_v1().map_err(|error| format!("unable to enter cgroups: {error}"))?;
        // From here on it is found by its cgroups.
        if let Some(lock) = &self.target.lock {
            corten_sys::close_inherited(lock.as_raw_fd());
        }
        process.limit(self.proc)?;
        self.enter_namespaces()?;
        rustix::process::setsid().map_err(|error| format!("setsid: {}", words(error)))?;
        if !self.target.no_new_keyring {
            join_keyring(&self.target.id)?;
        }
        let rootfs = Rootfs::begin(config, &self.target.bundle, self.cgroups, self.outside)?;
        rootfs.fill()?;
        rootfs.make_folder(&process.cwd)?;
        let terminal = self.terminal(&rootfs)?;
        set_parameters(self.proc, &config.linux)?;
        self.name()?;
        if needs_hooks(config) {
            self.channel.go()?;
            self.channel.wait()?;
        }
        hooks::run(&config.hooks.create_container, self.state, "creating", "createContainer", None)?;
        rootfs.enter(!self.target.no_pivot)?;
        if let Some(personality) = &config.linux.personality {
            set_personality(personality)?;
        }
        self.place_streams(terminal.as_ref())?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        let filter = config.linux.seccomp.as_ref();
        process.become_user(self.proc, filter, self.decides)?;
        process.program()
    }

    fn enter_namespaces(&self) -> Result<(), Failure> {
        let (new, joined) = (self.namespaces.new, &self.namespaces.joined);
        if new & NEW_USER != 0 {
            // Until the mappings are written this user is nobody.
            self.channel.wait()?;
        }
        if new & NEW_USER != 0 || joined.iter().any(|(flag, _)| *flag == NEW_USER) {
            become_root()?;
        }
        for (flag, namespace) in joined {
            // These have been joined before the clone.
            if !matches!(*flag, NEW_USER | NEW_PID | NEW_TIME) {
                join(*flag, namespace)?;
            }
        }
        if new & NEW_CGROUP != 0 {
            corten_sys::unshare(NEW_CGROUP as i32)
                .map_err(|error| format!("unshare cgroup namespace: {}", words(error)))?;
        }
        if new & NEW_NETWORK != 0 {
            corten_sys::set_link_up("lo").map_err(|error| format!("bring lo up: {}", words(error)))?;
        }
        Ok(())
    }

    fn terminal(&self, rootfs: &Rootfs<'_>) -> Result<Option<OwnedFd>, Failure> {
        let Some(socket) = self.console else { return Ok(None) };
        let terminal = console::open(rootfs.root(), self.process, socket)?;
        rootfs.console(std::os::fd::AsFd::as_fd(&terminal))?;
        Ok(Some(terminal))
    }

    fn name(&self) -> Result<(), Failure> {
        if !self.config.hostname.is_empty() {
            rustix::system::sethostname(self.config.hostname.as_bytes())
                .map_err(|error| format!("sethostname: {}", words(error)))?;
        }
        if !self.config.domainname.is_empty() {
            corten_sys::set_domain_name(&self.config.domainname)
                .map_err(|error| format!("setdomainname: {}", words(error)))?;
        }
        Ok(())
    }

    fn place_streams(&self, terminal: Option<&OwnedFd>) -> Result<(), Failure> {
        if let Some(terminal) = terminal {
            place_streams([Some(terminal); 3])?;
            return rustix::process::ioctl_tiocsctty(terminal)
                .map_err(|error| format!("controlling terminal: {}", words(error)));
        }
        let Streams { stdin, stdout, stderr, .. } = self.streams;
        place_streams([stdin.as_ref(), stdout.as_ref(), stderr.as_ref()])
    }

    /// Waits for `start`; what it is told on this stream is what went wrong.
    fn started(&self) -> Result<UnixStream, Failure> {
        loop {
            let (mut stream, _) =
                self.listener.accept().map_err(|error| format!("accept: {}", words(error)))?;
            // Who went away before it said so did not start anything.
            if stream.read_exact(&mut [0]).is_ok() {
                return Ok(stream);
            }
        }
    }

    fn execute(&self, program: &Path) -> Failure {
        let start_container = &self.config.hooks.start_container;
        if let Err(failure) = hooks::run(start_container, self.state, "created", "startContainer", None) {
            return failure;
        }
        if let Some(filter) = self.config.linux.seccomp.as_ref().filter(|_| self.process.no_new_privileges)
            && let Err(failure) = seccomp::load(filter, self.decides, self.proc)
        {
            return failure;
        }
        self.process.execute(program, self.streams)
    }
}

/// Within a user namespace: everything that is made from here on belongs to its root.
pub(super) fn become_root() -> Result<(), Failure> {
    let failed = |error: rustix::io::Errno| format!("become root of the user namespace: {}", words(error));
    let (uid, gid) = (rustix::fs::Uid::ROOT, rustix::fs::Gid::ROOT);
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed)
}

/// A keyring of its own: those of the host stay out of reach.
pub(super) fn join_keyring(id: &str) -> Result<(), Failure> {
    const ENOSYS: i32 = 38;
    match corten_sys::join_session_keyring(&format!("_ses.{id}")) {
        Err(error) if error.raw_os_error() != Some(ENOSYS) => {
            Err(format!("unable to join session keyring: {}", words(error)))
        }
        _ => Ok(()),
    }
}

/// Lets a created process go on; the stream ends when its program runs, or tells why it does not.
pub(super) fn knock(folder: &Path) -> Result<UnixStream, Failure> {
    use rustix::fs::{CWD, OFlags, openat};
    let gone = |_| "cannot start an already running container".to_owned();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let handle =
        openat(CWD, folder, flags, Mode::empty()).map_err(|_| "container does not exist".to_owned())?;
    let mut stream =
        UnixStream::connect(start_socket(&super::rootfs::path_of(&handle))).map_err(|error| {
            let stopped = error.kind() == std::io::ErrorKind::ConnectionRefused;
            if stopped { "cannot start a container that has stopped".to_owned() } else { gone(error) }
        })?;
    stream.write_all(b"s").map_err(|error| format!("start: {}", words(error)))?;
    std::fs::remove_file(start_socket(folder)).ok();
    Ok(stream)
}
