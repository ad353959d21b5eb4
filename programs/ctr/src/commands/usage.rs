//! What containers use: figures of their cgroups and networks at a moment, and how fast they grow.

use std::collections::HashMap;
use std::time::Instant;

use corten_api::services::tasks as api;
use corten_api::task_types::Status;
use corten_types::Result;

use crate::client::{Daemon, error};
use crate::commands::metrics::{Figures, Summary};

/// What a container uses.
#[derive(Clone, Debug)]
pub struct Usage {
    pub id: String,
    pub pid: u32,
    pub status: Status,
    pub sum: Summary,
    /// Bytes received and sent since the start; of the host's network where the container shares it.
    pub network: (u64, u64),
    /// Since the look before; zero at the first.
    pub rates: Rates,
}

/// How fast figures grow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    /// Percent of one processor.
    pub processor: f64,
    /// Bytes per second.
    pub received: f64,
    pub sent: f64,
    pub read: f64,
    pub written: f64,
}

/// Looks at containers, and remembers what it saw.
#[derive(Debug, Default)]
pub struct Meter {
    earlier: HashMap<String, (Instant, Summary, (u64, u64))>,
}

impl Meter {
    /// Running containers and what they use; of all, or of these.
    ///
    /// # Errors
    /// Those of the daemon. A container that ends meanwhile is left out.
    pub async fn look(&mut self, daemon: &Daemon, ids: &[String]) -> Result<Vec<Usage>> {
        let (mut tasks, mut metrics) = (daemon.tasks(), daemon.tasks());
        let filters = ids.iter().map(|id| format!("id=={id}")).collect();
        let (tasks, metrics) = tokio::join!(
            tasks.list(api::ListTasksRequest::default()),
            metrics.metrics(api::MetricsRequest { filters })
        );
        let now = Instant::now();
        let metrics = metrics.map_err(error)?.into_inner().metrics;
        let metrics: HashMap<String, _> = metrics.into_iter().map(|one| (one.id, one.data)).collect();
        let mut found = Vec::new();
        for task in tasks.map_err(error)?.into_inner().tasks {
            let is_wanted = ids.is_empty() || ids.contains(&task.id);
            if !is_wanted || !matches!(task.status(), Status::Running | Status::Paused) {
                continue;
            }
            let Some(Some(data)) = metrics.get(&task.id) else { continue };
            let sum = Figures::read(data)?.summary();
            let network = network(task.pid);
            let rates = self.earlier.get(&task.id).map_or_else(Rates::default, |(at, before, bytes)| {
                let seconds = now.duration_since(*at).as_secs_f64().max(1e-3);
                let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
                Rates {
                    processor: rate(sum.processor, before.processor) / 1e7,
                    received: rate(network.0, bytes.0),
                    sent: rate(network.1, bytes.1),
                    read: rate(sum.read, before.read),
                    written: rate(sum.written, before.written),
                }
            });
            let status = task.status();
            found.push(Usage { id: task.id, pid: task.pid, status, sum, network, rates });
        }
        self.earlier =
            found.iter().map(|one| (one.id.clone(), (now, one.sum.clone(), one.network))).collect();
        Ok(found)
    }
}

/// Bytes that the interfaces of a process' network received and sent, the loopback's left out; none where we may
/// not look, or the daemon is on another machine.
fn network(pid: u32) -> (u64, u64) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    let line = |line: &str| {
        let (_, figures) = line.split_once(':').filter(|(name, _)| name.trim() != "lo")?;
        let figures: Vec<u64> = figures.split_whitespace().filter_map(|one| one.parse().ok()).collect();
        Some((*figures.first()?, *figures.get(8)?))
    };
    let all = text.lines().filter_map(line);
    all.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}
