//! The commands, one file a group. The original's keep its names, flags, texts and exit codes (spec 05); those for
//! people stand at the end.
//!
//! A positional argument that is required shows the command's help when it is missing, and that is no error; one with
//! an empty default leaves the answer to the command.

mod blobs;
mod check;
mod checkpoints;
mod complete;
mod containers;
mod content;
mod content_remote;
mod convert;
mod cp;
mod cri;
mod diff;
mod events;
mod image_layers;
mod image_mounts;
mod image_records;
mod image_tree;
pub mod images;
mod images_out;
mod info;
mod inspect;
mod install;
mod leases;
mod link;
mod logs;
mod manual;
mod metrics;
mod namespaces;
mod netns;
mod network;
mod oci;
mod plugins;
mod pprof;
mod prune;
mod run;
mod sandboxes;
mod shim;
mod snapshot_diff;
mod snapshots;
mod stats;
mod stop;
mod tasks;
mod top;
mod unpack;
mod usage;
mod version;

use clap::{Args, Subcommand};
use corten_types::Result;

use crate::client::Client;
use crate::output::Format;

/// The version of this program.
pub const VERSION: &str = concat!("2.1.0-corten.", env!("CARGO_PKG_VERSION"));

/// How much of a list is shown, and how.
#[derive(Debug, Args)]
pub struct Shown {
    /// Only names.
    #[arg(short, long)]
    pub quiet: bool,
    /// How to show them.
    #[arg(long, value_enum, default_value = "table")]
    pub format: Format,
}

/// As [`Shown`], of those that match a filter.
#[derive(Debug, Args)]
pub struct Listing {
    #[command(flatten)]
    shown: Shown,
    #[arg(value_name = "[FILTER...]")]
    filters: Vec<String>,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Parts of the daemon.
    #[command(visible_alias = "plugin", subcommand)]
    Plugins(plugins::Plugins),
    /// Versions of client and server.
    Version(version::Version),
    /// Records of containers.
    #[command(visible_aliases = ["c", "container"], subcommand)]
    Containers(containers::Containers),
    /// Blobs.
    #[command(subcommand)]
    Content(content::Content),
    /// What happens, as it happens.
    #[command(visible_alias = "event")]
    Events(events::Events),
    /// Images.
    #[command(visible_aliases = ["image", "i"], subcommand)]
    Images(images::Images),
    /// Leases: what they hold is kept from the collector.
    #[command(subcommand)]
    Leases(leases::Leases),
    /// Namespaces.
    #[command(visible_aliases = ["namespace", "ns"], subcommand)]
    Namespaces(namespaces::Namespaces),
    /// Profiles of the daemon.
    Pprof(pprof::Pprof),
    /// Run a container.
    Run(Box<run::Run>),
    /// Snapshots.
    #[command(visible_alias = "snapshot")]
    Snapshots(snapshots::Snapshots),
    /// Running containers.
    #[command(visible_aliases = ["t", "task"], subcommand)]
    Tasks(tasks::Tasks),
    /// Place the programs of an image on the host.
    Install(install::Install),
    /// The OCI's specifications.
    #[command(subcommand)]
    Oci(oci::Oci),
    /// Sandboxes: groups of containers.
    #[command(visible_aliases = ["sandbox", "sb", "s"], subcommand)]
    Sandboxes(sandboxes::Sandboxes),
    /// About the server, as JSON.
    Info,
    /// What the daemon was asked for and will no longer do.
    #[command(subcommand)]
    Deprecations(info::Deprecations),
    /// A container's supervisor, spoken to without the daemon.
    Shim(shim::ShimCommand),
    /// What the Kubernetes plugin does.
    #[command(subcommand)]
    Cri(cri::Cri),
    /// All about containers, tasks, images or snapshots of a name, as JSON.
    Inspect(inspect::Inspect),
    /// What running containers use.
    Stats(stats::Stats),
    /// A live view of containers, with keys to stop, kill, enter and inspect them.
    Top(top::Top),
    /// What a container wrote to its log.
    Logs(logs::Logs),
    /// Copy files out of a container and into it.
    Cp(cp::Cp),
    /// What a container has changed of its image's files.
    Diff(diff::Diff),
    /// End containers: ask first, then insist.
    Stop(stop::Stop),
    /// Remove containers that have ended, and images that none uses.
    Prune(prune::Prune),
    /// Networks of this machine: made, listed, attached to.
    #[command(visible_alias = "net", subcommand)]
    Network(network::Networks),
    /// Network namespaces, pinned to files.
    #[command(subcommand)]
    Netns(netns::Namespaces),
    /// Interfaces: made, changed, listed, deleted.
    Link(link::Links),
    /// Whether this machine has what containers need.
    Check(check::Check),
    /// Completion of commands for a shell.
    Completion(manual::Completion),
    /// What may stand at the end of a command line, for completion.
    #[command(hide = true)]
    Complete(complete::Complete),
    /// Manual pages and documentation, made from the definitions of the commands.
    #[command(hide = true)]
    Manual(manual::Manual),
}

impl Command {
    /// Does it; answers the exit code.
    pub async fn run(self, client: Client) -> Result<i32> {
        match self {
            Self::Version(version) => return version.run(&client).await,
            Self::Oci(oci) => oci.run(&client.namespace)?,
            Self::Pprof(pprof) => pprof.run().await?,
            Self::Shim(shim) => return shim.run(&client).await,
            Self::Network(network) => network.run(&client).await?,
            Self::Netns(netns) => return netns.run(),
            Self::Link(link) => link.run()?,
            Self::Check(check) => return check.run(&client).await,
            Self::Completion(completion) => completion.run(),
            Self::Complete(complete) => complete.run().await,
            Self::Manual(manual) => manual.run()?,
            Self::Plugins(plugins) => plugins.run(&client.connect().await?).await?,
            Self::Containers(containers) => return containers.run(&client.connect().await?).await,
            Self::Content(content) => content.run(&client.connect().await?).await?,
            Self::Events(events) => events.run(&client.connect().await?).await?,
            Self::Images(images) => images.run(&client.connect().await?).await?,
            Self::Leases(leases) => leases.run(&client.connect().await?).await?,
            Self::Namespaces(namespaces) => namespaces.run(&client.connect().await?).await?,
            Self::Snapshots(snapshots) => snapshots.run(&client.connect().await?).await?,
            Self::Install(install) => install.run(&client.connect().await?).await?,
            Self::Sandboxes(sandboxes) => sandboxes.run(&client.connect().await?).await?,
            Self::Info => info::show(&client.connect().await?).await?,
            Self::Deprecations(deprecations) => deprecations.run(&client.connect().await?).await?,
            Self::Cri(cri) => cri.run(&client.connect().await?).await?,
            Self::Inspect(inspect) => inspect.run(&client.connect().await?).await?,
            Self::Top(top) => top.run(&client).await?,
            Self::Logs(logs) => logs.run(&client.connect().await?).await?,
            Self::Cp(cp) => cp.run(&client.connect().await?).await?,
            Self::Diff(diff) => diff.run(&client.connect().await?).await?,
            Self::Stats(stats) => stats.run(&client.connect().await?).await?,
            Self::Stop(stop) => return stop.run(&client.connect().await?).await,
            Self::Prune(prune) => prune.run(&client.connect().await?).await?,
            Self::Run(run) => return run.run(&client.connect().await?).await,
            Self::Tasks(tasks) => return tasks.run(&client.connect().await?).await,
        }
        Ok(0)
    }
}
