//! `docker run`: what a container is given, and the exit codes.

use crate::table::{Check, skip};
use corten_tests::engine::{BOX, Engine};

pub const CHECKS: &[Check] = &[
    ("run --rm prints and leaves nothing", rm),
    ("run -d answers the id and goes on", detach),
    ("-e and --env-file", env),
    ("-v and --mount, writable and read-only", mounts),
    ("--mount type=volume and type=tmpfs", mount_types),
    ("--tmpfs with size and mode", tmpfs),
    ("--user and --group-add", user),
    ("--workdir is made", workdir),
    ("--read-only", read_only),
    ("--cap-add and --cap-drop", capabilities),
    ("--security-opt no-new-privileges and seccomp", security),
    ("a seccomp profile of one's own", seccomp_profile),
    ("--ulimit", ulimit),
    ("--sysctl", sysctl),
    ("--init", init),
    ("--entrypoint, --label, --cidfile", entrypoint),
    ("-i passes standard input on", stdin),
    ("-t is a terminal", terminal),
    ("--hostname, --domainname, --add-host, --dns", names),
    ("--device", device),
    ("--shm-size and --ipc container", shm),
    ("--pid host and --pid container", pid_namespaces),
    ("--uts host", uts),
    ("--volumes-from", volumes_from),
    ("--oom-score-adj", oom_score),
    ("--privileged", privileged),
    ("masked and read-only paths", masked_paths),
    ("large output comes whole", large_output),
    ("many at once", many),
    ("exit codes of the command", exit_codes),
    ("exit codes 125, 126 and 127", exit_codes_of_docker),
    ("exit codes of signals: 130, 137, 143", exit_codes_of_signals),
];

/// The output of a command in a container that is removed afterwards; without a network it starts faster.
#[track_caller]
fn run(e: &Engine, flags: &str, command: &str) -> String {
    e.out(&format!("run --rm --network none {flags} {BOX} {command}"))
}

fn rm(e: &Engine) {
    assert_eq!(e.out(&format!("run --rm --name run-rm {BOX} echo hello")), "hello");
    let finished = e.docker(&format!("run --rm {BOX} sh -c 'echo out; echo err >&2'"));
    assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!(e.out("ps -aq --filter name=run-rm"), "");
}

fn detach(e: &Engine) {
    let id = e.out(&format!("run -d --name run-d {BOX} sleep 1000"));
    assert_eq!(id.len(), 64);
    assert_eq!(e.inspect("run-d", ".State.Status"), "running");
    let pid = e.inspect("run-d", ".State.Pid");
    let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert_eq!(command, "sleep\x001000\0");
    e.remove("run-d");
    assert!(!std::path::Path::new(&format!("/proc/{pid}/ns/pid")).exists());
}

fn env(e: &Engine) {
    let folder = e.folder("env");
    std::fs::write(format!("{folder}/list"), "TWO=2\n# no\nTHREE=a b\n").unwrap();
    let found =
        run(e, &format!("-e ONE=1 --env-file {folder}/list"), "sh -c 'echo \"$ONE,$TWO,$THREE,$HOSTNAME\"'");
    assert!(found.starts_with("1,2,a b,"), "{found}");
}

fn mounts(e: &Engine) {
    let folder = e.folder("mounts");
    std::fs::write(format!("{folder}/in"), "from outside").unwrap();
    let found = run(e, &format!("-v {folder}:/data"), "sh -c 'cat /data/in; echo inside > /data/out'");
    assert_eq!(found, "from outside");
    assert_eq!(std::fs::read_to_string(format!("{folder}/out")).unwrap(), "inside\n");
    for flag in
        [format!("-v {folder}:/data:ro"), format!("--mount type=bind,src={folder},dst=/data,readonly")]
    {
        let finished = e.docker(&format!("run --rm {flag} {BOX} touch /data/no"));
        assert!(finished.stderr.contains("Read-only file system"), "{finished:?}");
        finished.fails(1);
    }
    // One file, and a folder that is not there.
    let found = run(e, &format!("-v {folder}/in:/etc/in -v {folder}/new:/new"), "cat /etc/in");
    assert_eq!(found, "from outside");
    assert!(std::path::Path::new(&folder).join("new").is_dir());
    if shared("/tmp") || shared("/") {
        let line = run(e, &format!("-v {folder}:/data:rslave"), "grep ' /data ' /proc/self/mountinfo");
        assert!(line.contains("master:"), "{line}");
    }
}

fn shared(path: &str) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == Some(path) && line.contains("shared:"))
}

fn mount_types(e: &Engine) {
    let found = run(
        e,
        "--mount type=volume,src=run-volume,dst=/v --mount type=tmpfs,dst=/t,tmpfs-size=65536,tmpfs-mode=700",
        "sh -c 'echo kept > /v/f; grep -E \" /t \" /proc/mounts'",
    );
    assert!(found.starts_with("tmpfs /t tmpfs rw,") && found.contains("size=64k,mode=700"), "{found}");
    assert_eq!(run(e, "-v run-volume:/v", "cat /v/f"), "kept");
    e.docker("volume rm run-volume").ok();
}

fn tmpfs(e: &Engine) {
    let found = run(e, "--tmpfs /t:size=1m,mode=1770,exec", "grep ' /t ' /proc/mounts");
    assert!(
        found.contains("size=1024k") && found.contains("mode=1770") && !found.contains("noexec"),
        "{found}"
    );
    let found = run(e, "--tmpfs /t", "grep ' /t ' /proc/mounts");
    assert!(found.contains("nosuid") && found.contains("nodev") && found.contains("noexec"), "{found}");
}

fn user(e: &Engine) {
    assert_eq!(run(e, "-u nobody", "id"), "uid=65534(nobody) gid=65534(nogroup) groups=65534(nogroup)");
    let found = run(e, "-u 1000:2000 --group-add 3000", "sh -c 'id -u; id -g; id -G'");
    assert_eq!(found, "1000\n2000\n2000 3000");
    let finished = e.docker(&format!("run --rm -u nosuchuser {BOX} true"));
    assert!(finished.stderr.contains("unable to find user nosuchuser"), "{finished:?}");
    finished.fails(125);
}

fn workdir(e: &Engine) {
    assert_eq!(run(e, "-w /made/here", "pwd"), "/made/here");
}

fn read_only(e: &Engine) {
    let finished = e.docker(&format!("run --rm --network none --read-only {BOX} touch /no"));
    assert!(finished.stderr.contains("Read-only file system"), "{finished:?}");
    assert_eq!(run(e, "--read-only --tmpfs /tmp", "sh -c 'touch /tmp/yes && echo written'"), "written");
}

fn capabilities(e: &Engine) {
    let effective = |flags: &str| run(e, flags, "grep CapEff /proc/self/status").replace("CapEff:\t", "");
    assert_eq!(effective(""), "00000000a80425fb");
    assert_eq!(effective("--cap-drop ALL"), "0000000000000000");
    assert_eq!(effective("--cap-drop ALL --cap-add NET_ADMIN"), "0000000000001000");
    assert_eq!(effective("--cap-drop CHOWN"), "00000000a80425fa");
    assert_eq!(effective("-u nobody"), "0000000000000000");
    run(e, "--cap-add NET_ADMIN", "ip link set lo mtu 1400");
    e.docker(&format!("run --rm {BOX} ip link set lo mtu 1400")).fails(2);
}

fn security(e: &Engine) {
    let status = |flags: &str| run(e, flags, "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status");
    assert_eq!(status(""), "NoNewPrivs:\t0\nSeccomp:\t2");
    assert_eq!(status("--security-opt no-new-privileges"), "NoNewPrivs:\t1\nSeccomp:\t2");
    assert_eq!(status("--security-opt seccomp=unconfined"), "NoNewPrivs:\t0\nSeccomp:\t0");
}

fn seccomp_profile(e: &Engine) {
    let profile = format!("{}/profile.json", e.folder("seccomp"));
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 42}]}"#;
    std::fs::write(&profile, text).unwrap();
    let finished = e.docker(&format!("run --rm --security-opt seccomp={profile} {BOX} mkdir /x"));
    assert!(finished.stderr.contains("No message of desired type"), "{finished:?}");
    finished.fails(1);
}

fn ulimit(e: &Engine) {
    let found =
        run(e, "--ulimit nofile=100:200 --ulimit core=0", "sh -c 'ulimit -Sn; ulimit -Hn; ulimit -c'");
    assert_eq!(found, "100\n200\n0");
}

fn sysctl(e: &Engine) {
    let found = run(
        e,
        "--sysctl net.ipv4.ip_local_port_range='2000 3000' --sysctl kernel.msgmax=4321",
        "cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/msgmax",
    );
    assert_eq!(found, "2000\t3000\n4321");
    let finished = e.docker(&format!("run --rm --sysctl kernel.hostname=x {BOX} true"));
    finished.fails(125);
}

fn init(e: &Engine) {
    let found = run(e, "--init", "sh -c 'cat /proc/1/cmdline; readlink /proc/1/exe; sleep 0.01 & exec true'");
    assert!(found.starts_with("/sbin/docker-init\0--\0sh"), "{found:?}");
}

fn entrypoint(e: &Engine) {
    let cid = format!("{}/cid", e.folder("entrypoint"));
    let found = run(e, &format!("--entrypoint /bin/echo --cidfile {cid}"), "one two");
    assert_eq!(found, "one two");
    assert_eq!(std::fs::read_to_string(cid).unwrap().len(), 64);
    e.out(&format!("create --name run-label --label a.b/c=d {BOX}"));
    assert_eq!(e.inspect("run-label", "index .Config.Labels \"a.b/c\""), "d");
    e.remove("run-label");
}

fn stdin(e: &Engine) {
    let text = "line\n".repeat(50_000);
    let finished = e.docker_with_input(&format!("run -i --rm {BOX} sh -c 'cat; echo end'"), text.as_bytes());
    assert_eq!(finished.ok(), text + "end\n");
}

fn terminal(e: &Engine) {
    let found = run(e, "-t", "sh -c 'tty; stty -a'");
    assert!(found.starts_with("/dev/pts/0\r\n") && found.contains("speed 38400 baud"), "{found:?}");
    assert_eq!(run(e, "-t", "sh -c 'test -c /dev/console && echo console'"), "console");
}

fn names(e: &Engine) {
    let flags = "--hostname one --domainname example.test --add-host other:10.9.8.7 --dns 10.1.1.1 \
                 --dns-search s.test --dns-option ndots:3";
    let script = "hostname; cat /proc/sys/kernel/domainname; cat /etc/hosts /etc/resolv.conf";
    let found = e.out(&format!("run --rm {flags} {BOX} sh -c '{script}'"));
    assert!(found.starts_with("one\nexample.test\n"), "{found}");
    for line in
        ["10.9.8.7\tother", "\tone.example.test one", "nameserver 10.1.1.1", "search s.test", "ndots:3"]
    {
        assert!(found.contains(line), "{line:?} is missing:\n{found}");
    }
}

fn device(e: &Engine) {
    let flag = "--device /dev/loop-control:/dev/control:r";
    assert_eq!(run(e, flag, "sh -c ': < /dev/control && echo opened'"), "opened");
    let finished = e.docker(&format!("run --rm {flag} {BOX} sh -c ': > /dev/control'"));
    assert!(finished.stderr.contains("Operation not permitted"), "{finished:?}");
    // What is made by oneself is refused by the cgroup.
    let finished =
        e.docker(&format!("run --rm {BOX} sh -c '/bin/busybox mknod /tmp/kmsg c 1 11 && cat /tmp/kmsg'"));
    assert!(finished.stderr.contains("Operation not permitted"), "{finished:?}");
}

fn shm(e: &Engine) {
    assert!(run(e, "--shm-size 1m", "grep /dev/shm /proc/mounts").contains("size=1024k"));
    e.out(&format!(
        "run -d --name run-ipc --ipc shareable {BOX} sh -c 'echo shared > /dev/shm/f; sleep 1000'"
    ));
    let find = "sh -c 'until cat /dev/shm/f; do sleep 0.1; done'";
    assert_eq!(run(e, "--ipc container:run-ipc", find), "shared");
    e.remove("run-ipc");
}

fn pid_namespaces(e: &Engine) {
    let own = std::process::id();
    assert_eq!(run(e, "--pid host", &format!("sh -c 'test -d /proc/{own} && echo seen'")), "seen");
    e.out(&format!("run -d --name run-pid {BOX} sleep 1234"));
    let found = run(e, "--pid container:run-pid", "ps");
    assert!(found.contains("sleep 1234"), "{found}");
    e.remove("run-pid");
}

fn uts(e: &Engine) {
    let own = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(run(e, "--uts host", "hostname"), own.trim());
}

fn volumes_from(e: &Engine) {
    e.out(&format!("run --name run-from -v /shared {BOX} sh -c 'echo here > /shared/f'"));
    assert_eq!(run(e, "--volumes-from run-from", "cat /shared/f"), "here");
    e.remove("run-from");
}

fn oom_score(e: &Engine) {
    assert_eq!(run(e, "--oom-score-adj 321", "cat /proc/self/oom_score_adj"), "321");
}

fn privileged(e: &Engine) {
    // Docker raises limits for it, which a machine without the capability refuses to everybody.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    let own = u64::from_str_radix(own, 16).unwrap();
    if own & 1 << 24 == 0 {
        skip("without CAP_SYS_RESOURCE no container can be given all capabilities");
    }
    let found = run(e, "--privileged", "sh -c 'grep CapEff /proc/self/status; ls /dev/loop-control'");
    assert!(found.contains(&format!("{own:016x}")) && found.contains("/dev/loop-control"), "{found}");
}

fn masked_paths(e: &Engine) {
    let found =
        run(e, "", "sh -c 'cat /proc/kcore /proc/timer_list | wc -c; ls /proc/acpi /sys/firmware | wc -l'");
    let words: Vec<&str> = found.split_whitespace().collect();
    assert_eq!(words.first(), Some(&"0"), "{found}");
    let finished = e.docker(&format!("run --rm {BOX} sh -c 'echo 1 > /proc/sys/kernel/msgmax'"));
    assert!(finished.stderr.contains("Read-only file system"), "{finished:?}");
}

fn large_output(e: &Engine) {
    let finished = e.docker(&format!("run --rm {BOX} sh -c 'yes 0123456789abcdef | head -n 200000'"));
    assert_eq!(finished.ok().len(), 200_000 * 17);
}

fn many(e: &Engine) {
    let children: Vec<_> = (0..10)
        .map(|n| e.docker_running(&format!("run --rm --network none {BOX} sh -c 'echo {n}; exit {n}'")))
        .collect();
    for (n, child) in children.into_iter().enumerate() {
        let finished = child.finish();
        assert_eq!(
            (finished.code, finished.stdout.trim()),
            (Some(n as i32), n.to_string().as_str()),
            "{finished:?}"
        );
    }
}

fn exit_codes(e: &Engine) {
    for code in [1, 3, 255] {
        e.docker(&format!("run --rm --network none {BOX} sh -c 'exit {code}'")).fails(code);
    }
}

fn exit_codes_of_docker(e: &Engine) {
    e.docker(&format!("run --rm --nosuchflag {BOX} true")).fails(125);
    e.docker("run --rm --pull never nosuchimage:9 true").fails(125);
    let finished = e.docker(&format!("run --rm {BOX} /etc/passwd"));
    assert!(finished.stderr.contains("permission denied"), "{finished:?}");
    finished.fails(126);
    let finished = e.docker(&format!("run --rm {BOX} /etc"));
    finished.fails(126);
    let finished = e.docker(&format!("run --rm {BOX} nosuchcommand"));
    assert!(finished.stderr.contains("executable file not found in $PATH"), "{finished:?}");
    finished.fails(127);
    let finished = e.docker(&format!("run --rm {BOX} /no/such/file"));
    assert!(finished.stderr.contains("no such file or directory"), "{finished:?}");
    finished.fails(127);
}

fn exit_codes_of_signals(e: &Engine) {
    for (signal, code) in [("INT", 130), ("KILL", 137), ("TERM", 143)] {
        // A first process dies by signals that it handles or that come from outside and cannot be handled.
        let name = format!("run-signal-{code}");
        let running = e.docker_running(&format!(
            "run --rm --network none --init --name {name} {BOX} sh -c 'echo up; exec sleep 1000'"
        ));
        running.next_output(corten_tests::engine::PATIENCE);
        e.docker(&format!("kill -s {signal} {name}")).ok();
        let finished = running.finish();
        assert_eq!(finished.code, Some(code), "{finished:?}");
    }
}
