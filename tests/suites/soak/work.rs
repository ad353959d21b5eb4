//! A client that makes containers, does with them what comes to its mind, and removes them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use corten_api::services::containers::{
    Container, CreateContainerRequest, DeleteContainerRequest, container,
};
use corten_api::services::tasks as api;
use corten_api::types::Mount;
use corten_tests::Client;
use serde_json::json;
use tonic::{Code, Status};

use crate::random::Random;

/// How long a call may take: nothing here takes long, and a daemon is soon there again.
const CALL: Duration = Duration::from_secs(20);
/// How long it may take until a container can be removed.
const REMOVAL: Duration = Duration::from_secs(90);

/// What all did together.
#[derive(Debug, Default)]
pub struct Counts {
    containers: AtomicUsize,
    execs: AtomicUsize,
    failures: AtomicUsize,
}

impl Counts {
    pub fn containers(&self) -> usize {
        self.containers.load(Ordering::Relaxed)
    }

    pub fn execs(&self) -> usize {
        self.execs.load(Ordering::Relaxed)
    }

    pub fn failures(&self) -> usize {
        self.failures.load(Ordering::Relaxed)
    }
}

pub struct Worker {
    number: u64,
    random: Random,
    address: PathBuf,
    namespace: String,
    folder: PathBuf,
    rootfs: PathBuf,
}

type Answer<T> = Result<T, Status>;

impl Worker {
    pub fn new(
        number: u64,
        random: Random,
        address: &Path,
        namespace: &str,
        folder: &Path,
        rootfs: &Path,
    ) -> Self {
        let own = |path: &Path| path.to_owned();
        let namespace = namespace.to_owned();
        Self { number, random, address: own(address), namespace, folder: own(folder), rootfs: own(rootfs) }
    }

    /// Container after container; answers their names.
    pub fn work(mut self, until: Instant, counts: &Counts) -> Vec<String> {
        let client = Client::new(&self.address, Some(&self.namespace));
        let mut names = Vec::new();
        while Instant::now() < until {
            let id = format!("w{}-{}", self.number, names.len());
            names.push(id.clone());
            counts.containers.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = self.lead_a_life(&client, &id, counts) {
                counts.failures.fetch_add(1, Ordering::Relaxed);
                println!("{id}: {}", error.message());
            }
            remove(&client, &id);
            std::fs::remove_file(self.fifo(&id)).ok();
        }
        names
    }

    fn fifo(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.fifo"))
    }

    fn lead_a_life(&mut self, client: &Client, id: &str, counts: &Counts) -> Answer<()> {
        call(client, client.containers().create(self.record(id)))?;
        let output = match self.random.below(3) {
            0 => String::new(),
            1 => format!("file://{}", self.folder.join("output").display()),
            _ => {
                let path = self.fifo(id);
                rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0)
                    .unwrap();
                path.to_string_lossy().into_owned()
            }
        };
        let rootfs = Mount {
            r#type: "bind".into(),
            source: self.rootfs.to_string_lossy().into_owned(),
            options: vec!["rbind".into(), "ro".into()],
            ..Default::default()
        };
        let request = api::CreateTaskRequest {
            container_id: id.into(),
            rootfs: vec![rootfs],
            stdout: output.clone(),
            stderr: output,
            ..Default::default()
        };
        call(client, client.tasks().create(request))?;
        if self.random.below(20) == 0 {
            return Ok(());
        }
        let start = api::StartRequest { container_id: id.into(), ..Default::default() };
        call(client, client.tasks().start(start))?;
        for number in 0..self.random.below(11) {
            counts.execs.fetch_add(1, Ordering::Relaxed);
            self.exec(client, id, &format!("e{number}"))?;
        }
        if self.random.below(4) == 0 {
            let container_id = id.to_owned();
            call(client, client.tasks().pause(api::PauseTaskRequest { container_id: container_id.clone() }))?;
            call(client, client.tasks().resume(api::ResumeTaskRequest { container_id }))?;
        }
        Ok(())
    }

    /// One process more; half of them are left to themselves.
    fn exec(&mut self, client: &Client, id: &str, exec_id: &str) -> Answer<()> {
        let (container_id, exec_id) = (id.to_owned(), exec_id.to_owned());
        let script = match self.random.below(4) {
            0 => "sleep 1000",
            1 => "sleep 1000 & exit 3",
            2 => "echo something; exit 0",
            _ => "exit 1",
        };
        let process = json!({"args": ["sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}});
        let request = api::ExecProcessRequest {
            container_id: container_id.clone(),
            exec_id: exec_id.clone(),
            spec: Some(prost_types::Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
                value: process.to_string().into_bytes(),
            }),
            ..Default::default()
        };
        call(client, client.tasks().exec(request))?;
        let start = api::StartRequest { container_id: container_id.clone(), exec_id: exec_id.clone() };
        call(client, client.tasks().start(start))?;
        if self.random.below(2) == 0 {
            return Ok(());
        }
        if script == "sleep 1000" {
            let (container_id, exec_id) = (container_id.clone(), exec_id.clone());
            call(
                client,
                client.tasks().kill(api::KillRequest { container_id, exec_id, signal: 9, all: false }),
            )?;
        }
        let wait = api::WaitRequest { container_id: container_id.clone(), exec_id: exec_id.clone() };
        call(client, client.tasks().wait(wait))?;
        call(client, client.tasks().delete_process(api::DeleteProcessRequest { container_id, exec_id }))
            .map(drop)
    }

    fn record(&self, id: &str) -> CreateContainerRequest {
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"], "args": ["sleep", "1000"]},
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            ],
            "linux": {
                "cgroupsPath": format!("/{}/{id}", self.namespace),
                "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            },
        });
        let spec = prost_types::Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
            value: spec.to_string().into_bytes(),
        };
        let runtime = container::Runtime { name: "io.containerd.runc.v2".into(), options: None };
        let container =
            Container { id: id.into(), runtime: Some(runtime), spec: Some(spec), ..Default::default() };
        CreateContainerRequest { container: Some(container) }
    }
}

fn call<T>(client: &Client, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Answer<T> {
    let limited = async { tokio::time::timeout(CALL, call).await };
    let answer = client.block_on(limited).map_err(|_| Status::deadline_exceeded("no answer"))?;
    answer.map(tonic::Response::into_inner)
}

/// Whatever happened to it, a container can be removed.
fn remove(client: &Client, id: &str) {
    let late = Instant::now() + REMOVAL;
    let container_id = id.to_owned();
    loop {
        let kill = api::KillRequest {
            container_id: container_id.clone(),
            signal: 9,
            all: true,
            ..Default::default()
        };
        call(client, client.tasks().kill(kill)).ok();
        let task = call(
            client,
            client.tasks().delete(api::DeleteTaskRequest { container_id: container_id.clone() }),
        );
        let gone = task.as_ref().is_ok_and(|_| true)
            || task.as_ref().is_err_and(|error| error.code() == Code::NotFound);
        if gone {
            match call(client, client.containers().delete(DeleteContainerRequest { id: id.to_owned() })) {
                Ok(()) => return,
                Err(error) if error.code() == Code::NotFound => return,
                Err(_) => {}
            }
        }
        assert!(Instant::now() < late, "{id} cannot be removed: {task:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
