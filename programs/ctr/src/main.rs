//! The command line. One file per command group; one place for the connection, tables, streams and errors.
//!
//! What goes to a pipe keeps the original's form; a terminal gets progress and hints.

mod client;
mod commands;
mod container;
mod output;
mod progress;
mod rootfs;
mod stdio;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser};
use corten_types::{Error, ErrorClass, Result};

use client::Client;

/// The container command line.
#[derive(Debug, Parser)]
#[command(name = "ctr", disable_help_subcommand = true, args_override_self = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Option<commands::Command>,
}

/// Flags before the command.
#[derive(Clone, Debug, Args)]
struct Global {
    /// Show debug output.
    #[arg(long)]
    debug: bool,
    /// The daemon's socket.
    #[arg(short, long, env = "CONTAINERD_ADDRESS", default_value = "/run/containerd/containerd.sock")]
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

/// Go's durations: numbers with units, one after the other.
fn duration(text: &str) -> std::result::Result<Duration, String> {
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

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    if cli.global.version {
        println!("ctr github.com/containerd/containerd/v2 {}", commands::VERSION);
        return ExitCode::SUCCESS;
    }
    let Some(command) = cli.command else {
        use clap::CommandFactory;
        Cli::command().print_help().ok();
        return ExitCode::SUCCESS;
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    let code = match runtime.block_on(run(cli.global, command)) {
        Ok(code) => code,
        Err(error) => {
            fail(&error);
            1
        }
    };
    use std::io::Write;
    std::io::stdout().flush().ok();
    // A thread may still wait for input.
    std::process::exit(code);
}

async fn run(global: Global, command: commands::Command) -> Result<i32> {
    let client = Client::new(&global);
    let timeout = global.timeout;
    let work = command.run(client);
    if timeout.is_zero() {
        return work.await;
    }
    let late = |_| Error::new(ErrorClass::DeadlineExceeded, "");
    tokio::time::timeout(timeout, work).await.map_err(late)?
}

/// Prints an error, and on a terminal what to do about it.
fn fail(error: &Error) -> ExitCode {
    use std::io::IsTerminal;
    eprintln!("ctr: {}", error.message());
    if let Some(hint) = error.hint().filter(|_| std::io::stderr().is_terminal()) {
        eprintln!("hint: {hint}");
    }
    ExitCode::FAILURE
}

/// What cannot be read: help and versions are no errors, unknown commands have a code of their own.
fn refuse(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind;
    match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            print!("{}", error.render());
            ExitCode::SUCCESS
        }
        ErrorKind::InvalidSubcommand => {
            let name = error.get(clap::error::ContextKind::InvalidSubcommand).map(ToString::to_string);
            println!("No help topic for '{}'", name.unwrap_or_default());
            ExitCode::from(3)
        }
        ErrorKind::UnknownArgument => {
            let flag =
                error.get(clap::error::ContextKind::InvalidArg).map(ToString::to_string).unwrap_or_default();
            let text = format!("flag provided but not defined: {}", flag.replacen("--", "-", 1));
            println!("Incorrect Usage: {text}\n");
            eprintln!("ctr: {text}");
            ExitCode::FAILURE
        }
        ErrorKind::MissingRequiredArgument => {
            let missing =
                error.get(clap::error::ContextKind::InvalidArg).map(ToString::to_string).unwrap_or_default();
            let name = missing.trim_start_matches('-').split([' ', '=', '<']).next().unwrap_or_default();
            eprintln!("ctr: Required flag \"{name}\" not set");
            ExitCode::FAILURE
        }
        _ => {
            let text = error.render().to_string();
            eprintln!("ctr: {}", text.trim_start_matches("error: ").lines().next().unwrap_or_default());
            ExitCode::FAILURE
        }
    }
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
    fn flags_end_at_the_first_word() {
        let line = "ctr -n lab run --rm --env A=1 --env B=2,3 img id sh -c --rm";
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        let Some(commands::Command::Run(run)) = cli.command else { panic!("not run") };
        assert_eq!(run.rest, ["img", "id", "sh", "-c", "--rm"]);
        assert_eq!(run.container.env, ["A=1", "B=2,3"]);
        assert_eq!(cli.global.namespace, "lab");
    }
}
