//! The daemon: configuration, sockets, signals, and one thin file per gRPC service. What the services do is
//! in the crates below; here requests are decoded, the domain is called, and answers are encoded.

mod assemble;
mod daemon;
mod logging;
mod notify;
mod plugins;
mod proxies;
mod services;
mod sockets;

use std::path::PathBuf;

use clap::Parser;
use corten_config::Config;
use corten_types::Result;

/// The container daemon.
#[derive(Debug, Parser)]
#[command(name = "containerd", disable_version_flag = true)]
struct Args {
    /// The configuration file.
    #[arg(short, long, global = true)]
    config: Option<PathBuf>,
    /// trace, debug, info, warn, error, fatal or panic.
    #[arg(short, long, global = true)]
    log_level: Option<String>,
    /// The gRPC socket; ttrpc is served on the same name with `.ttrpc`.
    #[arg(short, long, global = true)]
    address: Option<PathBuf>,
    /// Where persistent data lies.
    #[arg(long, global = true)]
    root: Option<PathBuf>,
    /// Where state lies that is gone with a reboot.
    #[arg(long, global = true)]
    state: Option<PathBuf>,
    /// Print the version.
    #[arg(short, long)]
    version: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show the configuration.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

#[derive(Debug, clap::Subcommand)]
enum ConfigCommand {
    /// The defaults.
    Default,
    /// What is in force with the file, its imports and the flags.
    Dump,
    /// The file as one of the newest version.
    Migrate,
}

/// The version that clients are told.
const VERSION: &str = concat!("2.1.0-corten.", env!("CARGO_PKG_VERSION"));

fn main() {
    corten_sys::economize_heap(2);
    let args = Args::parse();
    if args.version {
        println!("containerd github.com/containerd/containerd/v2 {VERSION} ");
        return;
    }
    if let Err(error) = run(args) {
        eprintln!("containerd: {error}");
        if let Some(hint) = error.hint() {
            eprintln!("hint: {hint}");
        }
        std::process::exit(1);
    }
}

fn run(args: Args) -> Result<()> {
    let mut config = match &args.command {
        Some(Command::Config { command: ConfigCommand::Default }) => Config::default(),
        Some(Command::Config { .. }) => Config::load_if_exists(args.config.as_deref())?,
        None => Config::load(args.config.as_deref())?,
    };
    config.apply_flags(args.log_level, args.address.as_deref(), args.root, args.state);
    if args.command.is_some() {
        print!("{}", config.to_toml());
        return Ok(());
    }
    config.validate()?;
    logging::start(&config)?;
    config.warnings.iter().for_each(logging::warn);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8))
        .thread_stack_size(1 << 20)
        .thread_keep_alive(std::time::Duration::from_secs(5))
        .max_blocking_threads(64)
        .enable_all()
        .build()?;
    runtime.block_on(daemon::run(config))?;
    // Threads that wait for something that never comes must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    Ok(())
}
