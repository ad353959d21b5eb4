//! The life of a container: stop, kill, pause, restart policies, health; and what can be asked and changed.

use std::time::Instant;

use corten_tests::eventually;

use crate::table::Check;
use corten_tests::engine::{BOX, Engine, PATIENCE};

pub const CHECKS: &[Check] = &[
    ("create, start, start again", create_and_start),
    ("stop gives time, then kills", stop),
    ("--stop-signal and --stop-timeout", stop_signal),
    ("kill with signals", kill),
    ("pause and unpause", pause),
    ("restart", restart),
    ("wait", wait),
    ("restart policies", restart_policies),
    ("a killed container is started again", restart_after_kill),
    ("health checks", health),
    ("top", top),
    ("events", events),
    ("rename", rename),
    ("diff", diff),
    ("commit", commit),
    ("cp, both ways, running or not", cp),
    ("export and import", export),
    ("inspect", inspect),
    ("ps and its filters", ps),
    ("container prune", prune),
    ("checkpoint", checkpoint),
];

#[track_caller]
fn start(e: &Engine, name: &str, flags: &str, script: &str) {
    e.out(&format!("run -d --network none --name {name} {flags} {BOX} sh -c '{script}'"));
}

/// Waits until a script has said that it is ready.
#[track_caller]
fn ready(e: &Engine, name: &str) {
    eventually("the container says 'up'", PATIENCE, || {
        e.out(&format!("logs {name}")).contains("up").then_some(())
    });
}

fn create_and_start(e: &Engine) {
    e.out(&format!("create --name life-start {BOX} sh -c 'date >> /f; wc -l < /f'"));
    assert_eq!(e.inspect("life-start", ".State.Status"), "created");
    assert_eq!(e.out("start -a life-start"), "1");
    assert_eq!(e.out("start -a life-start"), "2");
    e.remove("life-start");
}

fn stop(e: &Engine) {
    start(e, "life-stop", "", "trap \"exit 7\" TERM; echo up; while true; do sleep 0.1; done");
    ready(e, "life-stop");
    e.docker("stop -t 60 life-stop").ok();
    assert_eq!(e.inspect("life-stop", ".State.ExitCode"), "7");
    start(e, "life-stubborn", "", "trap \"\" TERM; echo up; while true; do sleep 0.1; done");
    ready(e, "life-stubborn");
    let begun = Instant::now();
    e.docker("stop -t 1 life-stubborn").ok();
    assert!(begun.elapsed().as_millis() >= 1000);
    assert_eq!(e.inspect("life-stubborn", ".State.ExitCode"), "137");
    e.remove("life-stop life-stubborn");
}

fn stop_signal(e: &Engine) {
    let script = "trap \"exit 8\" USR2; echo up; while true; do sleep 0.1; done";
    start(e, "life-signal", "--stop-signal USR2 --stop-timeout 60", script);
    ready(e, "life-signal");
    e.docker("stop life-signal").ok();
    assert_eq!(e.inspect("life-signal", ".State.ExitCode"), "8");
    e.remove("life-signal");
}

fn kill(e: &Engine) {
    start(e, "life-kill", "", "trap \"echo usr1\" USR1; echo up; while true; do sleep 0.1; done");
    ready(e, "life-kill");
    e.docker("kill -s USR1 life-kill").ok();
    eventually("the signal is handled", PATIENCE, || e.out("logs life-kill").contains("usr1").then_some(()));
    e.docker("kill life-kill").ok();
    e.until("life-kill", ".State.ExitCode", "137");
    e.docker("kill life-kill").fails_with("is not running");
    e.docker("kill -s NOSUCH life-kill").fails_with("nvalid signal");
    e.remove("life-kill");
}

fn pause(e: &Engine) {
    start(e, "life-pause", "", "while true; do n=$((n+1)); echo $n >> /n; sleep 0.05; done");
    e.docker("pause life-pause").ok();
    assert_eq!(e.inspect("life-pause", ".State.Status"), "paused");
    let pid = e.inspect("life-pause", ".State.Pid");
    let state = || std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    e.docker("pause life-pause").fails_with("already paused");
    let read = || std::fs::read_to_string(format!("/proc/{pid}/root/n")).unwrap_or_default();
    let before = read();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(read(), before, "{}", state());
    e.docker("unpause life-pause").ok();
    eventually("it goes on", PATIENCE, || (read() != before).then_some(()));
    e.docker("pause life-pause").ok();
    e.docker("stop -t 0 life-pause").ok();
    assert_eq!(e.inspect("life-pause", ".State.ExitCode"), "137");
    e.remove("life-pause");
}

fn restart(e: &Engine) {
    start(e, "life-restart", "", "date >> /f; sleep 1000");
    let pid = e.inspect("life-restart", ".State.Pid");
    e.docker("restart -t 0 life-restart").ok();
    assert_ne!(e.inspect("life-restart", ".State.Pid"), pid);
    e.out("exec life-restart sh -c 'until test $(wc -l < /f) = 2; do sleep 0.1; done'");
    e.remove("life-restart");
}

fn wait(e: &Engine) {
    start(e, "life-wait", "", "sleep 0.3; exit 6");
    assert_eq!(e.out("wait life-wait"), "6");
    assert_eq!(e.out("wait life-wait"), "6");
    e.remove("life-wait");
}

fn restart_policies(e: &Engine) {
    start(e, "life-failure", "--restart on-failure:2", "exit 3");
    e.until("life-failure", ".RestartCount", "2");
    e.until("life-failure", ".State.Status", "exited");
    assert_eq!(e.inspect("life-failure", ".State.ExitCode"), "3");
    start(e, "life-success", "--restart on-failure", "exit 0");
    e.until("life-success", ".State.Status", "exited");
    assert_eq!(e.inspect("life-success", ".RestartCount"), "0");
    start(e, "life-always", "--restart always", "test -e /f && exec sleep 1000; touch /f");
    e.until("life-always", ".RestartCount", "1");
    e.until("life-always", ".State.Status", "running");
    e.docker("stop -t 0 life-always").ok();
    assert_eq!(e.inspect("life-always", ".State.Status"), "exited");
    e.remove("life-failure life-success life-always");
}

fn restart_after_kill(e: &Engine) {
    start(e, "life-killed", "--restart unless-stopped", "exec sleep 1000");
    let pid = e.inspect("life-killed", ".State.Pid");
    let raw = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
    rustix::process::kill_process(raw, rustix::process::Signal::KILL).unwrap();
    e.until("life-killed", ".RestartCount", "1");
    e.until("life-killed", ".State.Status", "running");
    e.remove("life-killed");
}

fn health(e: &Engine) {
    let events = e.docker_running("events --filter container=life-health --filter event=health_status");
    let flags =
        "--health-cmd \"test -e /tmp/well\" --health-interval 200ms --health-retries 2 --health-timeout 30s";
    start(e, "life-health", flags, "sleep 1000");
    e.until("life-health", ".State.Health.Status", "unhealthy");
    e.docker("exec life-health touch /tmp/well").ok();
    e.until("life-health", ".State.Health.Status", "healthy");
    let mut told = String::new();
    while !told.contains("health_status: healthy") {
        told += &events.next_output(PATIENCE).unwrap_or_else(|| panic!("only told of: {told}"));
    }
    e.remove("life-health");
}

fn top(e: &Engine) {
    start(e, "life-top", "", "sleep 4321; true");
    let table = eventually("both processes run", PATIENCE, || {
        let table = e.out("top life-top");
        table.contains("sleep 4321").then_some(table)
    });
    assert!(table.lines().count() >= 3 && table.contains("UID"), "{table}");
    assert!(e.out("top life-top -o pid,args").contains("sleep 4321"));
    e.remove("life-top");
}

fn events(e: &Engine) {
    e.out(&format!("run --name life-events {BOX} true"));
    start(e, "life-events-2", "", "sleep 1000");
    e.docker("exec life-events-2 true").ok();
    e.docker("pause life-events-2").ok();
    e.docker("unpause life-events-2").ok();
    e.docker("stop -t 0 life-events-2").ok();
    e.remove("life-events life-events-2");
    e.events("life-events", |told| {
        told.starts_with("create; attach; start; die") && told.ends_with("destroy")
    });
    let wanted = [
        "create; start; exec_create",
        "exec_start",
        "exec_die",
        "pause; unpause; kill",
        "die",
        "stop",
        "destroy",
    ];
    e.events("life-events-2", |told| wanted.iter().all(|word| told.contains(word)));
}

fn rename(e: &Engine) {
    start(e, "life-before", "", "sleep 1000");
    let id = e.inspect("life-before", ".Id");
    e.docker("rename life-before life-after").ok();
    assert_eq!(e.inspect("life-after", ".Id"), id);
    e.docker("inspect life-before").fails(1);
    e.remove("life-after");
}

fn diff(e: &Engine) {
    e.out(&format!(
        "run --name life-diff {BOX} sh -c 'echo new > /tmp/new; rm /etc/group; echo x >> /etc/passwd'"
    ));
    let found = e.out("diff life-diff");
    for line in ["A /tmp/new", "C /etc", "D /etc/group", "C /etc/passwd", "C /tmp"] {
        assert!(found.lines().any(|other| other == line), "{line:?} is missing:\n{found}");
    }
    e.remove("life-diff");
}

fn commit(e: &Engine) {
    e.out(&format!("run --name life-commit {BOX} sh -c 'echo kept > /kept; rm /etc/group'"));
    e.docker(
        "commit -m why -a who --change 'ENV ADDED=yes' --change 'CMD cat /kept' life-commit life-committed",
    )
    .ok();
    assert_eq!(e.out("run --rm life-committed"), "kept");
    assert_eq!(
        e.out("run --rm life-committed sh -c 'echo $ADDED; ls /etc'"),
        "yes\nhostname\nhosts\nmtab\npasswd\nresolv.conf"
    );
    start(e, "life-commit-running", "", "echo up; echo live > /live; sleep 1000");
    ready(e, "life-commit-running");
    e.out("exec life-commit-running sh -c 'until test -s /live; do sleep 0.1; done'");
    e.docker("commit life-commit-running life-committed:2").ok();
    assert_eq!(e.out("run --rm life-committed:2 cat /live"), "live");
    e.remove("life-commit life-commit-running");
    e.docker("rmi life-committed life-committed:2").ok();
}

fn cp(e: &Engine) {
    let folder = e.folder("cp");
    std::fs::create_dir_all(format!("{folder}/in/deep")).unwrap();
    std::fs::write(format!("{folder}/in/deep/file"), "data").unwrap();
    start(e, "life-cp", "--tmpfs /t", "sleep 1000");
    e.docker(&format!("cp {folder}/in life-cp:/tmp/")).ok();
    assert_eq!(e.out("exec life-cp cat /tmp/in/deep/file"), "data");
    e.docker(&format!("cp life-cp:/tmp/in/deep {folder}/out")).ok();
    assert_eq!(std::fs::read_to_string(format!("{folder}/out/file")).unwrap(), "data");
    e.docker("stop -t 0 life-cp").ok();
    e.docker(&format!("cp {folder}/in/deep/file life-cp:/late")).ok();
    e.docker(&format!("cp life-cp:/late {folder}/late")).ok();
    assert_eq!(std::fs::read_to_string(format!("{folder}/late")).unwrap(), "data");
    e.docker(&format!("cp life-cp:/nosuch {folder}/x")).fails(1);
    e.remove("life-cp");
}

fn export(e: &Engine) {
    let folder = e.folder("export");
    e.out(&format!("run --name life-export {BOX} sh -c 'echo flat > /flat'"));
    e.docker(&format!("export -o {folder}/tree.tar life-export")).ok();
    e.docker(&format!("import --change 'CMD cat /flat' {folder}/tree.tar life-imported:1")).ok();
    assert_eq!(e.out("run --rm life-imported:1 /bin/cat /flat"), "flat");
    assert_eq!(e.out("history -q life-imported:1").lines().count(), 1);
    e.remove("life-export");
    e.docker("rmi life-imported:1").ok();
}

fn inspect(e: &Engine) {
    start(e, "life-inspect", "--label a=b -v /anonymous", "sleep 1000");
    let value: serde_json::Value = serde_json::from_str(&e.out("inspect life-inspect")).unwrap();
    let first = &value[0];
    assert_eq!(first["State"]["Running"], true);
    assert!(first["State"]["Pid"].as_u64().unwrap() > 1);
    assert_eq!(first["Config"]["Labels"]["a"], "b");
    assert_eq!(first["Mounts"][0]["Destination"], "/anonymous");
    assert_eq!(first["HostConfig"]["Runtime"], "runc");
    e.remove("life-inspect");
}

fn ps(e: &Engine) {
    start(e, "life-ps", "--label ps=1", "sleep 1000");
    e.out(&format!("create --name life-ps-2 --label ps=1 {BOX} true"));
    assert_eq!(e.out("ps --filter label=ps=1 --format '{{.Names}}'"), "life-ps");
    assert_eq!(e.out("ps -a --filter label=ps=1 --format '{{.Names}}'").lines().count(), 2);
    assert_eq!(e.out("ps -a --filter label=ps=1 --filter status=created --format '{{.Names}}'"), "life-ps-2");
    let size = eventually("ps -s answers", PATIENCE, || {
        let finished = e.docker("ps -s --filter name=life-ps$ --format '{{.Size}}'");
        (finished.code == Some(0)).then_some(finished.stdout)
    });
    assert!(size.contains("virtual"), "{size}");
    e.remove("life-ps life-ps-2");
}

fn prune(e: &Engine) {
    e.out(&format!("run --name life-prune --label prune=1 {BOX} true"));
    let told = e.out("container prune -f --filter label=prune=1");
    assert!(told.contains("Deleted Containers"), "{told}");
    e.docker("inspect life-prune").fails(1);
}

fn checkpoint(_: &Engine) {
    crate::table::skip("no CRIU works on this kernel");
}
