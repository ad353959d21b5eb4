//! How long a container takes.

use std::process::Stdio;
use std::time::Instant;

use corten_tests::Node;

use crate::{IMAGE, Sides, median, row};

/// `ctr version`: how long the command line itself takes, each with its own daemon.
pub fn client(sides: &Sides, runs: usize) {
    let once = |node: &Node| {
        let mut command = node.ctr_command(["version"]);
        // Nobody reads along: threads for that cost as much as a part of it.
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let begun = Instant::now();
        assert!(command.status().unwrap().success());
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

/// A daemon, and what `ctr run` is told for the runtime to be another one.
struct Side<'a> {
    node: &'a Node,
    flags: &'a [&'a str],
}

impl Side<'_> {
    fn run(&self, args: &[&str]) -> std::process::Command {
        self.node.ctr_command([&["run"][..], self.flags, args].concat())
    }

    fn timed(&self, mut command: std::process::Command) -> f64 {
        let begun = Instant::now();
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        begun.elapsed().as_secs_f64() * 1000.0
    }
}

/// Starts of ours beside those of Debian's with runc, and of the same with crun.
pub struct Starts<'a> {
    sides: [Side<'a>; 3],
}

const BUDGET: Option<f64> = Some(1.0 / 6.0);

impl<'a> Starts<'a> {
    /// `crun` is a node of Debian's whose containers these flags have run by crun.
    pub fn new(sides: &'a Sides, crun: &'a Node, flags: &'a [&'a str]) -> Self {
        let [ours, theirs] = [&sides.ours, &sides.theirs].map(|node| Side { node, flags: &[] });
        Self { sides: [ours, theirs, Side { node: crun, flags }] }
    }

    /// `ctr run --rm IMAGE true`, one after the other, the sides taking turns.
    pub fn sequential(&self, runs: usize) {
        let once =
            |side: &Side<'_>, n: usize| side.timed(side.run(&["--rm", IMAGE, &format!("s{n}"), "true"]));
        self.in_turn(&format!("ctr run --rm IMAGE true (median of {runs})"), runs, once);
    }

    /// `ctr tasks exec ID true`, likewise.
    pub fn exec(&self, runs: usize) {
        for side in &self.sides {
            side.timed(side.run(&["-d", IMAGE, "exec", "sleep", "1000"]));
        }
        let once = |side: &Side<'_>, n: usize| {
            side.timed(side.node.ctr_command([
                "tasks",
                "exec",
                "--exec-id",
                &format!("e{n}"),
                "exec",
                "true",
            ]))
        };
        self.in_turn(&format!("ctr tasks exec ID true (median of {runs})"), runs, once);
        for side in &self.sides {
            side.node.ctr(["tasks", "rm", "-f", "exec"]);
            side.node.ctr(["containers", "rm", "exec"]).ok();
        }
    }

    fn in_turn(&self, what: &str, runs: usize, once: impl Fn(&Side<'_>, usize) -> f64) {
        let mut figures = [const { Vec::new() }; 3];
        for side in &self.sides {
            once(side, usize::MAX);
        }
        for n in 0..runs {
            for (side, figures) in self.sides.iter().zip(&mut figures) {
                figures.push(once(side, n));
            }
        }
        self.rows(what, figures.map(median));
    }

    /// Many at once, until the last has ended; the better of two rounds.
    pub fn at_once(&self, containers: usize) {
        let round = |side: &Side<'_>| {
            let begun = Instant::now();
            let children: Vec<_> = (0..containers)
                .map(|n| {
                    let mut command = side.run(&["--rm", IMAGE, &format!("p{n}"), "true"]);
                    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
                })
                .collect();
            for mut child in children {
                assert!(child.wait().unwrap().success(), "a container of many failed");
            }
            begun.elapsed().as_secs_f64() * 1000.0
        };
        let best = self.sides.each_ref().map(|side| round(side).min(round(side)));
        self.rows(&format!("{containers} at once, all of them"), best);
    }

    fn rows(&self, what: &str, [ours, theirs, crun]: [f64; 3]) {
        row(what, "ms", ours, theirs, BUDGET);
        row("  beside Debian's 1.6 with crun", "ms", ours, crun, None);
    }
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
