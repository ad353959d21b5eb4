//! Sessions at a terminal.

use std::time::Duration;

use corten_tests::{Session, eventually};

use crate::{IMAGE, node};

/// Waits for a shell's prompt.
fn prompt(terminal: &Session) {
    terminal.until("a prompt", |screen| screen.trim_end().ends_with('#'));
}

#[test]
fn a_shell_in_a_container_has_sizes_interrupts_and_an_exit_code() {
    let node = node();
    let mut shell = Session::start(&node.ctr_command(["run", "--rm", "-t", IMAGE, "box", "sh"]));
    prompt(&shell);
    shell.press("echo sum-$((6*7))\r");
    shell.shows("sum-42");
    shell.press("stty size\r");
    shell.shows("24 80");
    shell.resize((100, 30));
    // The signal needs its time to reach the container.
    let mut tries = 0;
    eventually("the new size is known inside", Duration::from_secs(60), || {
        tries += 1;
        shell.press(&format!("echo try-{tries} $(stty size)\r"));
        let answer = format!("try-{tries} 30 100");
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            if shell.screen().contains(&answer) {
                return Some(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    });
    shell.press("echo sleeping-$((1+1)); sleep 1000\r");
    shell.shows("sleeping-2");
    shell.press("\u{3}");
    shell.press("echo back-$((1+1))\r");
    shell.shows("back-2");
    shell.press("exit 7\r");
    assert_eq!(shell.finish().0, 7);
    assert_eq!(node.ctr(["c", "ls", "-q"]).ok(), "");
    node.finish();
}

#[test]
fn keys_leave_a_container_alone_and_attach_goes_back() {
    let node = node();
    let mut shell = Session::start(&node.ctr_command(["run", "--rm", "-t", IMAGE, "box", "sh"]));
    prompt(&shell);
    shell.press("kept=yes; echo set-$((1+1))\r");
    shell.shows("set-2");
    shell.press("\u{10}\u{11}");
    let (code, told) = shell.finish();
    assert_eq!(code, 0);
    assert!(told.contains("left box alone"), "{told}");
    assert_eq!(node.tasks().len(), 1);

    // A key that only may have been the first one arrives.
    let mut other = Session::start(&node.ctr_command(["t", "attach", "--detach-keys", "ctrl-a,d", "box"]));
    other.press("echo \u{10}still-$kept\r");
    other.shows("still-yes");
    other.press("\u{1}d");
    assert_eq!(other.finish().0, 0);

    let exec = ["t", "exec", "-t", "--exec-id", "more", "box", "sh"];
    let mut more = Session::start(&node.ctr_command(exec));
    prompt(&more);
    more.press("\u{10}\u{11}");
    assert_eq!(more.finish().0, 0);

    let mut last = Session::start(&node.ctr_command(["t", "attach", "box"]));
    last.press("exit 5\r");
    assert_eq!(last.finish().0, 5);
    node.ctr(["c", "rm", "box"]).ok();
    node.finish();
}

#[test]
fn top_shows_containers_and_stops_kills_enters_and_inspects_them() {
    let node = node();
    for id in ["alpha", "beta", "gamma"] {
        node.ctr(["run", "-d", "--null-io", IMAGE, id, "sh", "-c", "trap exit TERM; sleep 1000 & wait"]).ok();
    }
    node.ctr(["top"]).fails_with("top needs a terminal");
    let mut top = Session::start(&node.ctr_command(["top", "--interval", "200ms"]));
    top.resize((120, 20));
    top.until("all containers", |screen| ["alpha", "beta", "gamma"].iter().all(|id| screen.contains(id)));
    assert!(top.is_on_other_page());
    let screen = top.shows("3 containers");
    assert!(["CPU", "MEMORY", "NET IN/s", "READ/s", "PIDS", "running"].iter().all(|it| screen.contains(it)));
    // By name, the second.
    top.press("n");
    for _ in 0..3 {
        top.press("\u{1b}[A");
    }
    top.press("\u{1b}[B");
    top.press("i");
    top.shows("\"name\": \"beta\"");
    top.press("q");
    top.shows("3 containers");
    top.press("e");
    top.until("a shell", |screen| screen.trim_end().ends_with('#'));
    top.press("echo in-$((40+2))\r");
    top.shows("in-42");
    top.press("exit\r");
    top.shows("sh in beta has ended");
    top.press("p");
    top.shows("paused");
    top.press("p");
    top.until("it goes on", |screen| !screen.contains("paused"));
    top.press("k");
    top.shows("kill beta?");
    top.press("y");
    top.shows("2 containers");
    top.press("\u{1b}[A\u{1b}[A");
    top.press("s");
    top.shows("stop alpha?");
    top.press("x");
    top.until("no is an answer", |screen| !screen.contains("stop alpha?"));
    top.press("sy");
    top.shows("1 containers");
    top.press("q");
    let (code, written) = top.finish();
    assert_eq!(code, 0);
    assert!(written.ends_with("\u{1b}[?25h\u{1b}[?1049l"), "the terminal is as it was: {written:?}");
    assert_eq!(node.tasks().iter().filter(|(_, _, status)| status == "RUNNING").count(), 1);
    node.ctr(["stop", "-t", "0s", "--rm", "gamma"]).ok();
    node.ctr(["prune", "--force"]).ok();
    node.finish();
}

#[test]
fn who_waits_long_is_told_what_for() {
    let node = node();
    node.ctr(["run", "-d", "--null-io", IMAGE, "deaf", "sleep", "1000"]).ok();
    let stopping = Session::start(&node.ctr_command(["stop", "--grace", "3s", "--rm", "deaf"]));
    let (code, written) = stopping.finish();
    assert!(code == 0 && written.ends_with("deaf\r\n"), "{code}: {written:?}");
    assert!(written.contains("waiting for containers to end"), "{written:?}");
    node.finish();
}

#[test]
fn an_interrupt_ends_what_has_no_process() {
    let node = node();
    for args in [&["events"][..], &["stats"]] {
        let mut session = Session::start(&node.ctr_command(args.iter().copied()));
        // The first may come before there is anybody to interrupt.
        eventually("it ends", Duration::from_secs(60), || {
            session.press("\u{3}");
            std::thread::sleep(Duration::from_millis(100));
            session.has_ended().then_some(())
        });
        let (code, told) = session.finish();
        assert_eq!(code, 130, "{args:?}: {told}");
    }
    let mut top = Session::start(&node.ctr_command(["top"]));
    top.shows("0 containers");
    top.press("\u{3}");
    assert_eq!(top.finish().0, 0);
    node.finish();
}
