//! Images: what it takes to bring them in and out, and what the stages of that take alone.

mod samples;
mod stages;

use std::path::Path;
use std::time::{Duration, Instant};

use corten_tests::{Guard, Node, Registry};

use crate::plot::{Bar, Plot};
use crate::{Sides, median, memory, row, row_alone};
use samples::Sample;

/// Settings with which Debian's daemon is at its best: layers come in parts of several connections, and more of them
/// at once. It knows none for unpacking them side by side.
pub const BEST: &str = "version = 3\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
                        [plugins.'io.containerd.transfer.v1.local']\nmax_concurrent_downloads = 10\n\
                        concurrent_layer_fetch_buffer = 8388608\nmax_concurrent_uploaded_layers = 10\n";
/// As many uploads at once for ours; the rest is as it comes.
pub const OURS: &str =
    "version = 3\n[plugins.'io.containerd.transfer.v1.local']\nmax_concurrent_uploaded_layers = 10\n";
pub const MEGABYTE: f64 = 1e6;
/// The longest that one command may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// What is brought in and out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Which {
    /// Debian with compilers.
    Debian,
    /// One huge layer.
    Huge,
    /// 100 small layers.
    Small,
}

/// Everything of the images named, or of all. `cache` keeps what is slow to make; plots go to the folder named.
pub fn measure(sides: &Sides, rounds: usize, which: &[Which], cache: &Path, plots: Option<&Path>) {
    // Pushes go to another one: the first would only have to be told that it has everything. Both keep what they have
    // in memory: their disk is the same for everybody who pushes, and hides all else.
    let start = || Registry::guarded(Guard { in_memory: true, ..Guard::default() });
    let (registry, other) = (start(), start());
    // Blobs are mounted from other repositories of a host of the same name, whatever its port.
    let elsewhere = other.host().replace("127.0.0.1", "localhost");
    for name in [Which::Debian, Which::Huge, Which::Small] {
        if !which.is_empty() && !which.contains(&name) {
            continue;
        }
        let make = match name {
            Which::Debian => samples::debian,
            Which::Huge => samples::huge,
            Which::Small => samples::small,
        };
        let sample = make(cache);
        let reference = registry.push(&sample.image, &format!("bench/{}:1", sample.slug()));
        println!("\n{}: {}", sample.name, sample.describe());
        one(sides, [&registry.host(), &elsewhere], &sample, &reference, rounds, plots);
    }
}

/// What was measured of one side, in seconds; megabytes for memory.
#[derive(Default)]
struct Figures {
    pull: Vec<f64>,
    again: Vec<f64>,
    export: Vec<f64>,
    import: Vec<f64>,
    push: Vec<f64>,
    /// To another repository of the registry that it came from.
    retag: Vec<f64>,
    memory: f64,
}

fn one(
    sides: &Sides,
    registries: [&str; 2],
    sample: &Sample,
    reference: &str,
    rounds: usize,
    plots: Option<&Path>,
) {
    let (mut ours, mut theirs) = (Figures::default(), Figures::default());
    for round in 0..rounds {
        for (node, figures) in [(&sides.ours, &mut ours), (&sides.theirs, &mut theirs)] {
            round_of(node, registries, reference, figures, round);
        }
    }
    let stages = stages::measure(sample);
    let upload = stages::upload(registries[1], sample);
    let rows = [
        ("pull and unpack", ours.pull, theirs.pull),
        ("pull again, all there", ours.again, theirs.again),
        ("import and unpack", ours.import, theirs.import),
        ("export", ours.export, theirs.export),
        ("push beside itself", ours.retag, theirs.retag),
        ("push", ours.push, theirs.push),
    ];
    let rows = rows.map(|(what, ours, theirs)| (what, median(ours), median(theirs)));
    for (what, ours, theirs) in rows {
        row(what, "s ", ours, theirs, Some(0.5));
    }
    row_alone("daemon, most resident memory", "MB", ours.memory, Some(theirs.memory), 64.0);
    for (what, seconds) in &stages {
        println!("  {what} alone: {seconds:.2} s");
    }
    let slowest = stages.iter().map(|(_, seconds)| *seconds).fold(0.0, f64::max);
    let [(_, ours, theirs), .., (_, our_push, their_push)] = rows;
    row_alone("pull and unpack, by the slowest stage", "x ", ours / slowest, Some(theirs / slowest), 1.3);
    println!("  upload alone: {upload:.2} s");
    row_alone("push, by the upload alone", "x ", our_push / upload, Some(their_push / upload), 1.3);
    if let Some(folder) = plots {
        let bars = rows.map(|(what, ours, theirs)| Bar::both(what, ours, theirs)).into_iter();
        let alone = stages.iter().copied().chain([("upload", upload)]);
        let bars = bars.chain(alone.map(|(what, seconds)| Bar::alone(&format!("{what} alone"), seconds)));
        let title = format!("{}, {}: seconds, less is better", sample.name, sample.describe());
        let file = folder.join(format!("images-{}.svg", sample.slug()));
        Plot { title, bars: bars.collect() }.write(&file).unwrap();
        println!("drawn in {}", file.display());
    }
}

/// In, in again, out to a file, to another registry and to another repository, away, in from the file, and away.
fn round_of(node: &Node, registries: [&str; 2], reference: &str, figures: &mut Figures, round: usize) {
    let pid = node.pid().unwrap();
    // The most memory counts from here.
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
    let archive = node.join("bench.tar");
    let archive = archive.to_str().unwrap();
    let [beside, there] = registries.map(|one| format!("{one}/bench/pushed-{pid}-{round}:1"));
    let ctr = |args: &[&str]| {
        // What one side still has to write to disk is not waited for by the other.
        rustix::fs::sync();
        let begun = Instant::now();
        node.ctr_running(args.iter().copied()).finish_within(PATIENCE).ok();
        begun.elapsed().as_secs_f64()
    };
    let pull = ["images", "pull", "--plain-http", reference];
    figures.pull.push(ctr(&pull));
    figures.again.push(ctr(&pull));
    figures.export.push(ctr(&["images", "export", archive, reference]));
    figures.push.push(ctr(&["images", "push", "--plain-http", &there, reference]));
    figures.retag.push(ctr(&["images", "push", "--plain-http", &beside, reference]));
    ctr(&["images", "rm", "--sync", reference]);
    figures.import.push(ctr(&["images", "import", archive]));
    ctr(&["images", "rm", "--sync", reference]);
    std::fs::remove_file(archive).unwrap();
    figures.memory = figures.memory.max(memory::status(pid as i32, "VmHWM") / 1024.0);
}
