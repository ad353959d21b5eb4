//! `stop`: containers are asked to end, and made to after a grace.

use std::time::Duration;

use clap::Args;
use corten_api::services::tasks as api;
use corten_types::Result;

use crate::client::{Daemon, error};
use crate::commands::{containers, tasks};

/// End containers: ask first, then insist.
#[derive(Debug, Args)]
pub struct Stop {
    /// How long to wait before the container is made to end.
    #[arg(short = 't', long, value_parser = crate::duration, default_value = "10s")]
    grace: Duration,
    /// Signal that asks; that of the container if it has one, else SIGTERM.
    #[arg(short, long, default_value = "")]
    signal: String,
    /// Remove the containers too.
    #[arg(long)]
    rm: bool,
    #[arg(required = true, value_name = "CONTAINER")]
    ids: Vec<String>,
}

impl Stop {
    pub async fn run(self, daemon: &Daemon) -> Result<i32> {
        let mut first = Ok(0);
        // All are asked at once, so that one grace is enough for all.
        let stopping = self.ids.iter().map(|id| self.stop(daemon, id));
        for (id, stopped) in self.ids.iter().zip(futures_util::future::join_all(stopping).await) {
            match stopped {
                Ok(()) => println!("{id}"),
                Err(failed) => {
                    crate::log::error(&format!("failed to stop {id}"), &failed);
                    first = first.and(Err(failed));
                }
            }
        }
        first
    }

    async fn stop(&self, daemon: &Daemon, id: &str) -> Result<()> {
        let container = containers::get(daemon, id).await?;
        let signal = match self.signal.as_str() {
            "" => tasks::stop_signal(&container),
            named => tasks::signal_number(named)?,
        };
        let asked = tokio::time::timeout(self.grace, tasks::end(daemon, id, signal, false)).await;
        match asked {
            Ok(ended) => ended?,
            Err(_) => tasks::end(daemon, id, 9, true).await?,
        }
        let request = api::DeleteTaskRequest { container_id: id.into() };
        match daemon.tasks().delete(request).await.map_err(error) {
            Err(failed) if !failed.is_not_found() => return Err(failed),
            _ => {}
        }
        if self.rm { containers::delete(daemon, id, false).await } else { Ok(()) }
    }
}
