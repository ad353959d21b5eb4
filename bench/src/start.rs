//! How long a container takes.

use std::time::Instant;

use corten_tests::Node;

use crate::{IMAGE, Sides, median, row};

/// `ctr run --rm IMAGE true`, one after the other, the sides taking turns.
pub fn sequential(sides: &Sides, runs: usize) {
    let once = |node: &Node, n: usize| {
        let begun = Instant::now();
        node.ctr(["run", "--rm", IMAGE, &format!("s{n}"), "true"]).ok();
        begun.elapsed().as_secs_f64() * 1000.0
    };
    for node in [&sides.ours, &sides.theirs] {
        once(node, usize::MAX);
    }
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for n in 0..runs {
        ours.push(once(&sides.ours, n));
        theirs.push(once(&sides.theirs, n));
    }
    row(
        &format!("ctr run --rm IMAGE true (median of {runs})"),
        "ms",
        median(ours),
        median(theirs),
        Some(1.0 / 6.0),
    );
}

/// `ctr version`: how long the command line itself takes, each with its own daemon.
pub fn client(sides: &Sides, runs: usize) {
    let once = |node: &Node| {
        let begun = Instant::now();
        node.ctr(["version"]);
        begun.elapsed().as_secs_f64() * 1000.0
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    once(&sides.ours);
    once(&sides.theirs);
    for _ in 0..runs {
        ours.push(once(&sides.ours));
        theirs.push(once(&sides.theirs));
    }
    row(&format!("ctr version (median of {runs})"), "ms", median(ours), median(theirs), Some(1.0 / 4.0));
}

/// `ctr tasks exec ID true`, likewise.
pub fn exec(sides: &Sides, runs: usize) {
    let once = |node: &Node, n: usize| {
        let begun = Instant::now();
        node.ctr(["tasks", "exec", "--exec-id", &format!("e{n}"), "exec", "true"]).ok();
        begun.elapsed().as_secs_f64() * 1000.0
    };
    for node in [&sides.ours, &sides.theirs] {
        node.ctr(["run", "-d", IMAGE, "exec", "sleep", "1000"]).ok();
        once(node, usize::MAX);
    }
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for n in 0..runs {
        ours.push(once(&sides.ours, n));
        theirs.push(once(&sides.theirs, n));
    }
    for node in [&sides.ours, &sides.theirs] {
        node.ctr(["tasks", "rm", "-f", "exec"]);
        node.ctr(["containers", "rm", "exec"]).ok();
    }
    let what = format!("ctr tasks exec ID true (median of {runs})");
    row(&what, "ms", median(ours), median(theirs), Some(1.0 / 6.0));
}

/// Many at once, until the last has ended; the better of two rounds.
pub fn at_once(sides: &Sides, containers: usize) {
    let round = |node: &Node| {
        let begun = Instant::now();
        let children: Vec<_> = (0..containers)
            .map(|n| {
                let mut command = node.ctr_command(["run", "--rm", IMAGE, &format!("p{n}"), "true"]);
                command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
                command.spawn().unwrap()
            })
            .collect();
        for mut child in children {
            assert!(child.wait().unwrap().success(), "a container of many failed");
        }
        begun.elapsed().as_secs_f64() * 1000.0
    };
    let best = |node: &Node| round(node).min(round(node));
    row(
        &format!("{containers} at once, all of them"),
        "ms",
        best(&sides.ours),
        best(&sides.theirs),
        Some(1.0 / 6.0),
    );
}

/// Where the time of a start goes, by the log of our own daemon and the clock around single calls.
pub fn breakdown(node: &Node) {
    let time = |args: &[&str]| {
        let begun = Instant::now();
        node.ctr(args).ok();
        begun.elapsed().as_secs_f64() * 1000.0
    };
    println!("\nwhere the time goes (ours, medians of 10; each row is a whole ctr command)");
    let mut rows: Vec<(&str, Vec<f64>)> = vec![
        ("client and connection: ctr version", vec![]),
        ("record and snapshot: containers create", vec![]),
        ("shim, create, start: tasks start -d", vec![]),
        ("an exec: tasks exec true", vec![]),
        ("kill and delete: tasks rm -f", vec![]),
        ("containers rm", vec![]),
    ];
    for n in 0..10 {
        let id = format!("b{n}");
        let figures = [
            time(&["version"]),
            time(&["containers", "create", IMAGE, &id, "sleep", "1000"]),
            time(&["tasks", "start", "-d", &id]),
            time(&["tasks", "exec", "--exec-id", "e", &id, "true"]),
            time(&["tasks", "rm", "-f", &id]),
            time(&["containers", "rm", &id]),
        ];
        for (row, figure) in rows.iter_mut().zip(figures) {
            row.1.push(figure);
        }
    }
    for (what, figures) in rows {
        println!("  {what:42} {:>9.1} ms", median(figures));
    }
}
