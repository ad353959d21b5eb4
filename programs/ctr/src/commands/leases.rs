//! `leases`.

use clap::Subcommand;
use corten_api::services::leases as api;
use corten_types::{Result, timestamp};

use crate::client::{Daemon, error};
use crate::output::{self, Table};

/// Leases.
#[derive(Debug, Subcommand)]
pub enum Leases {
    /// List them.
    #[command(visible_alias = "ls")]
    List {
        /// Only ids.
        #[arg(short, long)]
        quiet: bool,
        filters: Vec<String>,
    },
    /// End them.
    #[command(visible_alias = "rm", aliases = ["del", "remove"])]
    Delete {
        /// Wait until the collector has run.
        #[arg(long)]
        sync: bool,
        ids: Vec<String>,
    },
}

impl Leases {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        match self {
            Self::List { quiet, filters } => {
                let found =
                    daemon.leases().list(api::ListRequest { filters }).await.map_err(error)?.into_inner();
                let mut table = Table::tight(&["ID", "CREATED AT", "LABELS"]);
                for lease in found.leases {
                    if quiet {
                        println!("{}", lease.id);
                        continue;
                    }
                    let at = timestamp::rfc3339(timestamp::to_system(&lease.created_at.unwrap_or_default()));
                    table.row([lease.id, at, output::labels(&lease.labels, "-")]);
                }
                if quiet { Ok(()) } else { table.print() }
            }
            Self::Delete { sync, ids } => {
                for id in ids {
                    daemon
                        .leases()
                        .delete(api::DeleteRequest { id: id.clone(), sync })
                        .await
                        .map_err(error)?;
                    println!("{id}");
                }
                Ok(())
            }
        }
    }
}
