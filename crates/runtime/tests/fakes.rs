//! The runtime with shims that this test plays itself: a script for `start`, a ttrpc server in the
//! test's process for the rest. They do what real ones seldom do.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use corten_api::bootstrap::BootstrapParams;
use corten_api::events_ttrpc::ForwardRequest;
use corten_api::task_types::Status;
use corten_api::task_v3::{CreateTaskResponse, DeleteResponse, StateRequest, StateResponse, WaitResponse};
use corten_api::types::Envelope;
use corten_api::{events, runc};
use corten_events::{Exchange, Subscription};
use corten_runtime::{Config, ContainerRecord, CreateTask, Records, ShimAddress, Tasks};
use corten_ttrpc::{CallOptions, Client, Reply, Request, Server, Service};
use corten_types::{Any, Error, ErrorClass, Namespace, Result};
use prost::Message;
use tokio::net::UnixListener;

/// What a fake shim does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Habit {
    /// Serves version 3 only.
    Modern,
    /// Serves version 2 only.
    Old,
    /// Accepts and never answers.
    Wedged,
    /// Never finishes a Create.
    SlowCreate,
    /// Knows no task.
    Empty,
}

struct Fake {
    habit: Habit,
    calls: Arc<Mutex<Vec<String>>>,
    hang: Arc<AtomicBool>,
}

impl Service for Fake {
    fn call(&self, request: Request) -> Reply<'_> {
        Box::pin(async move {
            let version = if self.habit == Habit::Old { "v2" } else { "v3" };
            if self.habit == Habit::Wedged || self.hang.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            if request.service != format!("containerd.task.{version}.Task") {
                return Err(request.unknown());
            }
            let id = StateRequest::decode(request.payload.clone()).unwrap().id;
            self.calls.lock().unwrap().push(format!("{} {id}", request.method));
            let answer = match &*request.method {
                "Create" if self.habit == Habit::SlowCreate => std::future::pending().await,
                "Create" => CreateTaskResponse { pid: 42 }.encode_to_vec(),
                "State" | "Delete" if self.habit == Habit::Empty => {
                    return Err(Error::not_found("container not created"));
                }
                "State" => {
                    let status = Status::Running.into();
                    StateResponse { id, pid: 42, status, ..StateResponse::default() }.encode_to_vec()
                }
                "Delete" => DeleteResponse { pid: 42, exit_status: 1, exited_at: None }.encode_to_vec(),
                "Wait" if self.habit == Habit::SlowCreate => std::future::pending().await,
                "Wait" => WaitResponse::default().encode_to_vec(),
                _ => Vec::new(),
            };
            Ok(answer)
        })
    }
}

#[derive(Default)]
struct InMemory {
    containers: Mutex<BTreeMap<String, ContainerRecord>>,
    sandboxes: Mutex<Vec<String>>,
}

impl Records for InMemory {
    fn container(&self, _: &Namespace, id: &str) -> Result<ContainerRecord> {
        let containers = self.containers.lock().unwrap();
        containers.get(id).cloned().ok_or_else(|| Error::not_found(format!("container {id:?}")))
    }

    fn has_sandbox(&self, _: &Namespace, id: &str) -> Result<bool> {
        Ok(self.sandboxes.lock().unwrap().iter().any(|sandbox| sandbox == id))
    }
}

struct Lab {
    folder: tempfile::TempDir,
    namespace: Namespace,
    tasks: Tasks,
    records: Arc<InMemory>,
    events: Subscription,
    calls: Arc<Mutex<Vec<String>>>,
    /// Whether fakes leave calls unanswered for the moment.
    hang: Arc<AtomicBool>,
}

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut config = Config::new(&path("state"), &path("root"), "/grpc", "/ttrpc");
        config.search_path = path("bin").into();
        config.log = Box::new(std::io::sink());
        config.socket_dir = "/tmp/s".into();
        config.timeouts.serving = Duration::from_millis(50);
        config.timeouts.load = Duration::from_secs(600);
        config.timeouts.state = Duration::from_millis(50);
        config.timeouts.cleanup = Duration::from_millis(50);
        config.timeouts.shutdown = Duration::from_millis(50);
        std::fs::create_dir(path("bin")).unwrap();
        let (records, exchange) = (Arc::new(InMemory::default()), Exchange::default());
        let events = exchange.subscribe::<&str>(&[]).unwrap();
        let tasks = Tasks::open(config, records.clone(), exchange).unwrap();
        let namespace = Namespace::new("lab").unwrap();
        Self { folder, namespace, tasks, records, events, calls: Arc::default(), hang: Arc::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A server that behaves as a shim; its address.
    fn fake(&self, name: &str, habit: Habit) -> String {
        let path = self.path(name);
        let listener = UnixListener::bind(&path).unwrap();
        let server =
            Server::new(Arc::new(Fake { habit, calls: self.calls.clone(), hang: self.hang.clone() }));
        tokio::spawn(async move { server.serve(listener, std::future::pending()).await });
        format!("unix://{}", path.display())
    }

    /// A shim binary `io.containerd.fake.v1` of which `start` does what the script says.
    fn binary(&self, start: &str) {
        let path = self.path("bin/containerd-shim-fake-v1");
        let script = format!("#!/bin/sh\nfor action; do :; done\n[ $action = start ] || exit 1\n{start}\n");
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn container(&self, id: &str) -> CreateTask {
        let options = runc::Options { root: "/somewhere".into(), ..runc::Options::default() };
        let record = ContainerRecord {
            runtime: "io.containerd.fake.v1".into(),
            options: Some(corten_api::pack(&options)),
            ..ContainerRecord::default()
        };
        self.records.containers.lock().unwrap().insert(id.to_owned(), record);
        CreateTask { container_id: id.to_owned(), ..CreateTask::default() }
    }

    fn bundle(&self, id: &str) -> PathBuf {
        self.path("state/io.containerd.runtime.v2.task/lab").join(id)
    }

    /// A bundle on disk, as a daemon before this one left it.
    fn left_bundle(&self, id: &str, bootstrap: &str) {
        std::fs::create_dir_all(self.bundle(id).join("rootfs")).unwrap();
        std::fs::write(self.bundle(id).join("bootstrap.json"), bootstrap).unwrap();
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    /// A connection over which a shim tells of events.
    fn event_client(&self) -> Client {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        let server = Server::new(self.tasks.event_service());
        tokio::spawn(async move { server.serve_connection(theirs).await });
        Client::new(ours)
    }

    async fn create(&self, request: CreateTask) -> Result<u32> {
        self.tasks.create(&self.namespace, request).await
    }

    async fn status(&self, id: &str) -> Result<Status> {
        Ok(self.tasks.get(&self.namespace, id, "").await?.status())
    }
}

fn json(address: &str) -> String {
    format!(r#"{{"version":3,"address":"{address}","protocol":"ttrpc"}}"#)
}

async fn gone(path: &Path) {
    while path.exists() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_shim_that_wants_the_options_gets_them() {
    let lab = Lab::new();
    let (address, input) = (lab.fake("s", Habit::Old), lab.path("input"));
    lab.binary(&format!("cat > {}; env > {0}.env; echo {address}", input.display()));
    assert_eq!(lab.create(lab.container("c1")).await.unwrap(), 42);
    let options = Any::decode(&*std::fs::read(&input).unwrap()).unwrap();
    assert_eq!(corten_api::unpack::<runc::Options>(&options).unwrap().root, "/somewhere");
    let environment = std::fs::read_to_string(lab.path("input.env")).unwrap();
    for entry in
        ["NAMESPACE=lab", "TTRPC_ADDRESS=/ttrpc", "GRPC_ADDRESS=/grpc", "GOMAXPROCS=2", "MAX_SHIM_VERSION=2"]
    {
        assert!(environment.lines().any(|line| line == entry), "{entry} in {environment}");
    }
    let bootstrap = std::fs::read_to_string(lab.bundle("c1").join("bootstrap.json")).unwrap();
    assert!(bootstrap.starts_with(&format!(r#"{{"version":2,"address":"{address}","protocol":"ttrpc""#)));
    let binary = std::fs::read_to_string(lab.bundle("c1").join("shim-binary-path")).unwrap();
    assert_eq!(Path::new(&binary), lab.path("bin/containerd-shim-fake-v1"));
    assert_eq!(lab.status("c1").await.unwrap(), Status::Running);
    assert_eq!(lab.tasks.delete(&lab.namespace, "c1").await.unwrap().status, 1);
    assert_eq!(lab.calls(), ["Create c1", "State c1", "Delete c1", "Shutdown c1"]);
    assert!(!lab.bundle("c1").exists());
}

#[tokio::test]
async fn a_shim_that_wants_the_bootstrap_parameters_gets_them() {
    let lab = Lab::new();
    let (address, input) = (lab.fake("s", Habit::Modern), lab.path("input"));
    let answer = json(&address);
    let params = |input: &Path| BootstrapParams::decode(&*std::fs::read(input).unwrap()).unwrap();
    let known = format!("# containerd.runtime.bootstrap.v1\ncat > {}; echo '{answer}'", input.display());
    let refusing = format!(
        "cat > {0}; grep -aq /ttrpc {0} || {{ echo 'shim was started through the deprecated API but was \
         built against the new API' >&2; exit 1; }}; echo '{answer}'",
        input.display()
    );
    for (id, script) in [("c1", known), ("c2", refusing)] {
        lab.binary(&script);
        lab.create(lab.container(id)).await.unwrap();
        let params = params(&input);
        assert_eq!((&*params.instance_id, &*params.namespace), (id, "lab"));
        assert_eq!(params.containerd_grpc_address, "/grpc");
        assert_eq!(params.socket_dir(), "/tmp/s");
        let options = params.extensions[0].value.as_ref().unwrap();
        assert_eq!(options.type_url, "containerd.runc.v1.Options");
    }
}

#[tokio::test]
async fn a_shim_older_than_its_binary_is_spoken_to_in_its_version() {
    let lab = Lab::new();
    let answer = json(&lab.fake("s", Habit::Old));
    lab.binary(&format!("echo '{answer}'"));
    lab.create(lab.container("c1")).await.unwrap();
    lab.tasks.wait(&lab.namespace, "c1", "").await.unwrap();
    lab.tasks.delete(&lab.namespace, "c1").await.unwrap();
    assert_eq!(lab.calls(), ["Create c1", "Wait c1", "Delete c1", "Shutdown c1"]);
}

#[tokio::test]
async fn a_shim_that_answers_nonsense_is_refused() {
    let lab = Lab::new();
    for (script, class, text) in [
        ("echo", ErrorClass::Unknown, "failed to start shim: start failed: not the address of a shim: "),
        (
            "echo '{\"version\":9,\"address\":\"unix:///x\"}'",
            ErrorClass::NotImplemented,
            "failed to start shim: start failed: unsupported shim version (9)",
        ),
        (
            "echo '{\"version\":3,\"address\":\"unix:///x\",\"protocol\":\"grpc\"}'",
            ErrorClass::NotImplemented,
            "failed to start shim: shims that speak grpc (grpc+unix:///x)",
        ),
        (
            "echo oops; exit 3",
            ErrorClass::Unknown,
            "failed to start shim: start failed: oops\n: exit status 3",
        ),
    ] {
        lab.binary(script);
        let error = lab.create(lab.container("c1")).await.unwrap_err();
        assert_eq!(error.class(), class, "{error}");
        assert!(error.message().starts_with(text), "{error}");
        assert!(!lab.bundle("c1").exists());
    }
}

#[tokio::test]
async fn nobody_waits_for_a_creation_but_its_caller() {
    let lab = Lab::new();
    let address = lab.fake("slow", Habit::SlowCreate);
    lab.binary(&format!("echo '{}'", json(&address)));
    let slow = lab.container("slow");
    let creation = tokio::spawn({
        let (tasks, namespace) = (lab.tasks.clone(), lab.namespace.clone());
        async move { tasks.create(&namespace, slow).await }
    });
    while !lab.calls.lock().unwrap().contains(&"Create slow".to_owned()) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(lab.status("slow").await.unwrap_err().is_not_found());
    assert!(lab.tasks.list(&lab.namespace).await.is_empty());
    assert!(lab.create(lab.container("slow")).await.unwrap_err().is_already_exists());
    creation.abort();
    gone(&lab.bundle("slow")).await;
    assert_eq!(lab.calls().last().unwrap(), "Shutdown slow");
    // The name is free again, and with a better shim its creation succeeds.
    lab.binary(&format!("echo '{}'", json(&lab.fake("good", Habit::Modern))));
    lab.create(lab.container("slow")).await.unwrap();
}

#[tokio::test]
async fn a_container_of_a_sandbox_runs_in_its_shim() {
    let lab = Lab::new();
    let address = lab.fake("s", Habit::Modern);
    let sandbox = lab.path("state/io.containerd.sandbox.controller.v1.shim/lab/pod");
    std::fs::create_dir_all(&sandbox).unwrap();
    std::fs::write(sandbox.join("bootstrap.json"), json(&address)).unwrap();
    lab.records.sandboxes.lock().unwrap().push("pod".into());
    let request = lab.container("c1");
    lab.records.containers.lock().unwrap().get_mut("c1").unwrap().sandbox = Some("pod".into());
    lab.create(request).await.unwrap();
    assert_eq!(std::fs::read_to_string(lab.bundle("c1").join("sandbox")).unwrap(), "pod");
    lab.tasks.delete(&lab.namespace, "c1").await.unwrap();

    let mut request = lab.container("c2");
    request.shim = Some(ShimAddress { address: format!("ttrpc+{address}"), version: 3 });
    lab.create(request).await.unwrap();
    lab.tasks.delete(&lab.namespace, "c2").await.unwrap();
    assert_eq!(lab.calls(), ["Create c1", "Delete c1", "Create c2", "Delete c2"], "the shim stays");
}

#[tokio::test]
async fn one_bad_bundle_never_stops_the_others() {
    let mut lab = Lab::new();
    lab.left_bundle("good", &json(&lab.fake("good", Habit::Modern)));
    lab.left_bundle("wedged", &json(&lab.fake("wedged", Habit::Wedged)));
    lab.left_bundle("empty", &json(&lab.fake("empty", Habit::Empty)));
    lab.left_bundle("garbage", "\u{0}\u{1}");
    lab.left_bundle("refused", &json("unix:///nonexistent/s"));
    std::fs::create_dir(lab.bundle("in valid")).unwrap();
    lab.tasks.load().await.unwrap();

    assert_eq!(lab.status("good").await.unwrap(), Status::Running);
    for id in ["empty", "garbage", "refused"] {
        gone(&lab.bundle(id)).await;
    }
    let mut ended = Vec::new();
    for _ in 0..4 {
        let envelope = lab.events.recv().await.unwrap();
        if envelope.topic == "/tasks/exit" {
            let exit: events::TaskExit = corten_api::unpack(envelope.event.as_ref().unwrap()).unwrap();
            assert_eq!((&exit.id, exit.exit_status), (&exit.container_id, 255));
            ended.push(exit.id);
        }
    }
    ended.sort_unstable();
    assert_eq!(ended, ["garbage", "refused"]);
    let mut calls = lab.calls();
    calls.sort_unstable();
    calls.dedup();
    assert_eq!(calls, ["Delete empty", "Shutdown empty", "State empty", "State good"]);
    // Of the wedged one nothing is known yet: its name is taken and it is not buried.
    assert!(lab.bundle("wedged").exists() && lab.bundle("in valid").exists());
    let request = lab.container("wedged");
    assert!(lab.create(request).await.unwrap_err().is_already_exists());
}

#[tokio::test]
async fn a_task_whose_shim_does_not_answer_in_time_is_in_unknown_state() {
    let lab = Lab::new();
    let mut request = lab.container("c1");
    request.shim = Some(ShimAddress { address: lab.fake("s", Habit::Modern), version: 3 });
    lab.create(request).await.unwrap();
    lab.hang.store(true, Ordering::Relaxed);
    assert_eq!(lab.status("c1").await.unwrap(), Status::Unknown);
    assert!(lab.tasks.list(&lab.namespace).await.is_empty());
    lab.hang.store(false, Ordering::Relaxed);
    assert_eq!(lab.status("c1").await.unwrap(), Status::Running);
}

#[tokio::test]
async fn tasks_that_are_gone_hold_no_descriptors() {
    let lab = Lab::new();
    lab.binary(&format!("echo '{}'", json(&lab.fake("s", Habit::Modern))));
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut before = 0;
    for round in 0..40 {
        lab.create(lab.container("c1")).await.unwrap();
        lab.tasks.delete(&lab.namespace, "c1").await.unwrap();
        lab.binary("exit 1");
        lab.create(lab.container("c1")).await.unwrap_err();
        lab.binary(&format!("echo '{}'", json(&format!("unix://{}", lab.path("s").display()))));
        if round == 0 {
            before = descriptors();
        }
    }
    // The last connections are closed a moment after the answer.
    while descriptors() > before {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn the_end_of_a_task_is_told_once_whether_its_shim_does_or_not() {
    let mut lab = Lab::new();
    let client = lab.event_client();
    lab.binary(&format!("echo '{}'", json(&lab.fake("s", Habit::Modern))));
    for told_by_shim in [&[][..], &["/tasks/exit"], &["/tasks/exit", "/tasks/delete"]] {
        lab.create(lab.container("c1")).await.unwrap();
        for topic in told_by_shim {
            let container_id = "c1".to_owned();
            let event = match *topic {
                "/tasks/exit" => {
                    let id = container_id.clone();
                    corten_api::pack(&events::TaskExit { container_id, id, ..Default::default() })
                }
                _ => corten_api::pack(&events::TaskDelete { container_id, ..Default::default() }),
            };
            // What is told twice is passed on once.
            for _ in 0..2 {
                let envelope = Envelope {
                    timestamp: Some(corten_types::timestamp::now()),
                    namespace: "lab".into(),
                    topic: (*topic).into(),
                    event: Some(event.clone()),
                };
                forward(&client, Some(envelope)).await.unwrap();
            }
        }
        lab.tasks.delete(&lab.namespace, "c1").await.unwrap();
        for topic in ["/tasks/exit", "/tasks/delete"] {
            assert_eq!(lab.events.recv().await.unwrap().topic, topic, "{told_by_shim:?}");
        }
        let more = tokio::time::timeout(Duration::from_millis(100), lab.events.recv()).await;
        assert!(more.is_err(), "{told_by_shim:?}: {more:?}");
    }
}

async fn forward(client: &Client, envelope: Option<Envelope>) -> Result<()> {
    let request = ForwardRequest { envelope };
    let service = "containerd.services.events.ttrpc.v1.Events";
    client.call(service, "Forward", &request, CallOptions::default()).await
}

#[tokio::test]
async fn shims_forward_events_to_the_exchange() {
    let mut lab = Lab::new();
    let client = lab.event_client();
    let envelope = Envelope {
        timestamp: Some(corten_types::timestamp::now()),
        namespace: "lab".into(),
        topic: "/tasks/oom".into(),
        event: Some(corten_api::pack(&events::TaskOom { container_id: "c1".into() })),
    };
    forward(&client, Some(envelope.clone())).await.unwrap();
    assert_eq!(*lab.events.recv().await.unwrap(), envelope);
    for bad in [
        None,
        Some(Envelope { namespace: "a b".into(), ..envelope.clone() }),
        Some(Envelope { topic: "tasks".into(), ..envelope.clone() }),
        Some(Envelope { timestamp: None, ..envelope }),
    ] {
        assert_eq!(forward(&client, bad).await.unwrap_err().class(), ErrorClass::InvalidArgument);
    }
}
