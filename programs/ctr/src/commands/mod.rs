//! The commands, one file a group.

mod containers;
mod content;
mod events;
mod images;
mod info;
mod leases;
mod namespaces;
mod plugins;
mod run;
mod snapshots;
mod tasks;
mod version;

use clap::Subcommand;
use corten_types::Result;

use crate::client::Client;

/// The version of this program.
pub const VERSION: &str = concat!("2.1.0-corten.", env!("CARGO_PKG_VERSION"));

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Parts of the daemon.
    #[command(alias = "plugin", subcommand)]
    Plugins(plugins::Plugins),
    /// Versions of client and server.
    Version,
    /// Records of containers.
    #[command(visible_alias = "c", alias = "container", subcommand)]
    Containers(containers::Containers),
    /// Blobs.
    #[command(subcommand)]
    Content(content::Content),
    /// What happens, as it happens.
    #[command(alias = "event")]
    Events(events::Events),
    /// Images.
    #[command(visible_alias = "i", alias = "image", subcommand)]
    Images(images::Images),
    /// Leases.
    #[command(subcommand)]
    Leases(leases::Leases),
    /// Namespaces.
    #[command(visible_alias = "ns", alias = "namespace", subcommand)]
    Namespaces(namespaces::Namespaces),
    /// Run a container.
    Run(run::Run),
    /// Snapshots.
    #[command(alias = "snapshot")]
    Snapshots(snapshots::Snapshots),
    /// Running containers.
    #[command(visible_alias = "t", alias = "task", subcommand)]
    Tasks(tasks::Tasks),
    /// About the server, as JSON.
    Info,
}

impl Command {
    /// Does it; answers the exit code.
    pub async fn run(self, client: Client) -> Result<i32> {
        match self {
            Self::Version => return version::show(&client).await,
            Self::Plugins(plugins) => plugins.run(&client.connect().await?).await?,
            Self::Containers(containers) => containers.run(&client.connect().await?).await?,
            Self::Content(content) => content.run(&client.connect().await?).await?,
            Self::Events(events) => events.run(&client.connect().await?).await?,
            Self::Images(images) => images.run(&client.connect().await?).await?,
            Self::Leases(leases) => leases.run(&client.connect().await?).await?,
            Self::Namespaces(namespaces) => namespaces.run(&client.connect().await?).await?,
            Self::Snapshots(snapshots) => snapshots.run(&client.connect().await?).await?,
            Self::Info => info::show(&client.connect().await?).await?,
            Self::Run(run) => return run.run(&client.connect().await?).await,
            Self::Tasks(tasks) => return tasks.run(&client.connect().await?).await,
        }
        Ok(0)
    }
}
