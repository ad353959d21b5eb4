//! A daemon in private folders, with its own sockets, namespace and cgroups.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::command::{self, Finished, Running};
use crate::{Peers, Scratch, leftovers, peers};

/// Says which programs a node is made of.
#[derive(Debug)]
pub struct NodeBuilder {
    daemon: PathBuf,
    ctr: PathBuf,
    /// Folders searched for the shim and the OCI runtime, before the system's.
    path: Vec<PathBuf>,
    config: String,
    root: Option<PathBuf>,
    environment: Vec<(String, String)>,
}

impl NodeBuilder {
    /// The daemon's program.
    #[must_use]
    pub fn daemon(mut self, program: PathBuf) -> Self {
        self.daemon = program;
        self
    }

    /// The program that [`Node::ctr`] runs.
    #[must_use]
    pub fn ctr(mut self, program: PathBuf) -> Self {
        self.ctr = program;
        self
    }

    /// Where the daemon looks for shims and runtimes, instead of our own programs.
    #[must_use]
    pub fn search(mut self, folders: &[PathBuf]) -> Self {
        self.path = folders.to_vec();
        self
    }

    /// The daemon's configuration file; `$NODE` stands for the private folder.
    #[must_use]
    pub fn config(mut self, toml: &str) -> Self {
        self.config = toml.into();
        self
    }

    /// Where the daemon keeps what outlives it, instead of a folder of the node's own.
    #[must_use]
    pub fn root(mut self, folder: &Path) -> Self {
        self.root = Some(folder.to_owned());
        self
    }

    /// A variable of the daemon's environment; `$NODE` stands for the private folder.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Starts the daemon and waits until it serves.
    pub fn start(self) -> Node {
        let scratch = Scratch::new();
        let private = |text: &str| text.replace("$NODE", &scratch.path().display().to_string());
        let config = private(&self.config);
        let environment =
            self.environment.iter().map(|(name, value)| (name.clone(), private(value))).collect();
        let unique = scratch.path().file_name().and_then(OsStr::to_str).unwrap_or("corten").to_owned();
        let mut node = Node {
            namespace: unique.replace('_', "x"),
            daemon: self.daemon,
            ctr: self.ctr,
            path: self.path,
            environment,
            child: None,
            root: self.root.unwrap_or_else(|| scratch.join("root")),
            scratch,
            finished: false,
        };
        std::fs::write(node.scratch.join("config.toml"), config).unwrap();
        node.start_daemon();
        node
    }
}

/// A running daemon. Dropping it ends everything that it started.
#[derive(Debug)]
pub struct Node {
    scratch: Scratch,
    namespace: String,
    daemon: PathBuf,
    ctr: PathBuf,
    path: Vec<PathBuf>,
    root: PathBuf,
    environment: Vec<(String, String)>,
    child: Option<Child>,
    finished: bool,
}

impl Node {
    /// Our daemon, our shim, our `ctr`, no OCI runtime installed.
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// As [`Node::start`], with some of it replaced.
    pub fn builder() -> NodeBuilder {
        let ours = peers::programs();
        NodeBuilder {
            daemon: ours.join("containerd"),
            ctr: ours.join("ctr"),
            path: vec![ours],
            config: "version = 2\n".into(),
            root: None,
            environment: Vec::new(),
        }
    }

    /// Debian's containerd in `folder`, with its shim and Debian's runc.
    pub fn peer(folder: &Path) -> NodeBuilder {
        NodeBuilder {
            daemon: folder.join("containerd"),
            ctr: folder.join("ctr"),
            path: vec![folder.to_owned(), Peers::find().runc()],
            // The services under test do not need Kubernetes' plugin, which wants a network.
            config: "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n".into(),
            root: None,
            environment: Vec::new(),
        }
    }

    /// The private folder.
    pub fn path(&self) -> &Path {
        self.scratch.path()
    }

    /// Path of something in the private folder.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.scratch.join(name)
    }

    /// The folder of the daemon that outlives it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The socket.
    pub fn address(&self) -> PathBuf {
        self.join("run/c.sock")
    }

    /// The namespace that [`Node::ctr`] works in; no other node uses it.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Pid of the daemon.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// What the daemon has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.join("daemon.log")).unwrap_or_default()
    }

    /// Starts the daemon again after [`Node::kill_daemon`] or [`Node::stop_daemon`].
    ///
    /// # Panics
    /// When it does not come to serve.
    pub fn start_daemon(&mut self) {
        assert!(self.child.is_none(), "the daemon runs already");
        let log = File::options().create(true).append(true).open(self.join("daemon.log")).unwrap();
        let child = Command::new(&self.daemon)
            .arg("--config")
            .arg(self.join("config.toml"))
            .arg("--root")
            .arg(&self.root)
            .arg("--state")
            .arg(self.join("state"))
            .arg("--address")
            .arg(self.address())
            .args(["--log-level", "debug"])
            .env("PATH", self.search_path())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let address = self.address();
        crate::eventually("the daemon serves", Duration::from_secs(30), || {
            if let Some(Ok(Some(status))) = self.child.as_mut().map(Child::try_wait) {
                panic!("the daemon ended with {status}:\n{}", self.log());
            }
            std::os::unix::net::UnixStream::connect(&address).ok()?;
            // What the one before was just starting may hold its socket for a moment.
            (self.ctr(["version"]).code == Some(0)).then_some(())
        });
    }

    /// Ends the daemon with SIGKILL: a crash.
    pub fn kill_daemon(&mut self) {
        self.end_daemon(Signal::KILL);
    }

    /// Ends the daemon with SIGTERM.
    ///
    /// # Panics
    /// When it does not exit with 0.
    pub fn stop_daemon(&mut self) {
        let code = self.end_daemon(Signal::TERM);
        assert_eq!(code, Some(0), "SIGTERM must end the daemon cleanly:\n{}", self.log());
    }

    /// Ends what the daemon started and takes away what a machine forgets with its power: processes, mounts and the
    /// state folder.
    ///
    /// # Panics
    /// When the daemon runs.
    pub fn lose_power(&mut self) {
        assert!(self.child.is_none(), "the daemon runs");
        leftovers::clear(self.path(), &self.namespace);
        for mount in self.scratch.mounts() {
            rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH).ok();
        }
        std::fs::remove_dir_all(self.join("state")).ok();
    }

    fn end_daemon(&mut self, signal: Signal) -> Option<i32> {
        let mut child = self.child.take()?;
        let pid = Pid::from_child(&child);
        rustix::process::kill_process(pid, signal).ok();
        let status =
            crate::eventually("the daemon ends", Duration::from_secs(30), || child.try_wait().ok()?);
        status.code()
    }

    /// A `ctr` command line of this node.
    pub fn ctr_command<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Command {
        self.foreign_ctr_command(&self.ctr, args)
    }

    /// The same in another namespace.
    pub fn ctr_command_in<I, S>(&self, namespace: &str, args: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.any_ctr_command(&self.ctr, namespace, args)
    }

    /// The same with another `ctr` program.
    pub fn foreign_ctr_command<I, S>(&self, program: &Path, args: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.any_ctr_command(program, &self.namespace, args)
    }

    fn any_ctr_command<I, S>(&self, program: &Path, namespace: &str, args: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = Command::new(program);
        command
            .arg("--address")
            .arg(self.address())
            .args(["--namespace", namespace])
            .args(args)
            .env("CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS", "1");
        command
    }

    /// Runs `ctr` to its end.
    pub fn ctr<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Finished {
        command::run(self.ctr_command(args))
    }

    /// Runs `ctr` with standard input.
    pub fn ctr_with_input<I, S>(&self, args: I, input: &[u8]) -> Finished
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        Running::start(self.ctr_command(args), Some(input)).finish()
    }

    /// Starts `ctr` and goes on.
    pub fn ctr_running<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Running {
        Running::start(self.ctr_command(args), None)
    }

    /// The rows of `ctr tasks ls`: id, pid, status.
    pub fn tasks(&self) -> Vec<(String, u32, String)> {
        let table = self.ctr(["tasks", "ls"]).ok();
        table
            .lines()
            .skip(1)
            .filter_map(|line| {
                let mut cells = line.split_whitespace();
                Some((cells.next()?.into(), cells.next()?.parse().ok()?, cells.next()?.into()))
            })
            .collect()
    }

    /// Pid and status of one task.
    pub fn task(&self, id: &str) -> Option<(u32, String)> {
        self.tasks().into_iter().find(|(name, ..)| name == id).map(|(_, pid, status)| (pid, status))
    }

    /// Pids of the node's shims.
    pub fn shims(&self) -> Vec<i32> {
        let daemon = self.pid().map(|pid| pid as i32);
        leftovers::processes(self.path())
            .into_iter()
            .filter(|pid| Some(*pid) != daemon)
            .filter(|pid| {
                let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let command = String::from_utf8_lossy(&command);
                command.split('\0').next().is_some_and(|program| program.contains("containerd-shim"))
                    && command.contains("-address")
            })
            .collect()
    }

    /// What the node still holds on the host beside its daemon: processes, mounts, cgroups, bundles.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        let daemon = self.pid().map(|pid| pid as i32);
        for pid in leftovers::processes(self.path()) {
            if Some(pid) != daemon {
                let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                found
                    .push(format!("process {pid}: {}", String::from_utf8_lossy(&command).replace('\0', " ")));
            }
        }
        found.extend(self.scratch.mounts().iter().map(|mount| format!("mount {}", mount.display())));
        found.extend(
            leftovers::cgroups(&self.namespace)
                .iter()
                // The parent named after the namespace stays, as with the original.
                .filter(|path| path.file_name() != Some(OsStr::new(&self.namespace)))
                .map(|path| format!("cgroup {}", path.display())),
        );
        let bundles = self.join("state/io.containerd.runtime.v2.task").join(&self.namespace);
        for entry in std::fs::read_dir(bundles).into_iter().flatten().flatten() {
            found.push(format!("bundle {}", entry.path().display()));
        }
        let runtime = Path::new("/run/containerd/runc").join(&self.namespace);
        for entry in std::fs::read_dir(runtime).into_iter().flatten().flatten() {
            found.push(format!("runtime state {}", entry.path().display()));
        }
        found
    }

    /// Ends a test: nothing may be left, and the daemon stops cleanly.
    ///
    /// # Panics
    /// With the list of what is left.
    pub fn finish(mut self) {
        self.finished = true;
        // Processes and cgroups go a moment after the answer that announced their end.
        let patience = std::time::Instant::now() + Duration::from_secs(10);
        let mut left = self.leftovers();
        while !left.is_empty() && std::time::Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(50));
            left = self.leftovers();
        }
        assert!(left.is_empty(), "left behind:\n{}\n--- daemon's log\n{}", left.join("\n"), self.log());
        self.stop_daemon();
    }

    fn search_path(&self) -> std::ffi::OsString {
        let system = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin"];
        let folders = self.path.iter().cloned().chain(system.iter().map(PathBuf::from));
        std::env::join_paths(folders).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("--- the daemon's last words");
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
        leftovers::clear(self.path(), &self.namespace);
        let runtime = Path::new("/run/containerd/runc").join(&self.namespace);
        std::fs::remove_dir_all(runtime).ok();
    }
}
