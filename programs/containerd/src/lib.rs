//! The daemon: configuration, sockets, signals, and one thin file per gRPC service. What the services do is
//! in the crates below; here requests are decoded, the domain is called, and answers are encoded.
//!
//! It is a library for the fuzz targets alone, which call the services without sockets.

mod assemble;
mod calls;
mod commands;
mod daemon;
mod debug;
#[cfg(fuzzing)]
pub mod fuzz;
mod heap;
mod logging;
mod metrics;
mod notify;
mod observe;
mod plugins;
mod process;
mod proxies;
mod restart;
mod services;
mod site;
mod sockets;
mod stacks;
mod traces;

use std::path::PathBuf;

use clap::Parser;
use corten_config::Config;
use corten_types::Result;

use plugins::Plugins;
use plugins::parts::INTERNAL;

/// The container daemon.
#[derive(Debug, Parser)]
#[command(name = "containerd", disable_version_flag = true, args_override_self = true)]
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
    command: Option<commands::Command>,
}

/// The version that clients are told.
const VERSION: &str = concat!("2.1.0-corten.", env!("CARGO_PKG_VERSION"));

/// Bytes of a thread's stack, of which only what is used is ever there: a pull is a deep nest of futures, and deeper
/// still when they are not optimised.
const STACK: usize = if cfg!(debug_assertions) { 8 << 20 } else { 2 << 20 };

/// The program: exits when something fails.
pub fn main() {
    corten_sys::economize_heap(2, 1 << 20);
    // Whoever started us may have left it open: nobody else is to write to what we make.
    let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    rustix::process::umask(umask | rustix::fs::Mode::from_raw_mode(0o022));
    let mut args = Args::parse();
    if args.version {
        println!("containerd github.com/containerd/containerd/v2 {VERSION} ");
        return;
    }
    let done = match args.command.take() {
        Some(command) => command.run(args),
        None => run(args),
    };
    if let Err(error) = done {
        eprintln!("containerd: {error}");
        if let Some(hint) = error.hint() {
            eprintln!("hint: {hint}");
        }
        std::process::exit(1);
    }
}

impl Args {
    /// Flags override the file.
    fn apply(self, config: &mut Config) {
        config.apply_flags(self.log_level, self.address.as_deref(), self.root, self.state);
    }
}

fn run(args: Args) -> Result<()> {
    let mut config = Config::load(args.config.as_deref())?;
    args.apply(&mut config);
    config.validate()?;
    logging::start(&config)?;
    config.warnings.iter().for_each(logging::warn);
    // What is the whole process' is done while there is one thread.
    let root = process::prepare(&config)?;
    tracing::info!(revision = "", version = VERSION, "starting containerd");
    process::weigh(&config)?;
    let mut plugins = Plugins::new(&config)?;
    let opt = config.text("io.containerd.internal.v1.opt", "path").to_owned();
    plugins.load(INTERNAL, "opt", |entry| {
        process::use_installed(opt.as_ref())?;
        entry.export("path", &opt);
        Ok(())
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8))
        .thread_stack_size(STACK)
        .thread_keep_alive(std::time::Duration::from_secs(5))
        .max_blocking_threads(64)
        .enable_all()
        .build()?;
    runtime.block_on(daemon::run(config, plugins))?;
    // Threads that wait for something that never comes must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    drop(root);
    Ok(())
}
