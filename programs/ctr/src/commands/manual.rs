//! Completion, manual page and documentation: made from the definitions of the commands, so that they never differ.

use std::fmt::Write;
use std::path::PathBuf;

use clap::{Args, Command, ValueEnum};
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
    /// Folder to write the pages and the completions into; without it the documentation is printed.
    #[arg(long)]
    folder: Option<PathBuf>,
}

impl Completion {
    pub fn run(self) {
        print!("{}", self.shell.script());
    }
}

impl Shell {
    fn script(self) -> &'static str {
        match self {
            Self::Bash => BASH,
            Self::Zsh => ZSH,
            Self::Fish => FISH,
        }
    }
}

impl Manual {
    pub fn run(self) -> Result<()> {
        let root = crate::all_definitions();
        let Some(folder) = self.folder else {
            print!("{}", markdown(&root));
            return Ok(());
        };
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let scripts = [("ctr.bash", Shell::Bash), ("_ctr", Shell::Zsh), ("ctr.fish", Shell::Fish)];
        let scripts = scripts.map(|(name, shell)| (name.to_owned(), shell.script().to_owned()));
        for (name, text) in pages(&root).into_iter().chain(scripts) {
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

/// The words come from the commands themselves (`complete`), so that all shells offer the same. Bash takes words
/// apart at colons and equal signs, and wants only what is behind the last.
const BASH: &str = r#"# Completion of ctr for bash; made by `ctr completion bash`.
_ctr() {
  local IFS=$' \t\n' line="${COMP_LINE:0:COMP_POINT}" typed keep words=() found=() one
  read -ra words <<<"$line"
  case "$line" in *[[:space:]]) words+=("") ;; esac
  typed="${words[${#words[@]}-1]}"
  keep="${typed%"${typed##*[:=]}"}"
  COMPREPLY=()
  while IFS=$'\t' read -r one _; do
    COMPREPLY+=("${one#"$keep"}")
    case "$one" in *:|*=) compopt -o nospace ;; esac
  done < <(ctr complete -- "${words[@]}" 2>/dev/null)
}
complete -o default -F _ctr ctr
"#;

const ZSH: &str = r#"#compdef ctr
# Completion of ctr for zsh; made by `ctr completion zsh`.
_ctr() {
  local -a found
  local line
  for line in "${(@f)$(ctr complete -- "${(@)words[1,CURRENT]}" 2>/dev/null)}"; do
    case "$line" in
      "") ;;
      *$'\t'*) found+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}") ;;
      *) found+=("${line//:/\\:}") ;;
    esac
  done
  if (( $#found )); then _describe ctr found; else _files; fi
}
if [ "$funcstack[1]" = _ctr ]; then _ctr; else compdef _ctr ctr; fi
"#;

const FISH: &str = r#"# Completion of ctr for fish; made by `ctr completion fish`.
function __ctr_words
    ctr complete -- (commandline -opc) (commandline -ct) 2>/dev/null
end
complete -c ctr -f -a '(__ctr_words)'
complete -c ctr -n 'test -z "$(__ctr_words)"' -F
"#;

/// A line of roff: a dash is a minus, a dot at its start is none of roff's.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    let named = |char: char| match char.is_ascii() {
        true => char.to_string(),
        false => format!("\\[u{:04X}]", u32::from(char)),
    };
    let text: String = text.chars().map(named).collect();
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

/// The pages: one about all, and one for each command.
fn pages(root: &Command) -> Vec<(String, String)> {
    let commands = || root.get_subcommands().filter(|one| !one.is_hide_set());
    let about = |command: &Command| command.get_about().map(ToString::to_string).unwrap_or_default();
    let mut text = String::from(
        ".TH CTR 8\n.SH NAME\nctr \\- the command line of containerd\n.SH SYNOPSIS\n.B ctr\n[global options] command [options] [words]\n.SH DESCRIPTION\nFlags stand before words: parsing ends at the first word.\n.SH COMMANDS\n",
    );
    for command in commands() {
        let _ = writeln!(
            text,
            ".TP\n.BR ctr\\-{} (8)\n{}",
            escaped(command.get_name()),
            escaped(&about(command))
        );
    }
    text.push_str(".SH OPTIONS\n");
    options(&mut text, root);
    let _ = write!(text, ".SH EXIT STATUS\n{}", EXIT.trim_start());
    let page = |command: &Command| {
        let name = command.get_name();
        let title = format!("ctr\\-{}", escaped(name));
        let mut text = format!(
            ".TH CTR\\-{} 8\n.SH NAME\n{title} \\- {}\n",
            escaped(&name.to_uppercase()),
            escaped(about(command).trim_end_matches('.'))
        );
        let path = [name.to_owned()];
        let _ = writeln!(text, ".SH SYNOPSIS\n{}", escaped(&usage(root, &path)));
        if command.get_arguments().any(|arg| !arg.is_positional() && !arg.is_hide_set()) {
            text.push_str(".SH OPTIONS\n");
            options(&mut text, command);
        }
        if command.has_subcommands() {
            text.push_str(".SH COMMANDS\n");
        }
        walk(command, &path, &mut |below, path| {
            if path.len() > 1 {
                let names = [&[below.get_name()], &*below.get_all_aliases().collect::<Vec<_>>()].concat();
                let _ = writeln!(
                    text,
                    ".SS {}\n{}\n.PP\n{}",
                    escaped(&names.join(", ")),
                    escaped(&about(below)),
                    escaped(&usage(root, path))
                );
                options(&mut text, below);
            }
        });
        let _ = write!(text, ".SH EXIT STATUS\n{}.SH SEE ALSO\n.BR ctr (8)\n", EXIT.trim_start());
        (format!("ctr-{name}.8"), text)
    };
    std::iter::once(("ctr.8".to_owned(), text)).chain(commands().map(page)).collect()
}

/// What a program that calls this one may rely on.
const EXIT: &str = "
0 for success and help, 1 for errors, 3 for commands that do not exist,
141 when the reader of the output has gone; commands that run a process end with the exit status of it.
";

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
         program alone: `top`, `logs`, `cp`, `diff`, `inspect`, `stats`, `stop`, `prune`, `network`, `netns`, `link`, `check`, `completion`, \
         `images history`, `images tree`, and `--format` of lists: `plain` is the form of the original on a terminal, \
         too.\n\n\
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
    fn every_command_is_in_the_manual_and_the_documentation() {
        let root = crate::all_definitions();
        let manual: String = pages(&root).into_iter().map(|(_, text)| text).collect();
        let texts = [manual.replace("\\-", "-"), markdown(&root)];
        walk(&root, &[], &mut |command, path| {
            if let Some(name) = path.last() {
                for text in &texts {
                    assert!(text.contains(name.as_str()), "{path:?}");
                }
            }
            let shown = command.get_arguments().filter(|arg| !arg.is_positional() && !arg.is_hide_set());
            for flag in shown.filter_map(clap::Arg::get_long) {
                assert!(texts.iter().all(|text| text.contains(&format!("--{flag}"))), "{flag}");
            }
        });
    }
}
