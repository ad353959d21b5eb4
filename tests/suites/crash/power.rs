//! The power fails at random moments, on one file system after the other.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use corten_tests::{Node, Registry, eventually};

use crate::disk::{BTRFS, Disk, EXT4, Kind, XFS};
use crate::history::History;
use crate::pulls::{self, Sample};
use crate::random::Random;
use crate::records::SNAPSHOTTER;
use crate::{check_disk, live, records, times};

/// A moment at which the power failed: on which copy, and between which instants.
struct Cut {
    copy: usize,
    from: Instant,
    to: Instant,
}

/// Cuts the power while records, blobs and snapshots change and images are pulled and removed; looks at each
/// copy with a daemon that knows nothing but that.
fn cut_and_compare(kind: Kind, cuts: usize) {
    let mut random = Random::seeded();
    let registry = Registry::start();
    let samples: Vec<Sample> = ["one", "two"].map(|name| Sample::push(&registry, name)).into();
    let mut disk = Disk::new(kind);
    let mut node = Node::builder().root(&disk.folder()).start();
    let namespace = node.namespace().to_owned();
    let (pulls, pulled) = (AtomicUsize::new(0), Mutex::new(History::default()));
    let mut moments = Vec::new();
    let pauses: Vec<u64> = (0..cuts).map(|_| random.below(700)).collect();
    let mut done = live(&mut node, &mut random, &History::default(), SNAPSHOTTER, |node, stop| {
        let (node, stopped) = (&*node, || stop.load(Ordering::SeqCst));
        std::thread::scope(|scope| {
            for sample in &samples {
                let (pulls, pulled, stopped) = (&pulls, &pulled, &stopped);
                scope.spawn(move || {
                    let done = pulls::work(node, sample, pulls, stopped);
                    pulled.lock().unwrap().join(done);
                });
            }
            let ending = End(stop);
            for (n, pause) in pauses.into_iter().enumerate() {
                if n == cuts / 2 {
                    let done = || (pulls.load(Ordering::SeqCst) > 0).then_some(());
                    eventually("an image is pulled", Duration::from_secs(60), done);
                }
                std::thread::sleep(Duration::from_millis(pause));
                let from = Instant::now();
                let copy = disk.cut();
                moments.push(Cut { copy, from, to: Instant::now() });
            }
            drop(ending);
        });
    });
    done.join(pulled.into_inner().unwrap());
    println!("{} acknowledged changes", done.acknowledged());
    assert!(done.acknowledged() > 2 * cuts, "too little happened between the cuts");
    // It would remove what it has mounted, and that must be ours to do.
    node.kill_daemon();
    drop(node);
    for cut in moments {
        println!("copy {}", cut.copy);
        disk.mount_copy(cut.copy);
        let node = Node::builder().root(&disk.folder()).start();
        let mut seen = records::view(&node.address(), &namespace, SNAPSHOTTER);
        seen.extend(pulls::view(&node.address(), &namespace, &samples));
        let wrong = done.compare(&seen, cut.from, cut.to);
        assert!(wrong.is_empty(), "{kind:?}, copy {}:\n{}", cut.copy, wrong.join("\n"));
        check_disk(&node, &namespace);
        node.finish();
    }
}

/// Has the workers end, also when the cutting fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn acknowledged_changes_survive_power_cuts_on_ext4() {
    cut_and_compare(EXT4, times(10));
}

#[test]
fn acknowledged_changes_survive_power_cuts_on_xfs() {
    cut_and_compare(XFS, times(8));
}

#[test]
fn acknowledged_changes_survive_power_cuts_on_btrfs() {
    cut_and_compare(BTRFS, times(8));
}
