//! What the program does besides being the daemon.

mod oci_hook;
mod publish;
mod template;

use clap::Subcommand;
use corten_config::Config;
use corten_types::Result;

use crate::Args;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the configuration.
    Config {
        #[command(subcommand)]
        command: Option<ConfigCommand>,
    },
    /// Send an event to a daemon: an Any on standard input.
    Publish(publish::Publish),
    /// Run a program with facts about a container in its arguments and its environment, as a hook of an OCI
    /// runtime.
    OciHook(oci_hook::OciHook),
    #[command(external_subcommand)]
    Other(Vec<String>),
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// The defaults.
    Default,
    /// What is in force with the file, its imports and the flags.
    Dump,
    /// The file as one of the newest version.
    Migrate,
    #[command(external_subcommand)]
    Other(Vec<String>),
}

impl Command {
    /// Does it to the end.
    ///
    /// # Errors
    /// Whatever keeps it from that.
    pub fn run(self, args: Args) -> Result<()> {
        match self {
            Self::Config { command } => configuration(command, args),
            Self::Publish(publish) => publish.run(args.address),
            Self::OciHook(hook) => hook.run(),
            Self::Other(words) => no_such_topic(&words),
        }
    }
}

fn configuration(command: Option<ConfigCommand>, args: Args) -> Result<()> {
    let mut config = match command {
        None => return help(),
        Some(ConfigCommand::Other(words)) => no_such_topic(&words),
        Some(ConfigCommand::Default) => Config::default(),
        Some(ConfigCommand::Dump | ConfigCommand::Migrate) => Config::load_if_exists(args.config.as_deref())?,
    };
    crate::logging::start(&Config::default())?;
    config.warnings.iter().for_each(crate::logging::warn);
    args.apply(&mut config);
    print!("{}", config.to_toml());
    Ok(())
}

fn help() -> Result<()> {
    use clap::CommandFactory;
    let mut program = Args::command();
    if let Some(command) = program.find_subcommand_mut("config") {
        command.print_help()?;
    }
    Ok(())
}

fn no_such_topic(words: &[String]) -> ! {
    println!("No help topic for '{}'", words.first().map(String::as_str).unwrap_or_default());
    std::process::exit(3)
}
