//! Pulls that somebody watches, interrupts or shares.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::time::Duration;

use corten_tests::{Fault, Image, ImageBuilder, Layer, Node, ScriptedRegistry, Terminal, eventually};
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(60);
/// Lines of the terminal.
const ROWS: u16 = 12;
const COLUMNS: u16 = 120;

/// Busybox below many small layers.
fn tall() -> Image {
    let layers = (0..30).map(|n| Layer::new().file(&format!("file-{n}"), 0o644, &[n; 100]).finish());
    layers.fold(ImageBuilder::busybox(), ImageBuilder::layer).build()
}

/// A registry from which busybox's layer comes slowly.
fn slow(image: Image) -> (ScriptedRegistry, String) {
    let layer = image.blobs[1].digest().to_string();
    let registry = ScriptedRegistry::start(image);
    registry.cue(&layer, Fault::Slow(64 << 10), 100);
    (registry, layer)
}

fn pull(node: &Node, registry: &ScriptedRegistry) -> Terminal {
    let command = node.ctr_command(["images", "pull", "--plain-http", &registry.reference()]);
    Terminal::sized(&command, ROWS, COLUMNS)
}

fn screen() -> vt100::Parser {
    vt100::Parser::new(ROWS, COLUMNS, 0)
}

/// The lines of a screen that are not empty.
fn lines(screen: &vt100::Parser) -> Vec<String> {
    let lines = screen.screen().rows(0, COLUMNS).map(|line| line.trim_end().to_owned());
    lines.filter(|line| !line.is_empty()).collect()
}

#[test]
fn bars_are_drawn_in_place_and_leave_one_line() {
    let node = Node::start();
    let (registry, _) = slow(tall());
    let (mut terminal, mut screen) = (pull(&node, &registry), screen());
    let mut seen = Vec::new();
    while let Some(output) = terminal.next_output() {
        screen.process(&output);
        seen.push(lines(&screen));
    }
    assert_eq!(terminal.end(), 0, "{:?}", lines(&screen));
    let shown = |words: &[&str]| {
        let mut lines = seen.iter().flatten();
        assert!(lines.any(|line| words.iter().all(|word| line.contains(word))), "{words:?} in {seen:#?}");
    };
    shown(&["layer (", "downloading", "KiB/", "iB/s"]);
    shown(&["layer (", "extracted"]);
    shown(&["done", " of ", "iB/s", " s left"]);
    for lines in &seen {
        assert!(lines.len() < ROWS.into(), "{lines:#?}");
        assert!(lines.iter().filter(|line| line.contains(" done ")).count() <= 1, "{lines:#?}");
    }
    let left = lines(&screen);
    assert!(matches!(left.as_slice(), [line] if line.starts_with("Pulling")), "{left:#?}");
    node.finish();
}

#[test]
fn an_interrupted_pull_shows_nothing_and_goes_on_where_it_was() {
    let node = Node::start();
    let (registry, layer) = slow(ImageBuilder::busybox().build());
    let (mut terminal, mut screen) = (pull(&node, &registry), screen());
    let arrived = || node.ctr(["content", "active"]).ok().lines().any(|line| line.contains("layer-"));
    eventually("the layer comes", PATIENCE, || arrived().then_some(()));
    // Something of it is on the disk.
    std::thread::sleep(Duration::from_millis(300));
    kill_process(Pid::from_raw(terminal.pid() as i32).unwrap(), Signal::INT).unwrap();
    while let Some(output) = terminal.next_output() {
        screen.process(&output);
    }
    assert_eq!(terminal.end(), 130);
    assert_eq!(lines(&screen), Vec::<String>::new(), "the terminal is clean");
    eventually("what was extracted is gone", PATIENCE, || {
        (node.ctr(["snapshots", "ls"]).ok().lines().count() == 1).then_some(())
    });
    assert_eq!(node.ctr(["images", "ls", "-q"]).ok(), "");
    registry.recover();
    let reference = registry.reference();
    node.ctr(["images", "pull", "--plain-http", &reference]).ok();
    let requests = registry.requests();
    let of_layer: Vec<_> = requests.iter().filter(|line| line.contains(&layer)).collect();
    assert!(of_layer.last().unwrap().contains(" from "), "{requests:#?}");
    assert_eq!(node.ctr(["run", "--rm", &reference, "c", "echo", "works"]).ok(), "works\n");
    node.finish();
}

#[test]
fn pulls_at_the_same_time_share_downloads_and_snapshots() {
    let node = Node::start();
    let (registry, layer) = slow(ImageBuilder::busybox().build());
    let reference = registry.reference();
    let pulls: Vec<_> =
        (0..3).map(|_| node.ctr_running(["images", "pull", "--plain-http", &reference])).collect();
    for pull in pulls {
        pull.finish().ok();
    }
    let requests = registry.requests();
    let downloads = requests.iter().filter(|line| line.starts_with("GET") && line.contains(&layer)).count();
    assert_eq!(downloads, 1, "{requests:#?}");
    assert_eq!(node.ctr(["snapshots", "ls"]).ok().lines().count(), 2);
    assert_eq!(node.ctr(["run", "--rm", &reference, "c", "echo", "works"]).ok(), "works\n");
    node.finish();
}
