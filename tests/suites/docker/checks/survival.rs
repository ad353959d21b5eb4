//! Containers go on while the engine or the daemon does not; one after the other, for they stop what all need.

use corten_tests::eventually;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::table::Check;
use corten_tests::engine::{BOX, Engine, PATIENCE};

pub const CHECKS: &[Check] = &[
    ("live-restore: kill -9 of dockerd", dockerd_killed),
    ("live-restore: dockerd is stopped", dockerd_stopped),
    ("kill -9 of the daemon under running containers", daemon_killed),
    ("the daemon is stopped and started", daemon_stopped),
    ("containers that end while the daemon is away", end_without_daemon),
    ("kill -9 of both at once", both_killed),
    ("kill -9 of a shim", shim_killed),
    ("dockerd restarts without live-restore", dockerd_restarted),
    ("the machine loses its power", power_cut),
];

/// A container that counts in its log.
#[track_caller]
fn counter(e: &Engine, name: &str, flags: &str) -> String {
    let script = "n=0; while true; do n=$((n+1)); echo $n; sleep 0.1; done";
    e.out(&format!("run -d --name {name} {flags} {BOX} sh -c '{script}'"));
    e.inspect(name, ".State.Pid")
}

/// The container runs on as the same process, its log grows, and it takes an exec and a stop.
#[track_caller]
fn goes_on(e: &Engine, name: &str, pid: &str) {
    assert_eq!(e.inspect(name, ".State.Status"), "running");
    assert_eq!(e.inspect(name, ".State.Pid"), pid);
    log_grows(e, name);
    assert_eq!(e.out(&format!("exec {name} echo inside")), "inside");
    e.docker(&format!("exec {name} sh -c 'exit 3'")).fails(3);
    assert!(e.out(&format!("top {name}")).contains("while true"));
    e.docker(&format!("stats --no-stream {name}")).ok();
}

#[track_caller]
fn log_grows(e: &Engine, name: &str) {
    let last = || e.out(&format!("logs --tail 1 {name}")).parse::<u32>().unwrap_or(0);
    let before = last();
    eventually("the log grows", PATIENCE, || (last() > before).then_some(()));
    let lines = e.out(&format!("logs {name}"));
    let counted: Vec<u32> = lines.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(counted.windows(2).all(|pair| pair[1] == pair[0] + 1), "lines are missing:\n{lines}");
}

fn dockerd_killed(e: &Engine) {
    let pid = counter(e, "live-killed", "");
    e.out(&format!("run -d --name live-ends {BOX} sh -c 'sleep 1; exit 6'"));
    e.end_dockerd(Signal::KILL);
    std::thread::sleep(std::time::Duration::from_millis(1200));
    e.start_dockerd();
    goes_on(e, "live-killed", &pid);
    e.until("live-ends", ".State.Status", "exited");
    assert_eq!(e.inspect("live-ends", ".State.ExitCode"), "6");
    e.docker("stop -t 0 live-killed").ok();
    assert_eq!(e.inspect("live-killed", ".State.ExitCode"), "137");
    e.remove("live-killed live-ends");
}

fn dockerd_stopped(e: &Engine) {
    let pid = counter(e, "live-stopped", "");
    e.end_dockerd(Signal::TERM);
    e.start_dockerd();
    goes_on(e, "live-stopped", &pid);
    e.remove("live-stopped");
}

fn daemon_killed(e: &Engine) {
    let pid = counter(e, "daemon-killed", "");
    let waiting = e.docker_running("wait daemon-killed");
    let mut node = e.node.lock().unwrap();
    node.kill_daemon();
    node.start_daemon();
    drop(node);
    served(e);
    goes_on(e, "daemon-killed", &pid);
    e.docker("kill daemon-killed").ok();
    assert_eq!(waiting.finish().ok(), "137\n");
    e.remove("daemon-killed");
}

fn daemon_stopped(e: &Engine) {
    let pid = counter(e, "daemon-stopped", "");
    let mut node = e.node.lock().unwrap();
    node.stop_daemon();
    node.start_daemon();
    drop(node);
    served(e);
    goes_on(e, "daemon-stopped", &pid);
    e.remove("daemon-stopped");
}

/// Waits until the engine has found the daemon again.
#[track_caller]
fn served(e: &Engine) {
    eventually("containers run again", PATIENCE, || {
        let finished = e.docker(&format!("run --rm {BOX} true"));
        (finished.code == Some(0)).then_some(())
    });
}

fn end_without_daemon(e: &Engine) {
    e.out(&format!("run -d --name daemon-away {BOX} sh -c 'until test -e /go; do sleep 0.05; done; exit 9'"));
    let pid = e.inspect("daemon-away", ".State.Pid");
    let mut node = e.node.lock().unwrap();
    node.kill_daemon();
    std::fs::write(format!("/proc/{pid}/root/go"), "").unwrap();
    let gone = || std::fs::read_to_string(format!("/proc/{pid}/comm")).is_err();
    eventually("the container has ended", PATIENCE, || gone().then_some(()));
    node.start_daemon();
    drop(node);
    served(e);
    // The engine may have missed that it was told of the end; when it looks at its next start, it knows.
    e.end_dockerd(Signal::TERM);
    e.start_dockerd();
    e.until("daemon-away", ".State.Status", "exited");
    assert_eq!(e.inspect("daemon-away", ".State.ExitCode"), "9");
    e.remove("daemon-away");
}

fn both_killed(e: &Engine) {
    let pid = counter(e, "both-killed", "");
    e.end_dockerd(Signal::KILL);
    let mut node = e.node.lock().unwrap();
    node.kill_daemon();
    node.start_daemon();
    drop(node);
    e.start_dockerd();
    goes_on(e, "both-killed", &pid);
    e.remove("both-killed");
}

fn shim_killed(e: &Engine) {
    let pid = counter(e, "shim-killed", "");
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let shim: i32 = stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
    kill_process(Pid::from_raw(shim).unwrap(), Signal::KILL).unwrap();
    e.until("shim-killed", ".State.Status", "exited");
    assert_eq!(e.inspect("shim-killed", ".State.ExitCode"), "137");
    e.docker("start shim-killed").ok();
    let lines = || e.out("logs shim-killed").lines().filter(|line| *line == "1").count();
    eventually("it counts from 1 again", PATIENCE, || (lines() == 2).then_some(()));
    e.remove("shim-killed");
}

/// Changes a setting of the engine for its next start.
fn set(e: &Engine, key: &str, value: Value) {
    let path = e.join("daemon.json");
    let mut settings: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    settings[key] = value;
    std::fs::write(path, settings.to_string()).unwrap();
}

fn dockerd_restarted(e: &Engine) {
    e.end_dockerd(Signal::TERM);
    set(e, "live-restore", json!(false));
    e.start_dockerd();
    let pid = counter(e, "restart-always", "--restart always --stop-timeout 0 -v restart-volume:/v");
    counter(e, "restart-no", "--stop-timeout 0");
    e.docker("exec restart-always touch /kept /v/kept").ok();
    e.end_dockerd(Signal::TERM);
    assert!(!std::path::Path::new(&format!("/proc/{pid}/ns")).exists(), "a container is left");
    e.start_dockerd();
    e.until("restart-always", ".State.Status", "running");
    e.docker("exec restart-always ls /kept /v/kept").ok();
    assert_eq!(e.inspect("restart-no", ".State.Status"), "exited");
    e.docker("start restart-no").ok();
    e.remove("restart-always restart-no");
    e.docker("volume rm restart-volume").ok();
}

fn power_cut(e: &Engine) {
    counter(e, "power-always", "--restart always");
    counter(e, "power-no", "");
    e.docker("exec power-no touch /kept").ok();
    // Nothing that runs, is mounted or lies in /run outlives it; what was written did reach the disk here.
    e.end_dockerd(Signal::KILL);
    let mut node = e.node.lock().unwrap();
    node.kill_daemon();
    node.lose_power();
    std::fs::remove_dir_all(e.join("e")).unwrap();
    node.start_daemon();
    drop(node);
    e.start_dockerd();
    e.until("power-always", ".State.Status", "running");
    log_grows_again(e);
    assert_eq!(e.inspect("power-no", ".State.Status"), "exited");
    e.docker("start power-no").ok();
    e.docker("exec power-no ls /kept").ok();
    e.remove("power-always power-no");
}

fn log_grows_again(e: &Engine) {
    let count = || e.out("logs power-always").lines().filter(|line| *line == "2").count();
    eventually("it counts again", PATIENCE, || (count() >= 2).then_some(()));
}
