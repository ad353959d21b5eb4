//! Sandboxes whose shims serve the sandbox service, under our daemon and under Debian's.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use corten_api::services::containers::{Container, CreateContainerRequest, container};
use corten_api::services::events::{PublishRequest, SubscribeRequest};
use corten_api::services::sandbox as api;
use corten_api::services::tasks as tasks_api;
use corten_api::types::{Sandbox, sandbox};
use corten_tests::{Client, Node, Peers, eventually, peers};
use tonic::{Code, Status};

const PATIENCE: Duration = Duration::from_secs(30);
/// A topic that no daemon has.
const READY: &str = "/sandboxes/ready";
const RUNTIME: &str = "io.containerd.sandbox.v1";

fn debian() -> Node {
    let (debian, runc) = (Peers::find().containerd_2_1(), Peers::find().runc());
    Node::peer(&debian).search(&[debian, runc, peers::programs()]).start()
}

/// Both daemons, one after the other, and whether it is Debian's.
fn on_both(test: impl Fn(Node, bool)) {
    test(Node::start(), false);
    test(debian(), true);
}

fn client(node: &Node) -> Client {
    Client::new(&node.address(), Some(node.namespace()))
}

fn record(id: &str, runtime: &str) -> Sandbox {
    let spec = prost_types::Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
        value: br#"{"ociVersion":"1.1.0"}"#.to_vec(),
    };
    Sandbox {
        sandbox_id: id.into(),
        runtime: Some(sandbox::Runtime { name: runtime.into(), options: None }),
        spec: Some(spec),
        sandboxer: "shim".into(),
        ..Default::default()
    }
}

fn create(client: &Client, sandbox: Sandbox, fail: &str) -> Result<String, Status> {
    let request = api::ControllerCreateRequest {
        sandbox_id: sandbox.sandbox_id.clone(),
        sandboxer: "shim".into(),
        netns_path: "/run/netns/x".into(),
        annotations: [("fail".to_owned(), fail.to_owned())].into(),
        sandbox: Some(sandbox),
        ..Default::default()
    };
    client.wait(client.sandbox_controller().create(request)).map(|answer| answer.sandbox_id)
}

fn start(client: &Client, id: &str) -> Result<api::ControllerStartResponse, Status> {
    let request = api::ControllerStartRequest { sandbox_id: id.into(), sandboxer: "shim".into() };
    client.wait(client.sandbox_controller().start(request))
}

fn status(client: &Client, id: &str) -> api::ControllerStatusResponse {
    let request =
        api::ControllerStatusRequest { sandbox_id: id.into(), sandboxer: "shim".into(), verbose: true };
    client.wait(client.sandbox_controller().status(request)).unwrap()
}

fn stop(client: &Client, id: &str) -> Result<(), Status> {
    let request =
        api::ControllerStopRequest { sandbox_id: id.into(), sandboxer: "shim".into(), timeout_secs: 5 };
    client.wait(client.sandbox_controller().stop(request)).map(drop)
}

fn wait(client: &Client, id: &str) -> Result<api::ControllerWaitResponse, Status> {
    let request = api::ControllerWaitRequest { sandbox_id: id.into(), sandboxer: "shim".into() };
    client.wait(client.sandbox_controller().wait(request))
}

fn shutdown(client: &Client, id: &str) -> Result<(), Status> {
    let request = api::ControllerShutdownRequest { sandbox_id: id.into(), sandboxer: "shim".into() };
    client.wait(client.sandbox_controller().shutdown(request)).map(drop)
}

/// Shuts the sandbox down. A shim that ends with its answer may be gone before Debian's daemon has read that.
fn end(client: &Client, debian: bool) {
    if let Err(status) = shutdown(client, "sb") {
        assert!(debian && status.message().ends_with("ttrpc: closed"), "{status:?}");
    }
}

fn metrics(client: &Client, id: &str) -> Result<api::ControllerMetricsResponse, Status> {
    let request = api::ControllerMetricsRequest { sandbox_id: id.into(), sandboxer: "shim".into() };
    client.wait(client.sandbox_controller().metrics(request))
}

fn keep_record(client: &Client, sandbox: Sandbox) {
    let request = api::StoreCreateRequest { sandbox: Some(sandbox) };
    client.wait(client.sandboxes().create(request)).unwrap();
}

fn bundle(node: &Node, id: &str) -> PathBuf {
    node.join("state/io.containerd.sandbox.controller.v1.shim").join(node.namespace()).join(id)
}

/// Topics of events about sandboxes from now on. The original answers a subscription only with its first event,
/// so one of our own shows that it stands.
fn subscribe(node: &Node) -> mpsc::Receiver<String> {
    let (sender, topics) = mpsc::channel();
    let listener = client(node);
    std::thread::spawn(move || {
        let filters = vec!["topic~=\"/sandboxes/.+\"".to_owned()];
        listener.block_on(async {
            let mut events =
                listener.events().subscribe(SubscribeRequest { filters }).await.unwrap().into_inner();
            while let Ok(Some(envelope)) = events.message().await {
                if sender.send(envelope.topic).is_err() {
                    return;
                }
            }
        });
    });
    let publisher = client(node);
    eventually("the subscription stands", PATIENCE, || {
        let event = Some(prost_types::Any { type_url: "ready".into(), value: Vec::new() });
        let request = PublishRequest { topic: READY.into(), event };
        publisher.wait(publisher.events().publish(request)).unwrap();
        topics.try_recv().ok()
    });
    topics
}

/// Pids of the shims of sandboxes.
fn shims(node: &Node) -> Vec<i32> {
    node.shims()
}

fn nothing_is_left(node: &Node, id: &str) {
    let work = node.join("root/io.containerd.sandbox.controller.v1.shim").join(node.namespace()).join(id);
    eventually("shim, bundle and work folder go", PATIENCE, || {
        (shims(node).is_empty() && !bundle(node, id).exists() && !work.exists()).then_some(())
    });
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, text: &str) {
    let status = answer.unwrap_err();
    assert_eq!((status.code(), status.message()), (code, text));
}

#[test]
fn a_sandbox_is_created_started_stopped_and_shut_down() {
    on_both(|node, debian| {
        let client = client(&node);
        let topics = subscribe(&node);
        keep_record(&client, record("sb", RUNTIME));
        assert_eq!(create(&client, record("sb", RUNTIME), "").unwrap(), "sb");
        let created = std::fs::read_to_string(node.join("run/sb-sb.created")).unwrap();
        // Debian's does not pass annotations on.
        let wanted = "id=sb netns=/run/netns/x rootfs=0 options= spec=true annotations={";
        assert!(created.starts_with(wanted), "{created}");
        let text = "sandbox sb already running: already exists";
        refused(create(&client, record("sb", RUNTIME), ""), Code::AlreadyExists, text);

        let started = start(&client, "sb").unwrap();
        assert_eq!(started.sandbox_id, "sb");
        assert!(started.created_at.is_some() && started.address.is_empty() && started.version == 0);
        assert!(PathBuf::from(format!("/proc/{}", started.pid)).exists());
        let known = status(&client, "sb");
        assert_eq!((known.state.as_str(), known.pid), ("SANDBOX_READY", started.pid));
        assert_eq!((known.info["is"].as_str(), known.address.as_str()), ("verbose", ""));
        assert_eq!(metrics(&client, "sb").unwrap().metrics.unwrap().id, "sb");
        let platform = api::ControllerPlatformRequest { sandbox_id: "sb".into(), sandboxer: "shim".into() };
        let platform = client.wait(client.sandbox_controller().platform(platform));
        refused(platform, Code::Unimplemented, "method Platform not implemented");

        stop(&client, "sb").unwrap();
        let exit = wait(&client, "sb").unwrap();
        assert_eq!(exit.exit_status, 137);
        assert_eq!(status(&client, "sb").state, "SANDBOX_NOTREADY");
        end(&client, debian);
        nothing_is_left(&node, "sb");
        let topics = std::iter::from_fn(|| topics.recv_timeout(PATIENCE).ok());
        let told: Vec<String> = topics.filter(|topic| topic != READY).take(3).collect();
        assert_eq!(told, ["/sandboxes/create", "/sandboxes/start", "/sandboxes/exit"]);
        node.finish();
    });
}

#[test]
fn what_is_not_known_is_answered_alike() {
    let answers = |node: Node| {
        let client = client(&node);
        let known = status(&client, "no");
        assert_eq!((known.sandbox_id.as_str(), known.state.as_str()), ("no", ""));
        assert_eq!(known.created_at.unwrap().seconds, -62_135_596_800);
        assert!(known.exited_at.unwrap().seconds > 1_600_000_000);
        stop(&client, "no").unwrap();
        let text = |status: Status| (status.code(), status.message().to_owned());
        let mut answers = vec![
            text(start(&client, "no").unwrap_err()),
            text(wait(&client, "no").unwrap_err()),
            text(shutdown(&client, "no").unwrap_err()),
            text(metrics(&client, "no").unwrap_err()),
        ];
        for sandboxer in ["", "nope"] {
            let request = api::ControllerStartRequest { sandbox_id: "x".into(), sandboxer: sandboxer.into() };
            answers.push(text(client.wait(client.sandbox_controller().start(request)).unwrap_err()));
        }
        for runtime in ["badname", "io.containerd.nope.v9"] {
            answers.push(text(create(&client, record("sb", runtime), "").unwrap_err()));
            nothing_is_left(&node, "sb");
        }
        answers.push(text(create(&client, record("a/b", RUNTIME), "").unwrap_err()));
        node.finish();
        answers
    };
    assert_eq!(answers(Node::start()), answers(debian()));
}

#[test]
fn a_sandbox_that_fails_leaves_nothing() {
    let node = Node::start();
    let client = client(&node);
    let text = "failed to create sandbox sb: told to fail: failed precondition";
    refused(create(&client, record("sb", RUNTIME), "create"), Code::FailedPrecondition, text);
    nothing_is_left(&node, "sb");
    create(&client, record("sb", RUNTIME), "start").unwrap();
    let text = "failed to start sandbox sb: told to fail: failed precondition";
    refused(start(&client, "sb"), Code::FailedPrecondition, text);
    nothing_is_left(&node, "sb");
    node.finish();
}

#[test]
fn shims_without_sandboxes_say_so_and_leave_nothing() {
    // Ours and Debian's do not serve them.
    for folder in [peers::programs(), Peers::find().containerd_2_1()] {
        let node = Node::builder().search(&[folder, peers::programs()]).start();
        let status = create(&client(&node), record("sb", "io.containerd.runc.v2"), "").unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
        assert!(status.message().starts_with("failed to create sandbox sb: "), "{status:?}");
        nothing_is_left(&node, "sb");
        node.finish();
    }
}

#[test]
fn a_sandbox_outlives_the_daemon() {
    let mut node = Node::start();
    let first = client(&node);
    keep_record(&first, record("sb", RUNTIME));
    create(&first, record("sb", RUNTIME), "").unwrap();
    let pid = start(&first, "sb").unwrap().pid;
    node.kill_daemon();
    node.start_daemon();
    let client = client(&node);
    let known = status(&client, "sb");
    assert_eq!((known.state.as_str(), known.pid), ("SANDBOX_READY", pid));
    stop(&client, "sb").unwrap();
    assert_eq!(wait(&client, "sb").unwrap().exit_status, 137);
    shutdown(&client, "sb").unwrap();
    nothing_is_left(&node, "sb");
    node.finish();
}

fn kill(pid: i32) {
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
}

#[test]
fn a_dead_shim_is_buried_whether_the_daemon_sees_it_die_or_not() {
    let mut node = Node::start();
    for seen in [true, false] {
        let before = client(&node);
        create(&before, record("sb", RUNTIME), "").unwrap();
        let pid = start(&before, "sb").unwrap().pid;
        let [shim] = shims(&node)[..] else { panic!("{:?}", shims(&node)) };
        if !seen {
            node.kill_daemon();
        }
        kill(shim);
        kill(pid.cast_signed());
        if !seen {
            node.start_daemon();
        }
        let after = client(&node);
        eventually("it is no longer known", PATIENCE, || status(&after, "sb").state.is_empty().then_some(()));
        nothing_is_left(&node, "sb");
        stop(&after, "sb").unwrap();
    }
    node.finish();
}

#[test]
fn containers_of_a_sandbox_run_in_its_shim() {
    on_both(|node, debian| {
        let client = client(&node);
        keep_record(&client, record("sb", RUNTIME));
        create(&client, record("sb", RUNTIME), "").unwrap();
        start(&client, "sb").unwrap();
        let container = Container {
            id: "c".into(),
            runtime: Some(container::Runtime { name: RUNTIME.into(), options: None }),
            spec: record("sb", RUNTIME).spec,
            sandbox: "sb".into(),
            ..Default::default()
        };
        let request = CreateContainerRequest { container: Some(container) };
        client.wait(client.containers().create(request)).unwrap();
        let address = format!("ttrpc+unix://{}", node.join("run/sb-sb.sock").display());
        for (task_api_address, task_api_version) in [(String::new(), 0), (address, 3)] {
            let container_id = || "c".to_owned();
            let request = tasks_api::CreateTaskRequest {
                container_id: container_id(),
                task_api_address,
                task_api_version,
                ..Default::default()
            };
            let pid = client.wait(client.tasks().create(request)).unwrap().pid;
            let [shim] = shims(&node)[..] else { panic!("{:?}", shims(&node)) };
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            assert_eq!(
                stat.rsplit(") ").next().unwrap().split(' ').nth(1),
                Some(&*shim.to_string()),
                "{stat}"
            );
            let start = tasks_api::StartRequest { container_id: container_id(), ..Default::default() };
            client.wait(client.tasks().start(start)).unwrap();
            let kill =
                tasks_api::KillRequest { container_id: container_id(), signal: 9, ..Default::default() };
            client.wait(client.tasks().kill(kill)).unwrap();
            let wait = tasks_api::WaitRequest { container_id: container_id(), ..Default::default() };
            assert_eq!(client.wait(client.tasks().wait(wait)).unwrap().exit_status, 137);
            let delete = tasks_api::DeleteTaskRequest { container_id: container_id() };
            client.wait(client.tasks().delete(delete)).unwrap();
            assert_eq!(status(&client, "sb").state, "SANDBOX_READY", "the sandbox stays");
        }
        end(&client, debian);
        nothing_is_left(&node, "sb");
        node.finish();
    });
}
