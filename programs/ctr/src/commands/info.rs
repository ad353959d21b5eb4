//! `info` and `deprecations`.

use clap::Subcommand;
use corten_api::services::introspection::DeprecationWarning;
use corten_types::{Error, Result, timestamp};

use crate::client::{Daemon, error};
use crate::json::{Document, object, print};
use crate::output::{Ends, Format, Table};

/// About the server, as JSON.
pub async fn show(daemon: &Daemon) -> Result<()> {
    let about = daemon.introspection().server(()).await.map_err(error)?.into_inner();
    let mut server = vec![
        ("uuid".to_owned(), Document::from(about.uuid)),
        ("pid".to_owned(), about.pid.into()),
        ("pidns".to_owned(), about.pidns.into()),
    ];
    if !about.deprecations.is_empty() {
        server.push((
            "deprecations".to_owned(),
            Document::Array(about.deprecations.iter().map(warning).collect()),
        ));
    }
    print(&object([("server", Document::Object(server))]));
    Ok(())
}

/// What the daemon was asked for and will no longer do.
#[derive(Debug, Subcommand)]
pub enum Deprecations {
    /// List it.
    List {
        /// default, json or yaml.
        #[arg(long, default_value = "default")]
        format: String,
    },
}

impl Deprecations {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        let Self::List { format } = self;
        let about = daemon.introspection().server(()).await.map_err(error)?.into_inner();
        match format.as_str() {
            "json" if about.deprecations.is_empty() => Ok(()),
            "json" | "yaml" => {
                let format = if format == "yaml" { Format::Yaml } else { Format::Json };
                format.show(&Document::Array(about.deprecations.iter().map(warning).collect()));
                Ok(())
            }
            "default" | "" if about.deprecations.is_empty() => Ok(()),
            "default" | "" => {
                let mut table = Table::wide(&["ID", "LAST OCCURRENCE", "MESSAGE"]).ends(Ends::PaddedHeader);
                for one in about.deprecations {
                    let at =
                        timestamp::rfc3339(timestamp::to_system(&one.last_occurrence.unwrap_or_default()));
                    table.row([one.id, at, one.message]);
                }
                table.print()
            }
            other => Err(Error::unknown(format!("unknown format {other:?}"))),
        }
    }
}

fn warning(one: &DeprecationWarning) -> Document {
    let at = timestamp::to_system(&one.last_occurrence.unwrap_or_default());
    object([
        ("id", one.id.clone().into()),
        ("message", one.message.clone().into()),
        ("lastOccurrence", timestamp::rfc3339(at).into()),
    ])
}
