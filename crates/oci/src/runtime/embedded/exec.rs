//! A further process in a container that runs.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use corten_cgroups::Cgroups;
use corten_sys::{NewProcess, clone_process};
use corten_tree::Root;
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::channel::{Channel, Message};
use super::config::{Config, Process, Seccomp};
use super::init::{become_root, join_keyring};
use super::namespaces::{NEW_USER, Namespaces, join};
use super::process::{Proc, place_streams, set_personality};
use super::rootfs::words;
use super::seccomp::Listener;
use super::state::{State, Status};
use super::{Failure, Streams, Target, console};

/// Said of a container whose first process has ended.
pub const STOPPED: &str = "cannot exec in a stopped container";
/// How long a first process may take to end once nothing can be added to it.
const ENDING: Duration = Duration::from_secs(1);

/// Starts it; answers its pid. The caller's parent becomes its parent.
pub(super) fn exec(target: &Target, process: &Path, streams: &Streams) -> Result<i32, Failure> {
    let state = State::load(target)?;
    match state.status(target) {
        Status::Stopped => return Err(STOPPED.into()),
        Status::Paused => return Err("cannot exec in a paused container".into()),
        _ => {}
    }
    let config = Config::read(&target.bundle)?;
    let process = Process::read(process)?;
    let proc = Proc::open()?;
    let console = streams.console.as_ref().filter(|_| process.terminal);
    let console = console.map(UnixStream::connect).transpose();
    let console = console.map_err(|error| format!("console socket: {}", words(error)))?;
    let decides = Listener::connect(config.linux.seccomp.as_ref(), &state)?;
    let (ours, theirs) = Channel::pair()?;
    let added = Added {
        id: &target.id,
        process: &process,
        proc: &proc,
        streams,
        console: console.as_ref(),
        filter: config.linux.seccomp.as_ref(),
        decides: decides.as_ref(),
        config: &config,
        keyring: !target.no_new_keyring,
        channel: theirs,
        lock: target.lock.as_ref().map(|lock| lock.as_raw_fd()),
    };
    let pid = added.enter(&state).map_err(|failure| refused(failure, &proc, &state))?;
    drop(added);
    match ours.receive() {
        Message::Closed => Ok(pid),
        Message::Failed(failure) => {
            corten_sys::kill(pid, 9).ok();
            let alive = proc.has(&state);
            Err(if alive { format!("unable to start container process: {failure}") } else { STOPPED.into() })
        }
        Message::Go => Err("the process said something unexpected".into()),
    }
}

/// What of a container cannot be entered is perhaps going: a process namespace whose first process ends answers that
/// there is no memory.
fn refused(failure: Failure, proc: &Proc, state: &State) -> Failure {
    let late = Instant::now() + ENDING;
    while proc.has(state) {
        if Instant::now() > late {
            return failure;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    STOPPED.into()
}

/// The container's cgroups, opened before its file system takes the place of ours.
struct Groups {
    v1: Vec<OwnedFd>,
    v2: Option<OwnedFd>,
    /// Where its first process is: in the one that it was created in, or below.
    v2_of_init: Option<OwnedFd>,
}

impl Groups {
    fn open(state: &State) -> Result<Self, Failure> {
        let mut v1 = Vec::new();
        for one in &state.cgroups.v1 {
            let path = one.folder.join("tasks");
            let file = openat(CWD, &path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
            v1.push(file.map_err(|error| format!("{}: {}", path.display(), words(error)))?);
        }
        let v2 = state.cgroups.open_v2().map_err(|error| error.to_string())?;
        let of_init = Cgroups::of(state.pid).ok().filter(|cgroups| cgroups.v2 != state.cgroups.v2);
        let v2_of_init = of_init.and_then(|cgroups| cgroups.open_v2().ok().flatten());
        Ok(Self { v1, v2, v2_of_init })
    }

    fn clone_into(&self, work: impl Fn() -> i32) -> Result<i32, Failure> {
        let into = |group: Option<&OwnedFd>| {
            let how = NewProcess { sibling: true, cgroup: group.map(AsFd::as_fd), ..NewProcess::default() };
            clone_process(how, &work)
        };
        let cloned = into(self.v2.as_ref()).or_else(|error| match &self.v2_of_init {
            // A cgroup with others below it takes no processes of its own.
            Some(group) => into(Some(group)),
            None => Err(error),
        });
        cloned.map_err(|error| format!("unable to start container process: clone: {}", words(error)))
    }

    /// Moves the calling process; that of v2 it is in already.
    fn enter_v1(&self) -> Result<(), Failure> {
        for group in &self.v1 {
            rustix::io::write(group, b"0")
                .map_err(|error| format!("unable to enter cgroups: {}", words(error)))?;
        }
        Ok(())
    }
}

/// What the process inherits.
struct Added<'a> {
    id: &'a str,
    process: &'a Process,
    proc: &'a Proc,
    streams: &'a Streams,
    console: Option<&'a UnixStream>,
    filter: Option<&'a Seccomp>,
    decides: Option<&'a Listener>,
    config: &'a Config,
    keyring: bool,
    channel: Channel,
    lock: Option<RawFd>,
}

impl Added<'_> {
    /// Joins the container, and clones the process into it.
    fn enter(&self, state: &State) -> Result<i32, Failure> {
        let namespaces = Namespaces::of(state.pid)?;
        if !self.proc.has(state) {
            // What was opened may be another process' by now.
            return Err(STOPPED.into());
        }
        let groups = Groups::open(state)?;
        // Those of processes and of time count for children only, so all can be joined before.
        for (flag, namespace) in &namespaces {
            join(*flag, namespace)?;
        }
        let joined_user = namespaces.iter().any(|(flag, _)| *flag == NEW_USER);
        groups.clone_into(|| self.run(&groups, joined_user))
    }

    /// Ends as the program, or with a word about what failed.
    fn run(&self, groups: &Groups, joined_user: bool) -> i32 {
        let failure = match self.settle(groups, joined_user) {
            Ok(program) => self.process.execute(&program, self.streams),
            Err(failure) => failure,
        };
        self.channel.fail(&failure);
        1
    }

    fn settle(&self, groups: &Groups, joined_user: bool) -> Result<std::path::PathBuf, Failure> {
        groups.enter_v1()?;
        // From here on it is found by its cgroups.
        self.lock.into_iter().for_each(corten_sys::close_inherited);
        self.process.limit(self.proc)?;
        if joined_user {
            become_root()?;
        }
        rustix::process::setsid().map_err(|error| format!("setsid: {}", words(error)))?;
        if self.keyring {
            join_keyring(self.id)?;
        }
        if let Some(personality) = &self.config.linux.personality {
            set_personality(personality)?;
        }
        match self.console {
            Some(socket) => {
                let root = Root::open(Path::new("/")).map_err(words)?;
                let terminal = console::open(&root, self.process, socket)?;
                place_streams([Some(&terminal); 3])?;
                rustix::process::ioctl_tiocsctty(&terminal)
                    .map_err(|error| format!("controlling terminal: {}", words(error)))?;
            }
            None => {
                let Streams { stdin, stdout, stderr, .. } = self.streams;
                place_streams([stdin.as_ref(), stdout.as_ref(), stderr.as_ref()])?;
            }
        }
        rustix::process::umask(Mode::from_raw_mode(0o022));
        self.process.become_user(self.proc, self.filter, self.decides)?;
        let program = self.process.program()?;
        if let Some(filter) = self.filter.filter(|_| self.process.no_new_privileges) {
            super::seccomp::load(filter, self.decides, self.proc)?;
        }
        Ok(program)
    }
}
