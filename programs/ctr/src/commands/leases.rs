//! `leases`.

use std::time::{Duration, SystemTime};

use clap::Subcommand;
use corten_api::services::leases as api;
use corten_types::{Labels, Result, timestamp};

use crate::client::{Daemon, error};
use crate::commands::Listing;
use crate::output::{self, Table};

/// Label with the end of a lease.
const EXPIRE: &str = "containerd.io/gc.expire";

/// Leases: what they hold is kept from the collector.
#[derive(Debug, Subcommand)]
pub enum Leases {
    /// List them.
    #[command(visible_alias = "ls")]
    List(Listing),
    /// Make one.
    Create {
        /// Its id, instead of one of its own.
        #[arg(long)]
        id: Option<String>,
        /// How long it lives; 0 for ever.
        #[arg(short = 'x', long, value_parser = crate::duration, default_value = "24h0m0s")]
        expires: Duration,
        #[arg(value_name = "[KEY=VALUE...]")]
        labels: Vec<String>,
    },
    /// End them.
    #[command(visible_aliases = ["del", "remove", "rm"])]
    Delete {
        /// Wait until the collector has run.
        #[arg(long)]
        sync: bool,
        #[arg(required = true, value_name = "LEASE")]
        ids: Vec<String>,
    },
}

impl Leases {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        match self {
            Self::List(listing) => list(daemon, listing).await,
            Self::Create { id, expires, labels } => {
                // A key alone has no value here, unlike elsewhere.
                let pair = |text: &String| match text.split_once('=') {
                    Some((key, value)) => (key.to_owned(), value.to_owned()),
                    None => (text.clone(), String::new()),
                };
                let labels = labels.iter().map(pair).collect();
                println!("{}", create(daemon, id, expires, labels).await?);
                Ok(())
            }
            Self::Delete { sync, ids } => {
                for id in ids {
                    let request = api::DeleteRequest { id: id.clone(), sync };
                    daemon.leases().delete(request).await.map_err(error)?;
                    println!("{id}");
                }
                Ok(())
            }
        }
    }
}

/// Makes a lease; answers its id.
pub async fn create(
    daemon: &Daemon,
    id: Option<String>,
    expires: Duration,
    mut labels: Labels,
) -> Result<String> {
    let now = SystemTime::now();
    let id = id.unwrap_or_else(|| {
        let nanos = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        format!("{nanos}-{:04x}", std::process::id() & 0xffff)
    });
    if let Some(end) = now.checked_add(expires).filter(|_| !expires.is_zero()) {
        labels.insert(EXPIRE.into(), output::local_time(end));
    }
    let request = api::CreateRequest { id, labels };
    let made = daemon.leases().create(request).await.map_err(error)?.into_inner();
    Ok(made.lease.unwrap_or_default().id)
}

/// Does something whose results are kept until it is done, and then by what names them. Should this program be killed
/// meanwhile, they go after a day.
pub async fn held<T>(daemon: &Daemon, work: impl AsyncFnOnce(&Daemon) -> Result<T>) -> Result<T> {
    let lease = create(daemon, None, Duration::from_secs(24 * 3600), Labels::new()).await?;
    let done = match daemon.leased(&lease) {
        Ok(leased) => work(&leased).await,
        Err(failed) => Err(failed),
    };
    daemon.leases().delete(api::DeleteRequest { id: lease, sync: false }).await.ok();
    done
}

async fn list(daemon: &Daemon, listing: Listing) -> Result<()> {
    let request = api::ListRequest { filters: listing.filters };
    let found = daemon.leases().list(request).await.map_err(error)?.into_inner();
    let mut table = Table::tight(&["ID", "CREATED AT", "LABELS"]);
    for lease in found.leases {
        let at = timestamp::to_system(&lease.created_at.unwrap_or_default());
        let at = match listing.shown.format.is_for_people() {
            true => format!("{} ago", output::age(at)),
            false => output::local_time(at),
        };
        table.row([lease.id, at, output::labels(&lease.labels, "-")]);
    }
    table.show_as(&listing.shown)
}
