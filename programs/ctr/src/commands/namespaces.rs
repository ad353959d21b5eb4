//! `namespaces`.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use corten_api::services::namespaces as api;
use corten_types::{Error, ErrorClass, Result, ResultExt};

use crate::client::{Daemon, error};
use crate::commands::Shown;
use crate::container::labels;
use crate::output::{self, Table};

/// Namespaces.
#[derive(Debug, Subcommand)]
pub enum Namespaces {
    /// Make one.
    #[command(visible_alias = "c")]
    Create {
        #[arg(default_value = "")]
        name: String,
        #[arg(value_name = "[KEY=VALUE...]")]
        labels: Vec<String>,
    },
    /// List them.
    #[command(visible_alias = "ls")]
    List(Shown),
    /// Remove empty ones.
    #[command(visible_alias = "rm")]
    Remove {
        /// Their cgroups too.
        #[arg(short, long)]
        cgroup: bool,
        #[arg(value_name = "NAME")]
        names: Vec<String>,
    },
    /// Set labels; an empty value removes one.
    Label {
        #[arg(default_value = "")]
        name: String,
        #[arg(value_name = "[KEY=VALUE...]")]
        labels: Vec<String>,
    },
}

impl Namespaces {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        let named = |name: &str| match name.is_empty() {
            true => Err(Error::unknown("please specify a namespace")),
            false => Ok(()),
        };
        match self {
            Self::Create { name, labels: given } => {
                named(&name)?;
                let namespace = Some(api::Namespace { name, labels: labels(&given) });
                let request = api::CreateNamespaceRequest { namespace };
                daemon.namespaces().create(request).await.map_err(error).map(drop)
            }
            Self::List(shown) => list(daemon, shown).await,
            Self::Remove { cgroup, names } => remove_all(daemon, &names, cgroup).await,
            Self::Label { name, labels } => {
                named(&name)?;
                label(daemon, &name, &labels).await
            }
        }
    }
}

async fn list(daemon: &Daemon, shown: Shown) -> Result<()> {
    let found = daemon.namespaces().list(api::ListNamespacesRequest::default()).await.map_err(error)?;
    let mut table = Table::tight(&["NAME", "LABELS"]);
    for namespace in found.into_inner().namespaces {
        table.row([namespace.name, output::labels(&namespace.labels, "")]);
    }
    table.show_as(&shown)
}

async fn label(daemon: &Daemon, name: &str, given: &[String]) -> Result<()> {
    // One call for each, as each is a change of its own.
    for (key, value) in labels(given) {
        let paths = vec![format!("labels.{key}")];
        let namespace = Some(api::Namespace { name: name.into(), labels: [(key, value)].into() });
        let update_mask = Some(prost_types::FieldMask { paths });
        let request = api::UpdateNamespaceRequest { namespace, update_mask };
        daemon.namespaces().update(request).await.map_err(error)?;
    }
    Ok(())
}

async fn remove_all(daemon: &Daemon, names: &[String], cgroup: bool) -> Result<()> {
    let mut first = Ok(());
    for name in names {
        match remove(daemon, name, cgroup).await {
            Ok(()) => println!("{name}"),
            Err(failed) => {
                crate::log::error(&format!("unable to delete {name}"), &failed);
                first = first.and(Err(failed.context(format!("unable to delete {name}"))));
            }
        }
    }
    first
}

async fn remove(daemon: &Daemon, name: &str, cgroup: bool) -> Result<()> {
    if cgroup {
        // A name that is none would lead out of the hierarchies.
        corten_types::identifier::validate(name)?;
        remove_cgroups(name)?;
    }
    let request = api::DeleteNamespaceRequest { name: name.into() };
    match daemon.namespaces().delete(request).await.map_err(error) {
        Err(failed) if !failed.is_not_found() => Err(failed),
        _ => Ok(()),
    }
}

/// Removes the cgroup of a namespace in every hierarchy; those with processes stay, and are told.
fn remove_cgroups(name: &str) -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    let hierarchies = mounts.lines().filter(|line| line.contains(" - cgroup"));
    let folders = hierarchies.filter_map(|line| Some(Path::new(line.split(' ').nth(4)?).join(name)));
    let mut busy = Vec::new();
    for folder in folders.filter(|folder| folder.is_dir()) {
        if let Err(failed) = remove_cgroup(&folder) {
            busy.push(format!("{} ({})", folder.display(), failed.message()));
        }
    }
    match busy.is_empty() {
        true => Ok(()),
        false => {
            let text = format!("cgroups: unable to remove paths {}", busy.join(", "));
            Err(Error::bare(ErrorClass::Unknown, text))
        }
    }
}

fn remove_cgroup(folder: &PathBuf) -> Result<()> {
    for entry in std::fs::read_dir(folder)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path())?;
        }
    }
    Ok(std::fs::remove_dir(folder)?)
}
