//! The cgroups of one container.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use corten_types::{Error, Result, ResultExt};
use serde::{Deserialize, Serialize};

use crate::Hierarchies;

const ROOT: &str = "these processes are in the root cgroup";

/// A container's place in one v1 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct V1 {
    /// The controllers of the hierarchy, or `name=…`.
    pub controllers: Vec<String>,
    /// Its folder.
    pub folder: PathBuf,
}

/// The cgroups of a container, one in each hierarchy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroups {
    /// Those of v1; empty on a pure v2 host.
    #[serde(default)]
    pub v1: Vec<V1>,
    /// That of v2, which on hybrid hosts has no controllers.
    #[serde(default)]
    pub v2: Option<PathBuf>,
}

impl Cgroups {
    /// Where a process is; one that ends seems to be in the root cgroups of v1.
    ///
    /// # Errors
    /// When it is gone.
    pub fn of(pid: i32) -> Result<Self> {
        let table = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let here = Hierarchies::here()?;
        let path = |names: &[String]| path_in(&table, names);
        let v1 = here.v1.iter().filter_map(|one| {
            let folder = one.folder(path(&one.controllers)?);
            Some(V1 { controllers: one.controllers.clone(), folder })
        });
        let v2 = here.v2.as_ref().and_then(|one| Some(one.folder(path(&[])?)));
        Ok(Self { v1: v1.collect(), v2 })
    }

    /// Those that a specification names; relative paths are below this process' own.
    ///
    /// # Errors
    /// InvalidArgument for paths that lead out.
    pub fn at(path: &Path) -> Result<Self> {
        let table = if path.is_relative() { fs::read_to_string("/proc/self/cgroup")? } else { String::new() };
        let here = Hierarchies::here()?;
        let mut found = Self::default();
        for one in &here.v1 {
            let folder = one.wanted(path, path_in(&table, &one.controllers))?;
            found.v1.push(V1 { controllers: one.controllers.clone(), folder });
        }
        if let Some(one) = &here.v2 {
            found.v2 = Some(one.wanted(path, path_in(&table, &[]))?);
        }
        Ok(found)
    }

    /// Whether limits and figures are those of v2.
    #[must_use]
    pub fn is_unified(&self) -> bool {
        self.v1.is_empty()
    }

    /// The folder of a v1 controller.
    #[must_use]
    pub fn controller(&self, name: &str) -> Option<&Path> {
        let fits = |one: &&V1| one.controllers.iter().any(|controller| controller == name);
        self.v1.iter().find(fits).map(|one| one.folder.as_path())
    }

    /// The folder of the unified hierarchy.
    #[must_use]
    pub fn unified(&self) -> Option<&Path> {
        self.v2.as_deref()
    }

    fn folders(&self) -> impl Iterator<Item = &Path> {
        self.v1.iter().map(|one| one.folder.as_path()).chain(self.v2.as_deref())
    }

    /// A folder that lists all processes. Where both kinds are mounted, v1's: a process that was started by
    /// others may be missing in the other one.
    fn members(&self) -> Option<&Path> {
        if self.is_unified() {
            return self.unified();
        }
        let known = ["pids", "memory", "freezer", "cpu"].iter().find_map(|name| self.controller(name));
        known.or_else(|| self.v1.first().map(|one| one.folder.as_path()))
    }

    /// Whether any of them is the root of its hierarchy, which belongs to everybody.
    #[must_use]
    pub fn is_root(&self) -> bool {
        let Ok(here) = Hierarchies::here() else { return true };
        let roots: Vec<_> = here.v1.iter().chain(&here.v2).map(|one| one.mount_point.as_path()).collect();
        self.members().is_none_or(|folder| roots.contains(&folder))
    }

    // === making and entering ===

    /// Makes the folders that are missing; those of cpuset get what their parent has, and v2's get all
    /// controllers that there are.
    ///
    /// # Errors
    /// The kernel's, with the folder.
    pub fn create(&self) -> Result<()> {
        let here = Hierarchies::here()?;
        for one in &self.v1 {
            make(&one.folder)?;
            if one.controllers.iter().any(|name| name == "cpuset") {
                inherit_cpuset(&one.folder)?;
            }
        }
        if let (Some(folder), Some(hierarchy)) = (&self.v2, &here.v2) {
            make(folder)?;
            if self.is_unified() {
                delegate(folder, &hierarchy.mount_point);
            }
        }
        Ok(())
    }

    /// Moves the calling process, which has one thread, into those of v1. This way in, by one thread of
    /// itself, spares the kernel a wait of milliseconds for all processors.
    ///
    /// # Errors
    /// The kernel's, with the folder.
    pub fn enter_v1(&self) -> Result<()> {
        for one in &self.v1 {
            write(&one.folder.join("tasks"), "0")?;
        }
        Ok(())
    }

    /// A descriptor of the v2 cgroup, for processes that are made into it.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open_v2(&self) -> Result<Option<OwnedFd>> {
        use rustix::fs::{Mode, OFlags, open};
        let Some(folder) = &self.v2 else { return Ok(None) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = open(folder, flags, Mode::empty()).map_err(io::Error::from);
        Ok(Some(fd.with_context(|| folder.display().to_string())?))
    }

    /// Moves the calling process into that of v2; slower than to be made there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn enter_v2(&self) -> Result<()> {
        self.v2.as_ref().map_or(Ok(()), |folder| write(&folder.join("cgroup.procs"), "0"))
    }

    // === what is in there ===

    /// Processes in the cgroup and below it.
    ///
    /// # Errors
    /// NotFound when the cgroup is gone; FailedPrecondition for a root cgroup, whose processes are everybody's.
    pub fn processes(&self) -> Result<Vec<i32>> {
        if self.is_root() {
            return Err(Error::failed_precondition(ROOT));
        }
        let folder = self.members().filter(|folder| folder.exists());
        let folder = folder.ok_or_else(|| Error::not_found("cgroup does not exist"))?;
        let mut pids = Vec::new();
        for folder in tree(folder) {
            // Threaded cgroups have no such list, others may be going away.
            let list = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            pids.extend(list.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Sends a signal to all processes. Those that fork meanwhile do not escape SIGKILL.
    ///
    /// # Errors
    /// NotFound when the cgroup is gone; FailedPrecondition for a root cgroup; those of kill(2).
    pub fn signal(&self, signal: i32) -> Result<()> {
        const SIGKILL: i32 = 9;
        if self.is_root() {
            return Err(Error::failed_precondition(ROOT));
        }
        if signal == SIGKILL && self.is_unified() {
            let kill = self.v2.as_ref().map(|folder| folder.join("cgroup.kill"));
            if kill.is_some_and(|file| fs::write(file, "1").is_ok()) {
                return Ok(());
            }
        }
        let freezes = signal == SIGKILL && self.freeze(true).is_ok();
        let sent = self.processes().and_then(|pids| {
            for pid in pids {
                match rustix_kill(pid, signal) {
                    Err(error) if error.kind() != ErrorKind::NotFound && error.raw_os_error() != Some(3) => {
                        return Err(error.into());
                    }
                    _ => {}
                }
            }
            Ok(())
        });
        if freezes {
            self.freeze(false)?;
        }
        sent
    }

    /// Begins to freeze or thaw all processes; see [`Cgroups::is_frozen`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        if self.is_root() {
            return Err(Error::failed_precondition(ROOT));
        }
        match (self.controller("freezer"), &self.v2) {
            (Some(folder), _) => {
                write(&folder.join("freezer.state"), if frozen { "FROZEN" } else { "THAWED" })
            }
            (None, Some(folder)) => write(&folder.join("cgroup.freeze"), if frozen { "1" } else { "0" }),
            _ => Err(Error::failed_precondition("there is no freezer")),
        }
    }

    /// Whether all processes are frozen.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        let read = |file: PathBuf| fs::read_to_string(file).unwrap_or_default();
        match (self.controller("freezer"), &self.v2) {
            (Some(folder), _) => read(folder.join("freezer.state")).trim() == "FROZEN",
            (None, Some(folder)) => read(folder.join("cgroup.events")).lines().any(|line| line == "frozen 1"),
            _ => false,
        }
    }

    // === the end ===

    /// Removes them with all below. Processes that are just ending get some time.
    ///
    /// # Errors
    /// The kernel's, for what is not empty even then.
    pub fn remove(&self, patience: Duration) -> Result<()> {
        if self.is_root() {
            return Ok(());
        }
        let late = Instant::now() + patience;
        for folder in self.folders() {
            while let Err(error) = remove_tree(folder) {
                if Instant::now() > late {
                    return Err(error).with_context(|| format!("remove cgroup {}", folder.display()));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }
}

fn rustix_kill(pid: i32, signal: i32) -> io::Result<()> {
    corten_sys::kill(pid, signal)
}

/// The path that `/proc/<pid>/cgroup` has for a hierarchy; no names is v2.
fn path_in<'a>(table: &'a str, names: &[String]) -> Option<&'a Path> {
    table.lines().find_map(|line| {
        let (listed, path) = line.split_once(':')?.1.split_once(':')?;
        let mut listed = listed.split(',').filter(|name| !name.is_empty()).peekable();
        let fits = match names.first() {
            None => listed.peek().is_none(),
            Some(name) => listed.any(|listed| listed == name),
        };
        fits.then(|| Path::new(path))
    })
}

fn make(folder: &Path) -> Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => fs::create_dir_all(folder),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
    .with_context(|| format!("mkdir {}", folder.display()))
}

/// Processes cannot enter a cpuset that is empty, as new ones are.
fn inherit_cpuset(folder: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        fill(folder, file)?;
    }
    Ok(())
}

fn fill(folder: &Path, file: &str) -> Result<String> {
    let path = folder.join(file);
    let own = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    if !own.trim().is_empty() {
        return Ok(own);
    }
    let parent = folder.parent().ok_or_else(|| Error::internal("an empty root cpuset"))?;
    let inherited = fill(parent, file)?;
    write(&path, inherited.trim())?;
    Ok(inherited)
}

/// Enables all controllers from the root down to the folder. What cannot be enabled is missed when a limit
/// is set.
fn delegate(folder: &Path, root: &Path) {
    let mut above: Vec<&Path> = folder.ancestors().skip(1).take_while(|one| one.starts_with(root)).collect();
    above.reverse();
    for folder in above {
        let available = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
        let control = folder.join("cgroup.subtree_control");
        let enabled = fs::read_to_string(&control).unwrap_or_default();
        for name in available.split_whitespace() {
            if !enabled.split_whitespace().any(|one| one == name) {
                fs::write(&control, format!("+{name}")).ok();
            }
        }
    }
}

/// Writes to a file of a cgroup, which must be there.
pub(crate) fn write(file: &Path, text: &str) -> Result<()> {
    let written = fs::File::options().write(true).open(file);
    let written = written.and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()));
    written.with_context(|| format!("failed to write {text:?} to {}", file.display()))
}

/// A folder and all below it.
fn tree(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    let mut next = 0;
    while let Some(folder) = found.get(next).cloned() {
        next += 1;
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        found.extend(folders.map(|entry| entry.path()));
    }
    found
}

fn remove_tree(folder: &Path) -> io::Result<()> {
    match fs::remove_dir(folder) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(_) => {
            for folder in tree(folder).iter().rev() {
                match fs::remove_dir(folder) {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cgroup of this test, gone at its end.
    pub(crate) struct Own(pub Cgroups);

    impl Own {
        pub(crate) fn new(name: &str) -> Self {
            let path = format!("/corten-test/{name}-{}", std::process::id());
            let cgroups = Cgroups::at(Path::new(&path)).unwrap();
            cgroups.create().unwrap();
            Self(cgroups)
        }

        /// A process in it that sleeps.
        pub(crate) fn sleeper(&self) -> i32 {
            let v2 = self.0.open_v2().unwrap();
            let cgroup = v2.as_ref().map(std::os::fd::AsFd::as_fd);
            let how = corten_sys::NewProcess { cgroup, ..corten_sys::NewProcess::default() };
            corten_sys::clone_process(how, || {
                let entered = self.0.enter_v1().is_ok();
                std::thread::sleep(Duration::from_secs(if entered { 600 } else { 0 }));
                0
            })
            .unwrap()
        }
    }

    impl Drop for Own {
        fn drop(&mut self) {
            self.0.signal(9).ok();
            self.0.remove(Duration::from_secs(2)).unwrap();
        }
    }

    fn reaped(pid: i32) {
        use rustix::process::{Pid, WaitOptions, waitpid};
        waitpid(Pid::from_raw(pid), WaitOptions::empty()).unwrap();
    }

    /// Waits for what another process does.
    fn eventually(mut holds: impl FnMut() -> bool) {
        while !holds() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn the_cgroups_of_a_process_are_found_while_it_runs() {
        let own = Own::new("place");
        let pid = own.sleeper();
        eventually(|| own.0.processes().unwrap() == [pid]);
        assert_eq!(Cgroups::of(pid).unwrap(), own.0);
        own.0.signal(9).unwrap();
        // It has ended, and waits to be collected: what it seems to be in is not to be killed.
        let stat = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        eventually(|| stat().rsplit(')').next().unwrap().trim_start().starts_with('Z'));
        let late = Cgroups::of(pid).unwrap();
        assert!(late == own.0 || (late.is_root() && late.processes().is_err() && late.signal(0).is_err()));
        reaped(pid);
        assert!(Cgroups::of(-1).is_err());
    }

    #[test]
    fn processes_enter_are_frozen_and_killed_and_nothing_is_left() {
        let own = Own::new("life");
        let pid = own.sleeper();
        eventually(|| own.0.processes().unwrap() == [pid]);
        assert_eq!(Cgroups::of(pid).unwrap(), own.0);
        own.0.freeze(true).unwrap();
        eventually(|| own.0.is_frozen());
        own.0.freeze(false).unwrap();
        eventually(|| !own.0.is_frozen());
        own.0.signal(9).unwrap();
        reaped(pid);
        let folders: Vec<_> = own.0.folders().map(Path::to_owned).collect();
        drop(own);
        assert!(folders.iter().all(|folder| !folder.exists()));
    }

    #[test]
    fn a_frozen_container_dies_of_sigkill() {
        let own = Own::new("frozen");
        let pid = own.sleeper();
        eventually(|| own.0.processes().unwrap() == [pid]);
        own.0.freeze(true).unwrap();
        eventually(|| own.0.is_frozen());
        own.0.signal(9).unwrap();
        reaped(pid);
    }

    #[test]
    fn root_cgroups_are_left_alone() {
        let root = Cgroups::at(Path::new("/")).unwrap();
        assert!(root.is_root());
        assert!(root.signal(0).is_err() && root.freeze(true).is_err() && root.processes().is_err());
        root.remove(Duration::ZERO).unwrap();
    }
}
