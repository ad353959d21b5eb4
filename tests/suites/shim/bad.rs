//! What no honest daemon, no working runtime and no healthy disk does: the shim says so, lives on, and clears up.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use corten_api::runc::Options;
use corten_api::task_v3 as task;
use corten_tests::{eventually, leftovers};
use corten_ttrpc::{CallOptions, Client};
use serde_json::json;

use crate::lab::{Lab, PATIENCE, Shim, V3};

const QUIET: [&str; 3] = ["", "", ""];

/// A container is created, runs and goes: the shim is well.
async fn works(lab: &Lab, shim: &Shim, id: &str) {
    lab.prepare(id, "exit 5", &json!({}));
    shim.create(lab.request(id)).await.unwrap();
    shim.start(id, "").await.unwrap();
    assert_eq!(shim.wait(id, "").await.unwrap(), 5);
    shim.delete(id, "").await.unwrap();
}

/// A frame's header: length, stream, kind 1 (a request), no flags.
fn header(length: u32, stream: u32) -> Vec<u8> {
    [&length.to_be_bytes()[..], &stream.to_be_bytes(), &[1, 0]].concat()
}

#[tokio::test]
async fn frames_that_are_cut_too_long_or_nonsense_harm_nobody_else() {
    let lab = Lab::ours();
    lab.prepare("c", "true", &json!({}));
    let shim = lab.start("c").await;
    let raw = |bytes: &[u8], ends: bool| -> Vec<u8> {
        let mut stream = UnixStream::connect(&shim.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // The server may have enough before it has seen all.
        stream.write_all(bytes).ok();
        if ends {
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        }
        let mut answer = vec![0; 200];
        let count = stream.read(&mut answer).unwrap_or(0);
        answer.truncate(count);
        answer
    };
    assert!(raw(&header(1000, 1)[..7], true).is_empty(), "half a header");
    assert!(raw(&[header(1000, 1), vec![1; 10]].concat(), true).is_empty(), "half a message");
    let nonsense = raw(&[header(4, 1), vec![0xff; 4]].concat(), false);
    assert!(String::from_utf8_lossy(&nonsense).contains("malformed ttrpc request"), "{nonsense:?}");
    let long = 5 << 20;
    let refused = raw(&[header(long, 1), vec![0; long as usize]].concat(), false);
    let expected = format!("message length {long} exceed maximum message size of 4194304");
    assert!(String::from_utf8_lossy(&refused).contains(&expected), "{}", String::from_utf8_lossy(&refused));
    assert!(raw(&[header(4, 2), vec![0; 4]].concat(), false).len() > 10, "an even stream");
    for method in ["", "Nothing", "create", "Create/"] {
        let error = shim.call::<_, ()>(method, &()).await.unwrap_err();
        assert_eq!(format!("{:?}", error.class()), "NotImplemented", "{method}: {error}");
    }
    let client = Client::connect(&shim.address).await.unwrap();
    let error =
        client.call::<_, ()>("no.such.Service", "State", &(), CallOptions::default()).await.unwrap_err();
    assert_eq!(format!("{:?}", error.class()), "NotImplemented");
    works(&lab, &shim, "c").await;
    shim.shut_down().await;
    lab.finish();
}

/// Options that name a runtime which is this script.
fn runtime(lab: &Lab, script: &str) -> Options {
    let path = lab.scratch.join("runtime");
    let new = lab.scratch.join("runtime.new");
    std::fs::write(
        &new,
        format!(
            "#!/bin/sh\nfor verb; do case $verb in create|start|delete|exec) break;; esac; done\n{script}\n"
        ),
    )
    .unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(new, &path).unwrap();
    Options { binary_name: path.to_string_lossy().into_owned(), ..lab.options() }
}

fn with(lab: &Lab, id: &str, options: &Options) -> task::CreateTaskRequest {
    task::CreateTaskRequest { options: Some(corten_api::pack(options)), ..lab.request(id) }
}

#[tokio::test]
async fn runtimes_that_crash_or_talk_nonsense_are_told_of() {
    let lab = Lab::ours();
    lab.prepare("c", "true", &json!({}));
    let shim = lab.start("c").await;
    let bundle = lab.bundle("c");
    for (script, expected) in [
        ("exit 1", "OCI runtime create failed: unable to retrieve OCI runtime error"),
        ("kill -9 $$", "OCI runtime create failed: unable to retrieve OCI runtime error"),
        ("echo garbage >log.json; exit 1", "OCI runtime create failed: unable to retrieve OCI runtime error"),
        (
            "printf '{\"level\":\"info\"}\\n{\"level\":\"error\",\"msg\":\"it broke\"}\\n\\377\\376' >log.json; exit 1",
            "OCI runtime create failed: it broke",
        ),
        ("exit 0", "pid"),
        (": >init.pid", "pid"),
        ("echo what >init.pid", "pid"),
        ("head -c 100000 /dev/zero >init.pid", "pid"),
    ] {
        let script = format!("cd {}; {script}", bundle.display());
        let error = shim.create(with(&lab, "c", &runtime(&lab, &script))).await.unwrap_err();
        assert!(error.message().contains(expected), "{script}: {error}");
        assert!(error.message().len() < 4096, "{script}: {} bytes", error.message().len());
    }
    let missing = Options { binary_name: "/no/such/runtime".into(), ..lab.options() };
    let error = shim.create(with(&lab, "c", &missing)).await.unwrap_err();
    assert!(error.message().contains("no such file or directory"), "{error}");
    works(&lab, &shim, "c").await;
    shim.shut_down().await;
    lab.finish();
}

#[tokio::test]
async fn a_runtime_that_hangs_holds_only_its_caller_and_is_ended() {
    let lab = Lab::ours();
    lab.prepare("c", "true", &json!({"root": {"path": "rootfs"}}));
    let shim = lab.start("c").await;
    let options = runtime(&lab, "[ $verb = create ] && exec sleep 1000");
    let request = task::CreateTaskRequest { rootfs: vec![lab.rootfs()], ..with(&lab, "c", &options) };
    let client = Client::connect(&shim.address).await.unwrap();
    let call = CallOptions { timeout: Some(Duration::from_secs(1)), ..Default::default() };
    let error = client.call::<_, task::CreateTaskResponse>(V3, "Create", &request, call).await.unwrap_err();
    assert_eq!(format!("{:?}", error.class()), "DeadlineExceeded", "{error}");
    works(&lab, &shim, "other").await;
    // A caller that is gone, and a shim that is to end meanwhile.
    let waits = client.call::<_, task::CreateTaskResponse>(V3, "Create", &request, CallOptions::default());
    tokio::time::timeout(Duration::from_millis(300), waits).await.unwrap_err();
    drop(client);
    works(&lab, &shim, "another").await;
    let client = Client::connect(&shim.address).await.unwrap();
    let waits = client.call::<_, task::CreateTaskResponse>(V3, "Create", &request, CallOptions::default());
    tokio::time::timeout(Duration::from_millis(300), waits).await.unwrap_err();
    shim.shut_down().await;
    lab.finish();
}

#[tokio::test]
async fn a_creation_whose_caller_is_gone_is_undone() {
    let lab = Lab::ours();
    lab.prepare("keep", "sleep 1000", &json!({}));
    let shim = lab.start("keep").await;
    // The embedded runtime waits for a hook that takes long.
    lab.prepare(
        "c",
        "true",
        &json!({"hooks": {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "1000"]}]}}),
    );
    let client = Client::connect(&shim.address).await.unwrap();
    let request = lab.request("c");
    let waits = client.call::<_, task::CreateTaskResponse>(V3, "Create", &request, CallOptions::default());
    tokio::time::timeout(Duration::from_millis(500), waits).await.unwrap_err();
    drop(client);
    let state = lab.scratch.join("runc").join(&lab.namespace).join("c");
    while state.exists() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    works(&lab, &shim, "c").await;
    // The hook itself belongs to nobody here: it was the runtime's.
    for pid in corten_tests::leftovers::processes(lab.scratch.path()) {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(!command.starts_with(b"sleep\x001000"), "a hook is left");
    }
    shim.shut_down().await;
    lab.finish();
}

#[tokio::test]
async fn specifications_of_nonsense_are_refused_and_leave_nothing() {
    let lab = Lab::ours();
    lab.prepare("c", "true", &json!({}));
    let shim = lab.start("c").await;
    for text in [
        "",
        "null",
        "[]",
        "7",
        "\"x\"",
        "{",
        "{}",
        "{\"process\":7}",
        "{\"linux\":[]}",
        "\u{0}",
        &"[".repeat(100_000),
    ] {
        lab.prepare_with("c", text);
        let error = shim.create(lab.request("c")).await.unwrap_err();
        assert!(error.message().contains("OCI runtime create failed"), "{text:.20}: {error}");
    }
    for patch in [
        json!({"process": {"args": []}}),
        json!({"process": {"args": ["\u{0}"]}}),
        json!({"process": {"args": ["x".repeat(3 << 20)]}}),
        json!({"process": {"cwd": "../.."}}),
        json!({"process": {"rlimits": [{"type": "RLIMIT_WHAT", "hard": 1, "soft": 1}]}}),
        json!({"process": {"user": {"uid": -1}}}),
        json!({"root": {"path": "/no/such/root"}}),
        json!({"root": {"path": ""}}),
        json!({"mounts": [{"destination": "/x", "type": "nosuchfs", "source": "x"}]}),
        json!({"mounts": [{"destination": "", "type": "tmpfs", "source": "x"}]}),
        json!({"mounts": [{"destination": "/x", "type": "bind", "source": "/no/such", "options": ["bind"]}]}),
        json!({"linux": {"namespaces": [{"type": "mount"}, {"type": "dream"}]}}),
        json!({"linux": {"namespaces": [{"type": "mount"}, {"type": "mount"}]}}),
        json!({"linux": {"namespaces": [{"type": "mount"}, {"type": "network", "path": "/no/such/ns"}]}}),
        json!({"linux": {"namespaces": [{"type": "mount"}, {"type": "network", "path": "/etc/passwd"}]}}),
        json!({"linux": {"cgroupsPath": "/"}}),
        json!({"linux": {"cgroupsPath": "../../up"}}),
        json!({"linux": {"sysctl": {"../../etc/passwd": "1"}}}),
        json!({"linux": {"seccomp": {"defaultAction": "SCMP_ACT_DANCE"}}}),
        json!({"linux": {"devices": [{"path": "/dev/x", "type": "z", "major": 1, "minor": 1}]}}),
        json!({"linux": {"resources": {"memory": {"limit": 1}}}}),
        json!({"linux": {"resources": {"unified": {"../x": "1"}}}}),
        json!({"hooks": {"createRuntime": [{"path": "/no/such/hook"}]}}),
    ] {
        lab.prepare("c", "true", &patch);
        let shown: String = patch.to_string().chars().take(200).collect();
        let Err(error) = shim.create(lab.request("c")).await else {
            // What is only noticed when the program begins.
            let error = shim.start("c", "").await.expect_err(&shown);
            assert!(error.message().contains("OCI runtime start failed"), "{shown}: {error}");
            shim.delete("c", "").await.unwrap();
            continue;
        };
        assert!(error.message().contains("OCI runtime create failed"), "{shown}: {error}");
    }
    let options = task::CreateTaskRequest {
        options: Some(corten_types::Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: vec![0xff; 9],
        }),
        ..lab.request("c")
    };
    assert!(shim.create(options).await.is_err());
    works(&lab, &shim, "c").await;
    shim.shut_down().await;
    lab.finish();
}

#[tokio::test]
async fn thousands_of_processes_are_added_at_once() {
    const CONNECTIONS: usize = 4;
    const EACH: usize = 300;
    let lab = Lab::ours();
    let shim = lab.created("c", "sleep 1000", &json!({})).await;
    shim.start("c", "").await.unwrap();
    let server = *lab.servers().first().unwrap();
    let count = move |what: &str| std::fs::read_dir(format!("/proc/{server}/{what}")).unwrap().count();
    let before = count("fd");
    let mut running = tokio::task::JoinSet::new();
    for connection in 0..CONNECTIONS {
        let shim = Shim::connect(&shim.address).await;
        for number in 0..EACH {
            let shim = shim.clone();
            running.spawn(async move {
                let id = format!("e{connection}-{number}");
                let code = (number % 100) as u32;
                shim.exec("c", &id, &format!("exit {code}"), QUIET, false).await.unwrap();
                shim.start("c", &id).await.unwrap();
                assert_eq!(shim.wait("c", &id).await.unwrap(), code);
                shim.delete("c", &id).await.unwrap();
            });
        }
    }
    while let Some(one) = running.join_next().await {
        one.unwrap();
    }
    while count("fd") > before {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(count("task"), 1);
    shim.remove("c").await;
    shim.shut_down().await;
    lab.finish();
}

#[tokio::test]
async fn processes_that_meet_the_end_of_their_container_say_so() {
    const ROUNDS: usize = 6;
    const EACH: usize = 12;
    let lab = Lab::ours();
    lab.prepare("c", "sleep 1000", &json!({}));
    let shim = lab.start("c").await;
    let host = std::fs::read_link("/proc/self/ns/mnt").unwrap();
    for round in 0..ROUNDS {
        shim.create(lab.request("c")).await.unwrap();
        shim.start("c", "").await.unwrap();
        let mut adding = tokio::task::JoinSet::new();
        for number in 0..EACH {
            let (shim, id) = (shim.clone(), format!("e{number}"));
            adding.spawn(async move {
                shim.exec("c", &id, "readlink /proc/self/ns/mnt > /tmp/$$; sleep 1000", QUIET, false).await?;
                shim.start("c", &id).await
            });
        }
        // At a moment that is another one in each round.
        tokio::time::sleep(Duration::from_millis(3 * round as u64)).await;
        shim.kill("c", "", 9, false).await.unwrap();
        while let Some(added) = adding.join_next().await {
            let Err(error) = added.unwrap() else { continue };
            let told = (format!("{:?}", error.class()), error.message());
            let expected = [
                ("FailedPrecondition", "container c init process is not running"),
                ("Unknown", "cannot exec in a stopped state"),
            ];
            assert!(expected.iter().any(|one| told.0 == one.0 && told.1.contains(one.1)), "{told:?}");
        }
        assert_eq!(shim.wait("c", "").await.unwrap(), 137);
        shim.delete("c", "").await.unwrap();
    }
    for entry in std::fs::read_dir(lab.scratch.join("rootfs/tmp")).unwrap() {
        let seen = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        assert_ne!(seen.trim(), host.to_string_lossy(), "a process of the host");
    }
    shim.shut_down().await;
    lab.finish();
}

#[tokio::test]
async fn a_full_disk_under_the_bundle_is_told_of_and_cleared_up() {
    let lab = Lab::ours();
    let disk = lab.bundle("c");
    std::fs::create_dir_all(&disk).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", &disk, "tmpfs", flags, c"size=64k").unwrap();
    lab.prepare("c", "sleep 1000", &json!({}));
    let shim = lab.start("c").await;
    let fill = || {
        let mut file = std::fs::File::create(disk.join("full")).unwrap();
        while file.write(&[0; 4096]).is_ok_and(|count| count > 0) {}
    };
    fill();
    let error = shim.create(lab.request("c")).await.unwrap_err();
    assert!(error.message().contains("no space left on device"), "{error}");
    std::fs::remove_file(disk.join("full")).unwrap();
    shim.create(lab.request("c")).await.unwrap();
    shim.start("c", "").await.unwrap();
    fill();
    let exec = async {
        shim.exec("c", "e", "exit 3", QUIET, false).await?;
        shim.start("c", "e").await
    };
    // Whether it needs the disk is its own matter; it must not harm.
    if exec.await.is_ok() {
        assert_eq!(shim.wait("c", "e").await.unwrap(), 3);
    }
    shim.remove("c").await;
    shim.shut_down().await;
    // The shim answered its shutdown before it ended, and its folder is this one.
    lab.close_logs();
    eventually("nobody is in the bundle", PATIENCE, || {
        rustix::mount::unmount(&disk, rustix::mount::UnmountFlags::empty()).ok()
    });
    lab.finish();
}

#[tokio::test]
async fn a_bundle_that_is_deleted_under_a_running_container_changes_nothing_for_it() {
    let lab = Lab::ours();
    let shim = lab.created("c", "sleep 1000", &json!({})).await;
    shim.start("c", "").await.unwrap();
    std::fs::remove_dir_all(lab.bundle("c")).unwrap();
    assert!(shim.state("c", "").await.unwrap().pid > 0);
    shim.exec("c", "e", "exit 3", QUIET, false).await.unwrap();
    if let Err(error) = shim.start("c", "e").await {
        assert!(error.message().contains("no such file or directory"), "{error}");
    }
    shim.kill("c", "", 9, false).await.unwrap();
    assert_eq!(shim.wait("c", "").await.unwrap(), 137);
    shim.delete("c", "").await.unwrap();
    works(&lab, &shim, "d").await;
    shim.shut_down().await;
    lab.finish();
}

#[tokio::test]
async fn a_deletion_that_was_cut_short_is_ended_by_the_next() {
    let lab = Lab::ours();
    let shim = lab.created("c", "sleep 1000", &json!({})).await;
    shim.start("c", "").await.unwrap();
    shim.kill("c", "", 9, false).await.unwrap();
    assert_eq!(shim.wait("c", "").await.unwrap(), 137);
    // The last but one step of a removal.
    let state = lab.scratch.join("runc").join(&lab.namespace).join("c");
    std::fs::remove_file(state.join("state.json")).unwrap();
    shim.delete("c", "").await.unwrap();
    assert!(!state.exists());
    for cgroup in leftovers::cgroups(&lab.namespace) {
        std::fs::remove_dir(cgroup).unwrap();
    }
    shim.shut_down().await;
    lab.finish();
}
