//! `docker exec`, attach and logs.

use crate::table::Check;
use corten_tests::Terminal;
use corten_tests::engine::{BOX, Engine, PATIENCE};
use corten_tests::words::words;

pub const CHECKS: &[Check] = &[
    ("exec: output, environment, user, folder", exec),
    ("exec: exit codes", exit_codes),
    ("exec: standard input", stdin),
    ("exec -d", detached),
    ("exec -it, resized", terminal),
    ("exec: many at once", many),
    ("exec into what is not running", not_running),
    ("an exec ends with its container", ends_with_container),
    ("logs, both streams, --tail", logs),
    ("logs --follow and --timestamps", follow),
    ("logs of other drivers", drivers),
    ("attach, and detach by keys", detach_keys),
    ("attach without a terminal", attach),
];

#[track_caller]
fn start(e: &Engine, name: &str) {
    e.out(&format!("run -d --network none --name {name} -e KEPT=yes {BOX} sleep 1000"));
}

fn exec(e: &Engine) {
    start(e, "exec-plain");
    let found = e.out("exec -e MORE=x -u nobody -w /tmp exec-plain sh -c 'echo $KEPT $MORE; id -u; pwd'");
    assert_eq!(found, "yes x\n65534\n/tmp");
    let finished = e.docker("exec exec-plain sh -c 'echo out; echo err >&2'");
    assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("out\n", "err\n"));
    let cgroup = |name: &str| e.out(&format!("exec exec-plain cat /proc/{name}/cgroup"));
    assert_eq!(cgroup("self"), cgroup("1"));
    e.remove("exec-plain");
}

fn exit_codes(e: &Engine) {
    start(e, "exec-codes");
    e.docker("exec exec-codes sh -c 'exit 7'").fails(7);
    e.docker("exec exec-codes /etc/passwd").fails(126);
    let finished = e.docker("exec exec-codes nosuchcommand");
    assert!(
        (finished.stdout.clone() + &finished.stderr).contains("executable file not found in $PATH"),
        "{finished:?}"
    );
    // 20.10 answers 126 for both.
    assert!([Some(126), Some(127)].contains(&finished.code), "{finished:?}");
    e.docker("exec exec-codes sh -c 'kill -9 $$'").fails(137);
    e.remove("exec-codes");
}

fn stdin(e: &Engine) {
    start(e, "exec-stdin");
    let text = "line\n".repeat(20_000);
    let finished = e.docker_with_input("exec -i exec-stdin sh -c 'cat; echo end'", text.as_bytes());
    assert_eq!(finished.ok(), text + "end\n");
    e.remove("exec-stdin");
}

fn detached(e: &Engine) {
    start(e, "exec-d");
    assert_eq!(e.out("exec -d exec-d sh -c 'echo done > /tmp/f'"), "");
    assert_eq!(e.out("exec exec-d sh -c 'until cat /tmp/f 2>&-; do sleep 0.1; done'"), "done");
    e.remove("exec-d");
}

fn terminal(e: &Engine) {
    start(e, "exec-t");
    let mut terminal = on_terminal(e, "exec -it exec-t sh");
    terminal.resize(33, 77);
    terminal.expect("#");
    // The size arrives in its own time.
    terminal.send("until stty size | grep '33 77'; do sleep 0.1; done; tty\n");
    terminal.expect("33 77\r\n");
    terminal.expect("/dev/pts/");
    terminal.send("exit 5\n");
    assert_eq!(terminal.end(), 5);
    e.remove("exec-t");
}

fn many(e: &Engine) {
    start(e, "exec-many");
    let running: Vec<_> = (0..10).map(|n| e.docker_running(&format!("exec exec-many echo {n}"))).collect();
    for (n, running) in running.into_iter().enumerate() {
        assert_eq!(running.finish().ok(), format!("{n}\n"));
    }
    assert_eq!(e.out("top exec-many -o pid").lines().count(), 2);
    e.remove("exec-many");
}

fn not_running(e: &Engine) {
    e.out(&format!("create --name exec-none {BOX} true"));
    e.docker("exec exec-none true").fails_with("is not running");
    e.remove("exec-none");
    e.docker("exec exec-none true").fails_with("No such container");
    start(e, "exec-paused");
    e.docker("pause exec-paused").ok();
    e.docker("exec exec-paused true").fails_with("is paused");
    e.remove("exec-paused");
}

fn ends_with_container(e: &Engine) {
    start(e, "exec-end");
    let running = e.docker_running("exec exec-end sh -c 'echo up; sleep 1000; true'");
    running.next_output(PATIENCE);
    e.docker("kill exec-end").ok();
    running.finish().fails(137);
    e.remove("exec-end");
}

fn logs(e: &Engine) {
    e.out(&format!("run -d --name log-plain {BOX} sh -c 'echo one; echo two >&2; echo three'"));
    e.docker("wait log-plain").ok();
    let finished = e.docker("logs log-plain");
    assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("one\nthree\n", "two\n"));
    // Streams are collected side by side: which line is the last one is open.
    let finished = e.docker("logs --tail 1 log-plain");
    assert_eq!((finished.stdout + &finished.stderr).lines().count(), 1);
    e.remove("log-plain");
}

fn follow(e: &Engine) {
    e.out(&format!("run -d --name log-follow {BOX} sh -c 'for i in 1 2 3 4 5; do echo $i; sleep 0.1; done'"));
    let text = e.out("logs --follow --timestamps log-follow");
    let lines: Vec<&str> =
        text.lines().filter_map(|line| line.split_once(' ')).map(|(_, text)| text).collect();
    assert_eq!(lines, ["1", "2", "3", "4", "5"], "{text}");
    assert!(text.lines().all(|line| line.starts_with("20") && line.contains('T')), "{text}");
    e.remove("log-follow");
}

fn drivers(e: &Engine) {
    e.out(&format!("run --name log-local --log-driver local {BOX} echo local"));
    assert_eq!(e.out("logs log-local"), "local");
    e.out(&format!("run --name log-none --log-driver none {BOX} echo none"));
    e.docker("logs log-none").fails_with("does not support reading");
    e.remove("log-local log-none");
}

fn on_terminal(e: &Engine, line: &str) -> Terminal {
    Terminal::start(&e.command(words(line)))
}

fn detach_keys(e: &Engine) {
    e.out(&format!("run -dit --name attach-keys {BOX} sh"));
    let mut terminal = on_terminal(e, "attach --detach-keys ctrl-a,d attach-keys");
    terminal.send("echo $((20 + 3))\n");
    terminal.expect("23\r\n");
    terminal.send("\x01d");
    terminal.expect("read escape sequence");
    terminal.end();
    assert_eq!(e.inspect("attach-keys", ".State.Running"), "true");
    let mut terminal = on_terminal(e, "attach attach-keys");
    terminal.send("echo $((20 + 4)); exit 9\n");
    terminal.expect("24\r\n");
    assert_eq!(terminal.end(), 9);
    e.remove("attach-keys");
}

fn attach(e: &Engine) {
    let script = "until test -e /go; do echo tick; sleep 0.1; done; echo words; sleep 0.5; exit 4";
    e.out(&format!("run -d --name attach-plain {BOX} sh -c '{script}'"));
    let running = e.docker_running("attach attach-plain");
    running.next_output(PATIENCE);
    e.docker("exec attach-plain touch /go").ok();
    let finished = running.finish();
    assert!(finished.stdout.ends_with("tick\nwords\n"), "{finished:?}");
    assert_eq!(finished.code, Some(4));
    e.remove("attach-plain");
}
