//! What few configurations ask for.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::Command;

use corten_tests::{Peers, command};
use libseccomp::{ScmpNotifReq, ScmpNotifResp, ScmpNotifRespFlags, ScmpSyscall};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

use super::{Lab, same};

#[test]
fn what_was_there_is_copied_onto_a_tmpfs() {
    let copied = json!({"mounts": [
        {"destination": "/place", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]},
        {"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "mode=700"]}]});
    let script = "ls -l /place | awk '{print $1, $NF}'; cat /etc/passwd; echo new > /etc/passwd; cat /etc/passwd; \
        grep -E ' /(place|etc) ' /proc/self/mountinfo | cut -d' ' -f5 | sort";
    same("a copy", &copied, script, "/etc/passwd\nroot:x:0:0");
}

#[test]
fn a_terminal_in_the_foreground_is_one() {
    let in_terminal = |lab: Lab| {
        let command = lab.command(&["run", &lab.id()]);
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let line: Vec<String> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
        lab.configure(
            &json!({"process": {"terminal": true}}),
            "test -t 0 && test -t 1 && test -t 2 && echo three; tty; stty size; echo err >&2; exit 3",
        );
        let mut script = Command::new("script");
        script.current_dir(lab.scratch.path());
        script.args(["-qec", &format!("stty rows 33 cols 77; {}", line.join(" ")), "/dev/null"]);
        let ended = command::run(script);
        (ended.code, without_echo(&ended.stdout))
    };
    let (ours, theirs) = (in_terminal(Lab::ours()), in_terminal(Lab::runc()));
    assert_eq!(ours, theirs);
    assert!(ours.1.contains("three\r\n/dev/pts/0\r\n33 77\r\nerr\r\n"), "{ours:?}");
    let refused = |lab: Lab| {
        lab.configure(&json!({"process": {"terminal": true}}), "true");
        lab.call(&["run", "--detach", &lab.id()]).fails_with("without setting console socket");
        lab.call(&["run", "--console-socket", "/tmp/x", &lab.id()]).fails_with("cannot use console socket");
    };
    refused(Lab::ours());
    refused(Lab::runc());
}

/// The end of its own input is typed by script(1), and shown when that comes early.
fn without_echo(text: &str) -> String {
    text.replace("^@", "").replace("^D\u{8}\u{8}", "").replace('\0', "")
}

#[test]
fn a_process_that_is_added_has_a_terminal_in_the_foreground() {
    let lab = Lab::ours();
    lab.configure(&json!({}), "sleep 1000");
    let id = lab.id();
    let null = std::process::Stdio::null;
    let mut run = lab.command(&["run", "--detach", &id]);
    assert!(run.stdin(null()).stdout(null()).stderr(null()).status().unwrap().success());
    let exec = lab.command(&["exec", "--tty", &id, "sh", "-c", "tty; exit 6"]);
    let words = std::iter::once(exec.get_program()).chain(exec.get_args());
    let line: Vec<String> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
    let mut script = Command::new("script");
    script.args(["-qec", &line.join(" "), "/dev/null"]);
    let ended = command::run(script);
    assert_eq!((ended.code, without_echo(&ended.stdout)), (Some(6), "/dev/pts/0\r\n".to_owned()));
}

/// Takes over what a runtime hands to the listener of a profile, and answers the next call.
fn decide(listener: &UnixListener) -> (Value, String) {
    let (stream, _) = listener.accept().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = vec![0; 1 << 16];
    let count =
        recvmsg(&stream, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let rights = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let fd: OwnedFd = rights.unwrap();
    let call = ScmpNotifReq::receive(fd.as_raw_fd()).unwrap();
    const ENOTEMPTY: i32 = 39;
    let answer = ScmpNotifResp::new_error(call.id, -ENOTEMPTY, ScmpNotifRespFlags::empty());
    answer.respond(fd.as_raw_fd()).unwrap();
    let name = ScmpSyscall::get_name(call.data.syscall).unwrap();
    (serde_json::from_slice(&text[..count.bytes]).unwrap(), name)
}

#[test]
fn a_listener_decides_about_calls() {
    for privileges in [false, true] {
        let decided = |lab: Lab| {
            let path = lab.scratch.join("listener");
            let listener = UnixListener::bind(&path).unwrap();
            let profile = json!({
                "process": {"noNewPrivileges": privileges},
                "linux": {"seccomp": {
                    "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path, "listenerMetadata": "about this",
                    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}]}}});
            let other = std::thread::spawn(move || decide(&listener));
            let ended = lab.run(&profile, "mkdir /made 2>&1");
            let (told, call) = other.join().unwrap();
            assert_eq!(told["state"]["id"], lab.id());
            assert!(told["pid"].as_i64().unwrap() > 1 && told["pid"] == told["state"]["pid"], "{told}");
            (ended.code, ended.stdout, told["fds"].clone(), told["metadata"].clone(), call)
        };
        let (ours, theirs) = (decided(Lab::ours()), decided(Lab::runc()));
        assert_eq!(ours, theirs);
        assert!(ours.1.contains("Directory not empty"), "{ours:?}");
    }
    let nobody = json!({"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/no/such/listener",
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}}});
    for lab in [Lab::ours(), Lab::runc()] {
        let refused = lab.run(&nobody, "true");
        assert!(refused.code != Some(0) && refused.stderr.contains("/no/such/listener"), "{refused:?}");
    }
}

#[test]
fn an_interface_of_the_host_moves_in_with_its_addresses() {
    let lab = Lab::ours();
    let devices = json!({"linux": {"netDevices": {"moves": {"name": "eth7"}}}});
    lab.configure(&devices, "ip addr show eth7");
    let command = lab.command(&["run", &lab.id()]);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<String> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
    let ip = Peers::find().busybox().display().to_string() + " ip";
    // A host's network of our own: interfaces that are not moved end with it.
    let host = format!(
        "set -e; {ip} link add moves type veth; {ip} addr add 10.9.8.7/24 dev moves
        {ip} addr add fd00::7/64 dev moves; {ip} link set moves up; {}; {ip} link show moves",
        line.join(" ")
    );
    let mut network = Command::new("unshare");
    network.args(["--net", "sh", "-c", &host]).current_dir(lab.scratch.path());
    let seen = command::run(network);
    assert!(seen.stdout.contains("inet 10.9.8.7/24") && seen.stdout.contains("inet6 fd00::7/64"), "{seen:?}");
    assert!(seen.stdout.contains("MULTICAST,UP"), "{seen:?}");
    assert!(seen.code != Some(0), "it is no interface of the host any more: {seen:?}");
    let none = Lab::ours().run(&json!({"linux": {"netDevices": {"no-such": {}}}}), "true");
    none.fails_with("no-such\\\": no such device");
}

#[test]
fn a_root_may_have_an_absolute_path_and_no_mounts() {
    // runc 1.1 cannot start it without /proc.
    let lab = Lab::ours();
    lab.configure(&json!({}), "pwd; echo *; echo $0");
    let file = lab.scratch.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    config["root"]["path"] = lab.scratch.join("rootfs").display().to_string().into();
    config.as_object_mut().unwrap().remove("mounts");
    std::fs::write(file, config.to_string()).unwrap();
    assert_eq!(lab.call(&["run", &lab.id()]).ok(), "/\nbin dev etc place proc sys\nsh\n");
}

#[test]
fn the_usual_profile_lets_through_the_same_as_under_others() {
    let capabilities = json!(["CAP_SYS_ADMIN", "CAP_SYS_CHROOT"]);
    let profile = json!({
        "process": {"capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities}},
        // It knows nothing of what the process may do more.
        "linux": {"seccomp": corten_oci::seccomp::default_profile(&[])}});
    let script = "grep Seccomp: /proc/self/status; mount -t tmpfs x /place 2>&1; unshare -m true 2>&1; \
        hostname other 2>&1; chroot / true 2>&1; mkdir /made && (sleep 0; echo works)";
    same("the usual profile", &profile, script, "Operation not permitted");
}

#[test]
fn what_apparmor_does_not_know_is_refused_as_by_runc() {
    let patch = json!({"process": {"apparmorProfile": "corten-no-such"}});
    let seen = |lab: Lab| {
        let refused = lab.run(&patch, "true");
        let words = refused.stderr.rsplit("msg=").next().unwrap().replace(&lab.id(), "ID");
        (refused.code, words)
    };
    let (ours, theirs) = (seen(Lab::ours()), seen(Lab::runc()));
    assert_eq!(ours, theirs);
    assert!(ours.1.contains("unable to apply apparmor profile"), "{ours:?}");
}

#[test]
fn what_this_host_does_not_have_is_named() {
    let rdt = json!({"linux": {"intelRdt": {"l3CacheSchema": "L3:0=f"}}});
    let has_rdt = std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(" - resctrl ");
    if !has_rdt {
        for lab in [Lab::ours(), Lab::runc()] {
            let refused = lab.run(&rdt, "true");
            let told = refused
                .stderr
                .contains("intelRdt.l3CacheSchema is specified in config, but Intel RDT/CAT is not enabled");
            assert!(refused.code != Some(0) && told, "{refused:?}");
            assert_eq!(lab.call(&["list", "-q"]).ok(), "");
        }
    }
    let lab = Lab::ours();
    lab.configure(&json!({}), "true");
    if !std::path::Path::new("/run/systemd/system").exists() {
        lab.call(&["--systemd-cgroup", "run", &lab.id()])
            .fails_with("systemd not running on this host, cannot use systemd cgroups manager");
        lab.configure(&json!({"linux": {"cgroupsPath": "/not/of/systemd"}}), "true");
        lab.call(&["--systemd-cgroup", "run", &lab.id()]).fails_with("slice:prefix:name");
        assert_eq!(lab.call(&["list", "-q"]).ok(), "");
    }
}

#[test]
fn features_are_told_in_the_specifications_form() {
    let read = |lab: Lab| -> Value { serde_json::from_str(&lab.call(&["features"]).ok()).unwrap() };
    let (ours, theirs) = (read(Lab::ours()), read(Lab::runc()));
    let names = |value: &Value| -> Vec<String> { serde_json::from_value(value.clone()).unwrap() };
    for pointer in [
        "/hooks",
        "/linux/namespaces",
        "/linux/capabilities",
        "/linux/seccomp/actions",
        "/linux/seccomp/operators",
        "/linux/seccomp/archs",
    ] {
        let (ours, theirs) = (names(ours.pointer(pointer).unwrap()), names(theirs.pointer(pointer).unwrap()));
        assert!(theirs.iter().all(|one| ours.contains(one)), "{pointer}: {ours:?} lacks some of {theirs:?}");
    }
    // Those of file systems are passed on to them.
    let own = ["acl", "noacl"];
    let options = names(&ours["mountOptions"]);
    for option in names(&theirs["mountOptions"]).iter().filter(|one| !own.contains(&one.as_str())) {
        assert!(options.contains(option), "{option}");
    }
}

#[test]
fn figures_and_memory_that_runs_out_are_told_while_a_container_runs() {
    let lab = Lab::ours();
    let id = lab.id();
    let limits = json!({"linux": {"resources": {"memory": {"limit": 16 << 20}, "pids": {"limit": 50}}}});
    lab.configure(&limits, "while test ! -e /go; do sleep 0.1; done; tail /dev/zero; sleep 0.5");
    let null = std::process::Stdio::null;
    let mut run = lab.command(&["run", "--detach", &id]);
    assert!(run.stdin(null()).stdout(null()).stderr(null()).status().unwrap().success());
    let once: Value = serde_json::from_str(&lab.call(&["events", "--stats", &id]).ok()).unwrap();
    assert_eq!((&once["type"], &once["id"]), (&json!("stats"), &json!(id)));
    assert_eq!(once["data"]["memory"]["usage"]["limit"], 16 << 20);
    assert_eq!(once["data"]["pids"]["limit"], 50);
    assert!(once["data"]["cpu"]["usage"]["total"].as_u64().unwrap() > 0);
    let events = corten_tests::Running::start(lab.command(&["events", "--interval", "50ms", &id]), None);
    // What is read at once may be half a line.
    let mut first = String::new();
    while !first.contains('\n') {
        first.push_str(&events.next_output(std::time::Duration::from_secs(30)).unwrap());
    }
    assert!(first.contains("\"stats\""), "{first}");
    std::fs::write(lab.scratch.join("rootfs/go"), "").unwrap();
    // It ends with the container.
    let told = events.finish().ok();
    assert!(told.lines().any(|line| line.contains("\"oom\"")), "{told}");
}
