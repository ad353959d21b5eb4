//! A Docker Engine over a daemon: private folders, a network namespace of its own, Debian's `dockerd` and `docker`.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use crate::command::{Finished, Running};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

use crate::words::words;
use crate::{ImageBuilder, Node, Peers, Scratch, eventually, peers};

/// The image that most checks run.
pub const BOX: &str = "box:1";
/// For what engine and containers do in their own time.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// For one command of the client: a build is many containers, and other tests may keep the machine busy.
const LONG: Duration = Duration::from_secs(240);
const CLONE_NEWNET: i32 = 0x4000_0000;

/// Which engine, and where its images lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Debian bookworm's 20.10, graph driver.
    Docker20,
    /// Debian trixie's 26.1, graph driver.
    Docker26,
    /// Debian trixie's 26.1, containerd's image store.
    Docker26Store,
}

impl Kind {
    /// As the table of results calls it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Docker20 => "20.10",
            Kind::Docker26 => "26.1",
            Kind::Docker26Store => "26.1, image store",
        }
    }

    /// The folder of the unpacked package.
    fn folder(self) -> &'static str {
        if self == Kind::Docker20 { "docker-20.10" } else { "docker-26.1" }
    }

    /// The settings that choose it.
    fn settings(self, node: &Node) -> Value {
        match self {
            // Its key lies in /etc otherwise.
            Kind::Docker20 => json!({"deprecated-key-path": node.join("key.json")}),
            Kind::Docker26 => json!({}),
            Kind::Docker26Store => json!({"features": {"containerd-snapshotter": true}}),
        }
    }
}

/// A running `dockerd` with the daemon below it. Dropping it ends both and all that they started.
#[derive(Debug)]
pub struct Engine {
    /// The daemon.
    pub node: Mutex<Node>,
    /// Which engine this is.
    pub kind: Kind,
    /// Whether Debian's containerd is below, not ours.
    pub reference: bool,
    /// The daemon's socket, as the engine knows it.
    address: PathBuf,
    home: PathBuf,
    tools: PathBuf,
    path: Vec<PathBuf>,
    child: Mutex<Option<Child>>,
    _programs: Scratch,
}

impl Engine {
    /// Starts both, with the settings added to `daemon.json`; the calling thread is in a new network namespace then.
    /// With `DOCKER_REFERENCE` in the environment Debian's containerd takes the place of ours.
    ///
    /// # Panics
    /// When they do not come to serve.
    pub fn start(kind: Kind, settings: &Value) -> Self {
        Self::start_over(kind, std::env::var_os("DOCKER_REFERENCE").is_some(), settings, Path::to_owned)
    }

    /// As [`Engine::start`], over Debian's containerd or ours; `way` says which socket the engine talks to, given the
    /// daemon's.
    ///
    /// # Panics
    /// When they do not come to serve.
    pub fn start_over(
        kind: Kind,
        reference: bool,
        settings: &Value,
        way: impl FnOnce(&Path) -> PathBuf,
    ) -> Self {
        enter_network_namespace();
        let debian = Peers::find();
        let programs = Scratch::new();
        let node = if reference {
            let folder =
                if kind == Kind::Docker20 { debian.containerd_1_6() } else { debian.containerd_2_1() };
            Node::peer(&folder)
        } else {
            // The embedded OCI runtime, by the name that the engine looks for.
            symlink(peers::programs().join("containerd-shim-runc-v2"), programs.join("runc")).unwrap();
            Node::builder().search(&[peers::programs(), programs.path().to_owned()])
        };
        let node = node.start();
        let packages = debian.folder(kind.folder());
        let runtime = if reference { debian.runc() } else { programs.path().to_owned() };
        let path = vec![runtime, packages.join("usr/sbin"), packages.join("usr/bin")];
        let home = node.path().to_owned();
        let mut file = kind.settings(&node);
        file["cgroup-parent"] = json!(format!("/{}", node.namespace()));
        for (key, value) in settings.as_object().unwrap() {
            file[key] = value.clone();
        }
        std::fs::write(home.join("daemon.json"), file.to_string()).unwrap();
        let plugins = home.join("cli/cli-plugins");
        std::fs::create_dir_all(&plugins).unwrap();
        for plugin in ["docker-buildx", "docker-compose"] {
            let program = debian.folder("docker-26.1").join("usr/libexec/docker/cli-plugins").join(plugin);
            symlink(program, plugins.join(plugin)).unwrap();
        }
        let engine = Self {
            kind,
            reference,
            address: way(&node.address()),
            home,
            tools: packages.join("usr/bin"),
            path,
            child: Mutex::new(None),
            node: Mutex::new(node),
            _programs: programs,
        };
        engine.start_dockerd();
        let image = engine.join("box.tar");
        ImageBuilder::busybox().build().save_for_docker(&image, BOX).unwrap();
        engine.docker(&format!("load -q -i {}", image.display())).ok();
        engine
    }

    /// Path of something in the private folder.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.home.join(name)
    }

    /// A new folder for one check, as text.
    pub fn folder(&self, name: &str) -> String {
        let folder = self.join("checks").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        folder.display().to_string()
    }

    /// The parent of the containers' cgroups.
    pub fn cgroup(&self) -> String {
        self.node.lock().unwrap().namespace().to_owned()
    }

    /// Pids of the daemon and of `dockerd`.
    pub fn pids(&self) -> Vec<i32> {
        let daemon = self.node.lock().unwrap().pid();
        let dockerd = self.child.lock().unwrap().as_ref().map(Child::id);
        daemon.into_iter().chain(dockerd).map(|pid| pid as i32).collect()
    }

    /// What `dockerd` has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.join("dockerd.log")).unwrap_or_default()
    }

    /// Starts `dockerd` and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub fn start_dockerd(&self) {
        let log = File::options().create(true).append(true).open(self.join("dockerd.log")).unwrap();
        let mut child = Command::new("dockerd");
        child
            .env("PATH", self.search_path())
            .env("HOME", &self.home)
            .arg("--containerd")
            .arg(&self.address)
            .arg("--data-root")
            .arg(self.join("data"))
            .arg("--exec-root")
            .arg(self.join("e"))
            .arg("--pidfile")
            .arg(self.join("dockerd.pid"))
            .arg("--config-file")
            .arg(self.join("daemon.json"))
            .args(["--debug", "-H", &self.host()])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        *self.child.lock().unwrap() = Some(child.spawn().unwrap());
        eventually("dockerd answers", PATIENCE, || {
            if let Some(Ok(Some(status))) = self.child.lock().unwrap().as_mut().map(Child::try_wait) {
                panic!("dockerd ended with {status}:\n{}", self.log());
            }
            (self.docker("version").code == Some(0)).then_some(())
        });
    }

    /// Ends `dockerd` with a signal and waits for it.
    ///
    /// # Panics
    /// When it does not end.
    pub fn end_dockerd(&self, signal: Signal) {
        let Some(mut child) = self.child.lock().unwrap().take() else { return };
        rustix::process::kill_process(Pid::from_child(&child), signal).ok();
        eventually("dockerd ends", PATIENCE, || child.try_wait().ok()?);
        std::fs::remove_file(self.join("dockerd.pid")).ok();
    }

    fn host(&self) -> String {
        format!("unix://{}", self.join("d.sock").display())
    }

    fn search_path(&self) -> std::ffi::OsString {
        let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
        std::env::join_paths(self.path.iter().cloned().chain(system.iter().map(PathBuf::from))).unwrap()
    }

    /// A command of the engine's client.
    pub fn command<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Command {
        let mut command = Command::new(self.tools.join("docker"));
        command
            .env("DOCKER_HOST", self.host())
            .env("DOCKER_CONFIG", self.join("cli"))
            .env("HOME", &self.home)
            .env("PATH", self.search_path())
            .current_dir(&self.home)
            .args(args);
        command
    }

    /// Runs `docker` with a line of words, quoted as in a shell.
    pub fn docker(&self, line: &str) -> Finished {
        run(self.command(words(line)))
    }

    /// The same, with variables like `NAME=value`.
    pub fn docker_with(&self, environment: &[(&str, &str)], line: &str) -> Finished {
        let mut command = self.command(words(line));
        command.envs(environment.iter().copied());
        run(command)
    }

    /// The same with standard input.
    pub fn docker_with_input(&self, line: &str, input: &[u8]) -> Finished {
        Running::start(self.command(words(line)), Some(input)).finish_within(LONG)
    }

    /// Starts `docker` and goes on.
    pub fn docker_running(&self, line: &str) -> Running {
        Running::start(self.command(words(line)), None)
    }

    /// What a command that must succeed prints, without the end of the line.
    #[track_caller]
    pub fn out(&self, line: &str) -> String {
        self.docker(line).ok().trim_end().to_owned()
    }

    /// A field of an object, by a Go template.
    #[track_caller]
    pub fn inspect(&self, name: &str, field: &str) -> String {
        let mut command = self.command(["inspect", "-f"]);
        command.arg(format!("{{{{{field}}}}}")).arg(name);
        run(command).ok().trim_end().to_owned()
    }

    /// Waits until the field of an object has this value.
    #[track_caller]
    pub fn until(&self, name: &str, field: &str, wanted: &str) {
        let mut last = String::new();
        let late = std::time::Instant::now() + PATIENCE;
        while std::time::Instant::now() < late {
            last = self.inspect(name, field);
            if last == wanted {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{name}: {field} is {last:?}, not {wanted:?}");
    }

    /// Waits until the events of a container are so, each by its first words; the engine tells of them a little later.
    ///
    /// # Panics
    /// When they do not become so.
    #[track_caller]
    pub fn events(&self, name: &str, wanted: impl Fn(&str) -> bool) {
        let line =
            format!("events --since 10m --until 0s --filter container={name} --format '{{{{.Status}}}}'");
        let mut told = String::new();
        let late = std::time::Instant::now() + PATIENCE;
        while std::time::Instant::now() < late {
            // The command of an exec and the like follow a colon and a space.
            told = self.out(&line).lines().collect::<Vec<_>>().join("; ");
            if wanted(&told) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{name}: other events: {told}");
    }

    /// Removes a container, whatever it does.
    #[track_caller]
    pub fn remove(&self, name: &str) {
        self.docker(&format!("rm -f -v {name}")).ok();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("--- dockerd's last words");
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
        if let Some(mut child) = self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

fn run(command: Command) -> Finished {
    Running::start(command, None).finish_within(LONG)
}

/// Everything that this thread starts from now on has a network of its own, with loopback only.
fn enter_network_namespace() {
    corten_sys::unshare(CLONE_NEWNET).unwrap();
    corten_sys::set_link_up("lo").unwrap();
}
