//! Containers and processes in random order, while shims, first processes, runtimes in the middle of their work and the
//! daemon are killed at random: in the end nothing remains. `SOAK_SECONDS` says for how long: `make soak`.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod kills;
#[path = "../crash/random.rs"]
#[allow(dead_code, reason = "the other suite uses more of it")]
mod random;
mod work;

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use corten_tests::{Digest, Node, Peers, eventually};

use kills::{Kills, open_files};
use random::Random;
use work::{Counts, Worker};

const WORKERS: u64 = 4;
/// How long, if it is not said.
const USUAL: u64 = 60;

#[test]
fn nothing_remains_of_containers_whatever_is_killed_meanwhile() {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(USUAL);
    let mut random = Random::seeded();
    let node = Node::start();
    let rootfs = node.join("rootfs");
    prepare(&rootfs);
    let before = open_files(node.pid().unwrap());
    let (address, namespace, path) = (node.address(), node.namespace().to_owned(), node.path().to_owned());
    let node = Mutex::new(node);
    let (over, counts) = (AtomicBool::new(false), Counts::default());
    let until = Instant::now() + Duration::from_secs(seconds);
    let names = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|number| {
                let worker = Worker::new(number, random.fork(), &address, &namespace, &path, &rootfs);
                let counts = &counts;
                scope.spawn(move || worker.work(until, counts))
            })
            .collect();
        let kills = Kills { random: random.fork(), node: &node, path: &path };
        let killer = scope.spawn(|| kills.go_on(&over));
        let names: Vec<String> = workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
        over.store(true, Ordering::Relaxed);
        println!("killed: {}", killer.join().unwrap());
        names
    });
    println!(
        "{} containers, {} processes, {} calls that failed",
        counts.containers(),
        counts.execs(),
        counts.failures()
    );
    assert!(counts.containers() > 0 && counts.execs() > 0);
    let node = node.into_inner().unwrap();
    let late = Instant::now() + Duration::from_secs(30);
    let mut left: Vec<&String> = names.iter().collect();
    while !left.is_empty() && Instant::now() < late {
        left.retain(|id| socket(&address.to_string_lossy(), &namespace, id).exists());
        std::thread::sleep(Duration::from_millis(50));
    }
    let log = node.log();
    let about =
        |line: &&str| left.iter().any(|id| line.contains(&format!("{id} ")) || line.ends_with(id.as_str()));
    let lines: Vec<&str> = log.lines().filter(about).collect();
    assert!(left.is_empty(), "sockets of {left:?} are left\n{}", lines.join("\n"));
    eventually("the daemon has closed what it had open", Duration::from_secs(30), || {
        (open_files(node.pid().unwrap()) <= before + 8).then_some(())
    });
    let work = node.root().join("io.containerd.runtime.v2.task").join(&namespace);
    eventually("work folders are gone", Duration::from_secs(30), || {
        std::fs::read_dir(&work).into_iter().flatten().next().is_none().then_some(())
    });
    node.finish();
}

fn prepare(rootfs: &std::path::Path) {
    for folder in ["bin", "proc", "dev"] {
        std::fs::create_dir_all(rootfs.join(folder)).unwrap();
    }
    std::fs::copy(Peers::find().busybox(), rootfs.join("bin/busybox")).unwrap();
    for applet in ["sh", "sleep", "echo", "true"] {
        std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
    }
}

/// Where a shim listens, by the name of its container.
fn socket(address: &str, namespace: &str, id: &str) -> PathBuf {
    let name = Digest::sha256(format!("{address}/{namespace}/{id}").as_bytes());
    PathBuf::from("/run/containerd/s").join(name.hex())
}
