//! `shim`: a container's supervisor, spoken to without the daemon.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use corten_api::{keys, task_v3 as api};
use corten_ttrpc::{CallOptions, Client as Shim};
use corten_types::{Any, Digest, Error, Result, ResultExt};
use serde_json::{Value, json};

use crate::client::Client;
use crate::commands::pprof::{Kind, Pprof};
use crate::json::{Document, print};
use crate::stdio::{Paths, RawTerminal, Streams};

/// A container's supervisor, spoken to without the daemon.
#[derive(Debug, Args)]
pub struct ShimCommand {
    /// The container's id.
    #[arg(long, default_value = "")]
    id: String,
    /// The shim's socket, instead of the one that follows from the id.
    #[arg(long, default_value = "")]
    shim_address: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Remove the container's task.
    Delete,
    /// Run a further process in the container.
    Exec(Exec),
    /// Start the container's task.
    Start,
    /// State of the container's processes, as JSON.
    State {
        /// The task, if it is not called after the shim.
        #[arg(short, long, default_value = "")]
        task_id: String,
        /// Version of the shim's protocol, 2 or 3.
        #[arg(long, default_value = "3")]
        api_version: u32,
    },
    /// End the shim if it has no container.
    Shutdown {
        /// Version of the shim's protocol, 2 or 3.
        #[arg(long, default_value = "3")]
        api_version: u32,
    },
    /// Profiles of the shim.
    #[command(subcommand)]
    Pprof(Kind),
}

#[derive(Debug, Args)]
struct Exec {
    /// FIFO for its input.
    #[arg(long, default_value = "")]
    stdin: String,
    /// FIFO for its output.
    #[arg(long, default_value = "")]
    stdout: String,
    /// FIFO for its errors.
    #[arg(long, default_value = "")]
    stderr: String,
    /// Give it a terminal.
    #[arg(short, long)]
    tty: bool,
    /// Stay with it, and copy its streams.
    #[arg(short, long)]
    attach: bool,
    /// Environment variables, K=V.
    #[arg(short, long)]
    env: Vec<String>,
    /// Folder that it begins in.
    #[arg(long, default_value = "")]
    cwd: String,
    /// File with its specification.
    #[arg(long)]
    spec: Option<PathBuf>,
    #[arg(value_name = "EXEC-ID [CMD] [ARG...]")]
    rest: Vec<String>,
}

/// A connected shim.
struct Task {
    shim: Shim,
    namespace: String,
    id: String,
}

impl Task {
    async fn call<Q: prost::Message, R: prost::Message + Default>(
        &self,
        version: u32,
        method: &str,
        request: &Q,
    ) -> Result<R> {
        let options = CallOptions { namespace: Some(self.namespace.clone()), timeout: None };
        let service = if version == 2 { "containerd.task.v2.Task" } else { "containerd.task.v3.Task" };
        self.shim.call(service, method, request, options).await.map_err(raw)
    }

    /// A call in the protocol that the shim speaks.
    async fn any<Q: prost::Message, R: prost::Message + Default>(
        &self,
        method: &str,
        request: &Q,
    ) -> Result<R> {
        match self.call(3, method, request).await {
            Err(unknown) if unknown.class() == corten_types::ErrorClass::NotImplemented => {
                self.call(2, method, request).await
            }
            other => other,
        }
    }
}

/// What a shim refuses is told as ttrpc tells it; its class is kept.
fn raw(failed: Error) -> Error {
    if Shim::is_closed(&failed) {
        return failed;
    }
    let code = tonic::Code::from(corten_api::code_of(failed.class()));
    Error::bare(failed.class(), format!("rpc error: code = {code:?} desc = {}", failed.message()))
}

impl ShimCommand {
    pub async fn run(self, client: &Client) -> Result<i32> {
        if let Command::Pprof(command) = self.command {
            let name = client.address.join(&client.namespace).join(&self.id).join("debug");
            let advice =
                "shims of ours serve no profiles; use perf(1) on their pid: `ctr shim --id ID state`";
            let profiles = Pprof { debug_socket: socket_of(&name).into(), command };
            return profiles.run().await.map(|()| 0).map_err(|failed| failed.with_hint(advice));
        }
        let task = self.connect(client).await?;
        match self.command {
            Command::Delete => {
                let request = api::DeleteRequest { id: task.id.clone(), exec_id: String::new() };
                let ended: api::DeleteResponse = task.any("Delete", &request).await?;
                println!("container deleted and returned exit status {}", ended.exit_status);
                Ok(0)
            }
            Command::Exec(exec) => exec.run(&task).await,
            Command::Start => {
                let request = api::StartRequest { id: task.id.clone(), exec_id: String::new() };
                task.any::<_, api::StartResponse>("Start", &request).await.map(|_| 0)
            }
            Command::State { task_id, api_version } => {
                version(api_version)?;
                let id = if task_id.is_empty() { task.id.clone() } else { task_id };
                let request = api::StateRequest { id, exec_id: String::new() };
                show(&task.call(api_version, "State", &request).await?);
                Ok(0)
            }
            Command::Shutdown { api_version } => {
                version(api_version)?;
                let request = api::ShutdownRequest { id: task.id.clone(), ..Default::default() };
                match task.call::<_, ()>(api_version, "Shutdown", &request).await {
                    // A shim that has ended cannot answer.
                    Err(gone) if Shim::is_closed(&gone) => Ok(0),
                    other => other.map(|()| 0),
                }
            }
            Command::Pprof(_) => Ok(0),
        }
    }

    /// Connects to the socket named, or to those that follow from daemon, namespace and id.
    async fn connect(&self, client: &Client) -> Result<Task> {
        if self.id.is_empty() && self.shim_address.is_empty() {
            return Err(Error::unknown("shim ID (--id) or address (--shim-address) must be specified"));
        }
        let task = |shim| Task { shim, namespace: client.namespace.clone(), id: self.id.clone() };
        let own = socket_of(&client.address.join(&client.namespace).join(&self.id));
        let named = Some(self.shim_address.trim_start_matches("unix://")).filter(|path| !path.is_empty());
        let paths: Vec<&str> = named.into_iter().chain([own.as_str()]).collect();
        for path in &paths {
            if let Ok(shim) = Shim::connect(std::path::Path::new(path)).await {
                return Ok(task(shim));
            }
        }
        let legacy = format!("/containerd-shim/{}/{}/shim.sock", client.namespace, self.id);
        let old = || -> std::io::Result<UnixStream> {
            let stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(format!("{legacy}\0"))?)?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        };
        let refused = |_| {
            let paths = paths.join(" ");
            Error::unknown(format!("fail to connect to container shim with sockets: [{paths} \0{legacy}]"))
                .with_hint("is the container's task there? `ctr tasks ls`; -n says the namespace")
        };
        let stream = tokio::net::UnixStream::from_std(old().map_err(refused)?)?;
        Ok(task(Shim::new(stream)))
    }
}

/// Where a shim listens that has this name.
fn socket_of(name: &std::path::Path) -> String {
    let hash = Digest::sha256(name.as_os_str().as_encoded_bytes());
    format!("/run/containerd/s/{}", hash.hex())
}

fn version(number: u32) -> Result<()> {
    match number {
        2 | 3 => Ok(()),
        _ => Err(Error::unknown("api-version must be 2 or 3")),
    }
}

fn show(state: &api::StateResponse) {
    let mut fields = vec![("id".to_owned(), Document::from(state.id.clone()))];
    let mut text = |name: &str, value: &str| {
        if !value.is_empty() {
            fields.push((name.to_owned(), value.into()));
        }
    };
    text("bundle", &state.bundle);
    fields.push(("pid".into(), state.pid.into()));
    fields.push(("status".into(), state.status.into()));
    for (name, value) in [("stdin", &state.stdin), ("stdout", &state.stdout), ("stderr", &state.stderr)] {
        if !value.is_empty() {
            fields.push((name.to_owned(), value.clone().into()));
        }
    }
    if state.terminal {
        fields.push(("terminal".into(), true.into()));
    }
    if state.exit_status != 0 {
        fields.push(("exit_status".into(), state.exit_status.into()));
    }
    if let Some(at) = &state.exited_at {
        let parts = [("seconds", at.seconds), ("nanos", at.nanos.into())];
        let parts = parts.into_iter().filter(|(_, value)| *value != 0);
        let parts = parts.map(|(name, value)| (name.to_owned(), value.into())).collect();
        fields.push(("exited_at".into(), Document::Object(parts)));
    }
    print(&Document::Object(fields));
}

impl Exec {
    async fn run(self, task: &Task) -> Result<i32> {
        let [exec_id, args @ ..] = self.rest.as_slice() else {
            return Err(Error::unknown("exec id must be provided"));
        };
        let process: Value = match &self.spec {
            Some(file) => {
                let data = std::fs::read(file).with_context(|| format!("open {}", file.display()))?;
                serde_json::from_slice(&data).map_err(|bad| Error::invalid_argument(bad.to_string()))?
            }
            None => json!({
                "args": args, "cwd": self.cwd, "env": self.env, "terminal": self.tty,
                "user": {"uid": 0, "gid": 0}, "noNewPrivileges": true,
            }),
        };
        let request = api::ExecProcessRequest {
            id: task.id.clone(),
            exec_id: exec_id.clone(),
            terminal: self.tty,
            stdin: self.stdin.clone(),
            stdout: self.stdout.clone(),
            stderr: self.stderr.clone(),
            spec: Some(Any { type_url: keys::PROCESS.into(), value: process.to_string().into_bytes() }),
        };
        task.any::<_, ()>("Exec", &request).await?;
        let mut streams = None;
        if self.attach {
            let paths =
                Paths { stdin: self.stdin.clone(), stdout: self.stdout.clone(), stderr: self.stderr.clone() };
            streams = Some(Streams::existing(paths, self.tty)?);
        }
        let input = streams.as_ref().map(Streams::feed_input);
        let _raw = (self.attach && self.tty).then(RawTerminal::enter);
        let request = api::StartRequest { id: task.id.clone(), exec_id: exec_id.clone() };
        let started: api::StartResponse = task.any("Start", &request).await?;
        let Some(mut streams) = streams else {
            println!("exec running with pid {}", started.pid);
            return Ok(0);
        };
        let request = api::WaitRequest { id: task.id.clone(), exec_id: exec_id.clone() };
        let ended: api::WaitResponse = task.any("Wait", &request).await?;
        drop(input);
        streams.drain().await?;
        Ok(i32::try_from(ended.exit_status).unwrap_or(1))
    }
}
