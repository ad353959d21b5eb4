//! What a node costs in memory while containers run.

use corten_tests::Node;

use crate::{IMAGE, Sides, median, row, row_alone};

/// The daemon's resident memory when it has just started.
pub fn idle(sides: &Sides) {
    let resident = |node: &Node| status(node.pid().unwrap() as i32, "VmRSS") / 1024.0;
    // What starts in the background has been there by then.
    std::thread::sleep(std::time::Duration::from_secs(2));
    row_alone("daemon, resident, idle", "MB", resident(&sides.ours), Some(resident(&sides.theirs)), 12.0);
}

/// The daemon's resident memory after all that was asked of it.
pub fn after(sides: &Sides) {
    let resident = |node: &Node| status(node.pid().unwrap() as i32, "VmRSS") / 1024.0;
    row("daemon, resident, at the end", "MB", resident(&sides.ours), resident(&sides.theirs), None);
}

/// The daemon's resident memory before and with containers, and a shim's anonymous and proportional
/// memory.
pub fn measure(sides: &Sides, containers: usize) {
    let ours = figures(&sides.ours, containers);
    let theirs = figures(&sides.theirs, containers);
    row("daemon, resident, after the starts", "MB", ours.daemon, theirs.daemon, None);
    row(&format!("daemon, resident, {containers} running"), "MB", ours.busy, theirs.busy, None);
    row_alone("shim, anonymous (median)", "MB", ours.anonymous, Some(theirs.anonymous), 1.0);
    row_alone(
        &format!("shim, proportional, {containers} running"),
        "MB",
        ours.proportional,
        Some(theirs.proportional),
        1.5,
    );
    row_alone("shim, threads", "  ", ours.threads, Some(theirs.threads), 3.0);
}

struct Figures {
    daemon: f64,
    busy: f64,
    anonymous: f64,
    proportional: f64,
    threads: f64,
}

fn figures(node: &Node, containers: usize) -> Figures {
    let pid = node.pid().unwrap() as i32;
    let daemon = status(pid, "VmRSS") / 1024.0;
    for n in 0..containers {
        node.ctr(["run", "-d", IMAGE, &format!("m{n}"), "sleep", "1000"]).ok();
    }
    let shims = node.shims();
    let collect = |figure: &dyn Fn(i32) -> f64| median(shims.iter().map(|pid| figure(*pid)).collect());
    let result = Figures {
        daemon,
        busy: status(pid, "VmRSS") / 1024.0,
        anonymous: collect(&|pid| rollup(pid, "Anonymous") / 1024.0),
        proportional: collect(&|pid| rollup(pid, "Pss") / 1024.0),
        threads: collect(&|pid| status(pid, "Threads")),
    };
    for n in 0..containers {
        node.ctr(["tasks", "rm", "-f", &format!("m{n}")]);
        node.ctr(["containers", "rm", &format!("m{n}")]).ok();
    }
    result
}

/// A line of a process' `status`, in its unit.
pub fn status(pid: i32, key: &str) -> f64 {
    field(&std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default(), key)
}

/// A line of all of a process' memory together, in kB.
pub fn rollup(pid: i32, key: &str) -> f64 {
    field(&std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default(), key)
}

/// The number behind `key:`.
fn field(text: &str, key: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(f64::NAN)
}
