//! What is killed while others work.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use corten_tests::{Node, leftovers};
use rustix::process::{Pid, Signal, kill_process};

use crate::random::Random;

/// Kills at random.
pub struct Kills<'a> {
    pub random: Random,
    pub node: &'a Mutex<Node>,
    /// The node's folder.
    pub path: &'a Path,
}

/// How many of each there were.
#[derive(Debug, Default)]
pub struct Killed(BTreeMap<&'static str, usize>);

impl std::fmt::Display for Killed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let each: Vec<String> = self.0.iter().map(|(what, count)| format!("{count} {what}")).collect();
        f.write_str(&each.join(", "))
    }
}

/// A process of the node.
struct Known {
    pid: i32,
    parent: i32,
    is_shim: bool,
}

impl Kills<'_> {
    /// Until it is told to stop; the daemon runs in the end.
    pub fn go_on(mut self, over: &AtomicBool) -> Killed {
        let mut killed = Killed::default();
        while !over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20 + self.random.below(150)));
            let what = match self.random.below(100) {
                0..3 => {
                    let mut node = self.node.lock().unwrap();
                    node.kill_daemon();
                    std::thread::sleep(Duration::from_millis(self.random.below(300)));
                    node.start_daemon();
                    Some("daemons")
                }
                3..30 => self.kill(|known, _| known.is_shim).map(|()| "shims"),
                // A shim's child that is still the shim's program is a runtime, or a process on its way.
                30..60 => {
                    self.kill(|known, all| known.is_shim && child_of_shim(known, all)).map(|()| "runtimes")
                }
                _ => {
                    self.kill(|known, all| !known.is_shim && child_of_shim(known, all)).map(|()| "processes")
                }
            };
            if let Some(what) = what {
                *killed.0.entry(what).or_default() += 1;
            }
        }
        killed
    }

    fn kill(&mut self, wanted: impl Fn(&Known, &[Known]) -> bool) -> Option<()> {
        let daemon = self.node.lock().unwrap().pid().map_or(0, |pid| pid as i32);
        let all: Vec<Known> = leftovers::processes(self.path).into_iter().filter_map(known).collect();
        let fits: Vec<&Known> = all.iter().filter(|one| one.pid != daemon && wanted(one, &all)).collect();
        let chosen = fits.get(usize::try_from(self.random.below(fits.len().max(1) as u64)).unwrap_or(0))?;
        kill_process(Pid::from_raw(chosen.pid)?, Signal::KILL).ok()
    }
}

fn child_of_shim(one: &Known, all: &[Known]) -> bool {
    all.iter().any(|other| other.is_shim && other.pid == one.parent)
}

fn known(pid: i32) -> Option<Known> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let parent = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()?;
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let is_shim = String::from_utf8_lossy(&command).split('\0').next()?.contains("containerd-shim");
    Some(Known { pid, parent, is_shim })
}

/// How many files a process has open.
pub fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().count()
}
