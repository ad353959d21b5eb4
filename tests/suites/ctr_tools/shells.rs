//! Completion in bash, zsh and fish: commands, flags, values, and names that the daemon knows.

use std::path::Path;
use std::process::Command;

use corten_tests::command::run;
use corten_tests::{Node, Session};

use crate::{IMAGE, node, program};

fn script(node: &Node, shell: &str) -> std::path::PathBuf {
    let mut command = Command::new(program());
    command.args(["completion", shell]);
    let file = node.join(format!("completion.{shell}"));
    std::fs::write(&file, run(command).ok()).unwrap();
    file
}

fn path() -> String {
    let folder = program().parent().unwrap().display().to_string();
    format!("{folder}:{}", std::env::var("PATH").unwrap_or_default())
}

fn shell(program: &str, args: &[&str]) -> Vec<String> {
    let mut command = Command::new(program);
    // Some make folders there.
    let home = corten_tests::Scratch::new();
    command.args(args).env("PATH", path()).env("HOME", home.path());
    run(command).ok().lines().map(str::to_owned).collect()
}

/// What each shell offers behind a line; without descriptions.
fn offers(shell_name: &str, script: &Path, line: &str) -> Vec<String> {
    let script = script.display();
    match shell_name {
        "bash" => {
            let text = format!(
                "compopt() {{ :; }}; source {script}; COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; _ctr; \
                 printf '%s\\n' \"${{COMPREPLY[@]}}\""
            );
            shell("bash", &["--norc", "-c", &text])
        }
        "zsh" => {
            let mut words: Vec<&str> = line.split_whitespace().collect();
            if line.ends_with(' ') {
                words.push("");
            }
            let list = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
            let text = format!(
                "compdef() {{ :; }}; _files() {{ print FILES; }}; _describe() {{ print -rl -- \"${{(@P)2}}\"; }}; \
                 source {script}; words=({list}); CURRENT={}; _ctr",
                words.len()
            );
            let found = shell("zsh", &["-f", "-c", &text]);
            // A colon in a name has a backslash before it, one before the description has none.
            let name = |line: String| line.replace("\\:", "\0").split(':').next().unwrap().replace('\0', ":");
            found.into_iter().map(name).collect()
        }
        _ => {
            let text = format!("source {script}; complete -C '{line}'");
            let found = shell("fish", &["--no-config", "-c", &text]);
            let mut found: Vec<String> =
                found.into_iter().map(|line| line.split('\t').next().unwrap().to_owned()).collect();
            // Fish sorts them.
            found.sort_unstable_by(|left, right| right.cmp(left));
            found
        }
    }
}

#[test]
fn shells_complete_commands_flags_values_and_live_names() {
    let node = node();
    node.ctr(["c", "create", IMAGE, "alpha"]).ok();
    node.ctr(["run", "-d", "--null-io", IMAGE, "beta", "sleep", "1000"]).ok();
    let to = format!("ctr -a {} -n {}", node.address().display(), node.namespace());
    for name in ["bash", "zsh", "fish"] {
        let script = script(&node, name);
        let complete = |line: &str| offers(name, &script, line);
        assert_eq!(complete("ctr conta"), ["containers", "container"], "{name}");
        assert_eq!(complete("ctr c chec"), ["checkpoint"], "{name}");
        assert_eq!(complete("ctr run --rlim"), ["--rlimit-nofile"], "{name}");
        assert_eq!(complete("ctr c ls --format js"), ["json"], "{name}");
        assert_eq!(complete(&format!("{to} t start al")), ["alpha"], "{name}");
        assert_eq!(complete(&format!("{to} t kill ")), ["beta"], "{name}: only what runs can be killed");
        assert_eq!(complete(&format!("{to} ns rm {}", node.namespace())), [node.namespace()], "{name}");
        assert_eq!(complete(&format!("{to} run --snapshotter overl")), ["overlayfs"], "{name}");
        assert_eq!(complete(&format!("{to} run --rm example.com/lab/b")), [IMAGE], "{name}");
        // Bash wants what is behind the colon.
        let tag = if name == "bash" { "1" } else { IMAGE };
        assert_eq!(complete(&format!("{to} images rm example.com/lab/box:")), [tag], "{name}");
        assert_eq!(complete(&format!("{to} cp al")), ["alpha:"], "{name}");
    }
    node.ctr(["stop", "-t", "0s", "--rm", "beta"]).ok();
    node.ctr(["c", "rm", "alpha"]).ok();
    node.finish();
}

#[test]
fn a_key_completes_in_zsh_and_bash_themselves() {
    let node = Node::start();
    for (name, args, begin) in [
        ("bash", &["--norc", "--noprofile"][..], ""),
        ("zsh", &["-f"][..], "autoload -U compinit; compinit -u -D; "),
    ] {
        let script = script(&node, name);
        let mut command = Command::new(name);
        command.args(args).env("PATH", path()).env("PS1", "ready# ").current_dir(node.path());
        let mut terminal = Session::start(&command);
        terminal.shows("ready#");
        terminal.press(&format!("{begin}source {}; echo begun-$((1+1))\r", script.display()));
        terminal.shows("begun-2");
        terminal.press("clear\r");
        terminal.until("a clear screen", |screen| screen.trim() == "ready#");
        terminal.press("ctr deprec\t");
        terminal.shows("ctr deprecations");
        terminal.press("\u{15}exit\r");
        terminal.finish();
    }
    node.finish();
}
