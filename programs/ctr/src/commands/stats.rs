//! `stats`: what running containers use.

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use corten_types::Result;

use crate::client::Daemon;
use crate::commands::usage::{Meter, Usage};
use crate::output::{Format, Table, bytes_of};

/// What running containers use.
#[derive(Debug, Args)]
pub struct Stats {
    /// Show it once; on a terminal it goes on.
    #[arg(long)]
    once: bool,
    /// How long to look at processors.
    #[arg(long, value_parser = crate::duration, default_value = "1s")]
    interval: Duration,
    /// How to show them.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    #[arg(value_name = "[CONTAINER...]")]
    ids: Vec<String>,
}

impl Stats {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        let forever = !self.once && self.format == Format::Table && std::io::stdout().is_terminal();
        let mut meter = Meter::default();
        meter.look(daemon, &self.ids).await?;
        loop {
            tokio::time::sleep(self.interval).await;
            let used = meter.look(daemon, &self.ids).await?;
            if forever {
                print!("\u{1b}[H\u{1b}[2J");
            }
            table(used).show(self.format)?;
            if !forever {
                return Ok(());
            }
        }
    }
}

fn table(used: Vec<Usage>) -> Table {
    let columns =
        ["CONTAINER", "PID", "CPU", "MEMORY", "LIMIT", "NET IN", "NET OUT", "READ", "WRITTEN", "PIDS"];
    let mut table = Table::wide(&columns);
    for one in used {
        table.row([
            one.id,
            one.pid.to_string(),
            format!("{:.1}%", one.rates.processor),
            bytes_of(one.sum.memory),
            one.sum.limit.map_or_else(|| "-".into(), bytes_of),
            bytes_of(one.network.0),
            bytes_of(one.network.1),
            bytes_of(one.sum.read),
            bytes_of(one.sum.written),
            one.sum.pids.to_string(),
        ]);
    }
    table
}
