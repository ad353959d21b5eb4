//! Our `ctr` and Debian's 2.1 are given the same command lines against the same kind of daemon, each a fresh one:
//! output, errors and exit codes must be the same, but for what is listed here as intended.
//!
//! A line of a script is a command line, perhaps with a remark in brackets before it:
//! `[help]` only the names of commands and flags are compared: the texts are our own;
//! `[pids]` numbers, times and the width of columns vary; `[sorted]` the original's order is that of a hash map;
//! `[ours: why]` only the exit code must be the same; `[free: why]` not even that.
//! `@stopped ID` and `@stopped ID EXEC` wait until a task or a process in it has stopped. `$I` is an image, `$C` the chain id of its layer, `$M` its manifest,
//! `$D` the node's folder, `$NS` its namespace, `$R` a registry with `lab/box:1`, whose manifest is `$B`.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use corten_api::services::tasks::GetRequest;
use corten_api::task_types::Status;
use corten_tests::{Client, Finished, ImageBuilder, Node, Peers, Registry, Running, eventually};
use regex::Regex;

const IMAGE: &str = "example.com/lab/box:1";

/// Flags and commands that only ours has.
const OURS_ALONE: &[&str] = &[
    "--flame-graph value",
    "--format value",
    "--rlimit-nofile value",
    "--dump-config value",
    "cri",
    "inspect",
    "stats",
    "stop",
    "prune",
    "referrers",
    "check",
    "completion",
    "info, i",
    "network, net",
    "netns",
    "link",
    "--network value [ --network value ]",
    "--publish value [ --publish value ]",
    "--network-alias value [ --network-alias value ]",
    "--ip value [ --ip value ]",
    "--dns value [ --dns value ]",
    "--dns-search value [ --dns-search value ]",
    "--detach-keys value",
    "top",
    "logs",
    "cp",
    "diff",
    "history",
    "tree",
    "--progress HOW",
    "--progress value",
    "--expiration value, -x value",
    "--gzip",
    "--zstd",
    "--estargz",
    "--zstdchunked",
    "--erofs",
];

/// A registry for both sides.
#[derive(Clone)]
struct Shared {
    host: String,
    manifest: String,
}

/// A node and the `ctr` that talks to it.
struct Side {
    node: Node,
    registry: Option<Shared>,
    ctr: std::path::PathBuf,
    chain: String,
    manifest: String,
}

impl Side {
    fn new(node: Node, ctr: &Path) -> Self {
        let archive = node.join("image.tar");
        let build = ImageBuilder::busybox().set("Cmd", serde_json::json!(["sh"]));
        let build = build.set("Env", serde_json::json!(["PATH=/usr/sbin:/usr/bin:/sbin:/bin"])).build();
        build.save(&archive, IMAGE).unwrap();
        std::fs::write(node.join("allow.json"), "{\"defaultAction\": \"SCMP_ACT_ALLOW\"}").unwrap();
        std::fs::create_dir(node.join("opt")).unwrap();
        std::fs::create_dir(node.join("mnt")).unwrap();
        std::fs::write(node.join("env"), "A=1\n#x\n\nB\nC= 2 # x\n").unwrap();
        std::fs::create_dir_all(node.join("tree/bin")).unwrap();
        std::fs::copy(Peers::find().busybox(), node.join("tree/bin/sh")).unwrap();
        let theirs = Peers::find().containerd_2_1().join("ctr");
        let spec = corten_tests::command::run(node.foreign_ctr_command(&theirs, ["oci", "spec"])).ok();
        std::fs::write(node.join("spec.json"), spec).unwrap();
        let archive = archive.to_str().unwrap().to_owned();
        let import = node.foreign_ctr_command(&theirs, ["images", "import", &archive]);
        corten_tests::command::run(import).ok();
        let list = corten_tests::command::run(node.foreign_ctr_command(&theirs, ["snapshots", "ls"])).ok();
        let chain = list.lines().nth(1).and_then(|line| line.split(' ').next()).unwrap().to_owned();
        let manifest = build.target.digest().to_string();
        Self { node, registry: None, ctr: ctr.to_owned(), chain, manifest }
    }

    fn run(&self, line: &str) -> Finished {
        let mut words: Vec<String> = Vec::new();
        for (at, part) in line.split('\'').enumerate() {
            // What stands in quotes is one word, spaces and all.
            match at % 2 {
                1 => words.push(part.into()),
                _ => words.extend(part.split_whitespace().map(str::to_owned)),
            }
        }
        let folder = self.node.path().display().to_string();
        let filled = words.iter().map(|word| {
            let word = word.replace("$I", IMAGE).replace("$C", &self.chain).replace("$M", &self.manifest);
            let word = word.replace("$NS", self.node.namespace()).replace("$D", &folder);
            match &self.registry {
                Some(registry) => word.replace("$R", &registry.host).replace("$B", &registry.manifest),
                None => word,
            }
        });
        // Variables stand before the command, as in a shell.
        let (mut environment, mut args) = (Vec::new(), Vec::new());
        for word in filled {
            match word.split_once('=').filter(|(name, _)| args.is_empty() && is_variable(name)) {
                Some((name, value)) => environment.push((name.to_owned(), value.to_owned())),
                None => args.push(word),
            }
        }
        let mut command: Command = self.node.foreign_ctr_command(&self.ctr, args);
        command.envs(environment).current_dir(self.node.path());
        Running::start(command, None).finish()
    }

    /// Waits for the end of a task, or of the process in it that is named behind a space.
    fn wait_until_stopped(&self, words: &str) {
        let (id, exec_id) = words.split_once(' ').unwrap_or((words, ""));
        let client = Client::new(&self.node.address(), Some(self.node.namespace()));
        let request = GetRequest { container_id: id.to_owned(), exec_id: exec_id.to_owned() };
        eventually("the process stops", Duration::from_secs(60), || {
            let answer = client.wait(client.tasks().get(request.clone())).unwrap();
            (answer.process?.status() == Status::Stopped).then_some(())
        });
    }

    /// Takes away what varies between two daemons.
    fn plain(&self, text: &str) -> String {
        let text = text.replace(&self.node.path().display().to_string(), "$D");
        let text = text.replace(self.node.namespace(), "$NS");
        let rules = [
            (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UUID"),
            (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| \+0000 UTC|[+-]\d\d:\d\d)", "TIME"),
            (r"snapshots/\d+/", "snapshots/N/"),
            (r"s/[0-9a-f]{64}", "s/HASH"),
            (r"/run/containerd/fifo/\d+", "/run/containerd/fifo/N"),
            (r"(Version|Revision):  .*", "$1:  V"),
            (r"containerd/v2 \S+", "containerd/v2 V"),
            (r"Go version: .*", "Go version: G"),
            (r#""pid": \d+"#, "\"pid\": N"),
            (r"\x00", "@"),
        ];
        rules
            .iter()
            .fold(text, |text, (rule, with)| Regex::new(rule).unwrap().replace_all(&text, *with).into_owned())
    }
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
}

/// The names of commands and flags in a help text, and what stands before it.
fn names(text: &str) -> String {
    let mut out = String::new();
    let mut section = "";
    for line in text.lines() {
        if line.starts_with("Incorrect Usage") {
            let _ = writeln!(out, "{line}");
        } else if !line.starts_with(' ') && line.ends_with(':') {
            section = line;
            if ["COMMANDS:", "OPTIONS:", "GLOBAL OPTIONS:"].contains(&section) {
                let _ = writeln!(out, "{line}");
            }
        } else if ["COMMANDS:", "OPTIONS:", "GLOBAL OPTIONS:"].contains(&section) && line.starts_with("   ") {
            let name = line.trim().split("  ").next().unwrap_or_default();
            // What a value is called is a matter of text.
            let name = name.replace("container-uid:host-uid:length", "value");
            let name = name.replace("container-gid:host-gid:length", "value");
            if !OURS_ALONE.contains(&name.as_str()) {
                let _ = writeln!(out, "{name}");
            }
        }
    }
    out
}

fn compare(
    remark: &str,
    line: &str,
    ours: &Finished,
    theirs: &Finished,
    sides: [&Side; 2],
) -> Option<String> {
    let show = |finished: &Finished, side: &Side| {
        let (out, err) = (side.plain(&finished.stdout), side.plain(&finished.stderr));
        let (out, err) = match remark {
            "help" => (names(&out), err),
            "pids" => {
                let numbers = Regex::new(r"\d+").unwrap();
                let spaces = Regex::new(r" +").unwrap();
                // Processes are listed in the order of their cgroup.
                let varies = |text: &str| {
                    let text = numbers.replace_all(text, "N");
                    let text = spaces.replace_all(&text, " ").trim_end().to_owned();
                    let mut lines: Vec<&str> = text.lines().map(str::trim_end).collect();
                    lines.sort_unstable();
                    lines.join("\n")
                };
                (varies(&out), varies(&err))
            }
            "sorted" => {
                let mut labels: Vec<&str> = out.trim().split(',').collect();
                labels.sort_unstable();
                (labels.join(","), err)
            }
            _ if remark.starts_with("ours:") => (String::new(), String::new()),
            _ => (out, err),
        };
        format!("exit code {:?}\n--- stdout\n{out}\n--- stderr\n{err}", finished.code)
    };
    if remark.starts_with("free:") {
        return None;
    }
    let (ours, theirs) = (show(ours, sides[0]), show(theirs, sides[1]));
    (ours != theirs).then(|| format!("=== ctr {line}\n*** ours\n{ours}\n*** theirs\n{theirs}\n"))
}

/// Runs a script with both and tells all differences at once.
fn same(script: &str, nodes: [Node; 2]) {
    let ours = corten_tests::peers::programs().join("ctr");
    let theirs = Peers::find().containerd_2_1().join("ctr");
    let [left, right] = nodes;
    let (mut left, mut right) = (Side::new(left, &ours), Side::new(right, &theirs));
    let registry = script.contains("$R").then(|| {
        let registry = Registry::start();
        let image = ImageBuilder::busybox().build();
        registry.push(&image, "lab/box:1");
        (Shared { host: registry.host(), manifest: image.target.digest().to_string() }, registry)
    });
    left.registry = registry.as_ref().map(|(shared, _)| shared.clone());
    right.registry.clone_from(&left.registry);
    let (mut differences, mut count) = (String::new(), 0);
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(id) = line.strip_prefix("@stopped ") {
            left.wait_until_stopped(id);
            right.wait_until_stopped(id);
            continue;
        }
        let (remark, line) = match line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
            Some((remark, line)) => (remark, line),
            None => (line.strip_prefix("[help]").map_or("", |_| "help"), line.trim_start_matches("[help]")),
        };
        count += 1;
        let (mine, other) = (left.run(line), right.run(line));
        // What comes behind would hang too, until nobody can tell any more where it began.
        let hung = [&mine, &other].into_iter().find(|finished| finished.code.is_none());
        if let Some(hung) = hung {
            panic!("{} does not end: {}{}\n{differences}", hung.line, hung.stdout, hung.stderr);
        }
        if let Some(difference) = compare(remark, line, &mine, &other, [&left, &right]) {
            differences.push_str(&difference);
        }
    }
    assert!(differences.is_empty(), "of {count} command lines some differ:\n{differences}");
    left.node.finish();
    right.node.finish();
}

fn on_ours(script: &str) {
    same(script, [Node::start(), Node::start()]);
}

fn on_debians(script: &str) {
    let folder = Peers::find().containerd_2_1();
    let ours = corten_tests::peers::programs().join("ctr");
    same(script, [Node::peer(&folder).ctr(ours.clone()).start(), Node::peer(&folder).ctr(ours).start()]);
}

/// What can be said before any daemon is asked.
const WORDS: &str = include_str!("ctr/words.txt");

/// Records of all kinds: made, shown, changed, removed.
const RECORDS: &str = include_str!("ctr/records.txt");

/// Containers: from flags to specifications, without running them.
const SPECIFICATIONS: &str = include_str!("ctr/specifications.txt");

/// Running containers.
const TASKS: &str = include_str!("ctr/tasks.txt");

/// Flags of running containers, and of their shims.
const FLAGS: &str = include_str!("ctr/flags.txt");

/// Blobs, and what of them is brought from a registry.
const CONTENT: &str = include_str!("ctr/content.txt");

/// Images: listed, named, moved, mounted.
const IMAGES: &str = include_str!("ctr/images.txt");

/// Both listen to one daemon, and hear the same.
fn hear_the_same(node: Node) {
    let theirs = Peers::find().containerd_2_1().join("ctr");
    let side = Side::new(node, &theirs);
    let node = &side.node;
    let ours = corten_tests::peers::programs().join("ctr");
    let listen = |program: &Path| Running::start(node.foreign_ctr_command(program, ["events"]), None);
    let listeners = [listen(&ours), listen(&theirs)];
    let probe = ["namespaces", "create", "probe", "a=b"];
    for listener in &listeners {
        eventually("events flow", Duration::from_secs(60), || {
            corten_tests::command::run(node.foreign_ctr_command(&theirs, probe));
            corten_tests::command::run(node.foreign_ctr_command(&theirs, ["namespaces", "rm", "probe"]));
            listener.next_output(Duration::from_millis(100))
        });
    }
    side.run("run --rm --label a=<b> $I story true").ok();
    side.run("snapshots prepare q1").ok();
    side.run("snapshots commit q2 q1").ok();
    side.run("snapshots rm q2").ok();
    side.run("containers create $I last").ok();
    side.run("containers label last x=y").ok();
    side.run("containers rm last").ok();
    let heard = listeners.map(|listener| {
        let mut text = String::new();
        while !text.contains("/containers/delete {\"id\":\"last\"}") {
            text.push_str(&listener.next_output(Duration::from_secs(60)).unwrap_or_else(|| panic!("{text}")));
        }
        let of_interest = |line: &&str| !line.contains("/namespaces/");
        text.lines().filter(of_interest).map(str::to_owned).collect::<Vec<_>>()
    });
    assert_eq!(heard[0], heard[1]);
    assert!(heard[0].len() > 10, "{heard:?}");
    side.node.finish();
}

#[test]
fn events_are_told_as_debians_tells_them_on_our_daemon() {
    hear_the_same(Node::start());
}

#[test]
fn events_are_told_as_debians_tells_them_on_debians_daemon() {
    let ours = corten_tests::peers::programs().join("ctr");
    hear_the_same(Node::peer(&Peers::find().containerd_2_1()).ctr(ours).start());
}

#[test]
fn words_are_read_as_debians_reads_them() {
    on_ours(WORDS);
}

#[test]
fn records_are_told_as_debians_tells_them_on_our_daemon() {
    on_ours(RECORDS);
}

#[test]
fn records_are_told_as_debians_tells_them_on_debians_daemon() {
    on_debians(RECORDS);
}

#[test]
fn specifications_are_those_of_debians_on_our_daemon() {
    on_ours(SPECIFICATIONS);
}

#[test]
fn specifications_are_those_of_debians_on_debians_daemon() {
    on_debians(SPECIFICATIONS);
}

#[test]
fn tasks_are_told_as_debians_tells_them_on_our_daemon() {
    on_ours(TASKS);
}

#[test]
fn tasks_are_told_as_debians_tells_them_on_debians_daemon() {
    on_debians(TASKS);
}

#[test]
fn flags_have_the_effects_of_debians_on_our_daemon() {
    on_ours(FLAGS);
}

#[test]
fn flags_have_the_effects_of_debians_on_debians_daemon() {
    on_debians(FLAGS);
}

#[test]
fn blobs_are_told_as_debians_tells_them_on_our_daemon() {
    on_ours(CONTENT);
}

#[test]
fn blobs_are_told_as_debians_tells_them_on_debians_daemon() {
    on_debians(CONTENT);
}

#[test]
fn images_are_told_as_debians_tells_them_on_our_daemon() {
    on_ours(IMAGES);
}

#[test]
fn images_are_told_as_debians_tells_them_on_debians_daemon() {
    on_debians(IMAGES);
}

#[test]
fn variables_of_the_environment_are_read_as_debians_reads_them() {
    let node = Node::start();
    node.ctr(["containers", "create", "--rootfs", "/", "box"]).ok();
    let told = [corten_tests::peers::programs().join("ctr"), Peers::find().containerd_2_1().join("ctr")].map(
        |program| {
            let mut command = Command::new(program);
            command.env("CONTAINERD_ADDRESS", node.address()).env("CONTAINERD_NAMESPACE", node.namespace());
            command.args(["containers", "ls"]);
            corten_tests::command::run(command).ok()
        },
    );
    assert_eq!(told[0], told[1]);
    assert!(told[0].contains("\nbox "), "{}", told[0]);
    node.ctr(["containers", "rm", "box"]).ok();
    node.finish();
}

/// Commands and flags that no script has, and why.
const NOT_COMPARED: &[(&str, &str)] = &[
    ("http-dump", "what a registry is told: suite registries"),
    ("http-trace", "likewise"),
    ("tlscacert", "likewise"),
    ("tlscert", "likewise"),
    ("tlskey", "likewise"),
    ("skip-verify", "likewise"),
    ("user", "likewise; users of containers are compared"),
    ("refresh", "likewise"),
    ("hosts-dir", "likewise"),
    ("plain-http", "in the scripts where a registry is reached"),
    ("gpus", "no graphics processors here"),
];

/// The names of commands, and of flags, that a help text of Debian's tells; each with its other names.
fn told_by_help(text: &str) -> [Vec<Vec<String>>; 2] {
    let (mut found, mut section) = ([Vec::new(), Vec::new()], None);
    for line in text.lines() {
        if !line.starts_with(' ') && line.ends_with(':') {
            section = match line {
                "COMMANDS:" => Some(0),
                "OPTIONS:" | "GLOBAL OPTIONS:" => Some(1),
                _ => None,
            };
        } else if let Some(at) = section
            && line.starts_with("   ")
            && line.chars().nth(3).is_some_and(|char| char != ' ')
        {
            let names = line.trim().split("  ").next().unwrap_or_default();
            let names = names.split([',', '[', ' ']).filter(|name| !name.is_empty() && *name != "value");
            let names: Vec<String> = match at {
                0 => names.map(str::to_owned).collect(),
                _ => names
                    .filter_map(|name| Some(name.strip_prefix('-')?.trim_start_matches('-').to_owned()))
                    .collect(),
            };
            if !names.is_empty() && !["help", "version"].contains(&names[0].as_str()) {
                found[at].push(names);
            }
        }
    }
    found
}

/// The commands and flags below a command that no line of the scripts has.
fn missing(program: &Path, path: &[String], lines: &[Vec<String>], out: &mut Vec<String>) {
    let mut help = Command::new(program);
    help.args(path).arg("--help");
    let [commands, flags] = told_by_help(&corten_tests::command::run(help).ok());
    let name = path.join(" ");
    if commands.is_empty() && lines.is_empty() {
        out.push(name.clone());
    }
    for names in flags {
        let is_used = |word: &String| {
            let body = word.trim_start_matches('-').split('=').next().unwrap_or_default();
            word.starts_with('-') && names.iter().any(|name| name == body)
        };
        let is_excused = NOT_COMPARED.iter().any(|(name, _)| *name == names[0]);
        if !is_excused && !lines.iter().flatten().any(is_used) {
            out.push(format!("{name} --{}", names[0]));
        }
    }
    for names in commands {
        // What stands behind the command's name; flags of the group may stand before it.
        let rest = |line: &Vec<String>| {
            let at = line.iter().position(|word| names.contains(word))?;
            Some(line[at + 1..].to_vec())
        };
        let below: Vec<Vec<String>> = lines.iter().filter_map(rest).collect();
        missing(program, &[path, &[names[0].clone()]].concat(), &below, out);
    }
}

#[test]
fn every_command_and_flag_of_debians_is_compared() {
    let scripts = [WORDS, RECORDS, SPECIFICATIONS, TASKS, FLAGS, CONTENT, IMAGES].join("\n");
    let remark = Regex::new(r"^\[[^\]]*\] ?").unwrap();
    let lines: Vec<Vec<String>> = scripts
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with(['#', '@']))
        .map(|line| remark.replace(line, "").split_whitespace().map(str::to_owned).collect())
        .collect();
    let mut out = Vec::new();
    missing(&Peers::find().containerd_2_1().join("ctr"), &[], &lines, &mut out);
    assert!(out.is_empty(), "of {} command lines none has these:\n{}", lines.len(), out.join("\n"));
    assert!(lines.len() > 500, "{}", lines.len());
}
