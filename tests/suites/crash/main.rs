//! Whatever moment a daemon or a machine is lost at, what was acknowledged is there afterwards, nothing is there
//! by half, and after one collection the disk holds what the database knows and no more.
//!
//! `CORTEN_KILLS` says how many times; `CORTEN_SEED` repeats a history's choices.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod damage;
mod disk;
mod history;
mod power;
mod pulls;
mod random;
mod records;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use corten_api::services::content;
use corten_tests::snapshotter::SnapshotterProcess;
use corten_tests::{Client, Digest, Node};

use crate::history::{History, Kind};
use crate::random::Random;
use crate::records::{SNAPSHOTTER, Worker};

const WORKERS: usize = 4;

/// How often to kill, cut or damage: `usual`, unless the environment says otherwise.
fn times(usual: usize) -> usize {
    std::env::var("CORTEN_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Lets workers make history for a while, ends them and the daemon by `end`, and answers what they did.
fn live(
    node: &mut Node,
    random: &mut Random,
    history: &History,
    snapshotter: &str,
    end: impl FnOnce(&mut Node, &AtomicBool),
) -> History {
    let stop = AtomicBool::new(false);
    let address = node.address();
    let namespace = node.namespace().to_owned();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|n| {
                let name = format!("w{n}");
                let own = history.of(&format!("{name}-"));
                let client = Client::new(&address, Some(&namespace));
                let mut worker = Worker::new(client, &name, snapshotter, random.fork(), own);
                let stop = &stop;
                scope.spawn(move || {
                    worker.work(|| stop.load(Ordering::SeqCst));
                    worker.history
                })
            })
            .collect();
        end(node, &stop);
        let mut history = History::default();
        workers.into_iter().for_each(|worker| history.join(worker.join().unwrap()));
        history
    })
}

/// The disk holds, of blobs, what the database knows, whole, and nothing else.
fn check_blobs(node: &Node, client: &Client) {
    let root = node.root();
    let folder = root.join("io.containerd.content.v1.content/blobs/sha256");
    let known: BTreeSet<String> = records::blobs(client)
        .iter()
        .map(|info| info.digest.trim_start_matches("sha256:").to_owned())
        .collect();
    assert_eq!(names(&folder), known, "files of blobs");
    for name in &known {
        let data = std::fs::read(folder.join(name)).unwrap();
        assert_eq!(Digest::sha256(&data).hex(), name, "a blob's bytes");
    }
    let statuses = client
        .wait(client.content().list_statuses(content::ListStatusesRequest::default()))
        .unwrap()
        .statuses;
    // One that was lost before its first byte has a record and a folder, and is shown when it has data.
    let folder = root.join("io.containerd.content.v1.content/ingest");
    let mut ingests = names(&folder);
    ingests.retain(|name| folder.join(name).join("data").exists());
    assert_eq!(ingests.len(), statuses.len(), "ingests: {ingests:?} and {statuses:?}");
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The disk holds what the database knows, whole, and nothing else.
fn check_disk(node: &Node, namespace: &str) {
    let client = Client::new(&node.address(), Some(namespace));
    records::collect(&client);
    check_blobs(node, &client);
    let folders = names(&node.root().join("io.containerd.snapshotter.v1.overlayfs/snapshots"));
    assert_eq!(
        folders.len(),
        records::snapshots(&client, SNAPSHOTTER).len(),
        "folders of snapshots: {folders:?}"
    );
}

/// Kills a daemon at random moments of a history, and compares with what it acknowledged. Answers what is there in
/// the end.
fn kill_often(node: &mut Node, kills: usize, snapshotter: &str, check: impl Fn(&Node)) -> History {
    let mut random = Random::seeded();
    let mut history = History::default();
    let mut acknowledged = 0;
    for kill in 0..kills {
        // Where little is done in that time, there is more of it.
        let most = if acknowledged < kill { 600_000 } else { 60_000 };
        let pause = Duration::from_micros(random.below(most));
        let mut lost = Instant::now();
        let done = live(node, &mut random, &history, snapshotter, |node, stop| {
            std::thread::sleep(pause);
            // Calls that are under way stay so.
            stop.store(true, Ordering::SeqCst);
            lost = Instant::now();
            node.kill_daemon();
        });
        acknowledged += done.acknowledged();
        node.start_daemon();
        let seen = records::view(&node.address(), node.namespace(), snapshotter);
        let wrong = done.compare(&seen, lost, Instant::now());
        assert!(wrong.is_empty(), "after kill {kill}:\n{}", wrong.join("\n"));
        if kill % 8 == 7 {
            check(node);
        }
        history = History::after(seen);
    }
    println!("{acknowledged} acknowledged changes");
    assert!(acknowledged > kills / 2, "the daemon was killed before it could do anything: {acknowledged}");
    check(node);
    history
}

#[test]
fn acknowledged_changes_survive_kills_at_random_moments() {
    let mut node = Node::start();
    let history = kill_often(&mut node, times(200), SNAPSHOTTER, |node| check_disk(node, node.namespace()));
    assert!(history.kinds().contains(&Kind::Blob));
    node.finish();
}

#[test]
fn what_another_process_keeps_is_what_was_acknowledged_after_kills() {
    let far = SnapshotterProcess::start();
    let mut node = Node::builder().config(&format!("version = 2\n{}", far.config("far"))).start();
    kill_often(&mut node, times(200) / 20, "far", |node| {
        let client = Client::new(&node.address(), Some(node.namespace()));
        records::collect(&client);
        check_blobs(node, &client);
        let (known, there) = (records::snapshots(&client, "far"), far.snapshots());
        assert_eq!(known.len(), there.len(), "{known:?} and {there:?}");
    });
    node.finish();
}
