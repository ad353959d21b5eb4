//! The OCI runtime of a container: the embedded one, or the program that its options name.

use std::io::{ErrorKind, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use corten_api::runc::Options;
use corten_cgroups::Cgroups;
use corten_oci::runtime::command::{Program, reason};
use corten_oci::runtime::{Checkpoint, Streams, Target, embedded};
use corten_sys::FolderLock;
use corten_types::{Error, Result};

use tokio::io::AsyncReadExt;

use crate::helper::{self, Reaper};

const ROOT: &str = "/run/containerd/runc";
/// How long a removal of the container may hold up what is to be made of it, and how often that is looked at.
const IN_TURN: Duration = Duration::from_secs(5);
const GLANCE: Duration = Duration::from_millis(1);
/// Most that a process says about why it cannot start.
const LONGEST_WORDS: u64 = 64 << 10;

/// A container's runtime.
#[derive(Clone, Debug)]
pub(crate) struct Runtime {
    pub target: Target,
    program: Option<Program>,
}

impl Runtime {
    pub(crate) fn new(id: &str, namespace: &str, bundle: &Path, options: &Options) -> Self {
        let root = if options.root.is_empty() { ROOT } else { &options.root };
        let target = Target {
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            root: Path::new(root).join(namespace),
            systemd: options.systemd_cgroup,
            no_pivot: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            lock: None,
        };
        Self { target, program: program(&options.binary_name) }
    }

    /// The container, for somebody who makes something of it: the lock passes to the child that is forked with it.
    async fn locked(&self) -> Result<Target> {
        let late = Instant::now() + IN_TURN;
        let lock = loop {
            match FolderLock::shared(&self.target.bundle, Duration::ZERO) {
                Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < late => {
                    tokio::time::sleep(GLANCE).await;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let text = format!("container {} is being removed", self.target.id);
                    return Err(Error::failed_precondition(text));
                }
                // A bundle that somebody has taken away is nobody's concern here.
                lock => break lock.ok().map(Arc::new),
            }
        };
        Ok(Target { lock, ..self.target.clone() })
    }

    /// Creates the container; answers its pid. The reaper must keep unknown ends meanwhile.
    pub(crate) async fn create(&self, reaper: &Reaper, streams: Streams) -> Result<i32> {
        const WHAT: &str = "OCI runtime create failed";
        let Some(program) = &self.program else {
            let target = self.locked().await?;
            let keep = descriptors(&streams, &target);
            let said = helper::forked(reaper, &keep, move || {
                embedded::create(&target, streams).map(|pid| pid.to_string())
            });
            let pid = parse(&said.await?.map_err(|text| failure(WHAT, &text))?)?;
            write_pid(&self.target.bundle.join("init.pid"), pid);
            return Ok(pid);
        };
        let command = program.create(&self.target, streams.console.as_deref());
        self.run(reaper, command, streams, WHAT).await?;
        read_pid(&self.target.bundle.join("init.pid"))
    }

    /// The cgroups of a container whose first process has this pid. A process that ends seems to be in the root cgroups
    /// of v1, which are everybody's and so no answer.
    pub(crate) fn cgroups(&self, pid: i32) -> Option<Cgroups> {
        let known = match &self.program {
            None => embedded::cgroups(&self.target).ok(),
            Some(_) => Cgroups::of(pid).ok(),
        };
        known.filter(|cgroups| !cgroups.is_root())
    }

    /// Runs a further process; answers its pid.
    pub(crate) async fn exec(
        &self,
        reaper: &Reaper,
        exec: &str,
        spec: &[u8],
        streams: Streams,
    ) -> Result<i32> {
        const WHAT: &str = "OCI runtime exec failed";
        let file = self.target.bundle.join(format!("{exec}-process.json"));
        std::fs::write(&file, spec)?;
        let result = match &self.program {
            None => {
                let (target, path) = (self.locked().await?, file.clone());
                let keep = descriptors(&streams, &target);
                let work = move || embedded::exec(&target, &path, streams).map(|pid| pid.to_string());
                match helper::forked(reaper, &keep, work).await {
                    Ok(Ok(pid)) => parse(&pid),
                    Ok(Err(text)) if text == embedded::STOPPED => Err(not_running(&self.target.id)),
                    Ok(Err(text)) => Err(failure(WHAT, &format!("exec failed: {text}"))),
                    Err(error) => Err(error),
                }
            }
            Some(program) => {
                let pid_file = self.target.bundle.join(format!("{exec}.pid"));
                let command = program.exec(&self.target, &file, &pid_file, streams.console.as_deref());
                match self.run(reaper, command, streams, WHAT).await {
                    Ok(()) => read_pid(&pid_file),
                    Err(error) => Err(error),
                }
            }
        };
        std::fs::remove_file(file).ok();
        result
    }

    /// Lets the created process go.
    pub(crate) async fn start(&self, reaper: &Reaper) -> Result<()> {
        const WHAT: &str = "OCI runtime start failed";
        if let Some(program) = &self.program {
            return self.run(reaper, program.simple(&self.target, "start"), Streams::default(), WHAT).await;
        }
        let stream = embedded::start(&self.target).map_err(|text| failure(WHAT, &text))?;
        stream.set_nonblocking(true)?;
        let mut told = String::new();
        // Its end says that the program runs.
        let mut stream = tokio::net::UnixStream::from_std(stream)?.take(LONGEST_WORDS);
        stream.read_to_string(&mut told).await.ok();
        if !told.is_empty() {
            return Err(failure(WHAT, &told));
        }
        if embedded::has_poststart_hooks(&self.target) {
            let target = self.target.clone();
            let hooks = helper::forked(reaper, &[], || embedded::started(&target).map(|()| String::new()));
            if let Err(text) = hooks.await? {
                tracing::warn!("{text}");
            }
        }
        Ok(())
    }

    /// Freezes or thaws.
    pub(crate) async fn freeze(&self, reaper: &Reaper, frozen: bool) -> Result<()> {
        let verb = if frozen { "pause" } else { "resume" };
        let what = format!("OCI runtime {verb} failed");
        let Some(program) = &self.program else {
            let target = self.target.clone();
            let work = || embedded::freeze(&target, frozen).map(|()| String::new());
            return helper::forked(reaper, &[], work).await?.map(drop).map_err(|text| failure(&what, &text));
        };
        self.run(reaper, program.simple(&self.target, verb), Streams::default(), &what).await
    }

    /// Removes cgroups and state. That there is nothing is no error.
    pub(crate) async fn delete(&self, reaper: &Reaper, force: bool) -> Result<()> {
        const WHAT: &str = "OCI runtime delete failed";
        let result = match &self.program {
            None => {
                let target = self.target.clone();
                let work = || embedded::delete(&target, force).map(|()| String::new());
                helper::forked(reaper, &[], work).await?.map(drop).map_err(|text| failure(WHAT, &text))
            }
            Some(program) => {
                self.run(reaper, program.delete(&self.target, force), Streams::default(), WHAT).await
            }
        };
        match result {
            Err(error) if error.message().contains("does not exist") => Ok(()),
            other => other,
        }
    }

    /// Changes limits.
    pub(crate) async fn update(&self, reaper: &Reaper, resources: &[u8]) -> Result<()> {
        const WHAT: &str = "OCI runtime update failed";
        let Some(program) = &self.program else {
            let (target, resources) = (self.target.clone(), resources.to_vec());
            let work = || embedded::update(&target, &resources).map(|()| String::new());
            return helper::forked(reaper, &[], work).await?.map(drop).map_err(|text| failure(WHAT, &text));
        };
        let file = self.target.bundle.join("resources.json");
        std::fs::write(&file, resources)?;
        let result = self.run(reaper, program.update(&self.target, &file), Streams::default(), WHAT).await;
        std::fs::remove_file(file).ok();
        result
    }

    /// Writes a container's processes down.
    pub(crate) async fn checkpoint(&self, reaper: &Reaper, wanted: &Checkpoint) -> Result<()> {
        const WHAT: &str = "OCI runtime checkpoint failed";
        std::fs::create_dir_all(&wanted.work)?;
        let result = match &self.program {
            None => {
                let (target, wanted) = (self.target.clone(), wanted.clone());
                let work = || embedded::checkpoint(&target, &wanted).map(|()| String::new());
                helper::forked(reaper, &[], work).await?.map(drop).map_err(|text| failure(WHAT, &text))
            }
            Some(program) => {
                self.run(reaper, program.checkpoint(&self.target, wanted), Streams::default(), WHAT).await
            }
        };
        result.map_err(|error| {
            // Where the reason can be read when the work folder is gone.
            let kept = self.target.bundle.join("criu-dump.log");
            if std::fs::copy(wanted.work.join("dump.log"), &kept).is_err() {
                return error;
            }
            let first = error.message().lines().next().unwrap_or_default().to_owned();
            Error::unknown(format!("{first} path= {}", kept.display()))
        })
    }

    /// Makes a container from what [`Runtime::checkpoint`] wrote; answers its pid. It runs.
    pub(crate) async fn restore(&self, reaper: &Reaper, from: &Checkpoint, streams: Streams) -> Result<i32> {
        const WHAT: &str = "OCI runtime restore failed";
        std::fs::create_dir_all(&from.work)?;
        let Some(program) = &self.program else {
            let (target, from) = (self.locked().await?, from.clone());
            let keep = descriptors(&streams, &target);
            let work = move || embedded::restore(&target, &from, streams).map(|pid| pid.to_string());
            let said = helper::forked(reaper, &keep, work).await?;
            let pid = parse(&said.map_err(|text| failure(WHAT, &text))?)?;
            write_pid(&self.target.bundle.join("init.pid"), pid);
            return Ok(pid);
        };
        let command = program.restore(&self.target, from, streams.console.as_deref());
        self.run(reaper, command, streams, WHAT).await?;
        read_pid(&self.target.bundle.join("init.pid"))
    }

    async fn run(
        &self,
        reaper: &Reaper,
        command: std::process::Command,
        streams: Streams,
        what: &str,
    ) -> Result<()> {
        std::fs::remove_file(self.target.bundle.join("log.json")).ok();
        let stdio = |fd: Option<OwnedFd>| fd.map_or_else(Stdio::null, Stdio::from);
        let io = [stdio(streams.stdin), stdio(streams.stdout), stdio(streams.stderr)];
        let name = command.get_program().to_owned();
        match helper::program(reaper, command, io).await {
            Ok(0) => Ok(()),
            Ok(_) => Err(failure(what, &reason(&self.target, ""))),
            Err(error) => {
                let text =
                    format!("unable to retrieve OCI runtime error ({name:?}): exec: {name:?}: {error}");
                Err(failure(what, &text))
            }
        }
    }
}

/// An empty name is the embedded runtime; so is `runc` where no other program answers to it.
fn program(name: &str) -> Option<Program> {
    if name.is_empty() {
        return None;
    }
    if name == "runc" {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found =
            std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file())?;
        let own = std::env::current_exe().and_then(std::fs::canonicalize).ok();
        let same = found.canonicalize().ok().is_some_and(|target| {
            Some(&target) == own.as_ref()
                || target.file_name().is_some_and(|name| name == "containerd-shim-runc-v2")
        });
        return (!same).then_some(Program { path: found });
    }
    Some(Program { path: PathBuf::from(name) })
}

/// What a runtime can do, in the specification's JSON; nothing when it does not say.
pub(crate) fn features(binary_name: &str) -> Option<Vec<u8>> {
    let Some(program) = program(binary_name) else {
        return Some(embedded::features().to_string().into_bytes());
    };
    let output = std::process::Command::new(program.path).arg("features").stdin(Stdio::null()).output();
    output.ok().filter(|output| output.status.success()).map(|output| output.stdout)
}

/// What a child needs to make a process.
fn descriptors(streams: &Streams, target: &Target) -> Vec<i32> {
    let streams = [&streams.stdin, &streams.stdout, &streams.stderr];
    let streams = streams.into_iter().flatten().map(AsRawFd::as_raw_fd);
    streams.chain(target.lock.as_ref().map(|lock| lock.as_raw_fd())).collect()
}

/// Nothing can be added to a container whose first process has ended.
pub(crate) fn not_running(id: &str) -> Error {
    Error::failed_precondition(format!("container {id} init process is not running"))
}

fn failure(what: &str, text: &str) -> Error {
    Error::unknown(format!("{what}: {text}"))
}

fn parse(pid: &str) -> Result<i32> {
    const SHOWN: usize = 40;
    let shown: String = pid.chars().take(SHOWN).collect();
    let parsed = pid.trim().parse().ok().filter(|pid| *pid > 0);
    parsed.ok_or_else(|| Error::unknown(format!("the runtime answered no pid but {shown:?}")))
}

fn read_pid(file: &Path) -> Result<i32> {
    let mut text = String::new();
    // A pid has not as many digits.
    let read = std::fs::File::open(file).and_then(|file| file.take(64).read_to_string(&mut text));
    parse(if read.is_ok() { &text } else { "" })
}

/// What `delete` needs when this process is gone.
fn write_pid(path: &Path, pid: i32) {
    std::fs::write(path, pid.to_string()).ok();
}
