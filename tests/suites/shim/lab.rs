//! A shim without a daemon: bundles, a socket for its events, and calls of its task service.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use corten_api::events_ttrpc::ForwardRequest;
use corten_api::runc::Options;
use corten_api::{events, task_v3 as task};
use corten_tests::{Peers, Scratch, eventually, leftovers, peers};
use corten_ttrpc::{CallOptions, Client, Reply, Request, Server, Service};
use corten_types::{Any, Error, Result};
use prost::Message;
use serde_json::{Value, json};
use tokio::net::UnixListener;

/// Longest wait for what a machine that is not busy does at once.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const V2: &str = "containerd.task.v2.Task";
pub const V3: &str = "containerd.task.v3.Task";

/// Folders, and the events that shims tell.
pub struct Lab {
    pub scratch: Scratch,
    pub namespace: String,
    shim: PathBuf,
    /// The OCI runtime that options name; our shim has its own.
    pub runtime: Option<PathBuf>,
    events: Arc<Mutex<Vec<String>>>,
    /// What shims write their logs to; few write much.
    logs: Mutex<Vec<std::fs::File>>,
    server: tokio::task::JoinHandle<()>,
}

/// A running shim's task service.
#[derive(Clone, Debug)]
pub struct Shim {
    pub address: PathBuf,
    client: Client,
    service: &'static str,
}

struct Events(Arc<Mutex<Vec<String>>>);

impl Service for Events {
    fn call(&self, request: Request) -> Reply<'_> {
        Box::pin(async move {
            let envelope = ForwardRequest::decode(request.payload).unwrap().envelope.unwrap();
            self.0.lock().unwrap().push(shown(&envelope.topic, &envelope.event.unwrap()));
            Ok(Vec::new())
        })
    }
}

/// `topic container process status`, as far as an event has them.
fn shown(topic: &str, event: &Any) -> String {
    let value = event.value.as_slice();
    let rest = match topic {
        "/tasks/create" => events::TaskCreate::decode(value).unwrap().container_id,
        "/tasks/start" => events::TaskStart::decode(value).unwrap().container_id,
        "/tasks/exec-added" => {
            let event = events::TaskExecAdded::decode(value).unwrap();
            format!("{} {}", event.container_id, event.exec_id)
        }
        "/tasks/exec-started" => {
            let event = events::TaskExecStarted::decode(value).unwrap();
            format!("{} {}", event.container_id, event.exec_id)
        }
        "/tasks/exit" => {
            let event = events::TaskExit::decode(value).unwrap();
            format!("{} {} {}", event.container_id, event.id, event.exit_status)
        }
        "/tasks/delete" => {
            let event = events::TaskDelete::decode(value).unwrap();
            format!("{} {}", event.container_id, event.exit_status)
        }
        _ => String::new(),
    };
    format!("{topic} {rest}").trim_end().to_owned()
}

impl Lab {
    /// Our shim with its own runtime.
    pub fn ours() -> Self {
        Self::new(peers::programs().join("containerd-shim-runc-v2"), None)
    }

    /// Debian's shim of 2.1 with runc.
    pub fn debians() -> Self {
        let peers = Peers::find();
        Self::new(peers.containerd_2_1().join("containerd-shim-runc-v2"), Some(peers.runc().join("runc")))
    }

    fn new(shim: PathBuf, runtime: Option<PathBuf>) -> Self {
        let scratch = Scratch::new();
        let namespace = scratch.path().file_name().unwrap().to_string_lossy().into_owned();
        let rootfs = scratch.join("rootfs");
        for folder in ["bin", "proc", "dev", "sys", "tmp"] {
            std::fs::create_dir_all(rootfs.join(folder)).unwrap();
        }
        std::fs::copy(Peers::find().busybox(), rootfs.join("bin/busybox")).unwrap();
        for applet in [
            "sh", "readlink", "echo", "sleep", "cat", "true", "false", "dd", "tail", "stty", "test", "kill",
            "yes", "head",
        ] {
            std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        let events = Arc::<Mutex<Vec<String>>>::default();
        let listener = UnixListener::bind(scratch.join("ttrpc.sock")).unwrap();
        let server = Server::new(Arc::new(Events(Arc::clone(&events))));
        let server = tokio::spawn(async move { server.serve(listener, std::future::pending()).await });
        Self { scratch, namespace, shim, runtime, events, logs: Mutex::default(), server }
    }

    pub fn options(&self) -> Options {
        let name = |path: &PathBuf| path.to_string_lossy().into_owned();
        Options {
            binary_name: self.runtime.as_ref().map_or_else(String::new, name),
            root: name(&self.scratch.join("runc")),
            ..Options::default()
        }
    }

    pub fn bundle(&self, id: &str) -> PathBuf {
        self.scratch.join("tasks").join(id)
    }

    /// A bundle whose process runs a script; `patch` changes its configuration.
    pub fn prepare(&self, id: &str, script: &str, patch: &Value) {
        let capabilities = json!(["CAP_KILL", "CAP_CHOWN"]);
        let mut config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"], "args": ["sh", "-c", script],
                "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            },
            "root": {"path": self.scratch.join("rootfs")},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
            ],
            "linux": {
                "cgroupsPath": format!("/{}/{id}", self.namespace),
                "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
                "resources": {"devices": [{"allow": true, "access": "rwm"}]},
            },
        });
        merge(&mut config, patch);
        self.prepare_with(id, &config.to_string());
    }

    /// Lets go of the shims' logs, which lie in their bundles.
    pub fn close_logs(&self) {
        self.logs.lock().unwrap().clear();
    }

    /// A bundle with any text as its configuration.
    pub fn prepare_with(&self, id: &str, config: &str) {
        std::fs::create_dir_all(self.bundle(id).join("rootfs")).unwrap();
        std::fs::write(self.bundle(id).join("config.json"), config).unwrap();
        let log = self.bundle(id).join("log");
        if !log.exists() {
            rustix::fs::mknodat(rustix::fs::CWD, &log, rustix::fs::FileType::Fifo, 0o700.into(), 0).unwrap();
            let open = std::fs::File::options().read(true).write(true).open(log).unwrap();
            self.logs.lock().unwrap().push(open);
        }
    }

    /// A command of the shim's program for a container.
    pub fn command(&self, id: &str) -> Command {
        let mut command = Command::new(&self.shim);
        command
            .args(["-namespace", &self.namespace, "-id", id, "-publish-binary", "/bin/false", "-address"])
            .arg(self.scratch.join("grpc.sock"))
            .env("TTRPC_ADDRESS", self.scratch.join("ttrpc.sock"))
            .env("GRPC_ADDRESS", self.scratch.join("grpc.sock"))
            .env("MAX_SHIM_VERSION", "2")
            .env("NAMESPACE", &self.namespace)
            .current_dir(self.bundle(id));
        command
    }

    /// `start`, with some bytes on standard input: what it prints.
    pub fn invoke(&self, mut command: Command, input: &[u8]) -> Vec<u8> {
        use std::io::Write;
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// Starts a shim for a bundle and connects to it.
    pub async fn start(&self, id: &str) -> Shim {
        let mut command = self.command(id);
        command.arg("start");
        let options = corten_api::pack(&self.options()).encode_to_vec();
        let answer: Value = serde_json::from_slice(&self.invoke(command, &options)).unwrap();
        let address = answer["address"].as_str().unwrap().trim_start_matches("unix://");
        Shim::connect(Path::new(address)).await
    }

    /// A container that is created; its streams are null.
    pub async fn created(&self, id: &str, script: &str, patch: &Value) -> Shim {
        self.prepare(id, script, patch);
        let shim = self.start(id).await;
        shim.create(self.request(id)).await.unwrap();
        shim
    }

    /// The request that creates a container.
    pub fn request(&self, id: &str) -> task::CreateTaskRequest {
        task::CreateTaskRequest {
            id: id.into(),
            bundle: self.bundle(id).to_string_lossy().into_owned(),
            options: Some(corten_api::pack(&self.options())),
            ..Default::default()
        }
    }

    /// The mount of a root file system, for containers whose configuration has `rootfs` for it.
    pub fn rootfs(&self) -> corten_api::types::Mount {
        corten_api::types::Mount {
            r#type: "bind".into(),
            source: self.scratch.join("rootfs").to_string_lossy().into_owned(),
            options: vec!["rbind".into()],
            ..Default::default()
        }
    }

    /// A FIFO in the private folder.
    pub fn fifo(&self, name: &str) -> PathBuf {
        let path = self.scratch.join(name);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        path
    }

    /// The events so far, once there are as many.
    pub async fn events(&self, count: usize) -> Vec<String> {
        let started = std::time::Instant::now();
        while self.events.lock().unwrap().len() < count {
            assert!(started.elapsed() < PATIENCE, "no more events came: {:?}", self.events.lock().unwrap());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.events.lock().unwrap().clone()
    }

    /// Pids of the servers.
    pub fn servers(&self) -> Vec<i32> {
        let is_server = |pid: &i32| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&command).contains(&format!("-namespace\0{}\0", self.namespace))
        };
        leftovers::processes(self.scratch.path()).into_iter().filter(is_server).collect()
    }

    fn left(&self) -> Vec<String> {
        let mut left: Vec<_> =
            self.scratch.mounts().iter().map(|one| format!("mount {}", one.display())).collect();
        left.extend(leftovers::processes(self.scratch.path()).iter().map(|pid| format!("process {pid}")));
        let parents = |path: &PathBuf| path.file_name().is_some_and(|name| name != self.namespace.as_str());
        let cgroups = leftovers::cgroups(&self.namespace).into_iter().filter(parents);
        left.extend(cgroups.map(|path| format!("cgroup {}", path.display())));
        let states = std::fs::read_dir(self.scratch.join("runc").join(&self.namespace))
            .into_iter()
            .flatten()
            .flatten();
        left.extend(states.map(|state| format!("state {}", state.path().display())));
        left
    }

    /// Ends a test: shims are gone with all that they had.
    pub fn finish(self) {
        let begun = std::time::Instant::now();
        while !self.left().is_empty() && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(self.left(), Vec::<String>::new(), "left behind");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.server.abort();
        leftovers::clear(self.scratch.path(), &self.namespace);
    }
}

impl Shim {
    pub async fn connect(address: &Path) -> Self {
        Self { address: address.to_owned(), client: Client::connect(address).await.unwrap(), service: V3 }
    }

    /// The same by another name of its service.
    pub fn named(&self, service: &'static str) -> Self {
        Self { service, ..self.clone() }
    }

    pub async fn call<Q: Message, R: Message + Default>(&self, method: &str, request: &Q) -> Result<R> {
        let options = CallOptions { timeout: Some(PATIENCE), ..CallOptions::default() };
        self.client.call(self.service, method, request, options).await
    }

    pub async fn create(&self, request: task::CreateTaskRequest) -> Result<u32> {
        Ok(self.call::<_, task::CreateTaskResponse>("Create", &request).await?.pid)
    }

    pub async fn start(&self, id: &str, exec: &str) -> Result<u32> {
        let request = task::StartRequest { id: id.into(), exec_id: exec.into() };
        Ok(self.call::<_, task::StartResponse>("Start", &request).await?.pid)
    }

    pub async fn state(&self, id: &str, exec: &str) -> Result<task::StateResponse> {
        self.call("State", &task::StateRequest { id: id.into(), exec_id: exec.into() }).await
    }

    pub async fn exec(
        &self,
        id: &str,
        exec: &str,
        script: &str,
        paths: [&str; 3],
        terminal: bool,
    ) -> Result<()> {
        let spec = json!({"args": ["sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}});
        let [stdin, stdout, stderr] = paths.map(str::to_owned);
        let request = task::ExecProcessRequest {
            id: id.into(),
            exec_id: exec.into(),
            terminal,
            stdin,
            stdout,
            stderr,
            spec: Some(Any { type_url: String::new(), value: spec.to_string().into_bytes() }),
        };
        self.call("Exec", &request).await
    }

    pub async fn kill(&self, id: &str, exec: &str, signal: u32, all: bool) -> Result<()> {
        self.call("Kill", &task::KillRequest { id: id.into(), exec_id: exec.into(), signal, all }).await
    }

    pub async fn wait(&self, id: &str, exec: &str) -> Result<u32> {
        let request = task::WaitRequest { id: id.into(), exec_id: exec.into() };
        Ok(self.call::<_, task::WaitResponse>("Wait", &request).await?.exit_status)
    }

    pub async fn delete(&self, id: &str, exec: &str) -> Result<task::DeleteResponse> {
        self.call("Delete", &task::DeleteRequest { id: id.into(), exec_id: exec.into() }).await
    }

    pub async fn close_stdin(&self, id: &str, exec: &str) -> Result<()> {
        let request = task::CloseIoRequest { id: id.into(), exec_id: exec.into(), stdin: true };
        self.call("CloseIO", &request).await
    }

    /// Ends a container that runs, whatever it does.
    pub async fn remove(&self, id: &str) {
        self.kill(id, "", 9, false).await.ok();
        self.wait(id, "").await.unwrap();
        self.delete(id, "").await.unwrap();
    }

    /// Asks the server to end, which leaves no socket.
    pub async fn shut_down(self) {
        let gone: Result<()> = self.call("Shutdown", &task::ShutdownRequest::default()).await;
        if let Err(error) = gone {
            assert!(Client::is_closed(&error), "{error}");
        }
        let address = self.address.clone();
        drop(self);
        tokio::task::spawn_blocking(move || {
            eventually("the socket goes", PATIENCE, || (!address.exists()).then_some(()));
        })
        .await
        .unwrap();
    }
}

/// Objects are merged, all else is replaced.
pub fn merge(into: &mut Value, patch: &Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch.clone(),
    }
}

/// What a caller sees of an error.
pub fn words(error: &Error) -> String {
    format!("{:?}: {}", error.class(), error.message())
}
