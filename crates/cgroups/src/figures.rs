//! Figures, as the metrics messages of v1 and v2 have them (spec 02 §10).

use std::collections::HashMap;
use std::path::Path;

use corten_api::{cgroups_v1 as m1, cgroups_v2 as m2};
use corten_types::{Any, Error, Result};

use crate::Cgroups;

/// The figures of a container's cgroups, packed as the message of their version.
///
/// # Errors
/// NotFound `cgroup does not exist`.
pub fn metrics(cgroups: &Cgroups) -> Result<Any> {
    if cgroups.is_unified() {
        let folder = cgroups.unified().filter(|folder| folder.exists());
        return Ok(corten_api::pack(&v2(folder.ok_or_else(|| Error::not_found("cgroup does not exist"))?)));
    }
    let memory = cgroups.controller("memory").or_else(|| cgroups.controller("pids"));
    if memory.is_none_or(|folder| !folder.exists()) {
        return Err(Error::not_found("cgroup does not exist"));
    }
    Ok(corten_api::pack(&v1(cgroups)))
}

fn number(folder: &Path, file: &str) -> u64 {
    let text = std::fs::read_to_string(folder.join(file)).unwrap_or_default();
    if text.trim() == "max" { u64::MAX } else { text.trim().parse().unwrap_or(0) }
}

/// `key value` lines.
fn table(folder: &Path, file: &str) -> HashMap<String, u64> {
    let text = std::fs::read_to_string(folder.join(file)).unwrap_or_default();
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

fn v1(cgroups: &Cgroups) -> m1::Metrics {
    let mut metrics = m1::Metrics::default();
    if let Some(folder) = cgroups.controller("pids") {
        let limit = number(folder, "pids.max");
        metrics.pids = Some(m1::PidsStat {
            current: number(folder, "pids.current"),
            limit: if limit == u64::MAX { 0 } else { limit },
        });
    }
    if let Some(folder) = cgroups.controller("cpuacct") {
        let per_cpu = std::fs::read_to_string(folder.join("cpuacct.usage_percpu")).unwrap_or_default();
        let ticks = table(folder, "cpuacct.stat");
        // Ticks of 1/100 s.
        let nanos = |key: &str| ticks.get(key).copied().unwrap_or(0) * 10_000_000;
        let usage = m1::CpuUsage {
            total: number(folder, "cpuacct.usage"),
            kernel: nanos("system"),
            user: nanos("user"),
            per_cpu: per_cpu.split_whitespace().filter_map(|text| text.parse().ok()).collect(),
        };
        let throttling = cgroups.controller("cpu").map(|folder| {
            let stat = table(folder, "cpu.stat");
            let get = |key: &str| stat.get(key).copied().unwrap_or(0);
            m1::Throttle {
                periods: get("nr_periods"),
                throttled_periods: get("nr_throttled"),
                throttled_time: get("throttled_time"),
            }
        });
        metrics.cpu = Some(m1::CpuStat { usage: Some(usage), throttling });
    }
    if let Some(folder) = cgroups.controller("memory") {
        metrics.memory = Some(memory_v1(folder));
        let oom = table(folder, "memory.oom_control");
        let get = |key: &str| oom.get(key).copied().unwrap_or(0);
        metrics.memory_oom_control = Some(m1::MemoryOomControl {
            oom_kill_disable: get("oom_kill_disable"),
            under_oom: get("under_oom"),
            oom_kill: get("oom_kill"),
        });
    }
    if let Some(folder) = cgroups.controller("blkio") {
        metrics.blkio = Some(m1::BlkIoStat {
            io_service_bytes_recursive: block_entries(folder, "blkio.throttle.io_service_bytes_recursive"),
            io_serviced_recursive: block_entries(folder, "blkio.throttle.io_serviced_recursive"),
            ..Default::default()
        });
    }
    metrics
}

fn memory_v1(folder: &Path) -> m1::MemoryStat {
    let stat = table(folder, "memory.stat");
    let get = |key: &str| stat.get(key).copied().unwrap_or(0);
    let entry = |name: &str| {
        let file = |what: &str| number(folder, &format!("{name}.{what}"));
        Some(m1::MemoryEntry {
            limit: file("limit_in_bytes"),
            usage: file("usage_in_bytes"),
            max: file("max_usage_in_bytes"),
            failcnt: file("failcnt"),
        })
    };
    m1::MemoryStat {
        cache: get("cache"),
        rss: get("rss"),
        rss_huge: get("rss_huge"),
        mapped_file: get("mapped_file"),
        dirty: get("dirty"),
        writeback: get("writeback"),
        pg_pg_in: get("pgpgin"),
        pg_pg_out: get("pgpgout"),
        pg_fault: get("pgfault"),
        pg_maj_fault: get("pgmajfault"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        hierarchical_memory_limit: get("hierarchical_memory_limit"),
        hierarchical_swap_limit: get("hierarchical_memsw_limit"),
        total_cache: get("total_cache"),
        total_rss: get("total_rss"),
        total_rss_huge: get("total_rss_huge"),
        total_mapped_file: get("total_mapped_file"),
        total_dirty: get("total_dirty"),
        total_writeback: get("total_writeback"),
        total_pg_pg_in: get("total_pgpgin"),
        total_pg_pg_out: get("total_pgpgout"),
        total_pg_fault: get("total_pgfault"),
        total_pg_maj_fault: get("total_pgmajfault"),
        total_inactive_anon: get("total_inactive_anon"),
        total_active_anon: get("total_active_anon"),
        total_inactive_file: get("total_inactive_file"),
        total_active_file: get("total_active_file"),
        total_unevictable: get("total_unevictable"),
        usage: entry("memory"),
        swap: entry("memory.memsw"),
        kernel: entry("memory.kmem"),
        kernel_tcp: entry("memory.kmem.tcp"),
    }
}

/// `major:minor operation value` lines.
fn block_entries(folder: &Path, file: &str) -> Vec<m1::BlkIoEntry> {
    let text = std::fs::read_to_string(folder.join(file)).unwrap_or_default();
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let (op, value) = (words.next()?, words.next()?);
        Some(m1::BlkIoEntry {
            op: op.to_owned(),
            device: String::new(),
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            value: value.parse().ok()?,
        })
    };
    text.lines().filter_map(entry).collect()
}

fn v2(folder: &Path) -> m2::Metrics {
    let cpu = table(folder, "cpu.stat");
    let stat = table(folder, "memory.stat");
    let events = table(folder, "memory.events");
    let get = |key: &str| cpu.get(key).copied().unwrap_or(0);
    let event = |key: &str| events.get(key).copied().unwrap_or(0);
    m2::Metrics {
        pids: Some(m2::PidsStat {
            current: number(folder, "pids.current"),
            limit: number(folder, "pids.max"),
        }),
        cpu: Some(m2::CpuStat {
            usage_usec: get("usage_usec"),
            user_usec: get("user_usec"),
            system_usec: get("system_usec"),
            nr_periods: get("nr_periods"),
            nr_throttled: get("nr_throttled"),
            throttled_usec: get("throttled_usec"),
            nr_bursts: get("nr_bursts"),
            burst_usec: get("burst_usec"),
            psi: None,
        }),
        memory: Some(memory_v2(folder, &stat)),
        memory_events: Some(m2::MemoryEvents {
            low: event("low"),
            high: event("high"),
            max: event("max"),
            oom: event("oom"),
            oom_kill: event("oom_kill"),
            oom_group_kill: event("oom_group_kill"),
        }),
        ..Default::default()
    }
}

fn memory_v2(folder: &Path, stat: &HashMap<String, u64>) -> m2::MemoryStat {
    let get = |key: &str| stat.get(key).copied().unwrap_or(0);
    m2::MemoryStat {
        anon: get("anon"),
        file: get("file"),
        kernel_stack: get("kernel_stack"),
        slab: get("slab"),
        sock: get("sock"),
        shmem: get("shmem"),
        file_mapped: get("file_mapped"),
        file_dirty: get("file_dirty"),
        file_writeback: get("file_writeback"),
        anon_thp: get("anon_thp"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        slab_reclaimable: get("slab_reclaimable"),
        slab_unreclaimable: get("slab_unreclaimable"),
        pgfault: get("pgfault"),
        pgmajfault: get("pgmajfault"),
        usage: number(folder, "memory.current"),
        usage_limit: number(folder, "memory.max"),
        swap_usage: number(folder, "memory.swap.current"),
        swap_limit: number(folder, "memory.swap.max"),
        max_usage: number(folder, "memory.peak"),
        ..Default::default()
    }
}
