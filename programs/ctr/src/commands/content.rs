//! `content`.

use std::io::Write;

use clap::Subcommand;
use corten_api::services::content as api;
use corten_types::{Result, timestamp};

use crate::client::{Daemon, error};
use crate::output::{self, Table};

/// Blobs.
#[derive(Debug, Subcommand)]
pub enum Content {
    /// List them.
    #[command(visible_alias = "ls")]
    List {
        /// Only digests.
        #[arg(short, long)]
        quiet: bool,
        filters: Vec<String>,
    },
    /// Write one to standard output.
    Get { digest: String },
    /// Ingests under way.
    Active,
    /// Remove them.
    #[command(visible_alias = "rm", aliases = ["del", "remove"])]
    Delete { digests: Vec<String> },
}

impl Content {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        match self {
            Self::List { quiet, filters } => list(daemon, quiet, filters).await,
            Self::Get { digest } => {
                let request = api::ReadContentRequest { digest, offset: 0, size: 0 };
                let mut stream = daemon.content().read(request).await.map_err(error)?.into_inner();
                while let Some(message) = stream.message().await.map_err(error)? {
                    std::io::stdout().lock().write_all(&message.data)?;
                }
                Ok(())
            }
            Self::Active => {
                let found = daemon.content().list_statuses(api::ListStatusesRequest::default()).await;
                let mut table = Table::wide(&["REF", "SIZE", "AGE"]);
                for status in found.map_err(error)?.into_inner().statuses {
                    let begun = timestamp::to_system(&status.started_at.unwrap_or_default());
                    table.row([status.r#ref, output::decimal_size(status.offset), output::age(begun)]);
                }
                table.print()
            }
            Self::Delete { digests } => {
                for digest in digests {
                    let request = api::DeleteContentRequest { digest: digest.clone() };
                    match daemon.content().delete(request).await.map_err(error) {
                        Err(failed) if !failed.is_not_found() => return Err(failed),
                        _ => println!("{digest}"),
                    }
                }
                Ok(())
            }
        }
    }
}

async fn list(daemon: &Daemon, quiet: bool, filters: Vec<String>) -> Result<()> {
    let mut stream =
        daemon.content().list(api::ListContentRequest { filters }).await.map_err(error)?.into_inner();
    let mut table = Table::wide(&["DIGEST", "SIZE", "AGE", "LABELS"]);
    while let Some(block) = stream.message().await.map_err(error)? {
        for info in block.info {
            if quiet {
                println!("{}", info.digest);
                continue;
            }
            let created = timestamp::to_system(&info.created_at.unwrap_or_default());
            let (size, age) = (output::decimal_size(info.size), output::age(created));
            table.row([info.digest, size, age, output::labels(&info.labels, "-")]);
        }
    }
    if quiet { Ok(()) } else { table.print() }
}
