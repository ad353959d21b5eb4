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
mod referrers;
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

use clap::{ArgMatches, Args, FromArgMatches, Subcommand};
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

/// The table of all commands: a variant, its names, what it is for, and what reads the rest of its line.
macro_rules! commands {
    ($($variant:ident = $name:literal $(| $alias:literal)*, $about:literal $(, $kind:ident $type:ty)?;)*) => {
        /// What can be done.
        #[derive(Debug)]
        pub enum Command { $(#[doc = $about] $variant $(($type))?,)* }

        impl Command {
            /// Adds the definitions of those commands to `root` one of whose names is wanted.
            pub fn define(mut root: clap::Command, wanted: impl Fn(&str) -> bool) -> clap::Command {
                $(if [$name, $($alias),*].into_iter().any(&wanted) {
                    let aliases: &[&'static str] = &[$($alias),*];
                    let command = clap::Command::new($name).visible_aliases(aliases.iter().copied());
                    $(let command = $kind::<$type>(command);)?
                    root = root.subcommand(command.about($about).long_about(None));
                })*
                root
            }

            /// The command of this name, from what its definition has read.
            pub fn read(name: &str, matches: &ArgMatches) -> std::result::Result<Self, clap::Error> {
                match name {
                    $($name => Ok(Self::$variant $((<$type>::from_arg_matches(matches)?))?),)*
                    _ => Err(clap::Error::new(clap::error::ErrorKind::InvalidSubcommand)),
                }
            }
        }
    };
}

fn flags<T: Args>(command: clap::Command) -> clap::Command {
    T::augment_args(command)
}

fn hidden<T: Args>(command: clap::Command) -> clap::Command {
    T::augment_args(command).hide(true)
}

fn group<T: Subcommand>(command: clap::Command) -> clap::Command {
    T::augment_subcommands(command).subcommand_required(true).arg_required_else_help(true)
}

commands! {
    Plugins = "plugins" | "plugin", "Parts of the daemon", group plugins::Plugins;
    Version = "version", "Versions of client and server", flags version::Version;
    Containers = "containers" | "c" | "container", "Records of containers", group containers::Containers;
    Content = "content", "Blobs", group content::Content;
    Events = "events" | "event", "What happens, as it happens", flags events::Events;
    Images = "images" | "image" | "i", "Images", group images::Images;
    Leases = "leases", "Leases: what they hold is kept from the collector", group leases::Leases;
    Namespaces = "namespaces" | "namespace" | "ns", "Namespaces", group namespaces::Namespaces;
    Pprof = "pprof", "Profiles of the daemon", flags pprof::Pprof;
    Run = "run", "Run a container", flags Box<run::Run>;
    Snapshots = "snapshots" | "snapshot", "Snapshots", flags snapshots::Snapshots;
    Tasks = "tasks" | "t" | "task", "Running containers", group tasks::Tasks;
    Install = "install", "Place the programs of an image on the host", flags install::Install;
    Oci = "oci", "The OCI's specifications", group oci::Oci;
    Sandboxes = "sandboxes" | "sandbox" | "sb" | "s", "Sandboxes: groups of containers", group sandboxes::Sandboxes;
    Info = "info", "About the server, as JSON";
    Deprecations = "deprecations", "What the daemon was asked for and will no longer do", group info::Deprecations;
    Shim = "shim", "A container's supervisor, spoken to without the daemon", flags shim::ShimCommand;
    Cri = "cri", "What the Kubernetes plugin does", group cri::Cri;
    Inspect = "inspect", "All about containers, tasks, images or snapshots of a name, as JSON", flags inspect::Inspect;
    Stats = "stats", "What running containers use", flags stats::Stats;
    Top = "top", "A live view of containers, with keys to stop, kill, enter and inspect them", flags top::Top;
    Logs = "logs", "What a container wrote to its log", flags logs::Logs;
    Cp = "cp", "Copy files out of a container and into it", flags cp::Cp;
    Diff = "diff", "What a container has changed of its image's files", flags diff::Diff;
    Stop = "stop", "End containers: ask first, then insist", flags stop::Stop;
    Prune = "prune", "Remove containers that have ended, and images that none uses", flags prune::Prune;
    Network = "network" | "net", "Networks of this machine: made, listed, attached to", group network::Networks;
    Netns = "netns", "Network namespaces, pinned to files", group netns::Namespaces;
    Link = "link", "Interfaces: made, changed, listed, deleted", flags link::Links;
    Check = "check", "Whether this machine has what containers need", flags check::Check;
    Completion = "completion", "Completion of commands for a shell", flags manual::Completion;
    Complete = "complete", "What may stand at the end of a command line, for completion", hidden complete::Complete;
    Manual = "manual", "Manual pages and documentation, made from the definitions of the commands", hidden manual::Manual;
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
