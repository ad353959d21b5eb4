//! `netns`: network namespaces that are pinned to files, where iproute2 looks for them, too.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use corten_network::{LinkChange, Netlink, NetworkNamespace, pinned, random_name, unpin};
use corten_types::{Error, Result, ResultExt};

use crate::commands::Shown;
use crate::output::Table;

/// Where they are.
pub const FOLDER: &str = "/run/netns";

/// Network namespaces.
#[derive(Debug, Subcommand)]
pub enum Namespaces {
    /// Make one, with its loopback up; a random name if none is given.
    Create {
        #[arg(default_value = "")]
        name: String,
    },
    /// List them.
    #[command(visible_alias = "ls")]
    List(Shown),
    /// Run a program in one, by name or path.
    #[command(trailing_var_arg = true)]
    Exec {
        name: String,
        #[arg(required = true, value_name = "COMMAND", allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Remove them; they live on while processes are in them.
    #[command(visible_alias = "rm")]
    Remove {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

/// A namespace's file by its name, or a path.
pub fn path(name: &str) -> Result<PathBuf> {
    match name {
        "" | "." | ".." => {
            Err(Error::invalid_argument(format!("invalid name of a network namespace: {name:?}")))
        }
        path if path.contains('/') => Ok(PathBuf::from(path)),
        name => Ok(Path::new(FOLDER).join(name)),
    }
}

impl Namespaces {
    pub fn run(self) -> Result<i32> {
        match self {
            Self::Create { name } => {
                let name = if name.is_empty() { random_name()? } else { name };
                let made = NetworkNamespace::new()?;
                let mut netlink = Netlink::open_in(&made)?;
                let lo = netlink.link("lo")?.index;
                netlink.change_link(lo, &LinkChange { up: Some(true), ..LinkChange::default() })?;
                made.pin(&path(&name)?)?;
                println!("{name}");
            }
            Self::List(shown) => list(&shown)?,
            Self::Exec { name, command } => return exec(&path(&name)?, &command),
            Self::Remove { names } => {
                for name in names {
                    let path = path(&name)?;
                    if !path.exists() {
                        return Err(Error::not_found(format!("network namespace {name:?}")));
                    }
                    unpin(&path)?;
                    println!("{name}");
                }
            }
        }
        Ok(0)
    }
}

fn list(shown: &Shown) -> Result<()> {
    let mut table = Table::wide(&["NAME", "ID", "LINKS"]);
    for one in pinned(Path::new(FOLDER))? {
        // A file that is none is what a reboot left.
        let number = one.id.map_or_else(|| "-".into(), |(_, number)| number.to_string());
        let links = NetworkNamespace::open(&one.path).and_then(|it| Netlink::open_in(&it)?.links());
        let links = links.map_or_else(|_| "-".into(), |links| links.len().to_string());
        table.row([one.name, number, links]);
    }
    table.show_as(shown)
}

fn exec(path: &Path, command: &[String]) -> Result<i32> {
    let [program, args @ ..] = command else {
        return Err(Error::invalid_argument("a command must be given"));
    };
    let run = || std::process::Command::new(program).args(args).status();
    let status = NetworkNamespace::open(path)?.run(run)?;
    let status = status.with_context(|| format!("run {program}"))?;
    use std::os::unix::process::ExitStatusExt;
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()))
}
