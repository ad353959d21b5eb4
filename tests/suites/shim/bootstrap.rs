//! How a shim is started, found again, shared and cleared up after (spec 02 §3).

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use corten_api::bootstrap::{BootstrapParams, BootstrapResult, Extension};
use corten_api::task_v3 as task;
use corten_api::types::RuntimeInfo;
use corten_tests::{eventually, peers};
use prost::Message;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::lab::{Lab, PATIENCE, Shim};

const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// What `start` prints for an input, in the environment of a daemon that knows JSON or not.
fn answer(lab: &Lab, id: &str, input: &[u8], knows_json: bool) -> Vec<u8> {
    let mut command = lab.command(id);
    command.arg("start");
    if !knows_json {
        command.env_remove("MAX_SHIM_VERSION");
    }
    lab.invoke(command, input)
}

fn params(lab: &Lab, id: &str, socket_dir: Option<PathBuf>) -> Vec<u8> {
    let options = corten_api::pack(&lab.options());
    BootstrapParams {
        instance_id: id.into(),
        namespace: lab.namespace.clone(),
        extensions: vec![Extension { value: Some(options) }],
        socket_dir: socket_dir.map(|path| path.to_string_lossy().into_owned()),
        ..Default::default()
    }
    .encode_to_vec()
}

fn path(address: &str) -> PathBuf {
    address.strip_prefix("unix://").unwrap_or_else(|| panic!("no socket: {address:?}")).into()
}

#[tokio::test]
async fn all_daemons_are_understood_and_answered_in_their_dialect() {
    let lab = Lab::ours();
    let options = corten_api::pack(&lab.options()).encode_to_vec();
    for (id, input, knows_json) in [
        ("new", params(&lab, "new", None), true),
        ("middle", options.clone(), true),
        ("old", options, false),
        ("none", vec![], true),
    ] {
        lab.prepare(id, "true", &json!({}));
        let said = answer(&lab, id, &input, knows_json);
        let text = String::from_utf8_lossy(&said).into_owned();
        let address = match id {
            "new" => {
                let result = BootstrapResult::decode(said.as_slice()).unwrap();
                assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
                result.address
            }
            "old" => text.clone(),
            _ => {
                let json: Value = serde_json::from_str(&text).unwrap();
                assert_eq!((&json["version"], &json["protocol"]), (&json!(3), &json!("ttrpc")));
                json["address"].as_str().unwrap().to_owned()
            }
        };
        assert!(
            Path::new(&address.trim_start_matches("unix://")).starts_with("/run/containerd/s"),
            "{address}"
        );
        let shim = Shim::connect(&path(&address)).await;
        assert!(lab.bundle(id).join("s").is_symlink());
        shim.create(lab.request(id)).await.unwrap();
        shim.start(id, "").await.unwrap();
        shim.wait(id, "").await.unwrap();
        shim.delete(id, "").await.unwrap();
        shim.shut_down().await;
    }
    lab.finish();
}

#[tokio::test]
async fn sockets_lie_where_the_daemon_wants_them_and_are_closed_to_others() {
    let lab = Lab::ours();
    lab.prepare("c", "true", &json!({}));
    let folder = lab.scratch.join("sockets");
    let said = answer(&lab, "c", &params(&lab, "c", Some(folder.clone())), true);
    let socket = path(&BootstrapResult::decode(said.as_slice()).unwrap().address);
    assert_eq!(socket.parent().unwrap(), folder);
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&folder), mode(&socket)), (0o700, 0o600));
    // Even where others can reach it they are not answered.
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(lab.scratch.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    let reached = socket.clone();
    let answered = std::thread::spawn(move || {
        let nobody = rustix::fs::Uid::from_raw(65534);
        // Of this thread alone.
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        let mut stream = UnixStream::connect(reached).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // A call of nothing, which the server's own user gets an answer to.
        stream.write_all(&[0, 0, 0, 0, 0, 0, 0, 1, 1, 0]).ok();
        stream.read(&mut [0; 10]).unwrap_or(0)
    });
    assert_eq!(answered.join().unwrap(), 0);
    Shim::connect(&socket).await.shut_down().await;
    lab.finish();
}

#[tokio::test]
async fn containers_of_a_group_share_a_shim_that_ends_with_the_last() {
    for annotation in GROUPS {
        let lab = Lab::ours();
        let group = json!({"annotations": {annotation: "together"}});
        let mut shims = Vec::new();
        for id in ["a", "b", "c"] {
            lab.prepare(id, "sleep 1000", &group);
            let shim = lab.start(id).await;
            shim.create(lab.request(id)).await.unwrap();
            shim.start(id, "").await.unwrap();
            shims.push(shim);
        }
        lab.prepare("alone", "sleep 1000", &json!({}));
        let alone = lab.start("alone").await;
        assert!(shims.windows(2).all(|pair| pair[0].address == pair[1].address));
        assert_ne!(alone.address, shims[0].address);
        assert_eq!(lab.servers().len(), 2);
        for (number, id) in ["a", "b", "c"].into_iter().enumerate() {
            let ask = task::ShutdownRequest { id: id.into(), ..Default::default() };
            shims[number].call::<_, ()>("Shutdown", &ask).await.unwrap();
            assert_eq!(lab.servers().len(), 2, "it does not end while there is a container");
            shims[number].remove(id).await;
        }
        shims.remove(0).shut_down().await;
        alone.shut_down().await;
        lab.finish();
    }
}

#[tokio::test]
async fn a_socket_that_nobody_answers_on_is_replaced() {
    let lab = Lab::ours();
    lab.prepare("c", "true", &json!({}));
    let shim = lab.start("c").await;
    let address = shim.address.clone();
    shim.shut_down().await;
    drop(UnixListener::bind(&address).unwrap());
    assert!(address.exists());
    let again = lab.start("c").await;
    assert_eq!(again.address, address);
    assert!(again.state("c", "").await.is_err());
    again.shut_down().await;
    lab.finish();
}

#[tokio::test]
async fn a_shim_is_put_into_the_cgroup_that_is_named() {
    let lab = Lab::ours();
    lab.prepare("c", "true", &json!({}));
    let cgroup = format!("/{}/shim", lab.namespace);
    let options = corten_api::runc::Options { shim_cgroup: cgroup.clone(), ..lab.options() };
    let mut command = lab.command("c");
    command.arg("start");
    let said = lab.invoke(command, &corten_api::pack(&options).encode_to_vec());
    let json: Value = serde_json::from_slice(&said).unwrap();
    let shim = Shim::connect(&path(json["address"].as_str().unwrap())).await;
    let connected: task::ConnectResponse =
        shim.call("Connect", &task::ConnectRequest::default()).await.unwrap();
    let table = std::fs::read_to_string(format!("/proc/{}/cgroup", connected.shim_pid)).unwrap();
    assert!(table.lines().all(|line| line.ends_with(&cgroup) || line.contains("cpuset")), "{table}");
    let score = |pid: u32| -> i32 {
        std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap()
    };
    assert_eq!(score(connected.shim_pid), (score(std::process::id()) + 1).min(1000));
    shim.shut_down().await;
    // The folder is the daemon's, who named it.
    for folder in corten_tests::leftovers::cgroups(&lab.namespace) {
        eventually("the cgroup is empty", PATIENCE, || std::fs::remove_dir(&folder).ok());
    }
    lab.finish();
}

#[tokio::test]
async fn an_idle_shim_has_few_threads_and_descriptors() {
    let lab = Lab::ours();
    let shim = lab.created("c", "sleep 1000", &json!({})).await;
    shim.start("c", "").await.unwrap();
    let server = *lab.servers().first().unwrap();
    let count = |what: &str| std::fs::read_dir(format!("/proc/{server}/{what}")).unwrap().count();
    assert!(count("task") <= 3, "{} threads", count("task"));
    assert!(count("fd") <= 24, "{} descriptors", count("fd"));
    shim.remove("c").await;
    shim.shut_down().await;
    lab.finish();
}

#[tokio::test]
async fn a_shim_that_is_asked_to_end_by_a_signal_leaves_no_socket() {
    for signal in [Signal::TERM, Signal::INT] {
        let lab = Lab::ours();
        lab.prepare("c", "true", &json!({}));
        let shim = lab.start("c").await;
        kill_process(Pid::from_raw(*lab.servers().first().unwrap()).unwrap(), signal).unwrap();
        let address = shim.address.clone();
        while address.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        lab.finish();
    }
}

/// Runs `delete` as the daemon does for a shim that is lost.
fn bury(lab: &Lab, id: &str) -> task::DeleteResponse {
    let mut command = lab.command(id);
    command.arg("-bundle").arg(lab.bundle(id)).arg("delete");
    task::DeleteResponse::decode(lab.invoke(command, b"").as_slice()).unwrap()
}

#[tokio::test]
async fn what_a_lost_shim_leaves_is_cleared_up() {
    let lab = Lab::ours();
    lab.prepare("c", "sleep 1000 & sleep 1000", &json!({"root": {"path": "rootfs"}}));
    let shim = lab.start("c").await;
    let pid = shim
        .create(task::CreateTaskRequest { rootfs: vec![lab.rootfs()], ..lab.request("c") })
        .await
        .unwrap();
    shim.start("c", "").await.unwrap();
    kill_process(Pid::from_raw(*lab.servers().first().unwrap()).unwrap(), Signal::KILL).unwrap();
    let buried = bury(&lab, "c");
    assert_eq!((buried.pid, buried.exit_status), (pid, 137));
    assert!(buried.exited_at.unwrap().seconds > 0);
    // Once more, and for one that never came to be.
    assert_eq!(bury(&lab, "c").exit_status, 137);
    lab.prepare_with("never", "{}");
    assert_eq!((bury(&lab, "never").pid, bury(&lab, "never").exit_status), (0, 137));
    std::fs::remove_file(&shim.address).unwrap();
    lab.finish();
}

#[tokio::test]
async fn what_is_still_being_made_is_waited_for_before_it_is_removed() {
    let lab = Lab::ours();
    // The runtime is ended with the shim, and the hook with the runtime; what the hook has begun is not.
    let begun = lab.scratch.join("begun");
    let script = format!("sleep 1 & echo $! > {}; wait", begun.display());
    let hook = json!({"hooks": {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]}});
    lab.prepare("c", "sleep 1000", &hook);
    let shim = lab.start("c").await;
    let request = lab.request("c");
    let creating = tokio::spawn(async move { shim.create(request).await });
    let read = || std::fs::read_to_string(&begun).ok()?.trim().parse::<i32>().ok();
    let pid = loop {
        match read() {
            Some(pid) => break pid,
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    kill_process(Pid::from_raw(*lab.servers().first().unwrap()).unwrap(), Signal::KILL).unwrap();
    creating.await.unwrap().unwrap_err();
    bury(&lab, "c");
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().and_then(|fields| fields.split_whitespace().next());
    assert!(matches!(state, None | Some("Z" | "X")), "what the hook has begun is still there: {stat}");
    lab.finish();
}

#[tokio::test]
async fn nothing_is_started_for_a_bundle_that_goes_and_what_was_ends() {
    let lab = Lab::ours();
    lab.prepare("c", "true", &json!({}));
    let shim = lab.start("c").await;
    let (hidden, address) = (lab.bundle(".c"), shim.address.clone());
    std::fs::rename(lab.bundle("c"), &hidden).unwrap();
    drop(shim);
    eventually("it ends by itself", PATIENCE, || (!address.exists()).then_some(()));
    let mut command = lab.command(".c");
    let output = command.arg("start").stdin(std::process::Stdio::null()).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && words.contains("the bundle is being removed"), "{words}");
    lab.finish();
}

#[test]
fn a_shim_says_what_it_is() {
    use std::process::{Command, Stdio};
    let program = peers::programs().join("containerd-shim-runc-v2");
    let output = Command::new(&program).arg("-info").stdin(Stdio::null()).output().unwrap();
    let info = RuntimeInfo::decode(output.stdout.as_slice()).unwrap();
    assert_eq!(info.name, "io.containerd.runc.v2");
    assert!(!info.version.unwrap().version.is_empty());
    let features = info.features.unwrap();
    assert_eq!(features.type_url, "types.containerd.io/opencontainers/runtime-spec/1/features/Features");
    let features: Value = serde_json::from_slice(&features.value).unwrap();
    assert_eq!(features["linux"]["mountExtensions"]["idmap"]["enabled"], true, "{features}");
    let options =
        corten_api::runc::Options { binary_name: "runc-of-no-machine".into(), ..Default::default() };
    let input = corten_api::pack(&options).encode_to_vec();
    let mut child =
        Command::new(&program).arg("-info").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&input).unwrap();
    let output = child.wait_with_output().unwrap();
    let info = RuntimeInfo::decode(output.stdout.as_slice()).unwrap();
    assert!(info.features.is_none(), "a runtime that is not there has no features");
    let version = Command::new(&program).arg("-v").output().unwrap();
    let text = String::from_utf8(version.stdout).unwrap();
    assert!(text.starts_with("containerd-shim-runc-v2:\n  Version:  "), "{text}");
    let empty = Command::new(&program).args(["-id", "x", "start"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(empty.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&empty.stderr).trim(),
        "containerd-shim-runc-v2: shim namespace cannot be empty"
    );
}
