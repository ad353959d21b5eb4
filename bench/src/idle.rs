//! What many containers cost that do nothing, and how long the daemon takes to find them again.

use std::time::Instant;

use corten_tests::Node;

use crate::memory::{rollup, status};
use crate::{IMAGE, Sides, median, row, row_alone};

/// Budget for the daemon's start with so many containers, in seconds.
const START: f64 = 1.0;

/// Both sides, one after the other: together they would need more memory than small machines have.
pub fn measure(sides: &mut Sides, containers: usize) {
    let (ours, theirs) = (figures(&mut sides.ours, containers), figures(&mut sides.theirs, containers));
    let what = |figure: &str| format!("{containers} idle: {figure}");
    row(&what("memory of shims and daemon"), "MB", ours.memory, theirs.memory, Some(1.0 / 8.0));
    row_alone(&what("anonymous memory of a shim"), "MB", ours.anonymous, Some(theirs.anonymous), 1.0);
    row_alone(
        &what("proportional memory of a shim"),
        "MB",
        ours.proportional,
        Some(theirs.proportional),
        1.5,
    );
    row_alone(&what("threads of a shim"), "  ", ours.threads, Some(theirs.threads), 3.0);
    row(&what("descriptors of a shim"), "  ", ours.files, theirs.files, None);
    row_alone(&what("daemon's start to all tasks listed"), "s ", ours.start, Some(theirs.start), START);
}

struct Figures {
    memory: f64,
    anonymous: f64,
    proportional: f64,
    threads: f64,
    files: f64,
    start: f64,
}

fn figures(node: &mut Node, containers: usize) -> Figures {
    for n in 0..containers {
        node.ctr(["run", "-d", IMAGE, &format!("i{n}"), "sleep", "10000"]).ok();
    }
    let shims = node.shims();
    let collect = |figure: &dyn Fn(i32) -> f64| shims.iter().map(|pid| figure(*pid)).collect::<Vec<_>>();
    let proportional = collect(&|pid| rollup(pid, "Pss") / 1024.0);
    let files =
        |pid: i32| std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(f64::NAN, |list| list.count() as f64);
    let daemon = status(node.pid().unwrap() as i32, "VmRSS") / 1024.0;
    node.kill_daemon();
    let begun = Instant::now();
    node.start_daemon();
    assert_eq!(node.tasks().len(), containers, "all are found again");
    let start = begun.elapsed().as_secs_f64();
    let result = Figures {
        memory: proportional.iter().sum::<f64>() + daemon,
        anonymous: median(collect(&|pid| rollup(pid, "Anonymous") / 1024.0)),
        proportional: median(proportional),
        threads: median(collect(&|pid| status(pid, "Threads"))),
        files: median(collect(&files)),
        start,
    };
    for n in 0..containers {
        node.ctr(["tasks", "rm", "-f", &format!("i{n}")]);
        node.ctr(["containers", "rm", &format!("i{n}")]).ok();
    }
    result
}
