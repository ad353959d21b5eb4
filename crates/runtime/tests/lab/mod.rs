//! A private runtime: folders, records, an event server, a root file system of busybox, and the
//! shims to be tested. Shims of containerd come from the folder that `PEERS` names (with
//! `containerd-1.6`, `containerd-2.1`, `oci` and `tools` as Debian's packages unpack). `SHIM` names
//! another one to be tested instead, as our own, and `OCI` another OCI runtime, empty for the shim's own.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use corten_api::events::{TaskCreate, TaskDelete, TaskExit, TaskStart};
use corten_api::runc;
use corten_api::types::Envelope;
use corten_events::{Exchange, Subscription};
use corten_runtime::{Config, ContainerRecord, CreateTask, Exec, Records, Stdio, Tasks};
use corten_ttrpc::Server;
use corten_types::{Any, Error, Mount, Namespace, Result};
use serde_json::json;

pub type Memory = Arc<Mutex<HashMap<String, ContainerRecord>>>;

pub struct Lab {
    pub folder: tempfile::TempDir,
    pub namespace: Namespace,
    pub tasks: Tasks,
    pub events: Subscription,
    pub records: Memory,
    shim: PathBuf,
    runc: PathBuf,
    server: tokio::task::JoinHandle<()>,
}

struct InMemory(Memory);

impl Records for InMemory {
    fn container(&self, namespace: &Namespace, id: &str) -> Result<ContainerRecord> {
        self.0.lock().unwrap().get(id).cloned().ok_or_else(|| {
            Error::not_found(format!("container {id:?} in namespace {:?}", namespace.as_str()))
        })
    }

    fn has_sandbox(&self, _: &Namespace, id: &str) -> Result<bool> {
        Ok(self.0.lock().unwrap().values().any(|record| record.sandbox.as_deref() == Some(id)))
    }
}

/// The shims to be tested, or none and the reason on standard error.
pub fn shims() -> Vec<PathBuf> {
    let Some(peers) = peers() else {
        eprintln!("skipped: PEERS does not name a folder of shims and runc");
        return Vec::new();
    };
    if let Some(shim) = std::env::var_os("SHIM") {
        return vec![shim.into()];
    }
    let versions = ["containerd-1.6", "containerd-2.1"];
    let mut shims: Vec<_> =
        versions.map(|version| peers.join(version).join("usr/bin/containerd-shim-runc-v2")).into();
    shims.retain(|shim| shim.is_file());
    assert!(!shims.is_empty(), "no shim in {}", peers.display());
    shims
}

fn peers() -> Option<PathBuf> {
    std::env::var_os("PEERS").map(PathBuf::from).filter(|peers| peers.is_dir())
}

impl Lab {
    pub fn new(shim: &Path) -> Self {
        let folder = tempfile::Builder::new().prefix("corten-rt-").tempdir().unwrap();
        let peers = peers().unwrap();
        let bin = folder.path().join("rootfs/bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::copy(peers.join("tools/bin/busybox"), bin.join("busybox")).unwrap();
        for applet in ["sh", "echo", "sleep", "cat", "true"] {
            std::os::unix::fs::symlink("busybox", bin.join(applet)).unwrap();
        }
        for mount_point in ["proc", "dev"] {
            std::fs::create_dir(folder.path().join("rootfs").join(mount_point)).unwrap();
        }
        let unique = folder.path().file_name().unwrap().to_string_lossy().replace("corten-rt-", "");
        let namespace = Namespace::new(format!("lab-{}", unique.replace('_', "x"))).unwrap();
        let records = Memory::default();
        let (tasks, events, server) = open(folder.path(), &records);
        let runc = peers.join("oci/usr/sbin/runc");
        Self { folder, namespace, tasks, events, records, shim: shim.to_owned(), runc, server }
    }

    /// What a restart of the daemon does.
    pub async fn restart(&mut self) {
        self.stop();
        self.start().await;
    }

    pub fn stop(&mut self) {
        self.server.abort();
        // The old tasks go when they are replaced; until then nobody uses them.
        let (tasks, events, server) = open(&self.folder.path().join("elsewhere"), &Memory::default());
        server.abort();
        (self.tasks, self.events, self.server) = (tasks, events, server);
    }

    pub async fn start(&mut self) {
        (self.tasks, self.events, self.server) = open(self.folder.path(), &self.records);
        self.tasks.load().await.unwrap();
    }

    pub fn container(&self, id: &str, arguments: &[&str]) {
        let options = runc::Options {
            binary_name: std::env::var("OCI").unwrap_or_else(|_| self.runc.to_string_lossy().into_owned()),
            root: self.folder.path().join("runc").to_string_lossy().into_owned(),
            ..runc::Options::default()
        };
        let spec = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
            value: serde_json::to_vec(&spec(&self.namespace, id, arguments)).unwrap(),
        };
        let record = ContainerRecord {
            runtime: self.shim.to_string_lossy().into_owned(),
            options: Some(corten_api::pack(&options)),
            spec: Some(spec),
            sandbox: None,
        };
        self.records.lock().unwrap().insert(id.to_owned(), record);
    }

    pub fn request(&self, id: &str) -> CreateTask {
        let rootfs = Mount {
            kind: "bind".into(),
            source: self.folder.path().join("rootfs").to_string_lossy().into_owned(),
            target: String::new(),
            options: vec!["rbind".into(), "rw".into()],
        };
        let stdio = self.stdio(id);
        CreateTask { container_id: id.to_owned(), rootfs: vec![rootfs], stdio, ..CreateTask::default() }
    }

    /// Output to a file.
    pub fn stdio(&self, id: &str) -> Stdio {
        let file = format!("file://{}/{id}.out", self.folder.path().display());
        Stdio { stdout: file.clone(), stderr: file, ..Stdio::default() }
    }

    pub fn output(&self, id: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(format!("{id}.out"))).unwrap_or_default()
    }

    /// A process to be added to a task.
    pub fn exec(&self, id: &str, arguments: &[&str]) -> Exec {
        let spec = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
            value: serde_json::to_vec(&process(arguments)).unwrap(),
        };
        Exec { id: id.into(), spec: Some(spec), stdio: self.stdio(id) }
    }

    pub async fn run(&self, id: &str, arguments: &[&str]) -> u32 {
        self.container(id, arguments);
        let pid = self.tasks.create(&self.namespace, self.request(id)).await.unwrap();
        assert_eq!(self.tasks.start(&self.namespace, id, "").await.unwrap(), pid);
        pid
    }

    pub fn bundle(&self, id: &str) -> PathBuf {
        let tasks = self.folder.path().join("state/io.containerd.runtime.v2.task");
        tasks.join(self.namespace.as_str()).join(id)
    }

    pub fn work(&self, id: &str) -> PathBuf {
        let tasks = self.folder.path().join("root/io.containerd.runtime.v2.task");
        tasks.join(self.namespace.as_str()).join(id)
    }

    /// Process ids of this namespace's shims.
    pub fn shim_pids(&self) -> Vec<i32> {
        let wanted = format!("-namespace\0{}\0", self.namespace);
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &i32| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&command).contains(&wanted)
        })
        .collect()
    }

    pub async fn shims_are_gone(&self) {
        until(|| self.shim_pids().is_empty()).await;
    }

    pub fn kill_shims(&self) {
        for pid in self.shim_pids() {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
    }

    /// Nothing of the task is on disk, mounted or running.
    pub async fn nothing_is_left(&self, id: &str) {
        until(|| !self.bundle(id).exists() && !self.work(id).exists()).await;
        self.shims_are_gone().await;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&*self.bundle(id).to_string_lossy()), "{mounts}");
        let parent = self.bundle(id);
        let left: Vec<_> = std::fs::read_dir(parent.parent().unwrap()).unwrap().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }

    /// The next event about a task, as `topic process status`.
    pub async fn event(&mut self) -> String {
        let next = tokio::time::timeout(PATIENCE, self.events.recv()).await;
        shown(&next.expect("no event came").unwrap())
    }

    /// Events up to and with the first deletion.
    pub async fn events_until_deleted(&mut self) -> Vec<String> {
        let mut events = Vec::new();
        loop {
            events.push(self.event().await);
            if events.last().unwrap().starts_with("/tasks/delete") {
                return events;
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.server.abort();
        // Only after a failed test is there anything to end.
        for pid in self.shim_pids() {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let runc = self.folder.path().join("runc");
        for id in self.records.lock().unwrap().keys() {
            let _ = std::process::Command::new(&self.runc)
                .arg("--root")
                .arg(runc.join(self.namespace.as_str()))
                .args(["delete", "--force", id])
                .output();
            let _ = corten_mounts::unmount_all(&self.bundle(id).join("rootfs"));
        }
        // runc removes the containers' cgroups, not their parents.
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let ours = hierarchy.path().join("corten-runtime-tests");
            let _ = std::fs::remove_dir(ours.join(self.namespace.as_str()));
            let _ = std::fs::remove_dir(ours);
        }
    }
}

/// How long to wait for what a machine that is not busy does at once.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

pub async fn until(mut condition: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "this did not become true");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

fn open(folder: &Path, records: &Memory) -> (Tasks, Subscription, tokio::task::JoinHandle<()>) {
    std::fs::create_dir_all(folder).unwrap();
    let (grpc, ttrpc) = (folder.join("d.sock"), folder.join("d.sock.ttrpc"));
    let mut config = Config::new(
        &folder.join("state"),
        &folder.join("root"),
        &grpc.to_string_lossy(),
        &ttrpc.to_string_lossy(),
    );
    config.containerd_binary = "/bin/true".into();
    config.debug = true;
    config.log = Box::new(std::fs::File::create(folder.join("shims.log")).unwrap());
    let exchange = Exchange::default();
    let events = exchange.subscribe::<&str>(&[]).unwrap();
    let tasks = Tasks::open(config, Arc::new(InMemory(records.clone())), exchange).unwrap();
    let _ = std::fs::remove_file(&ttrpc);
    let listener = tokio::net::UnixListener::bind(&ttrpc).unwrap();
    let server = Server::new(tasks.event_service());
    let serving = tokio::spawn(async move { server.serve(listener, std::future::pending()).await });
    (tasks, events, serving)
}

fn shown(envelope: &Envelope) -> String {
    let event = envelope.event.as_ref().unwrap();
    let topic = &envelope.topic;
    match &**topic {
        "/tasks/exit" => {
            let exit: TaskExit = corten_api::unpack(event).unwrap();
            format!("{topic} {} {}", exit.id, exit.exit_status)
        }
        "/tasks/delete" => {
            let delete: TaskDelete = corten_api::unpack(event).unwrap();
            format!("{topic} {} {}", delete.container_id, delete.exit_status)
        }
        "/tasks/create" => {
            format!("{topic} {}", corten_api::unpack::<TaskCreate>(event).unwrap().container_id)
        }
        "/tasks/start" => {
            format!("{topic} {}", corten_api::unpack::<TaskStart>(event).unwrap().container_id)
        }
        _ => topic.clone(),
    }
}

fn spec(namespace: &Namespace, id: &str, arguments: &[&str]) -> serde_json::Value {
    json!({
        "ociVersion": "1.0.2",
        "process": process(arguments),
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        ],
        "linux": {
            "cgroupsPath": format!("/corten-runtime-tests/{namespace}/{id}"),
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
        },
    })
}

fn process(arguments: &[&str]) -> serde_json::Value {
    json!({
        "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": arguments, "env": ["PATH=/bin"],
        "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]},
    })
}
