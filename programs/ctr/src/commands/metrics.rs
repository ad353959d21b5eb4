//! `tasks metrics`: figures of a container's cgroup.

use clap::Args;
use corten_api::services::tasks as api;
use corten_api::{cgroups_v1, cgroups_v2};
use corten_types::{Any, Error, Result};

use crate::client::{Daemon, error};
use crate::commands::containers;
use crate::described;
use crate::output::Table;

/// What a container uses.
#[derive(Debug, Args)]
pub struct Metrics {
    /// "table" or "json".
    #[arg(long, default_value = "table")]
    format: String,
    #[arg(default_value = "", value_name = "CONTAINER")]
    id: String,
}

/// Figures of a container, of one of the two kinds of cgroups.
pub enum Figures {
    V1(Box<cgroups_v1::Metrics>),
    V2(Box<cgroups_v2::Metrics>),
}

impl Figures {
    /// Reads what a task service answers.
    pub fn read(any: &Any) -> Result<Self> {
        if let Ok(figures) = corten_api::unpack(any) {
            return Ok(Self::V1(Box::new(figures)));
        }
        match corten_api::unpack(any) {
            Ok(figures) => Ok(Self::V2(Box::new(figures))),
            Err(_) => {
                Err(Error::unknown("cannot convert metric data to cgroups.Metrics or windows.Statistics"))
            }
        }
    }

    /// Names and values, as the original tells them.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::V1(figures) => rows_v1(figures),
            Self::V2(figures) => rows_v2(figures),
        }
    }

    /// The figures that both kinds have.
    pub fn summary(&self) -> Summary {
        match self {
            Self::V1(figures) => {
                let usage = figures.memory.as_ref().and_then(|memory| memory.usage.as_ref());
                let blocks =
                    figures.blkio.as_ref().map_or(&[][..], |blkio| &blkio.io_service_bytes_recursive[..]);
                let bytes = |op: &str| blocks.iter().filter(|one| one.op == op).map(|one| one.value).sum();
                Summary {
                    memory: usage.map_or(0, |usage| usage.usage),
                    limit: usage.map(|usage| usage.limit).filter(|limit| *limit < UNLIMITED),
                    processor: figures
                        .cpu
                        .as_ref()
                        .and_then(|cpu| cpu.usage.as_ref())
                        .map_or(0, |usage| usage.total),
                    pids: figures.pids.as_ref().map_or(0, |pids| pids.current),
                    read: bytes("Read"),
                    written: bytes("Write"),
                }
            }
            Self::V2(figures) => {
                let memory = figures.memory.as_ref();
                let blocks = figures.io.as_ref().map_or(&[][..], |io| &io.usage[..]);
                Summary {
                    memory: memory.map_or(0, |memory| memory.usage),
                    limit: memory.map(|memory| memory.usage_limit).filter(|limit| *limit < UNLIMITED),
                    processor: figures.cpu.as_ref().map_or(0, |cpu| cpu.usage_usec.saturating_mul(1000)),
                    pids: figures.pids.as_ref().map_or(0, |pids| pids.current),
                    read: blocks.iter().map(|one| one.rbytes).sum(),
                    written: blocks.iter().map(|one| one.wbytes).sum(),
                }
            }
        }
    }
}

/// Cgroups say no limit by a number that no machine has.
const UNLIMITED: u64 = 1 << 62;

/// What a container uses at a moment.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Bytes of memory.
    pub memory: u64,
    /// Most bytes of memory, if there is a limit.
    pub limit: Option<u64>,
    /// Nanoseconds of processor time since the start.
    pub processor: u64,
    pub pids: u64,
    /// Bytes read from disks since the start.
    pub read: u64,
    /// Bytes written to disks since the start.
    pub written: u64,
}

/// The figures of one task.
pub async fn of(daemon: &Daemon, id: &str) -> Result<(prost_types::Timestamp, Any)> {
    let request = api::MetricsRequest { filters: vec![format!("id=={id}")] };
    let found = daemon.tasks().metrics(request).await.map_err(error)?.into_inner().metrics;
    let metric = found.into_iter().next().ok_or_else(|| Error::unknown("no metrics received"))?;
    Ok((metric.timestamp.unwrap_or_default(), metric.data.unwrap_or_default()))
}

impl Metrics {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        containers::get(daemon, &self.id).await?;
        let get = api::GetRequest { container_id: self.id.clone(), exec_id: String::new() };
        daemon.tasks().get(get).await.map_err(super::tasks::running)?;
        let (at, data) = of(daemon, &self.id).await?;
        let figures = Figures::read(&data)?;
        match self.format.as_str() {
            "table" => {
                let mut head = Table::wide(&["ID", "TIMESTAMP"]);
                head.row([self.id, format!("seconds:{} nanos:{}", at.seconds, at.nanos)]);
                head.print()?;
                println!();
                let mut table = Table::wide(&["METRIC", "VALUE"]);
                figures.rows().into_iter().for_each(|(name, value)| table.row([name.into(), value]));
                table.print()
            }
            "json" => {
                let description = match figures {
                    Figures::V1(_) => described::CGROUPS_V1,
                    Figures::V2(_) => described::CGROUPS_V2,
                };
                println!("{}", described::read(description, "Metrics", &data.value).text(2));
                Ok(())
            }
            _ => Err(Error::unknown("format must be table or json")),
        }
    }
}

fn rows_v1(figures: &cgroups_v1::Metrics) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if let Some(memory) = &figures.memory {
        let usage = memory.usage.unwrap_or_default();
        rows.push(("memory.usage_in_bytes", usage.usage.to_string()));
        rows.push(("memory.limit_in_bytes", usage.limit.to_string()));
        rows.push(("memory.stat.cache", memory.total_cache.to_string()));
    }
    if let Some(usage) = figures.cpu.as_ref().and_then(|cpu| cpu.usage.as_ref()) {
        let each: Vec<String> = usage.per_cpu.iter().map(ToString::to_string).collect();
        rows.push(("cpuacct.usage", usage.total.to_string()));
        rows.push(("cpuacct.usage_percpu", format!("[{}]", each.join(" "))));
    }
    if let Some(pids) = &figures.pids {
        rows.push(("pids.current", pids.current.to_string()));
        rows.push(("pids.limit", pids.limit.to_string()));
    }
    rows
}

fn rows_v2(figures: &cgroups_v2::Metrics) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if let Some(pids) = &figures.pids {
        rows.push(("pids.current", pids.current.to_string()));
        rows.push(("pids.limit", pids.limit.to_string()));
    }
    if let Some(cpu) = &figures.cpu {
        rows.push(("cpu.usage_usec", cpu.usage_usec.to_string()));
        rows.push(("cpu.user_usec", cpu.user_usec.to_string()));
        rows.push(("cpu.system_usec", cpu.system_usec.to_string()));
        rows.push(("cpu.nr_periods", cpu.nr_periods.to_string()));
        rows.push(("cpu.nr_throttled", cpu.nr_throttled.to_string()));
        rows.push(("cpu.throttled_usec", cpu.throttled_usec.to_string()));
    }
    if let Some(memory) = &figures.memory {
        rows.push(("memory.usage", memory.usage.to_string()));
        rows.push(("memory.usage_limit", memory.usage_limit.to_string()));
        rows.push(("memory.swap_usage", memory.swap_usage.to_string()));
        rows.push(("memory.swap_limit", memory.swap_limit.to_string()));
    }
    rows
}
