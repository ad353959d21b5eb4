//! `namespaces`.

use clap::Subcommand;
use corten_api::services::namespaces as api;
use corten_types::Result;

use crate::client::{Daemon, error};
use crate::container::labels;
use crate::output::{self, Table};

/// Namespaces.
#[derive(Debug, Subcommand)]
pub enum Namespaces {
    /// Make one.
    #[command(visible_alias = "c")]
    Create { name: String, labels: Vec<String> },
    /// List them.
    #[command(visible_alias = "ls")]
    List {
        /// Only names.
        #[arg(short, long)]
        quiet: bool,
    },
    /// Remove empty ones.
    #[command(visible_alias = "rm")]
    Remove { names: Vec<String> },
    /// Set labels.
    Label { name: String, labels: Vec<String> },
}

impl Namespaces {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        let mut service = daemon.namespaces();
        match self {
            Self::Create { name, labels: given } => {
                let namespace = Some(api::Namespace { name, labels: labels(&given) });
                service.create(api::CreateNamespaceRequest { namespace }).await.map_err(error)?;
            }
            Self::List { quiet } => {
                let found =
                    service.list(api::ListNamespacesRequest::default()).await.map_err(error)?.into_inner();
                let mut table = Table::tight(&["NAME", "LABELS"]);
                for namespace in found.namespaces {
                    if quiet {
                        println!("{}", namespace.name);
                    } else {
                        table.row([namespace.name, output::labels(&namespace.labels, "")]);
                    }
                }
                if !quiet {
                    table.print()?;
                }
            }
            Self::Remove { names } => {
                for name in names {
                    let request = api::DeleteNamespaceRequest { name: name.clone() };
                    match service.delete(request).await.map_err(error) {
                        Err(failed) if !failed.is_not_found() => return Err(failed),
                        _ => println!("{name}"),
                    }
                }
            }
            Self::Label { name, labels: given } => {
                let labels = labels(&given);
                let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
                let update_mask = Some(prost_types::FieldMask { paths });
                let namespace = Some(api::Namespace { name, labels });
                service
                    .update(api::UpdateNamespaceRequest { namespace, update_mask })
                    .await
                    .map_err(error)?;
            }
        }
        Ok(())
    }
}
