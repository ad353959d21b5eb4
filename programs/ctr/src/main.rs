//! The command line. One file per command group; one place for the connection, tables, streams and errors.
//!
//! What goes to a pipe keeps the original's form; a terminal gets progress and hints.

/// As std's, but a reader that has gone is no reason to panic.
macro_rules! print {
    ($($text:tt)*) => { $crate::output::say(format_args!($($text)*)) };
}
macro_rules! println {
    () => { $crate::output::say(format_args!("\n")) };
    ($($text:tt)*) => { $crate::output::say(format_args!("{}\n", format_args!($($text)*))) };
}
macro_rules! eprintln {
    ($($text:tt)*) => { $crate::output::tell(format_args!("{}\n", format_args!($($text)*))) };
}

mod arguments;
mod client;
mod commands;
mod container;
mod described;
mod detach;
mod files;
mod flame;
mod help;
mod hints;
mod json;
mod log;
mod output;
mod progress;
mod registry;
mod rootfs;
mod screen;
mod stdio;
mod waiting;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use std::io::IsTerminal;

use clap::{Args, FromArgMatches};
use corten_types::{Error, ErrorClass, Result};

use arguments::Reading;
use client::Client;

/// Flags before the command.
#[derive(Clone, Debug, Args)]
struct Global {
    /// Show debug output.
    #[arg(long)]
    debug: bool,
    /// The daemon's socket.
    #[arg(short, long, env = "CONTAINERD_ADDRESS", value_parser = path, default_value = "/run/containerd/containerd.sock")]
    address: PathBuf,
    /// Longest time for the whole command, as 10s or 1m30s; 0 for any.
    #[arg(long, value_parser = duration, default_value = "0s")]
    timeout: Duration,
    /// Longest time for connecting.
    #[arg(long, value_parser = duration, default_value = "0s")]
    connect_timeout: Duration,
    /// The namespace that commands work in.
    #[arg(short, long, env = "CONTAINERD_NAMESPACE", default_value = "default")]
    namespace: String,
    /// Print the version.
    #[arg(short, long)]
    version: bool,
}

/// A path; an empty one is told by who opens it.
fn path(text: &str) -> std::result::Result<PathBuf, std::convert::Infallible> {
    Ok(PathBuf::from(text))
}

/// Go's durations: numbers with units, one after the other.
pub fn duration(text: &str) -> std::result::Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (mut total, mut rest) = (0.0, text);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or("missing unit in duration")?;
        let (number, tail) = rest.split_at(end);
        let number: f64 = number.parse().map_err(|_| "invalid duration")?;
        let units =
            [("ms", 1e-3), ("us", 1e-6), ("µs", 1e-6), ("ns", 1e-9), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];
        let (unit, factor) =
            units.iter().find(|(unit, _)| tail.starts_with(unit)).ok_or("unknown unit in duration")?;
        total += number * factor;
        rest = tail.get(unit.len()..).unwrap_or_default();
    }
    Duration::try_from_secs_f64(total).map_err(|_| "invalid duration".into())
}

/// The definitions of the program, with those of the commands one of whose names is wanted.
fn definitions(wanted: impl Fn(&str) -> bool) -> clap::Command {
    let root = clap::Command::new("ctr").disable_help_subcommand(true).disable_help_flag(true);
    commands::Command::define(Global::augment_args(root).about("The container command line"), wanted)
}

/// The definitions of all commands.
fn all_definitions() -> clap::Command {
    definitions(|_| true)
}

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    // Definitions are most of what a short command costs: made are those that the line may name.
    let mut root = definitions(|name| words.iter().any(|word| word == name));
    if !root.has_subcommands() {
        root = all_definitions();
    }
    let Reading::Run { path, words: line, typed } = arguments::read(&root, words.iter().cloned()) else {
        let root = all_definitions();
        return answer(&root, arguments::read(&root, words));
    };
    let (global, command) = match root.try_get_matches_from_mut(line).and_then(|matches| filled(&matches)) {
        Ok(filled) => filled,
        Err(error) => return refuse(&all_definitions(), path, &typed, &error),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    let code = match runtime.block_on(run(global, command)) {
        Ok(code) => code,
        Err(error) => {
            fail(&error);
            1
        }
    };
    // A thread may still wait for input.
    std::process::exit(code);
}

/// The flags and the command that the definitions have read.
fn filled(matches: &clap::ArgMatches) -> std::result::Result<(Global, commands::Command), clap::Error> {
    let (name, rest) = matches.subcommand().unwrap_or(("", matches));
    Ok((Global::from_arg_matches(matches)?, commands::Command::read(name, rest)?))
}

async fn run(global: Global, command: commands::Command) -> Result<i32> {
    let client = Client::new(&global);
    let timeout = global.timeout;
    let work = async {
        let done = command.run(client.clone()).await;
        client.tell_deprecations().await;
        done
    };
    if timeout.is_zero() {
        return work.await;
    }
    let late = |_| Error::new(ErrorClass::DeadlineExceeded, "");
    tokio::time::timeout(timeout, work).await.map_err(late)?
}

/// Prints an error, and on a terminal what to do about it.
fn fail(error: &Error) -> ExitCode {
    eprintln!("ctr: {}", error.message());
    if let Some(hint) = hints::about(error).filter(|_| std::io::stderr().is_terminal()) {
        eprintln!("hint: {hint}");
    }
    ExitCode::FAILURE
}

/// What is no command: help and versions are no errors, unknown commands have a code of their own.
fn answer(root: &clap::Command, reading: Reading) -> ExitCode {
    match reading {
        Reading::Version => println!("ctr github.com/containerd/containerd/v2 {}", commands::VERSION),
        Reading::Help { path } => print!("{}", help::text(root, &path, false)),
        Reading::Topic { path, name } => {
            eprintln!("No help topic for '{name}'");
            let meant = hints::meant(arguments::at(root, &path), &name);
            if let Some(meant) = meant.filter(|_| std::io::stderr().is_terminal()) {
                eprintln!("hint: did you mean '{meant}'?");
            }
            return ExitCode::from(3);
        }
        Reading::Refuse { path, message } => {
            print!("Incorrect Usage: {message}\n\n{}", help::text(root, &path, true));
            let typed = message.strip_prefix("flag provided but not defined: -");
            let meant = typed.and_then(|typed| hints::meant_flag(arguments::at(root, &path), typed));
            let refused = Error::unknown(message.clone());
            return fail(&match meant {
                Some(flag) => refused.with_hint(format!("did you mean --{flag}?")),
                None => refused,
            });
        }
        Reading::Run { .. } => {}
    }
    ExitCode::SUCCESS
}

/// What the definitions cannot read: values of the wrong form, flags and words that are missing.
fn refuse(
    root: &clap::Command,
    path: Vec<String>,
    typed: &[(String, String)],
    error: &clap::Error,
) -> ExitCode {
    use clap::error::{ContextKind, ErrorKind};
    let context = |kind| error.get(kind).map(ToString::to_string).unwrap_or_default();
    let name = |text: &str| {
        text.trim_start_matches('-').split([' ', '=', '<']).next().unwrap_or_default().to_owned()
    };
    match error.kind() {
        ErrorKind::ValueValidation | ErrorKind::InvalidValue
            if context(ContextKind::InvalidArg).starts_with('-') =>
        {
            let canonical = name(&context(ContextKind::InvalidArg));
            let name = canonical.clone();
            let name =
                typed.iter().rev().find(|(known, _)| *known == name).map_or(name, |(_, typed)| typed.clone());
            let value = context(ContextKind::InvalidValue);
            let known =
                arguments::at(root, &path).get_arguments().find(|arg| arg.get_long() == Some(&canonical));
            // Lists of numbers have another reader there.
            let why = match known.is_some_and(|arg| matches!(arg.get_action(), clap::ArgAction::Append)) {
                true => format!("strconv.ParseInt: parsing {value:?}: invalid syntax"),
                false => "parse error".to_owned(),
            };
            let message = format!("invalid value {value:?} for flag -{name}: {why}");
            answer(root, Reading::Refuse { path, message })
        }
        ErrorKind::MissingRequiredArgument => match missing_flag(&context(ContextKind::InvalidArg)) {
            Some(flag) => fail(&Error::unknown(format!("Required flag \"{}\" not set", name(&flag)))),
            None => {
                print!("{}", help::text(root, &path, true));
                ExitCode::SUCCESS
            }
        },
        _ => {
            let text = error.render().to_string();
            fail(&Error::unknown(text.trim_start_matches("error: ").lines().next().unwrap_or_default()))
        }
    }
}

/// The first flag in a list of what is missing; words that are missing are told by help alone.
fn missing_flag(list: &str) -> Option<String> {
    list.split(", ").find(|one| one.starts_with('-')).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        assert_eq!(duration("1h30m").unwrap(), Duration::from_secs(5400));
        assert_eq!(duration("1.5s").unwrap(), Duration::from_millis(1500));
        assert!(duration("5").is_err() && duration("5x").is_err());
    }

    #[test]
    fn the_definitions_hold_together() {
        all_definitions().debug_assert();
    }
}
