//! Measures corten beside Debian's containerd 2.1 with runc, alternating in one run on one machine,
//! and prints ratios: figures drift between machines and minutes, ratios much less.
//!
//! A budget that is missed is marked; nothing here fails a build.

#![allow(clippy::unwrap_used, reason = "a bench that cannot be set up stops")]

mod crun;
mod docker;
mod idle;
mod images;
mod memory;
mod network;
mod plot;
mod raw;
mod start;
mod store;

use std::path::PathBuf;

use clap::Parser;
use corten_tests::{ImageBuilder, Node, Peers};

/// Side by side with Debian's containerd 2.1 and runc.
#[derive(Debug, Parser)]
struct Args {
    /// The folder that `make peers` fills.
    #[arg(long)]
    peers: PathBuf,
    /// The folder with our optimised programs.
    #[arg(long)]
    programs: PathBuf,
    /// Sequential starts of which the median is taken.
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Containers started at once, and left running when memory is measured.
    #[arg(long, default_value_t = 50)]
    containers: usize,
    /// Containers that do nothing.
    #[arg(long, default_value_t = 500)]
    idle: usize,
    /// Records that are listed.
    #[arg(long, default_value_t = 10_000)]
    records: usize,
    /// Objects that are collected while a writer waits.
    #[arg(long, default_value_t = 100_000)]
    objects: usize,
    /// Times that each image is brought in and out.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only these images.
    #[arg(long, value_enum, value_delimiter = ',')]
    images: Vec<images::Which>,
    /// What is slow to make is kept here.
    #[arg(long, default_value = "target/bench")]
    cache: PathBuf,
    /// Where plots are written.
    #[arg(long)]
    plots: Option<PathBuf>,
    /// Only these figures.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Figure>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Figure {
    /// Containers, one after the other and at once.
    Start,
    /// The command line alone.
    Client,
    /// Memory of the daemon and of shims.
    Memory,
    /// Many containers that do nothing, and the daemon's start with them.
    Idle,
    /// Small writes.
    Writes,
    /// Lists of containers.
    List,
    /// A large blob.
    Content,
    /// Attaching a container to a network.
    Network,
    /// The longest wait of a writer while much is collected.
    Collect,
    /// Docker Engine on both.
    Docker,
    /// Images in and out, beside the stages alone.
    Images,
}

/// The two nodes under comparison.
struct Sides {
    ours: Node,
    theirs: Node,
}

const IMAGE: &str = "example.com/bench/busybox:1";

fn main() {
    let args = Args::parse();
    let programs = args.programs.canonicalize().unwrap();
    let peers = args.peers.canonicalize().unwrap();
    // Single-threaded still: nothing else reads the environment.
    let environment = [("PEERS", &peers), ("CORTEN_BIN", &programs)];
    if environment.iter().any(|(key, value)| std::env::var_os(key).as_deref() != Some(value.as_os_str())) {
        run_again_with(&environment);
    }
    let mut sides = Sides {
        ours: Node::builder().config(images::OURS).start(),
        theirs: Node::peer(&Peers::find().containerd_2_1()).config(images::BEST).start(),
    };
    println!("{:44} {:>12} {:>12} {:>8} {:>8}", "", "corten", "Debian 2.1", "ratio", "budget");
    let wanted = |figure| args.only.is_empty() || args.only.contains(&figure);
    if wanted(Figure::Memory) {
        memory::idle(&sides);
    }
    if wanted(Figure::Client) || wanted(Figure::Start) {
        start::client(&sides, 2 * args.runs);
    }
    if wanted(Figure::Start) || wanted(Figure::Memory) || wanted(Figure::Idle) {
        import(&sides);
        containers(&sides, &args, wanted(Figure::Start), wanted(Figure::Memory));
    }
    if wanted(Figure::Idle) {
        idle::measure(&mut sides, args.idle);
    }
    if wanted(Figure::Network) {
        network::attach(&programs, args.runs);
    }
    if wanted(Figure::Writes) {
        store::writes(&sides, 1000);
    }
    if wanted(Figure::List) {
        store::list(&sides, args.records);
    }
    if wanted(Figure::Content) {
        store::content(&sides, 500);
    }
    if wanted(Figure::Collect) {
        store::collect(&sides.ours, args.objects);
    }
    if wanted(Figure::Docker) {
        docker::runs(args.runs, 20);
    }
    if wanted(Figure::Images) {
        images::measure(&sides, args.rounds, &args.images, &args.cache, args.plots.as_deref());
    }
    memory::after(&sides);
    sides.ours.finish();
    sides.theirs.finish();
}

/// The image of the containers.
fn import(sides: &Sides) {
    let archive = sides.ours.join("image.tar");
    ImageBuilder::busybox().build().save(&archive, IMAGE).unwrap();
    for node in [&sides.ours, &sides.theirs] {
        node.ctr(["images", "import", archive.to_str().unwrap()]).ok();
    }
}

/// Figures that need containers of an image.
fn containers(sides: &Sides, args: &Args, start: bool, memory: bool) {
    if start {
        let crun = crun::start(sides.ours.path());
        let program = crun::program();
        let flags = ["--runc-binary", program.to_str().unwrap()];
        let starts = start::Starts::new(sides, &crun, &flags);
        starts.sequential(args.runs);
        starts.exec(args.runs);
        starts.at_once(args.containers);
        crun.finish();
    }
    if memory {
        memory::measure(sides, args.containers);
    }
    if start {
        start::breakdown(&sides.ours);
    }
}

/// Replaces this process by itself with the variables set, which the harness reads.
fn run_again_with(environment: &[(&str, &PathBuf)]) {
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(std::env::args_os().skip(1));
    for (key, value) in environment {
        command.env(key, value);
    }
    panic!("cannot start again: {}", command.exec());
}

/// One row: two figures, their ratio, and the budget for it.
fn row(what: &str, unit: &str, ours: f64, theirs: f64, budget: Option<f64>) {
    let ratio = ours / theirs;
    let verdict = match budget {
        Some(budget) if ratio <= budget => format!("1/{:.0} ok", 1.0 / budget),
        Some(budget) => format!("1/{:.0} MISSED", 1.0 / budget),
        None => String::new(),
    };
    let digits = digits(unit);
    println!(
        "{what:44} {ours:>9.digits$} {unit} {theirs:>9.digits$} {unit} {:>8} {verdict:>8}",
        format!("1/{:.1}", 1.0 / ratio)
    );
}

/// One row of ours alone, with an absolute budget.
fn row_alone(what: &str, unit: &str, ours: f64, theirs: Option<f64>, budget: f64) {
    let digits = digits(unit);
    let theirs = theirs.map_or_else(|| "-".into(), |figure| format!("{figure:.digits$} {unit}"));
    let verdict = if ours <= budget { "ok" } else { "MISSED" };
    println!("{what:44} {ours:>9.digits$} {unit} {theirs:>12} {:>8} ≤ {budget} {unit} {verdict}", "");
}

/// Digits that are told of a figure.
fn digits(unit: &str) -> usize {
    if unit.starts_with('s') || unit.starts_with('x') { 2 } else { 1 }
}

/// The middle of the figures.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
