//! The command line (spec 02 §3).

use corten_types::{Error, Result};

/// What is to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// Serve, on the inherited socket.
    #[default]
    Serve,
    /// Start a server and tell where it is.
    Start,
    /// Clear up after a server that is gone.
    Delete,
    /// Tell what this is.
    Info,
    /// Tell the version.
    Version,
}

/// The command line, read.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// What is to be done.
    pub action: Action,
    /// Namespace of the container.
    pub namespace: String,
    /// Identifier of the container.
    pub id: String,
    /// The daemon's gRPC socket.
    pub address: String,
    /// The daemon's program.
    pub publish_binary: String,
    /// The bundle, for `delete`.
    pub bundle: String,
    /// A socket to serve on instead of the inherited one.
    pub socket: String,
    /// Log more.
    pub debug: bool,
}

impl Flags {
    /// Reads flags in Go's manner: `-x v`, `--x v`, `-x=v`.
    ///
    /// # Errors
    /// InvalidArgument for unknown flags and a missing namespace.
    pub fn parse(args: impl Iterator<Item = String>) -> Result<Self> {
        let mut flags = Self::default();
        let mut args = args.skip(1);
        while let Some(arg) = args.next() {
            let Some(name) = arg.strip_prefix('-') else {
                flags.action = match arg.as_str() {
                    "start" => Action::Start,
                    "delete" => Action::Delete,
                    _ => Action::Serve,
                };
                break;
            };
            let name = name.strip_prefix('-').unwrap_or(name);
            let (name, given) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (name, None),
            };
            match name {
                "debug" => flags.debug = given.is_none_or(|value| value != "false"),
                "v" | "version" => flags.action = Action::Version,
                "info" => flags.action = Action::Info,
                _ => {
                    let missing = || Error::invalid_argument(format!("flag needs an argument: -{name}"));
                    let value = given.or_else(|| args.next()).ok_or_else(missing)?;
                    match name {
                        "namespace" => flags.namespace = value,
                        "id" => flags.id = value,
                        "address" => flags.address = value,
                        "publish-binary" => flags.publish_binary = value,
                        "bundle" => flags.bundle = value,
                        "socket" => flags.socket = value,
                        "debug-socket" => {}
                        _ => {
                            let text = format!("flag provided but not defined: -{name}");
                            return Err(Error::invalid_argument(text));
                        }
                    }
                }
            }
        }
        if flags.namespace.is_empty() && !matches!(flags.action, Action::Version | Action::Info) {
            return Err(Error::bare(
                corten_types::ErrorClass::InvalidArgument,
                "shim namespace cannot be empty",
            ));
        }
        Ok(flags)
    }
}

/// Prints the version as Go's shims do.
pub(crate) fn print_version() {
    println!("containerd-shim-runc-v2:");
    println!("  Version:  {}", env!("CARGO_PKG_VERSION"));
    println!("  Revision: ");
    println!("  Go version: none (Rust)");
    println!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_as_go_reads_them() {
        let line = "shim -namespace ns --address=/a -id x -debug start";
        let flags = Flags::parse(line.split(' ').map(str::to_owned)).unwrap();
        assert_eq!((flags.namespace.as_str(), flags.address.as_str(), flags.id.as_str()), ("ns", "/a", "x"));
        assert!(flags.debug && flags.action == Action::Start);
        let error = Flags::parse(["shim".to_owned(), "start".to_owned()].into_iter()).unwrap_err();
        assert_eq!(error.to_string(), "shim namespace cannot be empty");
    }
}
