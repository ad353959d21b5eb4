//! Commands that make processes.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use corten_oci::runtime::{Checkpoint, Streams, Target, embedded};
use rustix::process::{Pid, WaitOptions, waitpid};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::arguments::Arguments;
use super::terminal::{Terminal, Waiting};
use super::{Global, Result};

const CREATE_VALUES: &[&str] = &["bundle", "b", "console-socket", "pid-file", "preserve-fds"];
const CREATE_SWITCHES: &[&str] = &["no-pivot", "no-new-keyring", "detach", "d", "keep", "no-subreaper"];

/// A container that is to be created.
struct Wanted {
    target: Target,
    console: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    terminal: bool,
    inherited: Inherited,
}

impl Wanted {
    fn parse(global: &Global, arguments: &mut Arguments) -> Result<Self> {
        let bundle = arguments.value("bundle").or_else(|| arguments.value("b")).unwrap_or_else(|| ".".into());
        let bundle = std::fs::canonicalize(&bundle)
            .map_err(|_| format!("chdir {bundle}: no such file or directory"))?;
        let id = arguments.take();
        let mut target = global.target(&id, &bundle)?;
        target.no_pivot = arguments.has("no-pivot");
        target.no_new_keyring = arguments.has("no-new-keyring");
        if embedded::status(&target).is_ok() {
            return Err("container with given ID already exists".into());
        }
        let config = std::fs::read(bundle.join("config.json"))
            .map_err(|_| "JSON specification file config.json not found".to_owned())?;
        let config: serde_json::Value = serde_json::from_slice(&config).map_err(|error| error.to_string())?;
        Ok(Self {
            target,
            console: arguments.value("console-socket").map(PathBuf::from),
            pid_file: arguments.value("pid-file").map(PathBuf::from),
            terminal: config["process"]["terminal"].as_bool().unwrap_or(false),
            inherited: Inherited::parse(arguments, listening())?,
        })
    }

    fn check_terminal(&self, detached: bool) -> Result<()> {
        match (self.terminal, detached, &self.console) {
            (true, true, None) => {
                Err("cannot allocate tty if runc will detach without setting console socket".into())
            }
            (false, _, Some(_)) | (_, false, Some(_)) => {
                Err("cannot use console socket if runc will not detach or allocate tty".into())
            }
            _ => Ok(()),
        }
    }

    fn create(&self) -> Result<i32> {
        let streams = streams(self.console.clone(), &self.inherited)?;
        let pid = in_child(&streams, || embedded::create(&self.target, copy(&streams)?))?;
        write_pid(self.pid_file.as_deref(), pid)?;
        Ok(pid)
    }
}

/// A container that runs, made of what was written down.
pub struct Created {
    target: Target,
    pid: i32,
}

impl Created {
    pub fn restore(global: &Global, arguments: &mut Arguments, from: &Checkpoint) -> Result<Self> {
        let wanted = Wanted::parse(global, arguments)?;
        let streams = streams(wanted.console.clone(), &wanted.inherited)?;
        // What is made is a child of that process first, and ours when it has ended.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|error| error.to_string())?;
        let pid = in_child(&streams, || embedded::restore(&wanted.target, from, copy(&streams)?))?;
        write_pid(wanted.pid_file.as_deref(), pid)?;
        Ok(Self { target: wanted.target, pid })
    }
}

/// Waits for its end, unless it is to be left alone.
pub fn follow_created(created: &Created, arguments: &Arguments) -> Result<i32> {
    if arguments.has("detach") || arguments.has("d") {
        return Ok(0);
    }
    let code = follow(created.pid, None)?;
    embedded::delete(&created.target, true)?;
    Ok(code)
}

pub fn create(global: &Global, words: Vec<String>) -> Result<i32> {
    let mut arguments = Arguments::parse("create", words, CREATE_VALUES, CREATE_SWITCHES, 1..=1)?;
    let wanted = Wanted::parse(global, &mut arguments)?;
    wanted.check_terminal(true)?;
    wanted.create().map(|_| 0)
}

pub fn run(global: &Global, words: Vec<String>) -> Result<i32> {
    let mut arguments = Arguments::parse("run", words, CREATE_VALUES, CREATE_SWITCHES, 1..=1)?;
    let detached = arguments.has("detach") || arguments.has("d");
    let mut wanted = Wanted::parse(global, &mut arguments)?;
    wanted.check_terminal(detached)?;
    let foreground = (wanted.terminal && !detached).then(Waiting::new).transpose()?;
    if let Some(waiting) = &foreground {
        wanted.console = Some(waiting.path());
    }
    let pid = wanted.create().map_err(|text| text.replacen("runc create failed", "runc run failed", 1))?;
    let begun = foreground.map(Waiting::connect).transpose().and_then(|terminal| {
        let_go(&wanted.target)?;
        Ok(terminal)
    });
    let terminal = match begun {
        Ok(terminal) => terminal,
        Err(message) => {
            embedded::delete(&wanted.target, true).ok();
            return Err(message);
        }
    };
    if detached {
        return Ok(0);
    }
    let code = follow(pid, terminal)?;
    if !arguments.has("keep") {
        embedded::delete(&wanted.target, true)?;
    }
    Ok(code)
}

pub fn start(global: &Global, words: Vec<String>) -> Result<i32> {
    let mut arguments = Arguments::parse("start", words, &[], &[], 1..=1)?;
    let target = global.existing(&arguments.take())?;
    match embedded::status(&target)?.0 {
        embedded::Status::Stopped => Err("cannot start a container that has stopped".into()),
        embedded::Status::Created => let_go(&target).map(|()| 0),
        _ => Err("cannot start an already running container".into()),
    }
}

pub fn exec(global: &Global, words: Vec<String>) -> Result<i32> {
    const VALUES: &[&str] = &[
        "console-socket",
        "cwd",
        "env",
        "e",
        "user",
        "u",
        "additional-gids",
        "g",
        "process",
        "p",
        "pid-file",
        "process-label",
        "apparmor",
        "cap",
        "c",
        "preserve-fds",
        "cgroup",
    ];
    const SWITCHES: &[&str] = &["tty", "t", "detach", "d", "no-new-privs", "ignore-paused"];
    let mut arguments = Arguments::parse("exec", words, VALUES, SWITCHES, 1..=usize::MAX)?;
    let target = global.existing(&arguments.take())?;
    let file = arguments.value("process").or_else(|| arguments.value("p"));
    let process = match &file {
        Some(file) => {
            let text = std::fs::read(file).map_err(|error| format!("{file}: {error}"))?;
            serde_json::from_slice(&text).map_err(|error| format!("{file}: {error}"))?
        }
        None => edited(&target, &arguments)?,
    };
    let terminal = process["terminal"].as_bool().unwrap_or(false);
    let detached = arguments.has("detach") || arguments.has("d");
    let console = arguments.value("console-socket").map(PathBuf::from);
    if terminal && detached && console.is_none() {
        return Err("cannot allocate tty if runc will detach without setting console socket".into());
    }
    let foreground = (terminal && !detached).then(Waiting::new).transpose()?;
    let console = foreground.as_ref().map(Waiting::path).or(console);
    let file = rustix::fs::memfd_create("process", rustix::fs::MemfdFlags::CLOEXEC);
    let mut file = file.map(std::fs::File::from).map_err(|error| error.to_string())?;
    file.write_all(process.to_string().as_bytes()).map_err(|error| error.to_string())?;
    let streams = streams(console, &Inherited::parse(&arguments, 0)?)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let work = || embedded::exec(&target, &path, copy(&streams)?);
    let pid = keep_and_run(&streams, &[file.as_raw_fd()], work)?;
    write_pid(arguments.value("pid-file").as_deref().map(Path::new), pid)?;
    if detached {
        return Ok(0);
    }
    follow(pid, foreground.map(Waiting::connect).transpose()?)
}

/// The container's own process with what the flags change.
fn edited(target: &Target, arguments: &Arguments) -> Result<serde_json::Value> {
    let config = std::fs::read(target.bundle.join("config.json")).map_err(|error| error.to_string())?;
    let mut config: serde_json::Value = serde_json::from_slice(&config).map_err(|error| error.to_string())?;
    let mut process = config["process"].take();
    if arguments.rest.is_empty() {
        return Err("process args cannot be empty".into());
    }
    process["args"] = json!(arguments.rest);
    process["terminal"] = (arguments.has("tty") || arguments.has("t")).into();
    if let Some(cwd) = arguments.value("cwd") {
        process["cwd"] = cwd.into();
    }
    if let Some(environment) = process["env"].as_array_mut() {
        environment.extend(arguments.all("env", "e").into_iter().map(serde_json::Value::from));
    }
    if let Some(user) = arguments.value("user").or_else(|| arguments.value("u")) {
        let (uid, gid) = user.split_once(':').unwrap_or((&user, "0"));
        let number = |text: &str| text.parse::<u32>().map_err(|_| format!("bad user {user:?}"));
        process["user"] = json!({"uid": number(uid)?, "gid": number(gid)?});
    }
    let groups = arguments.all("additional-gids", "g");
    if !groups.is_empty() {
        let numbers: std::result::Result<Vec<u32>, _> = groups.iter().map(|group| group.parse()).collect();
        process["user"]["additionalGids"] = json!(numbers.map_err(|_| format!("bad groups {groups:?}"))?);
    }
    for (flag, key) in [("apparmor", "apparmorProfile"), ("process-label", "selinuxLabel")] {
        if let Some(value) = arguments.value(flag) {
            process[key] = value.into();
        }
    }
    if arguments.has("no-new-privs") {
        process["noNewPrivileges"] = true.into();
    }
    for name in arguments.all("cap", "c") {
        for set in ["bounding", "effective", "permitted"] {
            if let Some(set) = process["capabilities"][set].as_array_mut() {
                set.push(name.clone().into());
            }
        }
    }
    Ok(process)
}

fn let_go(target: &Target) -> Result<()> {
    let mut told = String::new();
    embedded::start(target)?.read_to_string(&mut told).map_err(|error| error.to_string())?;
    if !told.is_empty() {
        return Err(told);
    }
    if embedded::has_poststart_hooks(target) { embedded::started(target) } else { Ok(()) }
}

/// Descriptors from 3 on that are passed on.
struct Inherited {
    all: u32,
    /// The first of them, which systemd has opened.
    listening: u32,
}

impl Inherited {
    fn parse(arguments: &Arguments, listening: u32) -> Result<Self> {
        const MOST: u32 = 1 << 16;
        let wanted = arguments.value("preserve-fds").unwrap_or_else(|| "0".into());
        let wanted: u32 =
            wanted.parse().map_err(|_| format!("invalid value {wanted:?} for flag -preserve-fds"))?;
        for number in 0..wanted.min(MOST) {
            std::fs::metadata(format!("/proc/self/fd/{}", 3 + listening + number))
                .map_err(|error| format!("unable to stat preserved-fd {number} (of {wanted}): {error}"))?;
        }
        Ok(Self { all: listening + wanted.min(MOST), listening })
    }

    fn numbers(&self) -> impl Iterator<Item = i32> {
        (0..self.all).filter_map(|number| i32::try_from(number).ok()).map(|number| number + 3)
    }
}

/// How many sockets systemd has given to this process.
fn listening() -> u32 {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    number("LISTEN_FDS").filter(|_| number("LISTEN_PID") == Some(std::process::id())).unwrap_or(0)
}

/// Our own streams; what is closed becomes `/dev/null`.
fn streams(console: Option<PathBuf>, inherited: &Inherited) -> Result<Streams> {
    fn own(stream: &impl AsFd) -> Option<OwnedFd> {
        rustix::io::fcntl_dupfd_cloexec(stream, 3).ok()
    }
    Ok(Streams {
        stdin: own(&std::io::stdin()),
        stdout: own(&std::io::stdout()),
        stderr: own(&std::io::stderr()),
        console,
        more: inherited.all,
        listening: inherited.listening,
    })
}

fn copy(streams: &Streams) -> Result<Streams> {
    let copy = |fd: &Option<OwnedFd>| {
        fd.as_ref().map(OwnedFd::try_clone).transpose().map_err(|error| error.to_string())
    };
    Ok(Streams {
        stdin: copy(&streams.stdin)?,
        stdout: copy(&streams.stdout)?,
        stderr: copy(&streams.stderr)?,
        console: streams.console.clone(),
        more: streams.more,
        listening: streams.listening,
    })
}

fn in_child(streams: &Streams, work: impl FnOnce() -> Result<i32>) -> Result<i32> {
    keep_and_run(streams, &[], work)
}

/// Runs `work` in a forked child, whose children become ours; answers the pid that it says.
fn keep_and_run(streams: &Streams, keep: &[i32], work: impl FnOnce() -> Result<i32>) -> Result<i32> {
    let (mut read, mut write) = std::io::pipe().map_err(|error| error.to_string())?;
    let mut kept = keep.to_vec();
    kept.extend(
        [&streams.stdin, &streams.stdout, &streams.stderr].into_iter().flatten().map(AsRawFd::as_raw_fd),
    );
    kept.push(write.as_raw_fd());
    kept.extend(Inherited { all: streams.more, listening: 0 }.numbers());
    let child = corten_sys::fork(|| {
        corten_sys::close_all_except(&kept);
        let said = work().map_or_else(|error| format!("-{error}"), |pid| pid.to_string());
        write.write_all(said.as_bytes()).ok();
        0
    })
    .map_err(|error| error.to_string())?;
    drop(write);
    let mut said = String::new();
    // The container's process holds the other end until its program runs; the child's end is the end here.
    waitpid(Pid::from_raw(child), WaitOptions::empty()).map_err(|error| error.to_string())?;
    let mut buffer = [0; 8192];
    let count = read.read(&mut buffer).map_err(|error| error.to_string())?;
    said.push_str(&String::from_utf8_lossy(buffer.get(..count).unwrap_or_default()));
    said.parse().map_err(|_| {
        // What failed has been killed; as long as nobody collects it, its container cannot end.
        while matches!(rustix::process::wait(WaitOptions::empty()), Ok(Some(_))) {}
        said.trim_start_matches('-').to_owned()
    })
}

fn write_pid(file: Option<&Path>, pid: i32) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    std::fs::write(file, pid.to_string()).map_err(|error| format!("{}: {error}", file.display()))
}

/// Waits for a process of ours and passes signals on to it; answers its exit code.
fn follow(pid: i32, terminal: Option<Terminal>) -> Result<i32> {
    let code = wait_for(pid, terminal.as_ref())?;
    if let Some(terminal) = terminal {
        terminal.finish();
    }
    Ok(code)
}

fn wait_for(pid: i32, terminal: Option<&Terminal>) -> Result<i32> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(async {
        let listen = |kind| signal(kind).map_err(|error| error.to_string());
        let mut ended = listen(SignalKind::child())?;
        let (mut terminate, mut interrupt) =
            (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
        let (mut hangup, mut quit) = (listen(SignalKind::hangup())?, listen(SignalKind::quit())?);
        let (mut first, mut second) =
            (listen(SignalKind::user_defined1())?, listen(SignalKind::user_defined2())?);
        let mut resized = listen(SignalKind::window_change())?;
        loop {
            if let Some((_, status)) =
                waitpid(Pid::from_raw(pid), WaitOptions::NOHANG).map_err(|error| error.to_string())?
            {
                let code = status.exit_status();
                return Ok(code.or(status.terminating_signal().map(|signal| 128 + signal)).unwrap_or(255));
            }
            let passed = tokio::select! {
                _ = ended.recv() => continue,
                _ = resized.recv() => {
                    if let Some(terminal) = terminal {
                        terminal.resize();
                    }
                    continue;
                }
                _ = terminate.recv() => 15,
                _ = interrupt.recv() => 2,
                _ = hangup.recv() => 1,
                _ = quit.recv() => 3,
                _ = first.recv() => 10,
                _ = second.recv() => 12,
            };
            corten_sys::kill(pid, passed).ok();
        }
    })
}
