//! runc's command line, over the embedded runtime. Commands, flags, exit codes and messages are runc's, as far
//! as other programs and scripts use them.

mod arguments;
mod checkpoint;
mod events;
mod process;
mod show;
mod terminal;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use arguments::Arguments;
use corten_oci::runtime::{Target, embedded};

type Result<T> = std::result::Result<T, String>;

const USAGE: &str = "\
NAME:
   runc - the OCI runtime of corten

USAGE:
   runc [global options] command [command options] [arguments...]

COMMANDS:
   checkpoint write a running container down, by CRIU
   create   create a container
   delete   delete any resources held by the container
   events   display container statistics and out-of-memory events
   exec     execute new process inside the container
   features show the enabled features
   kill     send the specified signal (default: SIGTERM) to the container's init process
   list     list containers started with the given root
   pause    suspend all processes inside the container
   ps       display the processes running inside a container
   restore  make a container from a checkpoint
   resume   resume all processes that have been previously paused
   run      create and run a container
   spec     create a new specification file
   start    execute the user defined process in a created container
   state    output the state of a container
   update   update container resource constraints

GLOBAL OPTIONS:
   --root value        root directory for storage of container state (default: \"/run/runc\")
   --log value         set the log file to write to (default: standard error)
   --log-format value  \"text\" or \"json\" (default: \"text\")
   --debug             enable debug logging
   --systemd-cgroup    let systemd make cgroups: cgroupsPath is \"slice:prefix:name\"
   --version, -v       print the version
";

/// Everything before the command.
#[derive(Debug, Default)]
struct Global {
    root: PathBuf,
    log: Option<PathBuf>,
    json: bool,
    systemd: bool,
}

/// Does what the command line asks for; answers the exit code.
pub fn main(words: Vec<String>) -> i32 {
    let mut global = Global { root: "/run/runc".into(), ..Global::default() };
    match run(words, &mut global) {
        Ok(code) => code,
        Err(message) => {
            global.tell(&message);
            match &message {
                text if text.starts_with("No help topic") => 3,
                text if text.starts_with("exec failed") => 255,
                _ => 1,
            }
        }
    }
}

fn run(words: Vec<String>, global: &mut Global) -> Result<i32> {
    const VALUES: &[&str] = &["root", "log", "log-format", "criu", "rootless"];
    const SWITCHES: &[&str] = &["debug", "systemd-cgroup", "version", "v", "help", "h"];
    let mut arguments = Arguments::parse_front(words, VALUES, SWITCHES)?;
    if let Some(root) = arguments.value("root") {
        global.root = root.into();
    }
    global.log = arguments.value("log").map(PathBuf::from);
    global.json = arguments.value("log-format").as_deref() == Some("json");
    global.systemd = arguments.has("systemd-cgroup");
    if arguments.has("version") || arguments.has("v") {
        let version = env!("CARGO_PKG_VERSION");
        say(&format_args!("runc version 1.2.0-corten.{version}\ncommit: corten\nspec: 1.2.0"));
        return Ok(0);
    }
    let mut words = std::mem::take(&mut arguments.rest).into_iter();
    let command = words.next().unwrap_or_else(|| "help".into());
    let words: Vec<String> = words.collect();
    match command.as_str() {
        "help" | "h" => {
            say(&USAGE.trim_end());
            Ok(0)
        }
        "create" => process::create(global, words).map_err(|text| said_once("runc create failed", text)),
        "run" => process::run(global, words).map_err(|text| said_once("runc run failed", text)),
        "exec" => process::exec(global, words).map_err(|text| said_once("exec failed", text)),
        "start" => process::start(global, words),
        "state" => show::state(global, words),
        "list" => show::list(global, words),
        "ps" => show::ps(global, words),
        "events" => events::events(global, words),
        "spec" => show::spec(words),
        "features" => show::features(),
        "kill" => kill(global, words),
        "delete" => delete(global, words),
        "pause" | "resume" => freeze(global, words, command == "pause"),
        "update" => update(global, words),
        "checkpoint" => checkpoint::checkpoint(global, words),
        "restore" => checkpoint::restore(global, words),
        other => Err(format!("No help topic for '{other}'\n")),
    }
}

/// Prints a line. One whose reader has gone is the last, as of programs that SIGPIPE ends.
fn say(line: &dyn std::fmt::Display) {
    const READER_GONE: i32 = 141;
    if writeln!(std::io::stdout(), "{line}").is_err() {
        std::process::exit(READER_GONE);
    }
}

/// What failed, before why; unless it says so already.
fn said_once(what: &str, why: String) -> String {
    if why.starts_with(what) { why } else { format!("{what}: {why}") }
}

impl Global {
    /// The container that a command is about; `bundle` only counts for what creates.
    fn target(&self, id: &str, bundle: &Path) -> Result<Target> {
        let valid = |one: char| one.is_ascii_alphanumeric() || matches!(one, '_' | '+' | '-' | '.');
        if id.is_empty() || matches!(id, "." | "..") || !id.chars().all(valid) {
            return Err("invalid container ID format".into());
        }
        Ok(Target {
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            root: self.root.clone(),
            systemd: self.systemd,
            no_pivot: false,
            no_new_keyring: false,
            lock: None,
        })
    }

    /// One that exists, with the bundle it was created from.
    fn existing(&self, id: &str) -> Result<Target> {
        let mut target = self.target(id, Path::new(""))?;
        let state = embedded::state(&target)?;
        target.bundle = state["bundle"].as_str().unwrap_or_default().into();
        Ok(target)
    }

    /// Tells a failure where the caller reads it: in the log if there is one, and on standard error.
    fn tell(&self, message: &str) {
        let time = corten_types::timestamp::rfc3339(SystemTime::now());
        let line = if self.json {
            serde_json::json!({"level": "error", "msg": message, "time": time}).to_string()
        } else {
            format!("time=\"{time}\" level=error msg={message:?}")
        };
        if let Some(log) = &self.log
            && let Ok(mut file) = std::fs::File::options().append(true).create(true).open(log)
        {
            writeln!(file, "{line}").ok();
            eprintln!("{message}");
        } else {
            eprintln!("{line}");
        }
    }
}

fn kill(global: &Global, words: Vec<String>) -> Result<i32> {
    let mut arguments = Arguments::parse("kill", words, &[], &["all", "a"], 1..=2)?;
    let id = arguments.take();
    let signal = arguments.rest.first().map_or(Ok(15), |name| arguments::signal(name))?;
    let all = arguments.has("all") || arguments.has("a");
    embedded::kill(&global.existing(&id)?, signal, all).map(|()| 0)
}

fn delete(global: &Global, words: Vec<String>) -> Result<i32> {
    let mut arguments = Arguments::parse("delete", words, &[], &["force", "f"], 1..=1)?;
    let force = arguments.has("force") || arguments.has("f");
    let deleted = global.existing(&arguments.take()).and_then(|target| embedded::delete(&target, force));
    match deleted {
        Err(message) if force && message == "container does not exist" => Ok(0),
        other => other.map(|()| 0),
    }
}

fn freeze(global: &Global, words: Vec<String>, frozen: bool) -> Result<i32> {
    let name = if frozen { "pause" } else { "resume" };
    let mut arguments = Arguments::parse(name, words, &[], &[], 1..=1)?;
    let target = global.existing(&arguments.take())?;
    match (embedded::status(&target)?.0, frozen) {
        (embedded::Status::Running | embedded::Status::Created, true) | (embedded::Status::Paused, false) => {
            embedded::freeze(&target, frozen).map(|()| 0)
        }
        (_, true) => Err("container not running".into()),
        (_, false) => Err("container not paused".into()),
    }
}

fn update(global: &Global, words: Vec<String>) -> Result<i32> {
    const NUMBERS: [(&str, &str, &str); 11] = [
        ("memory", "memory", "limit"),
        ("memory-swap", "memory", "swap"),
        ("memory-reservation", "memory", "reservation"),
        ("cpu-share", "cpu", "shares"),
        ("cpu-quota", "cpu", "quota"),
        ("cpu-period", "cpu", "period"),
        ("cpu-rt-period", "cpu", "realtimePeriod"),
        ("cpu-rt-runtime", "cpu", "realtimeRuntime"),
        ("cpu-burst", "cpu", "burst"),
        ("blkio-weight", "blockIO", "weight"),
        ("pids-limit", "pids", "limit"),
    ];
    const TEXTS: [(&str, &str); 2] = [("cpuset-cpus", "cpus"), ("cpuset-mems", "mems")];
    let values: Vec<&str> =
        NUMBERS.iter().map(|it| it.0).chain(TEXTS.iter().map(|it| it.0)).chain(["resources", "r"]).collect();
    let mut arguments = Arguments::parse("update", words, &values, &[], 1..=1)?;
    let target = global.existing(&arguments.take())?;
    if let Some(file) = arguments.value("resources").or_else(|| arguments.value("r")) {
        let file = if file == "-" { "/dev/stdin".into() } else { file };
        let resources = std::fs::read(&file).map_err(|error| format!("{file}: {error}"))?;
        return embedded::update(&target, &resources).map(|()| 0);
    }
    let mut resources = serde_json::json!({});
    for (flag, group, key) in NUMBERS {
        if let Some(text) = arguments.value(flag) {
            let number = text.parse::<i64>().map_err(|_| format!("invalid value for {flag}: {text:?}"))?;
            resources[group][key] = number.into();
        }
    }
    for (flag, key) in TEXTS {
        if let Some(text) = arguments.value(flag) {
            resources["cpu"][key] = text.into();
        }
    }
    embedded::update(&target, resources.to_string().as_bytes()).map(|()| 0)
}
