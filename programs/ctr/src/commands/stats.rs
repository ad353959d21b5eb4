//! `stats`: what running containers use.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use clap::Args;
use corten_api::services::tasks as api;
use corten_api::task_types::Status;
use corten_types::Result;

use crate::client::{Daemon, error};
use crate::commands::metrics::{Figures, of};
use crate::output::{Format, Table, binary_size};

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

/// Nanoseconds of processor time, and when.
type Earlier = HashMap<String, (u64, Instant)>;

impl Stats {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        let forever = !self.once && self.format == Format::Table && std::io::stdout().is_terminal();
        let mut earlier = Earlier::new();
        self.look(daemon, &mut earlier).await?;
        loop {
            tokio::time::sleep(self.interval).await;
            let table = self.look(daemon, &mut earlier).await?;
            if forever {
                print!("\u{1b}[H\u{1b}[2J");
            }
            table.show(self.format)?;
            if !forever {
                return Ok(());
            }
        }
    }

    async fn look(&self, daemon: &Daemon, earlier: &mut Earlier) -> Result<Table> {
        let found = daemon.tasks().list(api::ListTasksRequest::default()).await.map_err(error)?.into_inner();
        let mut table = Table::wide(&["CONTAINER", "PID", "CPU", "MEMORY", "PIDS"]);
        for task in found.tasks {
            let wanted = self.ids.is_empty() || self.ids.contains(&task.id);
            if !wanted || !matches!(task.status(), Status::Running | Status::Paused) {
                continue;
            }
            // A container may end at any time.
            let Ok((_, data)) = of(daemon, &task.id).await else { continue };
            let (memory, processor, pids) = Figures::read(&data)?.summary();
            let now = Instant::now();
            let before = earlier.insert(task.id.clone(), (processor, now));
            let share = before.map_or(0.0, |(used, at)| {
                let passed = now.duration_since(at).as_nanos().max(1) as f64;
                processor.saturating_sub(used) as f64 * 100.0 / passed
            });
            let memory = binary_size(i64::try_from(memory).unwrap_or(i64::MAX));
            table.row([task.id, task.pid.to_string(), format!("{share:.1}%"), memory, pids.to_string()]);
        }
        Ok(table)
    }
}
