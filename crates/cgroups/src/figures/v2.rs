//! The figures of v2.

use std::collections::HashMap;
use std::path::Path;

use corten_api::cgroups_v2::{
    CpuStat, HugeTlbStat, IoEntry, IoStat, MemoryEvents, MemoryStat, Metrics, PidsStat, PsiData, PsiStats,
    RdmaEntry, RdmaStat,
};

use super::{number, page_sizes, rdma, table, text};

/// All of a container's figures.
pub(super) fn metrics(folder: &Path) -> Metrics {
    let cpu = table(folder, "cpu.stat");
    let stat = table(folder, "memory.stat");
    let events = table(folder, "memory.events");
    let get = |key: &str| cpu.get(key).copied().unwrap_or(0);
    let event = |key: &str| events.get(key).copied().unwrap_or(0);
    Metrics {
        pids: Some(PidsStat { current: number(folder, "pids.current"), limit: number(folder, "pids.max") }),
        cpu: Some(CpuStat {
            usage_usec: get("usage_usec"),
            user_usec: get("user_usec"),
            system_usec: get("system_usec"),
            nr_periods: get("nr_periods"),
            nr_throttled: get("nr_throttled"),
            throttled_usec: get("throttled_usec"),
            nr_bursts: get("nr_bursts"),
            burst_usec: get("burst_usec"),
            psi: pressure(folder, "cpu.pressure"),
        }),
        memory: Some(memory(folder, &stat)),
        memory_events: Some(MemoryEvents {
            low: event("low"),
            high: event("high"),
            max: event("max"),
            oom: event("oom"),
            oom_kill: event("oom_kill"),
            oom_group_kill: event("oom_group_kill"),
        }),
        rdma: Some(RdmaStat {
            current: rdma_entries(folder, "rdma.current"),
            limit: rdma_entries(folder, "rdma.max"),
        }),
        io: Some(IoStat { usage: devices(&text(folder, "io.stat")), psi: pressure(folder, "io.pressure") }),
        hugetlb: page_sizes(folder, ".current")
            .into_iter()
            .filter(|size| !size.ends_with(".rsvd"))
            .map(|size| huge_pages(folder, size))
            .collect(),
        network: Vec::new(),
    }
}

fn rdma_entries(folder: &Path, file: &str) -> Vec<RdmaEntry> {
    let entry = |(device, hca_handles, hca_objects)| RdmaEntry { device, hca_handles, hca_objects };
    rdma(folder, file).into_iter().map(entry).collect()
}

fn huge_pages(folder: &Path, pagesize: String) -> HugeTlbStat {
    let file = |what: &str| format!("hugetlb.{pagesize}.{what}");
    HugeTlbStat {
        current: number(folder, &file("current")),
        max: number(folder, &file("max")),
        failcnt: table(folder, &file("events")).get("max").copied().unwrap_or(0),
        pagesize,
    }
}

/// `major:minor key=value …` lines.
fn devices(text: &str) -> Vec<IoEntry> {
    let entry = |line: &str| {
        let (number, rest) = line.split_once(' ')?;
        let (major, minor) = number.split_once(':')?;
        let value = |key: &str| -> u64 {
            let value = rest.split_whitespace().find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
            value.and_then(|value| value.parse().ok()).unwrap_or(0)
        };
        Some(IoEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            rbytes: value("rbytes"),
            wbytes: value("wbytes"),
            rios: value("rios"),
            wios: value("wios"),
        })
    };
    text.lines().filter_map(entry).collect()
}

/// How long processes waited; nothing where the kernel does not count it.
fn pressure(folder: &Path, file: &str) -> Option<PsiStats> {
    let text = std::fs::read_to_string(folder.join(file)).ok()?;
    let line = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        let value =
            |key: &str| line.split_whitespace().find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        let average = |key: &str| value(key).and_then(|value| value.parse().ok()).unwrap_or(0.0);
        let total = value("total").and_then(|value| value.parse().ok()).unwrap_or(0);
        Some(PsiData { avg10: average("avg10"), avg60: average("avg60"), avg300: average("avg300"), total })
    };
    let (some, full) = (line("some"), line("full"));
    (some.is_some() || full.is_some()).then_some(PsiStats { some, full })
}

fn memory(folder: &Path, stat: &HashMap<String, u64>) -> MemoryStat {
    let get = |key: &str| stat.get(key).copied().unwrap_or(0);
    let either = |key: &str| match stat.get(key) {
        Some(value) => *value,
        None => get(&format!("{key}_anon")) + get(&format!("{key}_file")),
    };
    MemoryStat {
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
        // Kernels from 5.9 on count those of files and of anonymous memory apart.
        workingset_refault: either("workingset_refault"),
        workingset_activate: either("workingset_activate"),
        workingset_nodereclaim: get("workingset_nodereclaim"),
        pgrefill: get("pgrefill"),
        pgscan: get("pgscan"),
        pgsteal: get("pgsteal"),
        pgactivate: get("pgactivate"),
        pgdeactivate: get("pgdeactivate"),
        pglazyfree: get("pglazyfree"),
        pglazyfreed: get("pglazyfreed"),
        thp_fault_alloc: get("thp_fault_alloc"),
        thp_collapse_alloc: get("thp_collapse_alloc"),
        usage: number(folder, "memory.current"),
        usage_limit: number(folder, "memory.max"),
        swap_usage: number(folder, "memory.swap.current"),
        swap_limit: number(folder, "memory.swap.max"),
        max_usage: number(folder, "memory.peak"),
        swap_max_usage: number(folder, "memory.swap.peak"),
        psi: pressure(folder, "memory.pressure"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::folder;
    use super::*;

    #[test]
    fn what_all_controllers_count_is_told() {
        let folder = folder(&[
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("cpu.stat", "usage_usec 10\nnr_periods 2\n"),
            ("cpu.pressure", "some avg10=1.50 avg60=0.00 avg300=0.00 total=77\n"),
            ("memory.stat", "anon 4096\nworkingset_refault_anon 1\nworkingset_refault_file 2\npgscan 9\n"),
            ("memory.max", "1000\n"),
            ("memory.events", "oom 1\noom_kill 2\n"),
            (
                "memory.pressure",
                "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=2.00 avg300=0.00 total=2\n",
            ),
            ("io.stat", "254:0 rbytes=4096 wbytes=1 rios=2 wios=3 dbytes=0 dios=0\n8:0 \n"),
            ("hugetlb.2MB.current", "0\n"),
            ("hugetlb.2MB.rsvd.current", "0\n"),
            ("hugetlb.2MB.max", "max\n"),
            ("hugetlb.2MB.events", "max 6\n"),
            ("rdma.current", "mlx4_0 hca_handle=2 hca_object=20\n"),
        ]);
        let metrics = metrics(folder.path());
        assert_eq!(metrics.pids.unwrap(), PidsStat { current: 3, limit: u64::MAX });
        let cpu = metrics.cpu.unwrap();
        assert_eq!((cpu.usage_usec, cpu.nr_periods), (10, 2));
        let waited = cpu.psi.unwrap();
        assert_eq!((waited.some.unwrap().avg10, waited.some.unwrap().total, waited.full), (1.5, 77, None));
        let memory = metrics.memory.unwrap();
        assert_eq!(
            (memory.anon, memory.workingset_refault, memory.pgscan, memory.usage_limit),
            (4096, 3, 9, 1000)
        );
        assert_eq!(memory.psi.unwrap().full.unwrap().avg60, 2.0);
        assert_eq!(metrics.memory_events.unwrap().oom_kill, 2);
        let io = metrics.io.unwrap().usage;
        assert_eq!(
            io.first().unwrap(),
            &IoEntry { major: 254, minor: 0, rbytes: 4096, wbytes: 1, rios: 2, wios: 3 }
        );
        let pages = metrics.hugetlb.as_slice();
        assert_eq!((pages.len(), pages[0].max, pages[0].failcnt), (1, u64::MAX, 6));
        assert_eq!(metrics.rdma.unwrap().current.first().unwrap().hca_objects, 20);
    }
}
