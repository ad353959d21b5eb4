//! `stop`: containers are asked to end, and made to after a grace.

use std::time::Duration;

use clap::Args;
use corten_api::services::tasks as api;
use corten_types::Result;

use crate::client::{Daemon, error};
use crate::commands::{containers, tasks};
use crate::waiting;

/// How long a container has to end when it is asked to, unless somebody says otherwise.
pub const GRACE: Duration = Duration::from_secs(10);

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
        let stopping = futures_util::future::join_all(stopping);
        let stopped = waiting::told("waiting for containers to end", stopping).await;
        for (id, stopped) in self.ids.iter().zip(stopped) {
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
        stop(daemon, id, &self.signal, self.grace).await?;
        if self.rm { containers::delete(daemon, id, false).await } else { Ok(()) }
    }
}

/// Asks a container to end by a signal, its own where none is named, makes it end after the grace, and removes its
/// task.
pub async fn stop(daemon: &Daemon, id: &str, signal: &str, grace: Duration) -> Result<()> {
    let container = containers::get(daemon, id).await?;
    let signal = match signal {
        "" => tasks::stop_signal(&container),
        named => tasks::signal_number(named)?,
    };
    match tokio::time::timeout(grace, tasks::end(daemon, id, signal, false)).await {
        Ok(ended) => ended?,
        Err(_) => tasks::end(daemon, id, 9, true).await?,
    }
    let request = api::DeleteTaskRequest { container_id: id.into() };
    match daemon.tasks().delete(request).await.map_err(error) {
        Err(failed) if !failed.is_not_found() => Err(failed),
        _ => Ok(()),
    }
}
