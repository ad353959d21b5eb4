//! `tasks`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use corten_api::keys;
use corten_api::runc::ProcessDetails;
use corten_api::services::{snapshots, tasks as api};
use corten_types::{Any, Error, Result, ResultExt};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::client::{Daemon, error};
use crate::commands::containers;
use crate::output::Table;
use crate::stdio::{Paths, RawTerminal, Streams, resize};

/// Running containers.
#[derive(Debug, Subcommand)]
pub enum Tasks {
    /// List them.
    #[command(visible_alias = "ls")]
    List {
        /// Only ids.
        #[arg(short, long)]
        quiet: bool,
    },
    /// Start a container that has been created.
    Start(Start),
    /// Send a signal.
    Kill {
        /// Its name or number; that of the container if it has one, else SIGTERM.
        #[arg(short, long)]
        signal: Option<String>,
        /// To a process that was added.
        #[arg(long, default_value = "")]
        exec_id: String,
        /// To all processes.
        #[arg(short, long)]
        all: bool,
        id: String,
    },
    /// Remove tasks that have ended.
    #[command(visible_alias = "rm", aliases = ["del", "remove"])]
    Delete {
        /// End them first.
        #[arg(short, long)]
        force: bool,
        /// A process that was added.
        #[arg(long)]
        exec_id: Option<String>,
        ids: Vec<String>,
    },
    /// Run a further process in a container.
    Exec(Exec),
    /// Follow a container's streams.
    Attach { id: String },
    /// Processes of a container.
    Ps { id: String },
    /// Freeze a container.
    Pause { id: String },
    /// Let a frozen container go on.
    Resume { id: String },
}

#[derive(Debug, Args)]
pub struct Start {
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
    id: String,
}

#[derive(Debug, Args)]
pub struct Exec {
    /// Its id.
    #[arg(long)]
    exec_id: String,
    /// Folder that it begins in.
    #[arg(long)]
    cwd: Option<String>,
    /// Give it a terminal.
    #[arg(short, long)]
    tty: bool,
    /// Do not wait for its end.
    #[arg(short, long)]
    detach: bool,
    /// Folder for FIFOs.
    #[arg(long)]
    fifo_dir: Option<PathBuf>,
    /// Where output goes.
    #[arg(long)]
    log_uri: Option<String>,
    /// uid[:gid] that it runs as.
    #[arg(long)]
    user: Option<String>,
    /// Container and command.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

impl Tasks {
    pub async fn run(self, daemon: &Daemon) -> Result<i32> {
        match self {
            Self::List { quiet } => list(daemon, quiet).await?,
            Self::Start(start) => return start.run(daemon).await,
            Self::Kill { signal, exec_id, all, id } => kill(daemon, signal, exec_id, all, id).await?,
            Self::Delete { force, exec_id, ids } => return delete(daemon, force, exec_id, ids).await,
            Self::Exec(exec) => return exec.run(daemon).await,
            Self::Attach { id } => return attach(daemon, &id).await,
            Self::Ps { id } => ps(daemon, id).await?,
            Self::Pause { id } => {
                daemon.tasks().pause(api::PauseTaskRequest { container_id: id }).await.map_err(error)?;
            }
            Self::Resume { id } => {
                daemon.tasks().resume(api::ResumeTaskRequest { container_id: id }).await.map_err(error)?;
            }
        }
        Ok(0)
    }
}

async fn list(daemon: &Daemon, quiet: bool) -> Result<()> {
    let found = daemon.tasks().list(api::ListTasksRequest::default()).await.map_err(error)?.into_inner();
    let mut table = Table::wide(&["TASK", "PID", "STATUS"]);
    for task in found.tasks {
        if quiet {
            println!("{}", task.id);
        } else {
            let status = task.status().as_str_name().to_owned();
            table.row([task.id, task.pid.to_string(), status]);
        }
    }
    if quiet { Ok(()) } else { table.print() }
}

/// Lets a created process go.
pub async fn start(daemon: &Daemon, id: &str, exec: &str) -> Result<()> {
    let request = api::StartRequest { container_id: id.into(), exec_id: exec.into() };
    daemon.tasks().start(request).await.map_err(error).map(drop)
}

/// Connects our streams to a process, starts it if asked to, and waits for its end and all of its output.
pub async fn follow(daemon: &Daemon, id: &str, exec: &str, mut streams: Streams, begin: bool) -> Result<i32> {
    let mut input_ended = streams.feed_input();
    // The wait stands before the start, so that no end is missed.
    let request = api::WaitRequest { container_id: id.into(), exec_id: exec.into() };
    let mut service = daemon.tasks();
    let mut end = tokio::spawn(async move { service.wait(request).await.map_err(error) });
    let _raw = streams.is_terminal().then(RawTerminal::enter);
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
    let mut sized = signal(SignalKind::window_change())?;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (mut hangup, mut quit) = (signal(SignalKind::hangup())?, signal(SignalKind::quit())?);
    let mut listening = true;
    let exit = loop {
        let sent = tokio::select! {
            exit = &mut end => break exit.map_err(|error| Error::internal(error.to_string()))??,
            closed = &mut input_ended, if listening => {
                listening = false;
                if closed.is_ok() {
                    let request = api::CloseIoRequest { container_id: id.into(), exec_id: exec.into(), stdin: true };
                    // The process may have ended.
                    daemon.tasks().close_io(request).await.ok();
                }
                continue;
            }
            _ = sized.recv() => {
                if streams.is_terminal() {
                    resize(daemon, id, exec).await;
                }
                continue;
            }
            _ = interrupt.recv() => 2,
            _ = terminate.recv() => 15,
            _ = hangup.recv() => 1,
            _ = quit.recv() => 3,
        };
        let request =
            api::KillRequest { container_id: id.into(), exec_id: exec.into(), signal: sent, all: false };
        daemon.tasks().kill(request).await.ok();
    };
    streams.drain().await;
    i32::try_from(exit.into_inner().exit_status).map_err(|_| Error::internal("an exit status out of range"))
}

impl Start {
    async fn run(self, daemon: &Daemon) -> Result<i32> {
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
            None => Streams::fifos(self.fifo_dir.as_deref(), &self.id, tty)?,
        };
        let request = api::CreateTaskRequest {
            container_id: self.id.clone(),
            rootfs: mounts,
            stdin: streams.paths.stdin.clone(),
            stdout: streams.paths.stdout.clone(),
            stderr: streams.paths.stderr.clone(),
            terminal: tty,
            ..Default::default()
        };
        let pid = daemon.tasks().create(request).await.map_err(error)?.into_inner().pid;
        if let Some(file) = &self.pid_file {
            std::fs::write(file, pid.to_string()).with_context(|| file.display().to_string())?;
        }
        if self.detach {
            start(daemon, &self.id, "").await?;
            streams.leave();
            return Ok(0);
        }
        let code = follow(daemon, &self.id, "", streams, true).await?;
        daemon.tasks().delete(api::DeleteTaskRequest { container_id: self.id }).await.map_err(error)?;
        Ok(code)
    }
}

/// The name of a signal, with or without SIG, or its number.
fn signal_number(text: &str) -> Result<u32> {
    const NAMES: &str = "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP \
        TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS";
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let at = NAMES.split_whitespace().position(|known| known == name);
    let number = at.and_then(|at| u32::try_from(at + 1).ok());
    number.ok_or_else(|| Error::unknown(format!("unknown signal {text:?}")))
}

async fn kill(daemon: &Daemon, signal: Option<String>, exec_id: String, all: bool, id: String) -> Result<()> {
    let container = containers::get(daemon, &id).await?;
    let of_container = container.labels.get("io.containerd.image.config.stop-signal").cloned();
    let signal = signal.or(of_container).unwrap_or_else(|| "SIGTERM".into());
    let request = api::KillRequest { container_id: id, exec_id, signal: signal_number(&signal)?, all };
    daemon.tasks().kill(request).await.map_err(running).map(drop)
}

/// A container without a task is told in other words.
fn running(status: tonic::Status) -> Error {
    let failed = error(status);
    match failed.message().starts_with("task ") && failed.is_not_found() {
        true => failed.context("no running task found"),
        false => failed,
    }
}

async fn delete(daemon: &Daemon, force: bool, exec_id: Option<String>, ids: Vec<String>) -> Result<i32> {
    let mut first = Ok(0);
    for id in ids {
        let deleted = match &exec_id {
            Some(exec_id) => {
                let request = api::DeleteProcessRequest { container_id: id, exec_id: exec_id.clone() };
                let answer = daemon.tasks().delete_process(request).await.map_err(running);
                answer.map(|answer| i32::try_from(answer.into_inner().exit_status).unwrap_or(1))
            }
            None => delete_task(daemon, force, id).await.map(|()| 0),
        };
        if first.is_ok() {
            first = deleted;
        }
    }
    first
}

async fn delete_task(daemon: &Daemon, force: bool, id: String) -> Result<()> {
    if force {
        let wait = api::WaitRequest { container_id: id.clone(), exec_id: String::new() };
        let mut service = daemon.tasks();
        let kill =
            api::KillRequest { container_id: id.clone(), exec_id: String::new(), signal: 9, all: true };
        match daemon.tasks().kill(kill).await.map_err(running) {
            Ok(_) => drop(service.wait(wait).await.map_err(running)?),
            // It has ended already.
            Err(ended) if ended.is_not_found() => {}
            Err(failed) => return Err(failed),
        }
    }
    daemon.tasks().delete(api::DeleteTaskRequest { container_id: id }).await.map_err(running).map(drop)
}

impl Exec {
    async fn run(self, daemon: &Daemon) -> Result<i32> {
        let [id, command @ ..] = self.rest.as_slice() else {
            return Err(Error::invalid_argument("container id must be provided"));
        };
        let container = containers::get(daemon, id).await?;
        let spec: Value =
            serde_json::from_slice(&container.spec.unwrap_or_default().value).unwrap_or_default();
        let mut process = spec["process"].clone();
        process["terminal"] = json!(self.tty);
        process["args"] = json!(command);
        if let Some(cwd) = &self.cwd {
            process["cwd"] = json!(cwd);
        }
        if let Some(user) = &self.user {
            let (uid, gid) = user.split_once(':').unwrap_or((user, "0"));
            let number = |text: &str| {
                text.parse::<u32>().map_err(|_| Error::unknown(format!("user {user:?} is not a number")))
            };
            process["user"] = json!({"uid": number(uid)?, "gid": number(gid)?});
        }
        let streams = match &self.log_uri {
            Some(uri) => Streams::logged(uri),
            None => Streams::fifos(self.fifo_dir.as_deref(), &self.exec_id, self.tty)?,
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
        let code = follow(daemon, id, &self.exec_id, streams, true).await;
        let request = api::DeleteProcessRequest { container_id: id.clone(), exec_id: self.exec_id.clone() };
        daemon.tasks().delete_process(request).await.ok();
        code
    }
}

async fn attach(daemon: &Daemon, id: &str) -> Result<i32> {
    let request = api::GetRequest { container_id: id.into(), exec_id: String::new() };
    let process =
        daemon.tasks().get(request).await.map_err(running)?.into_inner().process.unwrap_or_default();
    if process.status() == corten_api::task_types::Status::Stopped {
        return i32::try_from(process.exit_status).map_err(|_| Error::internal("exit status"));
    }
    let paths = Paths { stdin: process.stdin, stdout: process.stdout, stderr: process.stderr };
    let streams = Streams::existing(paths, process.terminal)?;
    let code = follow(daemon, id, "", streams, false).await?;
    daemon.tasks().delete(api::DeleteTaskRequest { container_id: id.into() }).await.ok();
    Ok(code)
}

async fn ps(daemon: &Daemon, id: String) -> Result<()> {
    let found = daemon.tasks().list_pids(api::ListPidsRequest { container_id: id }).await.map_err(running)?;
    let mut table = Table::wide(&["PID", "INFO"]);
    for process in found.into_inner().processes {
        let details = process.info.and_then(|any| corten_api::unpack::<ProcessDetails>(&any).ok());
        let info = details.map_or_else(|| "-".into(), |details| format!("exec_id:{:?}", details.exec_id));
        table.row([process.pid.to_string(), info]);
    }
    table.print()
}
