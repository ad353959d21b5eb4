//! Completion, manual page and documentation: made from the definitions of the commands, so that they never differ.

use std::fmt::Write;
use std::path::PathBuf;

use clap::{Args, Command, CommandFactory, ValueEnum};
use corten_types::{Result, ResultExt};

use crate::help;

/// Completion of commands for a shell.
#[derive(Debug, Args)]
pub struct Completion {
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Manual pages and documentation.
#[derive(Debug, Args)]
pub struct Manual {
    /// Folder to write ctr.8 and the completions into; without it the documentation is printed.
    #[arg(long)]
    folder: Option<PathBuf>,
}

impl Completion {
    pub fn run(self) {
        let root = crate::Cli::command();
        print!("{}", self.shell.script(&root));
    }
}

impl Shell {
    fn script(self, root: &Command) -> String {
        match self {
            Self::Bash => bash(root),
            // The same table serves both.
            Self::Zsh => {
                format!("#compdef ctr\nautoload -U +X bashcompinit && bashcompinit\n{}", bash(root))
            }
            Self::Fish => fish(root),
        }
    }
}

impl Manual {
    pub fn run(self) -> Result<()> {
        let root = crate::Cli::command();
        let Some(folder) = self.folder else {
            print!("{}", markdown(&root));
            return Ok(());
        };
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let files = [
            ("ctr.8", roff(&root)),
            ("ctr.bash", Shell::Bash.script(&root)),
            ("_ctr", Shell::Zsh.script(&root)),
            ("ctr.fish", Shell::Fish.script(&root)),
        ];
        for (name, text) in files {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }
}

/// Every command with its path, in order.
fn walk<'a>(command: &'a Command, path: &[String], visit: &mut impl FnMut(&'a Command, &[String])) {
    visit(command, path);
    for one in command.get_subcommands().filter(|one| !one.is_hide_set()) {
        let path: Vec<String> = path.iter().cloned().chain([one.get_name().to_owned()]).collect();
        walk(one, &path, visit);
    }
}

fn names(command: &Command) -> Vec<&str> {
    std::iter::once(command.get_name()).chain(command.get_all_aliases()).collect()
}

fn flags(command: &Command) -> Vec<String> {
    let shown = command.get_arguments().filter(|arg| !arg.is_positional() && !arg.is_hide_set());
    let dashed =
        |name: String| if name.chars().count() == 1 { format!("-{name}") } else { format!("--{name}") };
    shown.flat_map(crate::arguments::spellings).map(dashed).chain(["--help".to_owned()]).collect()
}

/// What a command's words are: something that the daemon can list.
fn objects(path: &[String]) -> &'static str {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    match path.as_slice() {
        ["run"] | ["containers", "create"] | ["images", _] | ["install"] => "images ls -q",
        ["containers" | "tasks", _] | ["stop" | "stats" | "inspect"] => "containers ls -q",
        ["namespaces", _] => "namespaces ls -q",
        ["leases", _] => "leases ls -q",
        ["content", _] => "content ls -q",
        ["snapshots", _] => "snapshots ls --format plain | cut -f1",
        _ => "",
    }
}

/// A table from paths to words, and a function that looks into it.
fn bash(root: &Command) -> String {
    let mut cases = String::new();
    let mut canonical = String::new();
    walk(root, &[], &mut |command, path| {
        let subcommands: Vec<&str> =
            command.get_subcommands().filter(|one| !one.is_hide_set()).flat_map(names).collect();
        let key = path.join(" ");
        let _ = writeln!(
            cases,
            "    {key:?}) words={:?} flags={:?} live={:?} ;;",
            subcommands.join(" "),
            flags(command).join(" "),
            objects(path)
        );
        for one in command.get_subcommands() {
            let below = format!("{key} {}", one.get_name()).trim().to_owned();
            for name in names(one) {
                let typed = format!("{key} {name}").trim().to_owned();
                let _ = writeln!(canonical, "    {typed:?}) path={below:?} ;;");
            }
        }
    });
    format!(
        "# Completion of ctr for bash; made by `ctr completion bash`.\n\
_ctr() {{\n\
\x20 local path='' word words flags live current=\"${{COMP_WORDS[COMP_CWORD]}}\" global=()\n\
\x20 local at=1\n\
\x20 while [ $at -lt $COMP_CWORD ]; do\n\
\x20   word=\"${{COMP_WORDS[at]}}\"\n\
\x20   case \"$word\" in\n\
\x20     -a|--address|-n|--namespace) global+=(\"$word\" \"${{COMP_WORDS[at+1]}}\"); at=$((at + 1)) ;;\n\
\x20     -*) ;;\n\
\x20     *) local typed=\"${{path:+$path }}$word\"\n\
\x20   case \"$typed\" in\n{canonical}    esac ;;\n\
\x20   esac\n\
\x20   at=$((at + 1))\n\
\x20 done\n\
\x20 case \"$path\" in\n{cases}  esac\n\
\x20 case \"$current\" in\n\
\x20   -*) COMPREPLY=($(compgen -W \"$flags\" -- \"$current\")) ;;\n\
\x20   *)\n\
\x20     if [ -n \"$live\" ]; then\n\
\x20       words=\"$words $(eval \"ctr ${{global[*]}} $live\" 2>/dev/null)\"\n\
\x20     fi\n\
\x20     COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n\
\x20     type __ltrim_colon_completions >/dev/null 2>&1 && __ltrim_colon_completions \"$current\" ;;\n\
\x20 esac\n\
}}\n\
complete -o default -F _ctr ctr\n"
    )
}

fn fish(root: &Command) -> String {
    let mut text =
        String::from("# Completion of ctr for fish; made by `ctr completion fish`.\ncomplete -c ctr -f\n");
    walk(root, &[], &mut |command, path| {
        let condition = match path {
            [] => "__fish_use_subcommand".to_owned(),
            _ => path
                .iter()
                .map(|name| format!("__fish_seen_subcommand_from {name}"))
                .collect::<Vec<_>>()
                .join("; and "),
        };
        let quote = |text: String| text.replace('\\', "\\\\").replace('\'', "\\'");
        for one in command.get_subcommands().filter(|one| !one.is_hide_set()) {
            let about = quote(one.get_about().map(ToString::to_string).unwrap_or_default());
            let _ = writeln!(text, "complete -c ctr -n '{condition}' -a '{}' -d '{about}'", one.get_name());
        }
        for arg in command.get_arguments().filter(|arg| !arg.is_positional() && !arg.is_hide_set()) {
            let about = quote(arg.get_help().map(ToString::to_string).unwrap_or_default());
            let long = arg.get_long().map(|long| format!(" -l {long}")).unwrap_or_default();
            let short = arg.get_short().map(|short| format!(" -s {short}")).unwrap_or_default();
            let value = if matches!(arg.get_action(), clap::ArgAction::SetTrue) { "" } else { " -r" };
            let _ = writeln!(text, "complete -c ctr -n '{condition}'{long}{short}{value} -d '{about}'");
        }
        if !objects(path).is_empty() {
            let _ =
                writeln!(text, "complete -c ctr -n '{condition}' -a '(ctr {} 2>/dev/null)'", objects(path));
        }
    });
    text
}

/// A line of roff: a dash is a minus, a dot at its start is none of roff's.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

fn roff(root: &Command) -> String {
    let mut text = String::from(
        ".TH CTR 8\n.SH NAME\nctr \\- the command line of containerd\n.SH SYNOPSIS\n.B ctr\n[global options] command [options] [words]\n.SH COMMANDS\n",
    );
    walk(root, &[], &mut |command, path| {
        if path.is_empty() {
            return;
        }
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(text, ".SS {}\n{}", escaped(&usage(root, path)), escaped(&about));
        options(&mut text, command);
    });
    text.push_str(".SH GLOBAL OPTIONS\n");
    options(&mut text, root);
    text.push_str(
        ".SH EXIT STATUS\n0 for success and help, 1 for errors, 3 for commands that do not exist, \
         141 when the reader of the output has gone; commands that run a process end with the exit status of it.\n",
    );
    text
}

fn options(text: &mut String, command: &Command) {
    for arg in command.get_arguments().filter(|arg| !arg.is_positional() && !arg.is_hide_set()) {
        let (names, about) = help::row(arg);
        let _ = writeln!(text, ".TP\n.B {}\n{}", escaped(&names), escaped(&about));
    }
}

/// How a command is called, as help tells it.
fn usage(root: &Command, path: &[String]) -> String {
    let text = help::text(root, path, false);
    let mut lines = text.lines().skip_while(|line| *line != "USAGE:").skip(1);
    lines.next().unwrap_or_default().trim().to_owned()
}

fn markdown(root: &Command) -> String {
    let mut text = String::from(
        "# ctr\n\nThe command line of containerd. This page is made from the definitions of the commands by \
         `ctr manual`; `ctr COMMAND --help` tells the same.\n\n\
         What goes to a pipe keeps the form of the original, so that scripts need no change; on a terminal there are \
         colours and hints beside. Flags stand before words: parsing ends at the first word. Commands of this \
         program alone: `inspect`, `stats`, `stop`, `prune`, `check`, `completion`, and `--format` of lists.\n\n\
         Exit codes: 0 for success and help, 1 for errors, 3 for commands that do not exist, 141 when the reader of \
         the output has gone; `run`, `tasks start`, `tasks attach`, `tasks exec` and `tasks delete --exec-id` end \
         with the exit status of the process.\n",
    );
    walk(root, &[], &mut |command, path| {
        if path.is_empty() {
            let _ = writeln!(text, "\n## Global options\n");
        } else {
            let level = if path.len() == 1 { "##" } else { "###" };
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            let aliases: Vec<&str> = command.get_all_aliases().collect();
            let aliases = if aliases.is_empty() {
                String::new()
            } else {
                format!(" (also `{}`)", aliases.join("`, `"))
            };
            let _ = writeln!(text, "\n{level} {}\n\n{about}.{aliases}\n", path.join(" "));
            if !command.has_subcommands() {
                let _ = writeln!(text, "```\n{}\n```\n", usage(root, path));
            }
        }
        for arg in command.get_arguments().filter(|arg| !arg.is_positional() && !arg.is_hide_set()) {
            let (names, about) = help::row(arg);
            let _ = writeln!(text, "- `{names}` — {about}");
        }
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_in_completion_manual_and_documentation() {
        let root = crate::Cli::command();
        let texts = [bash(&root), fish(&root), roff(&root).replace("\\-", "-"), markdown(&root)];
        walk(&root, &[], &mut |command, path| {
            if let Some(name) = path.last() {
                for text in &texts {
                    assert!(text.contains(name.as_str()), "{path:?}");
                }
            }
            for flag in flags(command).iter().filter(|flag| flag.starts_with("--") && *flag != "--help") {
                assert!(
                    texts[0].contains(flag) && texts[2].contains(flag) && texts[3].contains(flag),
                    "{flag}"
                );
            }
        });
    }
}
