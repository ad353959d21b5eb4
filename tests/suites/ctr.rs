//! Our `ctr` and Debian's 2.1 are given the same command lines against the same kind of daemon, each a fresh one:
//! output, errors and exit codes must be the same, but for what is listed here as intended.
//!
//! A line of a script is a command line, perhaps with a remark in brackets before it:
//! `[help]` only the names of commands and flags are compared: the texts are our own;
//! `[pids]` numbers and the width of columns vary; `[sorted]` the original's order is that of a hash map;
//! `[ours: why]` only the exit code must be the same; `[free: why]` not even that.
//! `@stopped ID` waits until a task has stopped. `$I` is an image, `$C` the chain id of its layer, `$M` its manifest,
//! `$D` the node's folder.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use corten_tests::{Finished, ImageBuilder, Node, Peers, Running, eventually};
use regex::Regex;

const IMAGE: &str = "example.com/lab/box:1";

/// Flags and commands that only ours has.
const OURS_ALONE: [&str; 19] = [
    "--format value",
    "--rlimit-nofile value",
    "--dump-config value",
    "cri",
    "inspect",
    "stats",
    "stop",
    "prune",
    "check",
    "completion",
    "info, i",
    "--max-concurrent-uploaded-layers value",
    "--once",
    "--repair",
    "build-erofs-cache",
    "sandboxes info",
    "--sync",
    "--expiration value, -x value",
    "--mount-manager",
];

/// A node and the `ctr` that talks to it.
struct Side {
    node: Node,
    ctr: std::path::PathBuf,
    chain: String,
    manifest: String,
}

impl Side {
    fn new(node: Node, ctr: &Path) -> Self {
        let archive = node.join("image.tar");
        let build = ImageBuilder::busybox().set("Cmd", serde_json::json!(["sh"]));
        let build = build.set("Env", serde_json::json!(["PATH=/usr/sbin:/usr/bin:/sbin:/bin"])).build();
        build.save(&archive, IMAGE).unwrap();
        std::fs::write(node.join("allow.json"), "{\"defaultAction\": \"SCMP_ACT_ALLOW\"}").unwrap();
        std::fs::create_dir(node.join("opt")).unwrap();
        std::fs::write(node.join("env"), "A=1\n#x\n\nB\nC= 2 # x\n").unwrap();
        std::fs::create_dir_all(node.join("tree/bin")).unwrap();
        std::fs::copy(Peers::find().busybox(), node.join("tree/bin/sh")).unwrap();
        let theirs = Peers::find().containerd_2_1().join("ctr");
        let spec = corten_tests::command::run(node.foreign_ctr_command(&theirs, ["oci", "spec"])).ok();
        std::fs::write(node.join("spec.json"), spec).unwrap();
        let archive = archive.to_str().unwrap().to_owned();
        let import = node.foreign_ctr_command(&theirs, ["images", "import", &archive]);
        corten_tests::command::run(import).ok();
        let list = corten_tests::command::run(node.foreign_ctr_command(&theirs, ["snapshots", "ls"])).ok();
        let chain = list.lines().nth(1).and_then(|line| line.split(' ').next()).unwrap().to_owned();
        let manifest = build.target.digest().to_string();
        Self { node, ctr: ctr.to_owned(), chain, manifest }
    }

    fn run(&self, line: &str) -> Finished {
        let mut words: Vec<String> = Vec::new();
        for (at, part) in line.split('\'').enumerate() {
            // What stands in quotes is one word, spaces and all.
            match at % 2 {
                1 => words.push(part.into()),
                _ => words.extend(part.split_whitespace().map(str::to_owned)),
            }
        }
        let folder = self.node.path().display().to_string();
        let filled = words.iter().map(|word| {
            let word = word.replace("$I", IMAGE).replace("$C", &self.chain).replace("$M", &self.manifest);
            word.replace("$NS", self.node.namespace()).replace("$D", &folder)
        });
        let mut command: Command = self.node.foreign_ctr_command(&self.ctr, filled);
        command.current_dir(self.node.path());
        Running::start(command, None).finish()
    }

    fn wait_until_stopped(&self, id: &str) {
        eventually("the task stops", Duration::from_secs(10), || {
            (self.node.task(id)?.1 == "STOPPED").then_some(())
        });
    }

    /// Takes away what varies between two daemons.
    fn plain(&self, text: &str) -> String {
        let text = text.replace(&self.node.path().display().to_string(), "$D");
        let text = text.replace(self.node.namespace(), "$NS");
        let rules = [
            (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UUID"),
            (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| \+0000 UTC|[+-]\d\d:\d\d)", "TIME"),
            (r"snapshots/\d+/", "snapshots/N/"),
            (r"s/[0-9a-f]{64}", "s/HASH"),
            (r"/run/containerd/fifo/\d+", "/run/containerd/fifo/N"),
            (r"(Version|Revision):  .*", "$1:  V"),
            (r"containerd/v2 \S+", "containerd/v2 V"),
            (r"Go version: .*", "Go version: G"),
            (r#""pid": \d+"#, "\"pid\": N"),
            (r"\x00", "@"),
        ];
        rules
            .iter()
            .fold(text, |text, (rule, with)| Regex::new(rule).unwrap().replace_all(&text, *with).into_owned())
    }
}

/// The names of commands and flags in a help text, and what stands before it.
fn names(text: &str) -> String {
    let mut out = String::new();
    let mut section = "";
    for line in text.lines() {
        if line.starts_with("Incorrect Usage") {
            let _ = writeln!(out, "{line}");
        } else if !line.starts_with(' ') && line.ends_with(':') {
            section = line;
            if ["COMMANDS:", "OPTIONS:", "GLOBAL OPTIONS:"].contains(&section) {
                let _ = writeln!(out, "{line}");
            }
        } else if ["COMMANDS:", "OPTIONS:", "GLOBAL OPTIONS:"].contains(&section) && line.starts_with("   ") {
            let name = line.trim().split("  ").next().unwrap_or_default();
            // What a value is called is a matter of text.
            let name = name.replace("container-uid:host-uid:length", "value");
            let name = name.replace("container-gid:host-gid:length", "value");
            if !OURS_ALONE.contains(&name.as_str()) {
                let _ = writeln!(out, "{name}");
            }
        }
    }
    out
}

fn compare(
    remark: &str,
    line: &str,
    ours: &Finished,
    theirs: &Finished,
    sides: [&Side; 2],
) -> Option<String> {
    let show = |finished: &Finished, side: &Side| {
        let (out, err) = (side.plain(&finished.stdout), side.plain(&finished.stderr));
        let (out, err) = match remark {
            "help" => (names(&out), err),
            "pids" => {
                let numbers = Regex::new(r"\d+").unwrap();
                let spaces = Regex::new(r" +").unwrap();
                let varies = |text: &str| {
                    spaces.replace_all(&numbers.replace_all(text, "N"), " ").trim_end().to_owned()
                };
                (varies(&out), varies(&err))
            }
            "sorted" => {
                let mut labels: Vec<&str> = out.trim().split(',').collect();
                labels.sort_unstable();
                (labels.join(","), err)
            }
            _ if remark.starts_with("ours:") => (String::new(), String::new()),
            _ => (out, err),
        };
        format!("exit code {:?}\n--- stdout\n{out}\n--- stderr\n{err}", finished.code)
    };
    if remark.starts_with("free:") {
        return None;
    }
    let (ours, theirs) = (show(ours, sides[0]), show(theirs, sides[1]));
    (ours != theirs).then(|| format!("=== ctr {line}\n*** ours\n{ours}\n*** theirs\n{theirs}\n"))
}

/// Runs a script with both and tells all differences at once.
fn same(script: &str, nodes: [Node; 2]) {
    let ours = corten_tests::peers::programs().join("ctr");
    let theirs = Peers::find().containerd_2_1().join("ctr");
    let [left, right] = nodes;
    let (left, right) = (Side::new(left, &ours), Side::new(right, &theirs));
    let (mut differences, mut count) = (String::new(), 0);
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(id) = line.strip_prefix("@stopped ") {
            left.wait_until_stopped(id);
            right.wait_until_stopped(id);
            continue;
        }
        let (remark, line) = match line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
            Some((remark, line)) => (remark, line),
            None => (line.strip_prefix("[help]").map_or("", |_| "help"), line.trim_start_matches("[help]")),
        };
        count += 1;
        let (mine, other) = (left.run(line), right.run(line));
        if let Some(difference) = compare(remark, line, &mine, &other, [&left, &right]) {
            differences.push_str(&difference);
        }
    }
    assert!(differences.is_empty(), "of {count} command lines some differ:\n{differences}");
    left.node.finish();
    right.node.finish();
}

fn on_ours(script: &str) {
    same(script, [Node::start(), Node::start()]);
}

fn on_debians(script: &str) {
    let folder = Peers::find().containerd_2_1();
    let ours = corten_tests::peers::programs().join("ctr");
    same(script, [Node::peer(&folder).ctr(ours.clone()).start(), Node::peer(&folder).ctr(ours).start()]);
}

/// What can be said before any daemon is asked.
const WORDS: &str = "
[help]
[help] help
[help] --help
[help] -h
[help] run --help
[help] help run
[help] h run
[help] run help
[help] plugins
[help] plugins ls --help
[help] plugins inspect-runtime --help
[help] version --help
[help] c
[help] c create --help
[help] c ls --help
[help] c rm --help
[help] c info --help
[help] c label --help
[help] c checkpoint --help
[help] c restore --help
[ours: has a suite of its own] content
[help] events --help
[ours: has a suite of its own] images
[help] leases
[help] leases ls --help
[help] leases create --help
[help] leases rm --help
[help] leases rm
[help] ns
[help] ns c --help
[help] ns ls --help
[help] ns rm --help
[help] ns label --help
[help] pprof
[help] pprof heap --help
[help] pprof goroutines --help
[help] pprof profile --help
[help] pprof trace --help
[help] snapshots
[help] snapshots commit --help
[help] snapshots commit
[help] snapshots commit x
[help] snapshots diff --help
[help] snapshots info
[help] snapshots ls --help
[help] snapshots mounts
[help] snapshots mounts x
[help] snapshots prepare
[help] snapshots prepare --help
[help] snapshots rm --help
[help] snapshots tree --help
[help] snapshots unpack --help
[help] snapshots usage --help
[help] snapshots view
[help] t
[help] t attach --help
[help] t checkpoint --help
[help] t rm --help
[help] t exec --help
[help] t ls --help
[help] t kill --help
[help] t metrics --help
[help] t pause --help
[help] t ps --help
[help] t resume --help
[help] t start --help
[help] install --help
[help] oci
[help] oci spec --help
[help] sandboxes
[help] sandboxes run
[help] sandboxes ls --help
[help] sandboxes rm --help
[help] info --help
[help] deprecations
[help] deprecations list --help
[help] shim
[help] shim delete --help
[help] shim exec --help
[help] shim start --help
[help] shim state --help
[help] shim pprof
[help] run --foo
[help] run --env
[help] run --memory-limit x a b
[help] run --cpus x a b
[help] run --cpu-shares 1.5 a b
[help] run --gpus x a b
[help] c ls --quiet=foo
[help] c ls -qx
[help] c ls ---q
[help] c ls -=q
[help] c --quiet ls
[help] leases create --expires foo
[help] leases create -x foo
[help] snapshots usage -x
[help] c ''
nope
c nope
help nope
c help nope
C
-
c -
version extra words
-v
--version c
c ls -quiet
c ls --q
c ls -q=false
run --help=false
run --rm=false --rm=true
-- c ls
oci spec
oci spec --platform linux/arm64
oci spec --platform windows/amd64
oci spec --platform foo/bar/baz/x
shim state
shim start
shim --id nope state
shim --id nope delete
shim --id nope start
pprof -d $D/nope.sock heap
pprof -d $D/nope.sock goroutines
pprof -d $D/nope.sock profile -s 1s
pprof -d $D/nope.sock block
pprof -d $D/nope.sock threadcreate
pprof -d $D/nope.sock trace -s 1s
";

/// Records of all kinds: made, shown, changed, removed.
const RECORDS: &str = "
[ours: the versions differ, and so the warning] version
[ours: one line for each] info
plugins ls
plugins ls -q
plugins ls -q foo
plugins ls id==overlayfs
plugins ls type==io.containerd.snapshotter.v1
plugins ls -d id==overlayfs
plugins ls -d id==bindir
[ours: what they export is in the order of a hash map] plugins ls -d
[ours: the runtimes differ] plugins inspect-runtime
plugins inspect-runtime --runtime foo.bar.v1 --runc-binary x
c ls
c ls -q
t ls
leases ls
snapshots --snapshotter native ls
snapshots --snapshotter nope ls
sandboxes ls
deprecations list
deprecations list --format json
c create $I c1
c ls
c ls -q
c ls id==c1
c ls id==c2
c ls foo==
c info c1
c info --spec c1
c create $I c1
c create
c create x
c create nope c9
c info
c info nope
[sorted] c label c1 a=b c=d e
[ours: the original fails here, although it means to show the labels] -n x c label c1
[ours: labels without changes are shown] c label nope
c label
c label nope a=b
[sorted] c label c1 a=
c rm
c rm nope
c rm nope c1
c ls
c rm c1
c checkpoint
c checkpoint a
c checkpoint a b
c restore
c restore a
c create $I ck
c checkpoint ck example.com/ck:1
c checkpoint --image ck example.com/ck:2
c checkpoint ck example.com/ck:1
[ours: the daemon's own words] c checkpoint --task ck example.com/ck:3
content ls -q
c rm ck
[ours: nothing is brought from a registry here] c restore a b
leases create --id l1 a=b c
leases ls
leases ls -q
leases ls id==l1
leases create --id l1
leases create -x 0 --id l2
leases ls
leases rm l1 l2
leases rm nope
[ours: ids are drawn] leases create
[free: ids are drawn] leases rm --sync nope
ns ls -q
ns create
ns create foo a=b c=d
ns create foo
ns ls
ns ls -q
ns label foo
ns label
ns label foo a= z=1 y
ns label nope a=b
ns ls
ns rm
ns rm nope
ns rm foo
ns rm foo
ns create 'a b'
ns rm $NS
snapshots ls
snapshots tree
snapshots prepare p1 $C
snapshots prepare --target /mnt p2 $C
snapshots prepare --mounts p3 $C
snapshots prepare p1 $C
snapshots prepare p9 nope
snapshots view v1 $C
snapshots view --mounts v2 $C
snapshots view --target /mnt v3
snapshots ls
snapshots tree
snapshots info p1
snapshots info v1
snapshots info nope
snapshots mounts /mnt p1
snapshots mounts /mnt nope
[sorted] snapshots label p1 a=b
[sorted] snapshots label p1
snapshots label
snapshots label nope a=b
snapshots usage p1 $C
snapshots usage -b p1 $C
snapshots usage
snapshots usage nope
snapshots commit done1 p1
snapshots commit done1 p2
snapshots commit x9 nope
snapshots prepare p4 done1
snapshots ls
snapshots tree
snapshots rm
snapshots rm nope
snapshots rm done1
snapshots rm p4 done1
snapshots diff
snapshots diff nope
[ours: archives are our own] snapshots diff p2
[ours: archives are our own] snapshots diff --keep p2 $C
snapshots diff --media-type foo p2
snapshots rm p2 p3
[free: views may have been collected] snapshots rm v1
[free: views may have been collected] snapshots rm v2
[free: views may have been collected] snapshots rm v3
snapshots unpack
snapshots unpack nope
snapshots unpack sha256:00
snapshots unpack sha256:0000000000000000000000000000000000000000000000000000000000000000
snapshots unpack $M
sandboxes rm
sandboxes run $D/nope x
install
install nope
install --path $D/opt $I
install --path $D/opt $I
install --path $D/opt -r $I
events foo==
[help] -n 'a b' c ls
[help] -n= c ls
--timeout 1ns c ls
";

/// Containers: from flags to specifications, without running them.
const SPECIFICATIONS: &str = "
c create $I a1
c info a1
c create --annotation a=b --label x=y --label z --env A=B --env PATH=/x --env C --env D= $I a2 sleep 5
c info a2
c create --annotation a $I a3
c create --memory-limit 1000000000 --cpu-quota 5000 $I a4
c info a4
c create --cpu-period 1000 $I a5
c info a5
c create --hostname hh --cwd /tmp --user 5:6 --tty --read-only $I a6
c info a6
c create --user 5 $I a7
c info a7
[ours: users are read without mounting] c create --user nope $I a8
c create --mount type=bind,src=/tmp,dst=/host,options=rbind:ro --mount type=tmpfs,dst=/run $I a9
c info a9
c create --mount foo $I b1
c create --mount foo=bar $I b0
c create --net-host $I b2
c info b2
c create --with-ns pid:/proc/1/ns/pid --with-ns user:/proc/1/ns/user --with-ns cgroup:/x $I b3
c info b3
c create --with-ns foo $I b4
c create --with-ns foo:/x $I b4
c create --allow-new-privs --rootfs-propagation slave --rdt-class foo $I b5
c info b5
c create --runc-systemd-cgroup $I b6
c create --runc-binary crun --runc-root /tmp/rr $I b7
c info b7
c create --cap-add CAP_SYS_ADMIN --cap-drop CAP_KILL --cap-add CAP_FOO $I b8
c info b8
c create --cap-add FOO $I b9
c create --cap-drop FOO $I b9
c create --apparmor-profile foo $I c1
c info c1
c create --apparmor-profile foo --apparmor-default-profile bar $I c2
c create --seccomp-profile /x $I c2
c create --seccomp --seccomp-profile /x $I c2
c create --seccomp --seccomp-profile $D/allow.json $I c3
c info c3
c create --blockio-class foo $I c4
c create --blockio-config-file /x $I c4
c create --device /dev/null --device /dev/net --device /dev/fuse $I c5
c info c5
c create --device /dev/nope $I c6
c create --device vendor.com/class=x $I c0
c create --privileged $I c7
c info c7
c create --sandbox nope $I c8
c info c8
c create --env-file $D/env $I c9
c info c9
c create --env-file /nope $I d1
c create --snapshotter native --snapshotter-label a=b $I d2
c info d2
c create --snapshotter nope $I d3
c create --runtime foo $I d4
c info d4
c create --runtime foo.bar.v1 --runc-binary x $I d5
c create --runtime foo.bar.v1 --runtime-config-path x $I d6
c info d6
c create --rootfs --user 0 $D/tree d7 sh -c true
c info d7
c create --rootfs tree d8
c info d8
c create --config $D/spec.json --label q=r --env A=B d9
c info d9
c create --config $D/spec.json d9 more
c create --config /nope d9
c create --config $D/spec.json
c ls
c rm a1 a2 a4 a5 a6 a7 a9 b2 b3 b5 b7 b8 c1 c3 c5 c7 c8 c9 d2 d4 d6 d7 d8 d9
c ls
";

/// Running containers.
const TASKS: &str = "
run --rm $I k0 sh -c 'echo out; echo err >&2; exit 4'
run
run $I
run --rm -d $I k0
run nope k0
[ours: the original leaves a record behind] run --cni $I kc
[free: as said] c rm kc
run --runc-systemd-cgroup $I k0
run --cpus 1 --cpu-quota 1000 $I k0
run --privileged-without-host-devices $I k0
run --uidmap foo --gidmap 0:1:1 $I k0
run --platform foo/bar/x/y $I k0
run --config $D/spec.json a b
run --cap-add FOO $I k0
run -d --null-io --cpus 0.5 --cpuset-cpus 0 --memory-limit 100000000 --pid-file $D/pid $I k1 sleep 1000
c info k1
c ls
[pids] t ls
t ls -q
[pids] t ps k1
t ps
t ps nope
t exec --exec-id e1 k1 echo hi
t exec --exec-id e1 --cwd /tmp --user 5:6 k1 sh -c 'pwd; id'
t exec k1 echo
t exec --exec-id e1
t exec --exec-id e1 nope echo
t exec --exec-id e3 k1 sh -c 'exit 7'
[ours: the OCI runtime's own words] t exec --exec-id e4 k1 nosuchprog
t exec -d --exec-id e2 k1 sleep 1000
[pids] t ps k1
[pids] t metrics k1
[ours: figures vary] t metrics --format json k1
t metrics --format foo k1
t metrics
t metrics nope
t pause k1
[pids] t ls
[ours: the daemon's own words] t pause k1
t resume k1
t resume
t pause
t pause nope
t resume nope
c rm k1
t rm k1
t kill
t kill nope
t kill --signal FOO k1
[ours: the daemon's own words] t kill --exec-id nope k1
shim --id k1 state
shim --id k1 state --api-version 4
shim --id k1 state -t nope
t kill --exec-id e2 -s 9 k1
[pids] t rm --exec-id e2 k1
t rm
t rm nope
[ours: the daemon's own words] t rm --exec-id nope k1
t checkpoint
t attach
t attach nope
t start
t start nope
t start k1
t kill -s KILL k1
@stopped k1
[pids] t ls
t rm k1
t ls
t kill k1
t rm k1
t start -d --null-io k1
t rm -f k1
c rm k1
run -d --null-io --cpu-shares 0 --cgroup=$NS/mine --rootfs --user 0 $D/tree k2 sh -c 'while :; do :; done'
c info k2
t rm -f k2
c rm k2
[free: which files may be owned is the daemon's matter] run -d --null-io --uidmap 0:1000:10 --gidmap 0:2000:10 $I k3 true
c info k3
[free: it may have failed to start] t rm -f k3
c rm k3
[free: it fails to start] run -d --null-io --uidmap 0:1000:10 --remap-labels $I k4 true
c info k4
[free: it may have failed to start] t rm -f k4
c rm k4
[ours: the OCI runtime's own words] run -d --null-io --with-ns foo:/x $I k5 true
run -d --null-io --sync-fs --cpuset-mems 0 --platform linux/amd64 --label a=b --hostname hh --annotation c=d $I k6 sleep 1000
c info k6
t rm -f k6
c rm k6
run --rm --env A=B --cwd /tmp --user 5:6 --read-only $I k7 sh -c 'env; pwd; id -u; touch /x 2>/dev/null; echo $?'
run --rm --net-host $I k8 sh -c 'echo $HOSTNAME'
run --rm --privileged $I k9 sh -c 'test -e /dev/fuse; echo $?'
run --rm --seccomp $I l1 sh -c 'mount -t tmpfs x /tmp; echo $?'
";

/// Both listen to one daemon, and hear the same.
fn hear_the_same(node: Node) {
    let theirs = Peers::find().containerd_2_1().join("ctr");
    let side = Side::new(node, &theirs);
    let node = &side.node;
    let ours = corten_tests::peers::programs().join("ctr");
    let listen = |program: &Path| Running::start(node.foreign_ctr_command(program, ["events"]), None);
    let listeners = [listen(&ours), listen(&theirs)];
    let probe = ["namespaces", "create", "probe", "a=b"];
    for listener in &listeners {
        eventually("events flow", Duration::from_secs(10), || {
            corten_tests::command::run(node.foreign_ctr_command(&theirs, probe));
            corten_tests::command::run(node.foreign_ctr_command(&theirs, ["namespaces", "rm", "probe"]));
            listener.next_output(Duration::from_millis(100))
        });
    }
    side.run("run --rm --label a=<b> $I story true").ok();
    side.run("snapshots prepare q1").ok();
    side.run("snapshots commit q2 q1").ok();
    side.run("snapshots rm q2").ok();
    side.run("containers create $I last").ok();
    side.run("containers label last x=y").ok();
    side.run("containers rm last").ok();
    let heard = listeners.map(|listener| {
        let mut text = String::new();
        while !text.contains("/containers/delete {\"id\":\"last\"}") {
            text.push_str(&listener.next_output(Duration::from_secs(10)).unwrap_or_else(|| panic!("{text}")));
        }
        let of_interest = |line: &&str| !line.contains("/namespaces/");
        text.lines().filter(of_interest).map(str::to_owned).collect::<Vec<_>>()
    });
    assert_eq!(heard[0], heard[1]);
    assert!(heard[0].len() > 10, "{heard:?}");
    side.node.finish();
}

#[test]
fn events_are_told_as_debians_tells_them_on_our_daemon() {
    hear_the_same(Node::start());
}

#[test]
fn events_are_told_as_debians_tells_them_on_debians_daemon() {
    let ours = corten_tests::peers::programs().join("ctr");
    hear_the_same(Node::peer(&Peers::find().containerd_2_1()).ctr(ours).start());
}

#[test]
fn words_are_read_as_debians_reads_them() {
    on_ours(WORDS);
}

#[test]
fn records_are_told_as_debians_tells_them_on_our_daemon() {
    on_ours(RECORDS);
}

#[test]
fn records_are_told_as_debians_tells_them_on_debians_daemon() {
    on_debians(RECORDS);
}

#[test]
fn specifications_are_those_of_debians_on_our_daemon() {
    on_ours(SPECIFICATIONS);
}

#[test]
fn specifications_are_those_of_debians_on_debians_daemon() {
    on_debians(SPECIFICATIONS);
}

#[test]
fn tasks_are_told_as_debians_tells_them_on_our_daemon() {
    on_ours(TASKS);
}

#[test]
fn tasks_are_told_as_debians_tells_them_on_debians_daemon() {
    on_debians(TASKS);
}
