//! Help about commands, in the layout of the original: scripts cut command and flag names out of it.

use std::any::TypeId;
use std::fmt::Write;

use clap::{Arg, ArgAction, Command};

use crate::arguments::{at, spellings};

/// The text for the command at `path`. A `refused` one is told about its `help` too, as the original does.
pub fn text(root: &Command, path: &[String], refused: bool) -> String {
    let command = at(root, path);
    let name = ["ctr".to_owned()].into_iter().chain(path.iter().cloned()).collect::<Vec<_>>().join(" ");
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let mut text = String::new();
    let dash = if about.is_empty() { "" } else { " - " };
    let _ = write!(text, "NAME:\n   {name}{dash}{about}\n\nUSAGE:\n   ");
    if path.is_empty() {
        let _ = writeln!(
            text,
            "{name} [global options] command [command options]\n\nVERSION:\n   {}",
            crate::commands::VERSION
        );
    } else {
        let _ = writeln!(text, "{name} [command options]{}", positionals(command));
    }
    if let Some(long) = command.get_long_about().map(ToString::to_string).filter(|long| *long != about) {
        let _ = writeln!(text, "\nDESCRIPTION:\n   {}", long.trim().replace('\n', "\n   "));
    }
    let mut commands: Vec<(String, String)> = command
        .get_subcommands()
        .filter(|one| !one.is_hide_set())
        .map(|one| {
            let names: Vec<&str> = std::iter::once(one.get_name()).chain(one.get_all_aliases()).collect();
            (names.join(", "), one.get_about().map(ToString::to_string).unwrap_or_default())
        })
        .collect();
    if !commands.is_empty() || refused {
        commands.push(("help, h".into(), "Shows a list of commands or help for one command".into()));
        section(&mut text, "COMMANDS", &commands);
    }
    let title = if path.is_empty() { "GLOBAL OPTIONS" } else { "OPTIONS" };
    section(&mut text, title, &flags(command, path.is_empty()));
    text
}

/// Names and texts, aligned.
fn section(text: &mut String, title: &str, rows: &[(String, String)]) {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let _ = writeln!(text, "\n{title}:");
    for (name, about) in rows {
        let _ = writeln!(text, "   {name:width$}  {about}");
    }
}

fn positionals(command: &Command) -> String {
    let has_flags = command.get_arguments().any(|arg| !arg.is_positional());
    let mut text =
        String::from(if has_flags && command.get_positionals().next().is_some() { " [flags]" } else { "" });
    for arg in command.get_positionals() {
        let names: Vec<String> =
            arg.get_value_names().unwrap_or_default().iter().map(ToString::to_string).collect();
        let name = if names.is_empty() { arg.get_id().as_str().to_uppercase() } else { names.join(" ") };
        let more = if matches!(arg.get_action(), ArgAction::Append) { "..." } else { "" };
        // A name that says itself how often it comes is left alone.
        let _ = match name.contains(['[', ' ']) {
            true => write!(text, " {name}"),
            false => write!(text, " {name}{more}"),
        };
    }
    text
}

fn flags(command: &Command, global: bool) -> Vec<(String, String)> {
    let shown = |arg: &&Arg| {
        !arg.is_positional() && !arg.is_hide_set() && arg.get_id() != "help" && arg.get_id() != "version"
    };
    let mut rows: Vec<(String, String)> = command.get_arguments().filter(shown).map(row).collect();
    rows.push(("--help, -h".into(), "Show help (default: false)".into()));
    if global {
        rows.push(("--version, -v".into(), "Print the version (default: false)".into()));
    }
    rows
}

/// How a flag is written, and what it is for.
pub fn row(arg: &Arg) -> (String, String) {
    let switch = matches!(arg.get_action(), ArgAction::SetTrue);
    let value = if switch { "" } else { " value" };
    let dashed =
        |name: String| format!("{}{name}{value}", if name.chars().count() == 1 { "-" } else { "--" });
    let names = spellings(arg).into_iter().map(dashed).collect::<Vec<_>>().join(", ");
    let names = match arg.get_action() {
        ArgAction::Append => format!("{names} [ {names} ]"),
        _ => names,
    };
    let mut about = arg.get_help().map(ToString::to_string).unwrap_or_default();
    if about.ends_with('.') && !about.ends_with("..") {
        about.pop();
    }
    if let Some(default) = default(arg, switch) {
        let _ = write!(about, " (default: {default})");
    }
    if let Some(env) = arg.get_env() {
        let _ = write!(about, " [${}]", env.to_string_lossy());
    }
    (names, about)
}

fn default(arg: &Arg, switch: bool) -> Option<String> {
    if switch {
        return Some("false".into());
    }
    let value = arg.get_default_values().first()?.to_string_lossy().into_owned();
    let is_text = arg.get_value_parser().type_id() == TypeId::of::<String>()
        || arg.get_value_parser().type_id() == TypeId::of::<std::path::PathBuf>();
    match is_text {
        true => Some(format!("{value:?}")).filter(|_| !value.is_empty()),
        false => Some(value),
    }
}
