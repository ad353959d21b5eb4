//! The figures of v1.

use std::collections::HashMap;
use std::path::Path;

use corten_api::cgroups_v1::{
    BlkIoEntry, BlkIoStat, CpuStat, CpuUsage, HugetlbStat, MemoryEntry, MemoryOomControl, MemoryStat,
    Metrics, PidsStat, RdmaEntry, RdmaStat, Throttle,
};

use super::{number, page_sizes, rdma, table, text};
use crate::Cgroups;

/// All of a container's figures.
pub(super) fn metrics(cgroups: &Cgroups) -> Metrics {
    let mut metrics = Metrics::default();
    if let Some(folder) = cgroups.controller("pids") {
        let limit = number(folder, "pids.max");
        metrics.pids = Some(PidsStat {
            current: number(folder, "pids.current"),
            limit: if limit == u64::MAX { 0 } else { limit },
        });
    }
    if let Some(folder) = cgroups.controller("cpuacct") {
        let per_cpu = std::fs::read_to_string(folder.join("cpuacct.usage_percpu")).unwrap_or_default();
        let ticks = table(folder, "cpuacct.stat");
        // Ticks of 1/100 s.
        let nanos = |key: &str| ticks.get(key).copied().unwrap_or(0) * 10_000_000;
        let usage = CpuUsage {
            total: number(folder, "cpuacct.usage"),
            kernel: nanos("system"),
            user: nanos("user"),
            per_cpu: per_cpu.split_whitespace().filter_map(|text| text.parse().ok()).collect(),
        };
        let throttling = cgroups.controller("cpu").map(|folder| {
            let stat = table(folder, "cpu.stat");
            let get = |key: &str| stat.get(key).copied().unwrap_or(0);
            Throttle {
                periods: get("nr_periods"),
                throttled_periods: get("nr_throttled"),
                throttled_time: get("throttled_time"),
            }
        });
        metrics.cpu = Some(CpuStat { usage: Some(usage), throttling });
    }
    if let Some(folder) = cgroups.controller("memory") {
        metrics.memory = Some(memory_v1(folder));
        let oom = table(folder, "memory.oom_control");
        let get = |key: &str| oom.get(key).copied().unwrap_or(0);
        metrics.memory_oom_control = Some(MemoryOomControl {
            oom_kill_disable: get("oom_kill_disable"),
            under_oom: get("under_oom"),
            oom_kill: get("oom_kill"),
        });
    }
    if let Some(folder) = cgroups.controller("blkio") {
        metrics.blkio = Some(block_io(folder));
    }
    if let Some(folder) = cgroups.controller("hugetlb") {
        let pages = |pagesize: String| {
            let file = |what: &str| number(folder, &format!("hugetlb.{pagesize}.{what}"));
            let (usage, max) = (file("usage_in_bytes"), file("max_usage_in_bytes"));
            HugetlbStat { usage, max, failcnt: file("failcnt"), pagesize }
        };
        metrics.hugetlb = page_sizes(folder, ".usage_in_bytes").into_iter().map(pages).collect();
    }
    if let Some(folder) = cgroups.controller("rdma") {
        let entries = |file: &str| {
            let entry = |(device, hca_handles, hca_objects)| RdmaEntry { device, hca_handles, hca_objects };
            rdma(folder, file).into_iter().map(entry).collect()
        };
        metrics.rdma = Some(RdmaStat { current: entries("rdma.current"), limit: entries("rdma.max") });
    }
    metrics
}

fn memory_v1(folder: &Path) -> MemoryStat {
    let stat = table(folder, "memory.stat");
    let get = |key: &str| stat.get(key).copied().unwrap_or(0);
    let entry = |name: &str| {
        let file = |what: &str| number(folder, &format!("{name}.{what}"));
        Some(MemoryEntry {
            limit: file("limit_in_bytes"),
            usage: file("usage_in_bytes"),
            max: file("max_usage_in_bytes"),
            failcnt: file("failcnt"),
        })
    };
    MemoryStat {
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

/// What the elevator counts, or where it does not, what the throttle does.
fn block_io(folder: &Path) -> BlkIoStat {
    let devices = device_names(&std::fs::read_to_string("/proc/diskstats").unwrap_or_default());
    let entries = |file: &str| block_entries(&text(folder, &format!("blkio.{file}_recursive")), &devices);
    let sectors = |file: &str| block_totals(&text(folder, &format!("blkio.{file}_recursive")), &devices);
    let served = entries("io_serviced");
    if served.is_empty() {
        return BlkIoStat {
            io_service_bytes_recursive: entries("throttle.io_service_bytes"),
            io_serviced_recursive: entries("throttle.io_serviced"),
            ..Default::default()
        };
    }
    BlkIoStat {
        io_service_bytes_recursive: entries("io_service_bytes"),
        io_serviced_recursive: served,
        io_queued_recursive: entries("io_queued"),
        io_service_time_recursive: entries("io_service_time"),
        io_wait_time_recursive: entries("io_wait_time"),
        io_merged_recursive: entries("io_merged"),
        io_time_recursive: sectors("time"),
        sectors_recursive: sectors("sectors"),
    }
}

/// Paths of devices by number.
fn device_names(table: &str) -> HashMap<(u64, u64), String> {
    let device = |line: &str| {
        let mut words = line.split_whitespace();
        let number = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((number, format!("/dev/{}", words.next()?)))
    };
    table.lines().filter_map(device).collect()
}

fn device(text: &str, devices: &HashMap<(u64, u64), String>) -> Option<BlkIoEntry> {
    let (major, minor) = text.split_once(':')?;
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    let device = devices.get(&(major, minor)).cloned().unwrap_or_default();
    Some(BlkIoEntry { device, major, minor, ..Default::default() })
}

/// `major:minor operation value` lines.
fn block_entries(text: &str, devices: &HashMap<(u64, u64), String>) -> Vec<BlkIoEntry> {
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let device = device(words.next()?, devices)?;
        Some(BlkIoEntry { op: words.next()?.to_owned(), value: words.next()?.parse().ok()?, ..device })
    };
    text.lines().filter_map(entry).collect()
}

/// `major:minor value` lines.
fn block_totals(text: &str, devices: &HashMap<(u64, u64), String>) -> Vec<BlkIoEntry> {
    let entry = |line: &str| {
        let (number, value) = line.split_once(' ')?;
        Some(BlkIoEntry { value: value.trim().parse().ok()?, ..device(number, devices)? })
    };
    text.lines().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::folder;
    use super::*;
    use crate::V1;

    #[test]
    fn what_all_controllers_count_is_told() {
        let folder = folder(&[
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("blkio.io_serviced_recursive", "8:0 Read 4\n8:0 Total 4\nTotal 4\n"),
            ("blkio.time_recursive", "8:0 17\n"),
            ("hugetlb.2MB.usage_in_bytes", "2097152\n"),
            ("hugetlb.2MB.max_usage_in_bytes", "4194304\n"),
            ("hugetlb.2MB.failcnt", "1\n"),
            ("rdma.max", "mlx4_0 hca_handle=2 hca_object=max\n"),
            ("memory.stat", "rss 5\ntotal_rss 6\n"),
            ("memory.limit_in_bytes", "1000\n"),
        ]);
        let all = ["pids", "blkio", "hugetlb", "rdma", "memory"].map(str::to_owned);
        let one = V1 { controllers: all.into(), folder: PathBuf::from(folder.path()) };
        let metrics = metrics(&Cgroups { v1: vec![one], v2: None });
        assert_eq!(metrics.pids.unwrap(), PidsStat { current: 3, limit: 0 });
        let blkio = metrics.blkio.unwrap();
        let first = blkio.io_serviced_recursive.first().unwrap();
        assert_eq!((blkio.io_serviced_recursive.len(), first.op.as_str(), first.value), (2, "Read", 4));
        assert_eq!(blkio.io_time_recursive.first().unwrap().value, 17);
        let pages = metrics.hugetlb.first().unwrap();
        assert_eq!(
            (pages.usage, pages.max, pages.failcnt, pages.pagesize.as_str()),
            (2 << 20, 4 << 20, 1, "2MB")
        );
        assert_eq!(metrics.rdma.unwrap().limit.first().unwrap().hca_objects, u32::MAX);
        let memory = metrics.memory.unwrap();
        assert_eq!((memory.rss, memory.total_rss, memory.usage.unwrap().limit), (5, 6, 1000));
    }

    #[test]
    fn without_an_elevator_the_throttle_counts() {
        let folder = folder(&[
            ("blkio.io_serviced_recursive", "Total 0\n"),
            ("blkio.throttle.io_service_bytes_recursive", "254:0 Write 4096\n"),
        ]);
        let blkio = block_io(folder.path());
        assert_eq!(blkio.io_service_bytes_recursive.first().unwrap().value, 4096);
        let names = device_names("   8       0 sda 1 2\n 254 0 vda 1\n");
        assert_eq!(names.get(&(254, 0)).map(String::as_str), Some("/dev/vda"));
    }
}
