//! `tasks`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use corten_api::keys;
use corten_api::runc::{self, ProcessDetails};
use corten_api::services::containers::Container;
use corten_api::services::containers::container::Runtime;
use corten_api::services::{snapshots, tasks as api};
use corten_api::task_types::Status;
use corten_api::types::Mount;
use corten_types::{Any, Error, Result};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::client::{Daemon, error};
use crate::commands::{Shown, checkpoints, containers, metrics};
use crate::container::network;
use crate::detach::{self, Keys};
use crate::output::{Ends, Format, Table};
use crate::stdio::{InputEnd, Paths, RawTerminal, Streams, resize};

/// Running containers.
#[derive(Debug, Subcommand)]
pub enum Tasks {
    /// Follow a container's streams.
    Attach {
        /// Keys that leave the container alone; nothing for none.
        #[arg(long, value_parser = Keys::read, default_value = detach::DEFAULT)]
        detach_keys: Keys,
        #[arg(default_value = "", value_name = "CONTAINER")]
        id: String,
    },
    /// Write its state into an image, or a folder.
    Checkpoint(checkpoints::TaskCheckpoint),
    /// Remove tasks that have ended.
    #[command(visible_aliases = ["del", "remove", "rm"])]
    Delete {
        /// End them first.
        #[arg(short, long)]
        force: bool,
        /// A process that was added.
        #[arg(long, default_value = "")]
        exec_id: String,
        #[arg(value_name = "CONTAINER")]
        ids: Vec<String>,
    },
    /// Run a further process in a container.
    Exec(Exec),
    /// List them.
    #[command(visible_alias = "ls")]
    List(Shown),
    /// Send a signal: the container's own, or SIGTERM.
    Kill(Kill),
    /// What a container uses: figures of its cgroup.
    #[command(visible_alias = "metric")]
    Metrics(metrics::Metrics),
    /// Freeze a container.
    Pause {
        #[arg(default_value = "", value_name = "CONTAINER")]
        id: String,
    },
    /// Processes of a container.
    Ps {
        /// How to show them.
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
        #[arg(default_value = "", value_name = "CONTAINER")]
        id: String,
    },
    /// Let a frozen container go on.
    Resume {
        #[arg(default_value = "", value_name = "CONTAINER")]
        id: String,
    },
    /// Start a container that has been created.
    Start(Start),
}

#[derive(Debug, Args)]
pub struct Kill {
    /// Its name or number.
    #[arg(short, long, default_value = "")]
    signal: String,
    /// To a process that was added.
    #[arg(long, default_value = "")]
    exec_id: String,
    /// To all processes.
    #[arg(short, long)]
    all: bool,
    #[arg(default_value = "", value_name = "CONTAINER")]
    id: String,
}

#[derive(Debug, Args)]
pub struct Start {
    /// Do not pivot into the root file system.
    #[arg(long)]
    no_pivot: bool,
    /// Throw output away.
    #[arg(long)]
    null_io: bool,
    /// Where output goes.
    #[arg(long)]
    log_uri: Option<String>,
    /// Folder for FIFOs.
    #[arg(long)]
    fifo_dir: Option<PathBuf>,
    /// Write the process id to this file.
    #[arg(long)]
    pid_file: Option<PathBuf>,
    /// Do not wait for its end.
    #[arg(short, long)]
    detach: bool,
    /// Keys that leave it alone, on a terminal; nothing for none.
    #[arg(long, value_parser = Keys::read, default_value = detach::DEFAULT)]
    detach_keys: Keys,
    #[arg(default_value = "", value_name = "CONTAINER")]
    id: String,
}

#[derive(Debug, Args)]
pub struct Exec {
    /// Folder that it begins in.
    #[arg(long)]
    cwd: Option<String>,
    /// Give it a terminal.
    #[arg(short, long)]
    tty: bool,
    /// Do not wait for its end.
    #[arg(short, long)]
    detach: bool,
    /// Keys that leave it alone, on a terminal; nothing for none.
    #[arg(long, value_parser = Keys::read, default_value = detach::DEFAULT)]
    detach_keys: Keys,
    /// Its id.
    #[arg(long, required = true)]
    exec_id: String,
    /// Folder for FIFOs.
    #[arg(long)]
    fifo_dir: Option<PathBuf>,
    /// Where output goes.
    #[arg(long)]
    log_uri: Option<String>,
    /// User that it runs as, name or number, with a group behind a colon.
    #[arg(long)]
    user: Option<String>,
    #[arg(value_name = "CONTAINER CMD [ARG...]")]
    rest: Vec<String>,
}

impl Tasks {
    pub async fn run(self, daemon: &Daemon) -> Result<i32> {
        match self {
            Self::List(shown) => list(daemon, shown).await?,
            Self::Start(start) => return start.run(daemon).await,
            Self::Kill(kill) => kill.run(daemon).await?,
            Self::Delete { force, exec_id, ids } => return delete(daemon, force, &exec_id, ids).await,
            Self::Exec(exec) => return exec.run(daemon).await,
            Self::Attach { detach_keys, id } => return attach(daemon, &id, &detach_keys).await,
            Self::Checkpoint(checkpoint) => checkpoint.run(daemon).await?,
            Self::Metrics(metrics) => metrics.run(daemon).await?,
            Self::Ps { id, format } => ps(daemon, id, format).await?,
            Self::Pause { id } => {
                containers::get(daemon, &id).await?;
                daemon.tasks().pause(api::PauseTaskRequest { container_id: id }).await.map_err(running)?;
            }
            Self::Resume { id } => {
                containers::get(daemon, &id).await?;
                daemon.tasks().resume(api::ResumeTaskRequest { container_id: id }).await.map_err(running)?;
            }
        }
        Ok(0)
    }
}

fn given(id: &str) -> Result<()> {
    match id.is_empty() {
        true => Err(Error::unknown("container id must be provided")),
        false => Ok(()),
    }
}

async fn list(daemon: &Daemon, shown: Shown) -> Result<()> {
    let found = daemon.tasks().list(api::ListTasksRequest::default()).await.map_err(error)?.into_inner();
    let mut table = Table::wide(&["TASK", "PID", "STATUS"]).ends(Ends::PaddedHeader);
    for task in found.tasks {
        let status = task.status().as_str_name().to_owned();
        table.row([task.id, task.pid.to_string(), status]);
    }
    table.show_as(&shown)
}

/// Lets a created process go.
pub async fn start(daemon: &Daemon, id: &str, exec: &str) -> Result<()> {
    let request = api::StartRequest { container_id: id.into(), exec_id: exec.into() };
    daemon.tasks().start(request).await.map_err(error).map(drop)
}

/// SIGWINCH.
const WINDOW_CHANGE: u32 = 28;

/// Every signal that a process can be told about and that is not about ourselves: children, urgent data, faults,
/// pipes, stops.
fn signals() -> Result<mpsc::Receiver<u32>> {
    let (sender, receiver) = mpsc::channel(16);
    for number in [1, 2, 3, 5, 6, 10, 12, 14, 15, 16, 18, 20, 21, 22, 24, 25, 26, 27, 28, 29, 30_u32] {
        let mut stream = signal(SignalKind::from_raw(number.cast_signed()))?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                if sender.send(number).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(receiver)
}

/// Connects our streams to a process, starts it if asked to, and waits for its end and all of its output. Answers its
/// exit code; none when somebody detached from it, and it goes on.
pub async fn follow(
    daemon: &Daemon,
    id: &str,
    exec: &str,
    mut streams: Streams,
    begin: bool,
) -> Result<Option<i32>> {
    let mut input_ended = streams.feed_input();
    // The wait stands before the start, so that no end is missed.
    let request = api::WaitRequest { container_id: id.into(), exec_id: exec.into() };
    let mut service = daemon.tasks();
    let mut end = tokio::spawn(async move { service.wait(request).await.map_err(error) });
    let raw = streams.is_terminal().then(RawTerminal::enter);
    // A process that has begun can be told of signals.
    let mut signals = signals()?;
    // A container has its terminal from its creation on, an exec only when it is started.
    if streams.is_terminal() && exec.is_empty() {
        resize(daemon, id, exec).await;
    }
    if begin {
        start(daemon, id, exec).await?;
    }
    if streams.is_terminal() && !exec.is_empty() {
        resize(daemon, id, exec).await;
    }
    let mut listening = true;
    let exit = loop {
        tokio::select! {
            exit = &mut end => break exit.map_err(|error| Error::internal(error.to_string()))??,
            closed = &mut input_ended, if listening => {
                listening = false;
                if closed == Ok(InputEnd::Detached) {
                    streams.leave();
                    drop(raw);
                    eprintln!("\nleft {} alone, which goes on", if exec.is_empty() { id } else { exec });
                    return Ok(None);
                }
                if closed.is_ok() {
                    let request = api::CloseIoRequest { container_id: id.into(), exec_id: exec.into(), stdin: true };
                    // The process may have ended.
                    daemon.tasks().close_io(request).await.ok();
                }
            }
            Some(sent) = signals.recv() => match sent {
                WINDOW_CHANGE if streams.is_terminal() => resize(daemon, id, exec).await,
                signal => {
                    let (container_id, exec_id) = (id.to_owned(), exec.to_owned());
                    let request = api::KillRequest { container_id, exec_id, signal, all: false };
                    daemon.tasks().kill(request).await.ok();
                }
            },
        }
    };
    if let Err(lost) = streams.drain().await {
        // The task is removed all the same.
        eprintln!("ctr: {}", lost.message());
        return Ok(Some(1));
    }
    let code = i32::try_from(exit.into_inner().exit_status);
    code.map(Some).map_err(|_| Error::internal("an exit status out of range"))
}

impl Start {
    async fn run(self, daemon: &Daemon) -> Result<i32> {
        given(&self.id)?;
        let container = containers::get(daemon, &self.id).await?;
        let spec: Value =
            serde_json::from_slice(&container.spec.unwrap_or_default().value).unwrap_or_default();
        let tty = spec["process"]["terminal"].as_bool().unwrap_or(false);
        let mut mounts = Vec::new();
        if !container.snapshot_key.is_empty() {
            let request =
                snapshots::MountsRequest { snapshotter: container.snapshotter, key: container.snapshot_key };
            mounts = daemon.snapshots().mounts(request).await.map_err(error)?.into_inner().mounts;
        }
        let streams = match &self.log_uri {
            Some(uri) => Streams::logged(uri),
            None if self.null_io => Streams::null(),
            None => Streams::fifos(self.fifo_dir.as_deref(), &self.id, tty)?.with_keys(&self.detach_keys),
        };
        let request = api::CreateTaskRequest {
            container_id: self.id.clone(),
            rootfs: mounts,
            stdin: streams.paths.stdin.clone(),
            stdout: streams.paths.stdout.clone(),
            stderr: streams.paths.stderr.clone(),
            terminal: tty,
            options: without_pivot(container.runtime.unwrap_or_default(), self.no_pivot),
            ..Default::default()
        };
        let pid = daemon.tasks().create(request).await.map_err(error)?.into_inner().pid;
        if let Some(file) = &self.pid_file {
            write_pid(file, pid)?;
        }
        if self.detach {
            start(daemon, &self.id, "").await?;
            streams.leave();
            return Ok(0);
        }
        let Some(code) = follow(daemon, &self.id, "", streams, true).await? else { return Ok(0) };
        daemon.tasks().delete(api::DeleteTaskRequest { container_id: self.id }).await.map_err(error)?;
        Ok(code)
    }
}

/// The options of a task that its container's runtime does not pivot for.
fn without_pivot(runtime: Runtime, no_pivot: bool) -> Option<Any> {
    if !no_pivot {
        return None;
    }
    let known = runtime.options.unwrap_or_default();
    let options: runc::Options = corten_api::unpack(&known).unwrap_or_default();
    Some(corten_api::pack(&runc::Options { no_pivot_root: true, ..options }))
}

/// Writes a pid under a name of its own first: who reads the file finds all of it.
pub fn write_pid(file: &Path, pid: u32) -> Result<()> {
    let name = format!(".{}-{}", file.file_name().unwrap_or_default().to_string_lossy(), std::process::id());
    let temporary = file.with_file_name(name);
    let write = || {
        std::fs::write(&temporary, pid.to_string())?;
        std::fs::rename(&temporary, file)
    };
    write().map_err(|failed| {
        std::fs::remove_file(&temporary).ok();
        Error::from(failed).context(format!("failed to create temp file: open {}", file.display()))
    })
}

/// The name of a signal, with or without SIG, or its number.
pub fn signal_number(text: &str) -> Result<u32> {
    const NAMES: &str = "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP \
        TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS";
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let at = NAMES.split_whitespace().position(|known| known == name);
    let number = at.and_then(|at| u32::try_from(at + 1).ok());
    number.ok_or_else(|| Error::unknown(format!("invalid signal: {text}")))
}

impl Kill {
    async fn run(self, daemon: &Daemon) -> Result<()> {
        given(&self.id)?;
        let asked =
            Some(&self.signal).filter(|signal| !signal.is_empty()).map(|signal| signal_number(signal));
        let asked = asked.transpose()?;
        let container = containers::get(daemon, &self.id).await?;
        let signal = match asked {
            Some(signal) => signal,
            None => stop_signal(&container),
        };
        if network::has_cni(&container) {
            let networks = network::cni()?;
            network::cni_detach(&networks, &network::full_id(&daemon.namespace, &self.id))?;
        }
        let Self { exec_id, all, id, .. } = self;
        let request = api::KillRequest { container_id: id, exec_id, signal, all };
        daemon.tasks().kill(request).await.map_err(running).map(drop)
    }
}

/// The signal that asks a container to end.
pub fn stop_signal(container: &corten_api::services::containers::Container) -> u32 {
    let own = container.labels.get("io.containerd.image.config.stop-signal");
    own.and_then(|name| signal_number(name).ok()).unwrap_or(15)
}

/// A container without a task is told in other words.
pub fn running(status: tonic::Status) -> Error {
    let failed = error(status);
    match failed.message().starts_with("task ") && failed.is_not_found() {
        true => failed.context("no running task found"),
        false => failed,
    }
}

async fn delete(daemon: &Daemon, force: bool, exec_id: &str, ids: Vec<String>) -> Result<i32> {
    if !exec_id.is_empty() {
        let [id, ..] = ids.as_slice() else { return Ok(0) };
        containers::get(daemon, id).await?;
        let request = api::DeleteProcessRequest { container_id: id.clone(), exec_id: exec_id.into() };
        let ended = daemon.tasks().delete_process(request).await.map_err(error).map_err(|failed| {
            if failed.is_not_found() { failed.context("no running process found") } else { failed }
        })?;
        return Ok(i32::try_from(ended.into_inner().exit_status).unwrap_or(1));
    }
    let mut first = Ok(0);
    for id in ids {
        let loaded = containers::get(daemon, &id).await;
        let Ok(_) = &loaded else {
            first = first.and(loaded.map(|_| 0).inspect_err(|failed| {
                crate::log::error(&format!("failed to load task from {id}"), failed);
            }));
            continue;
        };
        match delete_task(daemon, force, &id).await {
            Ok(0) => {}
            Ok(code) => crate::log::warning(&format!("task {id} exit with non-zero exit code {code}")),
            Err(failed) => {
                let what = match failed.message().starts_with("no running task") {
                    true => format!("failed to load task from {id}"),
                    false => format!("unable to delete {id}"),
                };
                crate::log::error(&what, &failed);
                first = first.and(Err(failed));
            }
        }
    }
    first
}

/// Removes a task; answers the exit code of its process.
async fn delete_task(daemon: &Daemon, force: bool, id: &str) -> Result<u32> {
    let get = api::GetRequest { container_id: id.into(), exec_id: String::new() };
    let process = daemon.tasks().get(get).await.map_err(running)?.into_inner().process.unwrap_or_default();
    let status = process.status();
    if force {
        end(daemon, id, 9, true).await?;
    } else if !matches!(status, Status::Stopped | Status::Created | Status::Unknown) {
        let status = status.as_str_name().to_lowercase();
        return Err(Error::failed_precondition(format!("task must be stopped before deletion: {status}")));
    }
    let request = api::DeleteTaskRequest { container_id: id.into() };
    Ok(daemon.tasks().delete(request).await.map_err(running)?.into_inner().exit_status)
}

/// Sends a signal and waits for the end; a task that has ended or gone already is no failure.
pub async fn end(daemon: &Daemon, id: &str, signal: u32, all: bool) -> Result<()> {
    let wait = api::WaitRequest { container_id: id.into(), exec_id: String::new() };
    let kill = api::KillRequest { container_id: id.into(), exec_id: String::new(), signal, all };
    match daemon.tasks().kill(kill).await.map_err(running) {
        Ok(_) => daemon.tasks().wait(wait).await.map_err(running).map(drop),
        Err(ended) if ended.is_not_found() => Ok(()),
        Err(failed) => Err(failed),
    }
}

impl Exec {
    async fn run(self, daemon: &Daemon) -> Result<i32> {
        let [id, command @ ..] = self.rest.as_slice() else { return given("").map(|()| 0) };
        given(id)?;
        let container = containers::get(daemon, id).await?;
        let spec: Value =
            serde_json::from_slice(&container.spec.clone().unwrap_or_default().value).unwrap_or_default();
        let mut process = spec["process"].clone();
        process["terminal"] = json!(self.tty);
        process["args"] = json!(command);
        if let Some(cwd) = &self.cwd {
            process["cwd"] = json!(cwd);
        }
        if let Some(user) = &self.user {
            process["user"] = self.user_of(daemon, user, &container, &spec).await?;
        }
        let streams = match &self.log_uri {
            Some(uri) => Streams::logged(uri),
            None => Streams::fifos(self.fifo_dir.as_deref(), &self.exec_id, self.tty)?
                .with_keys(&self.detach_keys),
        };
        let request = api::ExecProcessRequest {
            container_id: id.clone(),
            exec_id: self.exec_id.clone(),
            stdin: streams.paths.stdin.clone(),
            stdout: streams.paths.stdout.clone(),
            stderr: streams.paths.stderr.clone(),
            terminal: self.tty,
            spec: Some(Any { type_url: keys::PROCESS.into(), value: process.to_string().into_bytes() }),
        };
        daemon.tasks().exec(request).await.map_err(running)?;
        if self.detach {
            start(daemon, id, &self.exec_id).await?;
            streams.leave();
            return Ok(0);
        }
        let code = match follow(daemon, id, &self.exec_id, streams, true).await {
            Ok(None) => return Ok(0),
            Ok(Some(code)) => Ok(code),
            Err(failed) => Err(failed),
        };
        let request = api::DeleteProcessRequest { container_id: id.clone(), exec_id: self.exec_id.clone() };
        daemon.tasks().delete_process(request).await.ok();
        code
    }

    /// Who a process runs as: names are those of the container's own files.
    async fn user_of(
        &self,
        daemon: &Daemon,
        user: &str,
        container: &Container,
        spec: &Value,
    ) -> Result<Value> {
        let mounts = if container.snapshot_key.is_empty() {
            let source = spec["root"]["path"].as_str().unwrap_or_default().to_owned();
            vec![Mount { r#type: "bind".into(), source, ..Mount::default() }]
        } else {
            let request = snapshots::MountsRequest {
                snapshotter: container.snapshotter.clone(),
                key: container.snapshot_key.clone(),
            };
            daemon.snapshots().mounts(request).await.map_err(error)?.into_inner().mounts
        };
        let user = crate::rootfs::user(&mounts, user)?;
        Ok(json!({"uid": user.uid, "gid": user.gid, "additionalGids": user.additional}))
    }
}

async fn attach(daemon: &Daemon, id: &str, keys: &Keys) -> Result<i32> {
    containers::get(daemon, id).await?;
    let request = api::GetRequest { container_id: id.into(), exec_id: String::new() };
    let process =
        daemon.tasks().get(request).await.map_err(running)?.into_inner().process.unwrap_or_default();
    if process.status() == Status::Stopped {
        return i32::try_from(process.exit_status).map_err(|_| Error::internal("exit status"));
    }
    let paths = Paths { stdin: process.stdin, stdout: process.stdout, stderr: process.stderr };
    let streams = Streams::existing(paths, process.terminal)?.with_keys(keys);
    let Some(code) = follow(daemon, id, "", streams, false).await? else { return Ok(0) };
    daemon.tasks().delete(api::DeleteTaskRequest { container_id: id.into() }).await.ok();
    Ok(code)
}

async fn ps(daemon: &Daemon, id: String, format: Format) -> Result<()> {
    given(&id)?;
    containers::get(daemon, &id).await?;
    let found = daemon.tasks().list_pids(api::ListPidsRequest { container_id: id }).await.map_err(running)?;
    let mut table = Table::wide(&["PID", "INFO"]).ends(Ends::Bare);
    for process in found.into_inner().processes {
        let details = process.info.and_then(|any| corten_api::unpack::<ProcessDetails>(&any).ok());
        let info = details.map_or_else(|| "-".into(), |details| format!("exec_id:{:?}", details.exec_id));
        table.row([process.pid.to_string(), info]);
    }
    table.show(format)
}
