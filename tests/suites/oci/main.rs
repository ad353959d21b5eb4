//! The embedded OCI runtime beside runc and crun: a property each, the same bundle under all, and what a process in
//! it sees must be the same. Commands and their messages likewise, beside runc.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod checkpoint;
mod descriptors;
mod joined;
mod rare;
mod systemd;
mod unified;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use corten_tests::{Finished, Peers, Scratch, command, peers};
use serde_json::{Value, json};

/// A bundle with busybox, and one of the two runtimes.
struct Lab {
    scratch: Scratch,
    runtime: PathBuf,
}

impl Lab {
    fn ours() -> Self {
        let scratch = Scratch::new();
        // The supervisor is the runtime when it is called so.
        symlink(peers::programs().join("containerd-shim-runc-v2"), scratch.join("runc")).unwrap();
        let runtime = scratch.join("runc");
        Self { scratch, runtime }.with_rootfs()
    }

    fn runc() -> Self {
        Self { scratch: Scratch::new(), runtime: Peers::find().runc().join("runc") }.with_rootfs()
    }

    fn crun() -> Self {
        let (scratch, peers) = (Scratch::new(), Peers::find());
        let runtime = scratch.join("crun");
        peers.beside_crun(&peers.crun(), &runtime);
        Self { scratch, runtime }.with_rootfs()
    }

    fn with_rootfs(self) -> Self {
        let rootfs = self.scratch.join("rootfs");
        for folder in ["bin", "etc", "place", "proc", "dev", "sys"] {
            std::fs::create_dir_all(rootfs.join(folder)).unwrap();
        }
        std::fs::copy(Peers::find().busybox(), rootfs.join("bin/busybox")).unwrap();
        let list = Command::new(rootfs.join("bin/busybox")).arg("--list").output().unwrap();
        for applet in String::from_utf8(list.stdout).unwrap().lines().filter(|name| *name != "busybox") {
            symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        std::fs::write(rootfs.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nu:x:7:7::/home/u:/bin/sh\n")
            .unwrap();
        symlink("/etc/passwd", rootfs.join("place/link")).unwrap();
        self
    }

    fn id(&self) -> String {
        self.scratch.path().file_name().unwrap().to_string_lossy().into_owned()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.runtime);
        command.arg("--root").arg(self.scratch.join("state")).args(args).current_dir(self.scratch.path());
        command
    }

    fn call(&self, args: &[&str]) -> Finished {
        command::run(self.command(args))
    }

    fn configure(&self, patch: &Value, script: &str) {
        let mut config = usual();
        config["process"]["args"] = json!(["sh", "-c", script]);
        merge(&mut config, patch);
        std::fs::write(self.scratch.join("config.json"), config.to_string()).unwrap();
    }

    /// Runs a script in a container with a changed configuration.
    fn run(&self, patch: &Value, script: &str) -> Finished {
        self.configure(patch, script);
        self.call(&["run", &self.id()])
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.call(&["delete", "--force", &self.id()]);
    }
}

fn usual() -> Value {
    let capabilities = json!(["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"],
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
        },
        "root": {"path": "rootfs"},
        "hostname": "inside",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
        },
    })
}

/// Objects are merged, lists grow, all else is replaced.
fn merge(into: &mut Value, patch: &Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (Value::Array(into), Value::Array(patch)) => into.extend(patch.iter().cloned()),
        (into, patch) => *into = patch.clone(),
    }
}

/// What crun does in another way than runc, and why we keep to runc.
const CRUN_DIFFERS: [(&str, &str); 2] = [
    ("no such user", "programs want a home folder: runc says /, crun nothing"),
    ("devices", "crun makes /dev/core only where there is /proc/kcore"),
];

/// All runtimes run it and tell the same, which has `part` in it.
fn same(name: &str, patch: &Value, script: &str, part: &str) {
    let (ours, theirs) = (Lab::ours().run(patch, script), Lab::runc().run(patch, script));
    let seen = |one: &Finished| (one.code, one.stdout.clone());
    assert_eq!(seen(&ours), seen(&theirs), "{name}\n{ours:?}\n{theirs:?}");
    let cruns = Lab::crun().run(patch, script);
    let alike = name == "devices" && Path::new("/proc/kcore").exists();
    match CRUN_DIFFERS.iter().find(|one| one.0 == name && !alike) {
        None => assert_eq!(seen(&ours), seen(&cruns), "{name}\n{ours:?}\n{cruns:?}"),
        Some((_, why)) => assert_ne!(seen(&ours), seen(&cruns), "{name}: crun does the same by now; {why}"),
    }
    assert!(ours.stdout.contains(part), "{name}: {ours:?}");
}

#[test]
fn users_groups_and_masks_are_those_of_runc() {
    let show = "grep -E 'Uid|Gid|Groups|Umask' /proc/self/status; echo home $HOME; pwd";
    same("root", &json!({}), show, "home /root");
    let user = json!({"process": {"user": {"uid": 7, "gid": 8, "additionalGids": [10, 11], "umask": 63}, "cwd": "/place"}});
    same("a user", &user, show, "home /home/u\n/place");
    same("no such user", &json!({"process": {"user": {"uid": 4242}}}), show, "home /\n");
    same(
        "a missing folder",
        &json!({"process": {"cwd": "/made/here"}}),
        "pwd; ls -ld /made/here | cut -c1-10",
        "/made/here",
    );
}

#[test]
fn capabilities_privileges_and_limits_are_those_of_runc() {
    let show = "grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/self/status";
    same("as usual", &json!({}), show, "CapEff:\t00000000000004e1");
    same("no new privileges", &json!({"process": {"noNewPrivileges": true}}), show, "NoNewPrivs:\t1");
    let ambient = json!(["CAP_CHOWN"]);
    let user = json!({"process": {"user": {"uid": 7}, "capabilities": {"inheritable": ambient, "ambient": ambient}}});
    same("ambient ones of a user", &user, show, "CapAmb:\t0000000000000001");
    let limits = json!({"process": {"rlimits": [{"type": "RLIMIT_NOFILE", "hard": 100, "soft": 50}, {"type": "RLIMIT_CORE", "hard": 0, "soft": 0}]}});
    same("limits", &limits, "ulimit -n; ulimit -Hn; ulimit -c", "50\n100\n0\n");
    same("a score", &json!({"process": {"oomScoreAdj": 77}}), "cat /proc/self/oom_score_adj", "77");
    let filter = json!({"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]}]}}});
    same(
        "a filter",
        &filter,
        "mkdir /x 2>&1; grep Seccomp: /proc/self/status; ls /etc",
        "Function not implemented",
    );
    let both = json!({"process": {"noNewPrivileges": true}, "linux": filter["linux"]});
    same(
        "a filter without privileges",
        &both,
        "mkdir /x 2>&1; grep Seccomp: /proc/self/status",
        "Seccomp:\t2",
    );
}

#[test]
fn the_file_system_is_that_of_runc() {
    let list = "cut -d' ' -f5,6 /proc/self/mountinfo | sort";
    same("mounts", &json!({}), list, "/dev/pts");
    same(
        "a root to read from",
        &json!({"root": {"readonly": true}}),
        "touch /x 2>&1; echo x > /dev/null && echo ok",
        "Read-only",
    );
    let hidden = json!({"linux": {"maskedPaths": ["/proc/kcore", "/etc", "/no/such"], "readonlyPaths": ["/proc/sys", "/place", "/no/such"]}});
    same(
        "hidden paths",
        &hidden,
        "cat /proc/kcore; ls -A /etc; touch /place/x 2>&1; touch /etc/x 2>&1",
        "Read-only",
    );
    same(
        "devices",
        &json!({}),
        "ls -l /dev | awk '{print $1, $3, $4, $5, $6, $NF}' | grep -v total",
        "/proc/self/fd/2",
    );
    let device = json!({"linux": {
        "devices": [{"path": "/dev/deep/one", "type": "c", "major": 10, "minor": 229, "fileMode": 384, "uid": 7, "gid": 8}],
        "resources": {"devices": [{"allow": true, "type": "c", "major": 10, "minor": 229, "access": "r"}]}}});
    same(
        "a device more",
        &device,
        "ls -ln /dev/deep/one | awk '{print $1, $3, $4, $5, $6}'; echo > /dev/deep/one",
        "crw------- 7 8 10, 229",
    );
    let mounts = json!({"mounts": [
        {"destination": "/made/up", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k", "noexec", "mode=700"]},
        {"destination": "/place/link", "type": "bind", "source": "/etc/hostname", "options": ["bind", "ro"]},
        {"destination": "/all", "type": "none", "source": "/etc", "options": ["rbind", "ro", "nosuid", "rprivate"]}]});
    same(
        "more mounts",
        &mounts,
        "grep -E ' /(made|etc|all)' /proc/self/mountinfo | cut -d' ' -f5,6 | sort; touch /all/x 2>&1; ls -ld /made/up | cut -c1-10",
        "Read-only",
    );
    let shared = json!({"linux": {"rootfsPropagation": "shared"}});
    // runc 1.1 leaves the root itself a slave, against the specification.
    assert_eq!(
        Lab::ours().run(&shared, "cut -d' ' -f5,7 /proc/self/mountinfo | grep '^/ ' | grep -o shared").ok(),
        "shared\n"
    );
}

#[test]
fn namespaces_and_parameters_are_those_of_runc() {
    let names = "hostname; echo $$; ip link | grep -c '^[0-9]'; ip link | grep -o 'LOOPBACK,UP'";
    same("as usual", &json!({}), names, "inside\n1\n");
    same(
        "cgroups",
        &json!({"linux": {"namespaces": [{"type": "cgroup"}]}}),
        "cut -d: -f3 /proc/self/cgroup | sort -u",
        "/\n",
    );
    let parameters = json!({"linux": {"sysctl": {"net.ipv4.ip_forward": "1", "kernel.shmmni": "77", "net/ipv4/ip_default_ttl": "33"}}});
    same("parameters", &parameters, "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni", "1\n77\n");
    let maps = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    let user = json!({"linux": {"namespaces": [{"type": "user"}], "uidMappings": maps, "gidMappings": maps}});
    for (lab, name) in [(Lab::ours(), "ours"), (Lab::runc(), "theirs")] {
        // Its root must be able to pass through to the files.
        open_to_others(lab.scratch.path());
        let seen = lab.run(&user, "id -u; cat /proc/self/uid_map; echo > /dev/null && echo works");
        assert!(seen.stdout.starts_with("0\n") && seen.stdout.ends_with("works\n"), "{name}: {seen:?}");
        assert!(seen.stdout.contains("100000"), "{name}: {seen:?}");
    }
}

#[test]
fn clocks_of_a_time_namespace_are_set() {
    let time = json!({"linux": {"namespaces": [{"type": "time"}], "timeOffsets": {"boottime": {"secs": 1_000_000, "nanosecs": 0}}}});
    let seen = Lab::ours().run(&time, "cut -d. -f1 /proc/uptime").ok();
    assert!(seen.trim().parse::<u64>().unwrap() >= 1_000_000, "{seen}");
}

#[test]
fn owners_of_a_mapped_mount_are_changed() {
    // runc 1.1 cannot do it.
    for lab in [Lab::ours(), Lab::crun()] {
        let source = lab.scratch.join("mine");
        std::fs::create_dir(&source).unwrap();
        let maps = json!([{"containerID": 0, "hostID": 5000, "size": 100}]);
        let mount = json!({"mounts": [{"destination": "/mine", "type": "bind", "source": source,
            "options": ["bind", "idmap"], "uidMappings": maps, "gidMappings": maps}]});
        assert_eq!(lab.run(&mount, "stat -c %u /mine").ok(), "5000\n");
    }
}

#[test]
fn hooks_run_where_and_when_they_run_under_runc() {
    let told = |lab: Lab| -> Vec<String> {
        let file = lab.scratch.join("told");
        let hook = |name: &str| {
            let script = format!(
                "cat >/dev/null; test -e /made-in-the-image && echo {name} in >> /told || echo {name} >> {}",
                file.display()
            );
            json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}])
        };
        std::fs::write(lab.scratch.join("rootfs/made-in-the-image"), "").unwrap();
        let hooks = json!({"hooks": {
            "prestart": hook("prestart"), "createRuntime": hook("createRuntime"), "createContainer": hook("createContainer"),
            "startContainer": hook("startContainer"), "poststart": hook("poststart"), "poststop": hook("poststop")}});
        lab.run(&hooks, "sleep 0.2").ok();
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        let text = read(file.clone()) + &read(lab.scratch.join("rootfs/told"));
        text.lines().map(str::to_owned).collect()
    };
    let ours = told(Lab::ours());
    assert_eq!(ours, told(Lab::runc()));
    assert_eq!(ours.len(), 6, "{ours:?}");
    let failing = json!({"hooks": {"createRuntime": [{"path": "/bin/false"}]}});
    for lab in [Lab::ours(), Lab::runc()] {
        let failed = lab.run(&failing, "true");
        assert!(failed.code == Some(1) && failed.stderr.contains("error running"), "{failed:?}");
        assert_eq!(lab.call(&["list", "-q"]).ok(), "", "a container that failed is gone");
    }
}

#[test]
fn what_follows_a_container_follows_one_that_could_not_be_created() {
    let told = |lab: Lab| {
        let file = lab.scratch.join("told");
        let hook = |name: &str, code: i32| {
            let script = format!("cat >/dev/null; echo {name} >> {}; exit {code}", file.display());
            json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}])
        };
        let hooks = json!({"hooks": {
            "createRuntime": hook("first", 0), "createContainer": hook("second", 1), "poststop": hook("poststop", 0)}});
        assert_eq!(lab.run(&hooks, "true").code, Some(1));
        std::fs::read_to_string(&file).unwrap_or_default()
    };
    let ours = told(Lab::ours());
    assert_eq!(ours, told(Lab::runc()));
    assert!(ours.ends_with("poststop\n"), "{ours}");
    // Whatever has become of the bundle by then.
    let lab = Lab::ours();
    let file = lab.scratch.join("told");
    let script = format!("cat >/dev/null; echo poststop >> {}", file.display());
    lab.configure(
        &json!({"hooks": {"poststop": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]}}),
        "sleep 1000",
    );
    let null = std::process::Stdio::null;
    let mut run = lab.command(&["run", "--detach", &lab.id()]);
    assert!(run.stdin(null()).stdout(null()).stderr(null()).status().unwrap().success());
    std::fs::remove_file(lab.scratch.join("config.json")).unwrap();
    lab.call(&["delete", "--force", &lab.id()]).ok();
    assert_eq!(std::fs::read_to_string(file).unwrap(), "poststop\n");
}

#[test]
fn what_the_runtime_refuses_is_told_as_runc_tells_it() {
    for (patch, text) in [
        (json!({"process": {"args": null}}), "args must not be empty"),
        (json!({"process": {"cwd": "relative"}}), "Cwd must be an absolute path"),
        (
            json!({"mounts": [{"destination": "/x", "type": "bind", "source": "/no/such", "options": ["bind"]}]}),
            "no such file or directory",
        ),
        (json!({"mounts": [{"destination": "/x", "type": "nosuchfs", "source": "x"}]}), "no such device"),
        (json!({"process": {"rlimits": [{"type": "RLIMIT_NONE", "hard": 1, "soft": 1}]}}), "rlimit"),
        (json!({"linux": {"sysctl": {"kernel.no_such": "1"}}}), "no_such"),
    ] {
        for lab in [Lab::ours(), Lab::runc()] {
            let refused = lab.run(&patch, "true");
            assert!(refused.code != Some(0) && refused.stderr.contains(text), "{patch}: {refused:?}");
            assert_eq!(lab.call(&["list", "-q"]).ok(), "", "{patch}");
        }
    }
}

#[test]
fn a_life_by_commands_is_that_under_runc() {
    let life = |lab: Lab| -> Vec<(Option<i32>, String)> {
        let id = lab.id();
        lab.configure(&json!({}), "sleep 1000");
        let quiet = |args: &[&str]| {
            // A created container holds our pipes open.
            let mut command = lab.command(args);
            let null = std::process::Stdio::null;
            command.stdin(null()).stdout(null()).stderr(null()).status().unwrap().code()
        };
        let status = || {
            let state: Value = serde_json::from_str(&lab.call(&["state", &id]).stdout).unwrap_or_default();
            state["status"].as_str().unwrap_or("none").to_owned()
        };
        let words = |finished: Finished| {
            let text = finished.stderr.rsplit("msg=").next().unwrap_or_default().trim().replace(&id, "ID");
            (finished.code, format!("{}{text}", finished.stdout))
        };
        let mut seen = vec![(quiet(&["create", &id]), status())];
        seen.push(words(lab.call(&["delete", "nobody"])));
        seen.push(words(lab.call(&["create", &id])));
        seen.push((quiet(&["start", &id]), status()));
        seen.push(words(lab.call(&["start", &id])));
        seen.push(words(lab.call(&[
            "exec",
            "--env",
            "A=b",
            "--cwd",
            "/place",
            "--user",
            "7:8",
            &id,
            "sh",
            "-c",
            "echo $A; pwd; id -u; id -g; exit 5",
        ])));
        seen.push(words(lab.call(&["exec", &id, "no-such"])));
        seen.push((quiet(&["pause", &id]), status()));
        seen.push((quiet(&["resume", &id]), status()));
        seen.push(words(lab.call(&["delete", &id])));
        seen.push(words(lab.call(&["update", "--pids-limit", "50", &id])));
        seen.push((quiet(&["kill", &id, "KILL"]), String::new()));
        corten_tests::eventually("it ends", std::time::Duration::from_secs(10), || {
            (status() == "stopped").then_some(())
        });
        seen.push(words(lab.call(&["kill", &id])));
        seen.push((quiet(&["delete", &id]), status()));
        seen.push(words(lab.call(&["state", &id])));
        seen.push(words(lab.call(&["bogus"])));
        seen
    };
    for (number, (ours, theirs)) in life(Lab::ours()).into_iter().zip(life(Lab::runc())).enumerate() {
        assert_eq!(ours, theirs, "step {number}");
    }
}

fn open_to_others(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    for path in [path, &path.join("rootfs")] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}
