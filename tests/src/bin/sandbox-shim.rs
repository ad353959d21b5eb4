//! A shim for tests that serves the sandbox service and, for containers in the sandbox, the task service.
//! All its processes are `sleep`. It leaves the request of its creation beside the daemon's socket.
//!
//! The annotation `fail` makes `create` or `start` fail.

#![allow(clippy::unwrap_used, reason = "what fails here fails a test")]

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use corten_api::bootstrap::{BootstrapParams, BootstrapResult};
use corten_api::runtime_sandbox as api;
use corten_api::task_types::Status;
use corten_api::task_v3 as task;
use corten_api::types::{Metric, Platform};
use corten_ttrpc::{Reply, Request, Server, Service, reply};
use corten_types::{Error, Result, timestamp};
use prost::Message;
use prost_types::Timestamp;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::{Notify, watch};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| {
        let at = args.iter().position(|arg| arg.trim_start_matches('-') == name);
        at.and_then(|at| args.get(at + 1)).cloned().unwrap_or_default()
    };
    let (id, namespace, address) = (flag("id"), flag("namespace"), flag("address"));
    let folder = Path::new(&address).parent().unwrap_or(Path::new("/")).to_owned();
    let socket = folder.join(format!("sb-{id}.sock"));
    match args.last().map(String::as_str) {
        Some("start") => start(&args, &id, &namespace, &socket),
        Some("delete") => {
            let exited_at = Some(timestamp::now());
            let answer = task::DeleteResponse { pid: 0, exit_status: 137, exited_at };
            std::io::stdout().write_all(&answer.encode_to_vec()).unwrap();
        }
        Some("serve") => serve(&socket, folder.join(format!("sb-{id}.created"))),
        _ => std::process::exit(1),
    }
}

#[allow(clippy::zombie_processes, reason = "it outlives this process, whose children init collects")]
fn start(args: &[String], id: &str, namespace: &str, socket: &Path) {
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input).unwrap();
    std::fs::remove_file(socket).ok();
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(&args[..args.len() - 1]).arg("serve");
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    corten_tests::eventually("the server listens", Duration::from_secs(30), || {
        std::os::unix::net::UnixStream::connect(socket).ok().map(drop)
    });
    let address = format!("unix://{}", socket.display());
    let params = BootstrapParams::decode(&*input).ok();
    let is_new = params.is_some_and(|params| params.instance_id == id && params.namespace == namespace);
    let answer = if is_new {
        BootstrapResult { version: 3, address, protocol: "ttrpc".into(), ..Default::default() }
            .encode_to_vec()
    } else {
        format!("{{\"version\":3,\"address\":\"{address}\",\"protocol\":\"ttrpc\"}}").into_bytes()
    };
    std::io::stdout().write_all(&answer).unwrap();
}

fn serve(socket: &Path, created: PathBuf) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        let shim = Arc::new(Shim { created, ..Shim::default() });
        let over = Arc::clone(&shim.over);
        Server::new(shim).serve(listener, async move { over.notified().await }).await;
    });
    std::fs::remove_file(socket).ok();
}

/// A `sleep`.
#[derive(Clone)]
struct Process {
    pid: u32,
    exit: watch::Receiver<Option<(u32, Timestamp)>>,
}

impl Process {
    fn spawn() -> Self {
        let mut child = tokio::process::Command::new("sleep").arg("100000").spawn().unwrap();
        let pid = child.id().unwrap_or(0);
        let (ended, exit) = watch::channel(None);
        tokio::spawn(async move {
            let status = child.wait().await.unwrap();
            let signal = std::os::unix::process::ExitStatusExt::signal(&status).map(|signal| 128 + signal);
            let code = status.code().or(signal).unwrap_or(255);
            ended.send_replace(Some((code.unsigned_abs(), timestamp::now())));
        });
        Self { pid, exit }
    }

    fn kill(&self) {
        if let Some(pid) = Pid::from_raw(self.pid.cast_signed()) {
            kill_process(pid, Signal::KILL).ok();
        }
    }

    async fn wait(&self) -> (u32, Timestamp) {
        self.exit.clone().wait_for(Option::is_some).await.unwrap().unwrap()
    }

    fn exited(&self) -> Option<(u32, Timestamp)> {
        *self.exit.borrow()
    }
}

#[derive(Default)]
struct Shim {
    created: PathBuf,
    annotations: Mutex<BTreeMap<String, String>>,
    pause: Mutex<Option<Process>>,
    tasks: Mutex<HashMap<String, Process>>,
    over: Arc<Notify>,
}

impl Service for Shim {
    fn call(&self, request: Request) -> Reply<'_> {
        Box::pin(async move {
            let payload = request.payload.clone();
            match (request.service.as_str(), request.method.as_str()) {
                ("containerd.runtime.sandbox.v1.Sandbox", "CreateSandbox") => {
                    reply(payload, async |request| self.create(request)).await
                }
                (_, "StartSandbox") => reply(payload, async |_: api::StartSandboxRequest| self.start()).await,
                (_, "Platform") => {
                    let platform =
                        Platform { os: "linux".into(), architecture: "test".into(), ..Default::default() };
                    let answer = api::PlatformResponse { platform: Some(platform) };
                    reply(payload, async |_: api::PlatformRequest| Ok(answer)).await
                }
                (_, "StopSandbox") => reply(payload, |_: api::StopSandboxRequest| self.stop()).await,
                (_, "WaitSandbox") => reply(payload, |_: api::WaitSandboxRequest| self.wait()).await,
                (_, "SandboxStatus") => reply(payload, async |request| Ok(self.status(request))).await,
                (_, "PingSandbox") => {
                    reply(payload, async |_: api::PingRequest| Ok(api::PingResponse {})).await
                }
                (_, "ShutdownSandbox") => {
                    reply(payload, |_: api::ShutdownSandboxRequest| self.shutdown()).await
                }
                (_, "SandboxMetrics") => {
                    let answer = |request: api::SandboxMetricsRequest| {
                        let metric = Metric { id: request.sandbox_id, ..Default::default() };
                        async { Ok(api::SandboxMetricsResponse { metrics: Some(metric) }) }
                    };
                    reply(payload, answer).await
                }
                ("containerd.task.v3.Task", _) => self.task(request).await,
                _ => Err(request.unknown()),
            }
        })
    }
}

impl Shim {
    fn fail(&self, when: &str) -> Result<()> {
        match self.annotations.lock().unwrap().get("fail") {
            Some(word) if word == when => Err(Error::failed_precondition("told to fail")),
            _ => Ok(()),
        }
    }

    fn create(&self, request: api::CreateSandboxRequest) -> Result<api::CreateSandboxResponse> {
        let has_spec = Path::new(&request.bundle_path).join("config.json").exists();
        let options = request.options.as_ref().map(|options| options.type_url.clone()).unwrap_or_default();
        let text = format!(
            "id={} netns={} rootfs={} options={options} spec={has_spec} annotations={:?}",
            request.sandbox_id,
            request.netns_path,
            request.rootfs.len(),
            request.annotations
        );
        std::fs::write(&self.created, text).unwrap();
        *self.annotations.lock().unwrap() = request.annotations;
        self.fail("create")?;
        Ok(api::CreateSandboxResponse {})
    }

    fn start(&self) -> Result<api::StartSandboxResponse> {
        self.fail("start")?;
        let process = Process::spawn();
        let pid = process.pid;
        *self.pause.lock().unwrap() = Some(process);
        Ok(api::StartSandboxResponse { pid, created_at: Some(timestamp::now()), spec: None })
    }

    fn pause(&self) -> Option<Process> {
        self.pause.lock().unwrap().clone()
    }

    async fn stop(&self) -> Result<api::StopSandboxResponse> {
        if let Some(pause) = self.pause() {
            pause.kill();
            pause.wait().await;
        }
        Ok(api::StopSandboxResponse {})
    }

    async fn wait(&self) -> Result<api::WaitSandboxResponse> {
        let pause = self.pause().ok_or_else(|| Error::failed_precondition("not started"))?;
        let (exit_status, at) = pause.wait().await;
        Ok(api::WaitSandboxResponse { exit_status, exited_at: Some(at) })
    }

    fn status(&self, request: api::SandboxStatusRequest) -> api::SandboxStatusResponse {
        let pause = self.pause();
        let runs = pause.as_ref().is_some_and(|pause| pause.exited().is_none());
        let info = request.verbose.then(|| ("is".to_owned(), "verbose".to_owned()));
        api::SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            pid: pause.map_or(0, |pause| pause.pid),
            state: if runs { "SANDBOX_READY" } else { "SANDBOX_NOTREADY" }.into(),
            info: info.into_iter().collect(),
            ..Default::default()
        }
    }

    async fn shutdown(&self) -> Result<api::ShutdownSandboxResponse> {
        self.stop().await?;
        let tasks: Vec<Process> = self.tasks.lock().unwrap().values().cloned().collect();
        tasks.iter().for_each(Process::kill);
        self.over.notify_one();
        Ok(api::ShutdownSandboxResponse {})
    }

    fn known(&self, id: &str) -> Result<Process> {
        let missing = || Error::not_found("container not created");
        self.tasks.lock().unwrap().get(id).cloned().ok_or_else(missing)
    }

    async fn task(&self, request: Request) -> Result<Vec<u8>> {
        let payload = request.payload.clone();
        match request.method.as_str() {
            "Create" => {
                let create = async |request: task::CreateTaskRequest| {
                    let process = Process::spawn();
                    let pid = process.pid;
                    self.tasks.lock().unwrap().insert(request.id, process);
                    Ok(task::CreateTaskResponse { pid })
                };
                reply(payload, create).await
            }
            "Start" => {
                let start = async |request: task::StartRequest| {
                    Ok(task::StartResponse { pid: self.known(&request.id)?.pid })
                };
                reply(payload, start).await
            }
            "Connect" => {
                let connect = async |request: task::ConnectRequest| {
                    let task_pid = self.known(&request.id).map_or(0, |process| process.pid);
                    Ok(task::ConnectResponse {
                        shim_pid: std::process::id(),
                        task_pid,
                        version: String::new(),
                    })
                };
                reply(payload, connect).await
            }
            "State" => {
                let state = async |request: task::StateRequest| {
                    let process = self.known(&request.id)?;
                    let exit = process.exited();
                    let status = if exit.is_some() { Status::Stopped } else { Status::Running };
                    Ok(task::StateResponse {
                        id: request.id,
                        pid: process.pid,
                        status: status.into(),
                        exit_status: exit.map_or(0, |(status, _)| status),
                        exited_at: exit.map(|(_, at)| at),
                        ..Default::default()
                    })
                };
                reply(payload, state).await
            }
            "Kill" => {
                let kill = async |request: task::KillRequest| {
                    self.known(&request.id)?.kill();
                    Ok(())
                };
                reply(payload, kill).await
            }
            "Wait" => {
                let wait = async |request: task::WaitRequest| {
                    let (exit_status, at) = self.known(&request.id)?.wait().await;
                    Ok(task::WaitResponse { exit_status, exited_at: Some(at) })
                };
                reply(payload, wait).await
            }
            "Delete" => {
                let delete = async |request: task::DeleteRequest| {
                    let process = self.known(&request.id)?;
                    process.kill();
                    let (exit_status, at) = process.wait().await;
                    self.tasks.lock().unwrap().remove(&request.id);
                    Ok(task::DeleteResponse { pid: process.pid, exit_status, exited_at: Some(at) })
                };
                reply(payload, delete).await
            }
            "Shutdown" => reply(payload, async |_: task::ShutdownRequest| Ok(())).await,
            _ => Err(request.unknown()),
        }
    }
}
