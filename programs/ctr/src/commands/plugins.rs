//! `plugins`.

use clap::Subcommand;
use corten_api::services::introspection::PluginsRequest;
use corten_types::{Platform, Result};

use crate::client::{Daemon, error};
use crate::output::Table;

/// Parts of the daemon.
#[derive(Debug, Subcommand)]
pub enum Plugins {
    /// List them.
    #[command(visible_alias = "ls")]
    List {
        /// Only ids.
        #[arg(short, long)]
        quiet: bool,
        filters: Vec<String>,
    },
}

impl Plugins {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        let Self::List { quiet, filters } = self;
        let plugins = daemon.introspection().plugins(PluginsRequest { filters }).await.map_err(error)?;
        let mut table = Table::wide(&["TYPE", "ID", "PLATFORMS", "STATUS"]);
        for plugin in plugins.into_inner().plugins {
            if quiet {
                println!("{}", plugin.id);
                continue;
            }
            let platforms: Vec<String> =
                plugin.platforms.into_iter().map(|platform| Platform::from(platform).to_string()).collect();
            let platforms = if platforms.is_empty() { "-".into() } else { platforms.join(",") };
            let status = match plugin.init_err {
                None => "ok",
                Some(failure) if failure.message.contains("skip plugin") => "skip",
                Some(_) => "error",
            };
            table.row([plugin.r#type, plugin.id, platforms, status.into()]);
        }
        if quiet { Ok(()) } else { table.print() }
    }
}
