//! Figures of containers' cgroups (`container_*`), for each task that answers.

use corten_api::{cgroups_v1 as m1, cgroups_v2 as m2};
use corten_types::{Any, Context};
use futures_util::future::join_all;

use super::Running;
use super::text::{Kind, Page};

/// Whose figures they are.
struct Owner {
    id: String,
    namespace: String,
    runtime: String,
}

impl Owner {
    fn labels(&self) -> [(&str, &str); 3] {
        [("container_id", &self.id), ("namespace", &self.namespace), ("runtime", &self.runtime)]
    }
}

/// A value of a message of figures: the family's name without `container_`, what it is, and how it is read.
type Figure<M> = (&'static str, &'static str, fn(&M) -> Option<u64>);

/// What cannot be had is left out.
pub(super) async fn show(page: &mut Page, running: &Running) {
    let namespaces = running.namespaces.list().unwrap_or_default();
    let figures = join_all(namespaces.into_iter().map(async |(namespace, _)| {
        let metrics = running.tasks.metrics(&namespace, &[]).await.unwrap_or_default();
        let ctx = Context::new(namespace);
        let owned = metrics.into_iter().map(|metric| {
            let runtime = running.containers.get(&ctx, &metric.id).map(|container| container.runtime.name);
            let owner = Owner {
                id: metric.id,
                namespace: ctx.namespace.to_string(),
                runtime: runtime.unwrap_or_default(),
            };
            (owner, metric.data.unwrap_or_default())
        });
        owned.collect::<Vec<_>>()
    }));
    let figures: Vec<(Owner, Any)> = figures.await.into_iter().flatten().collect();
    show_v1(page, &unpacked(&figures));
    show_v2(page, &unpacked(&figures));
}

fn unpacked<M: prost::Message + prost::Name + Default>(figures: &[(Owner, Any)]) -> Vec<(&Owner, M)> {
    figures.iter().filter_map(|(owner, any)| Some((owner, corten_api::unpack(any).ok()?))).collect()
}

fn show_all<M>(page: &mut Page, all: &[(&Owner, M)], table: &[Figure<M>]) {
    for (name, help, read) in table {
        let family = page.family(&format!("container_{name}"), help, Kind::Gauge);
        for (owner, figures) in all {
            if let Some(value) = read(figures) {
                family.value(&owner.labels(), value as f64);
            }
        }
    }
}

fn show_v1(page: &mut Page, all: &[(&Owner, m1::Metrics)]) {
    show_all(page, all, &V1);
    show_all(page, all, &V1_MEMORY);
    show_all(page, all, &V1_ENTRIES);
    let family = page.family("container_per_cpu_nanoseconds", "The total cpu time per cpu", Kind::Gauge);
    for (owner, figures) in all {
        let usage = figures.cpu.as_ref().and_then(|cpu| cpu.usage.as_ref());
        for (cpu, value) in usage.map(|usage| usage.per_cpu.as_slice()).unwrap_or_default().iter().enumerate()
        {
            let [id, namespace, runtime] = owner.labels();
            family.value(&[id, ("cpu", &cpu.to_string()), namespace, runtime], *value as f64);
        }
    }
    type Entries = fn(&m1::BlkIoStat) -> &[m1::BlkIoEntry];
    let tables: [(&str, &str, Entries); 7] = [
        ("io_merged_recursive_total", "io merged recursive", |io| &io.io_merged_recursive),
        ("io_queued_recursive_total", "io queued recursive", |io| &io.io_queued_recursive),
        ("io_service_bytes_recursive_bytes", "io service bytes recursive", |io| {
            &io.io_service_bytes_recursive
        }),
        ("io_service_time_recursive_total", "io service time recursive", |io| &io.io_service_time_recursive),
        ("io_serviced_recursive_total", "io serviced recursive", |io| &io.io_serviced_recursive),
        ("io_time_recursive_total", "io time recursive", |io| &io.io_time_recursive),
        ("sectors_recursive_total", "sectors recursive", |io| &io.sectors_recursive),
    ];
    for (name, help, entries) in tables {
        let family =
            page.family(&format!("container_blkio_{name}"), &format!("The blkio {help}"), Kind::Gauge);
        for (owner, figures) in all {
            for entry in figures.blkio.as_ref().map(entries).unwrap_or_default() {
                let [id, namespace, runtime] = owner.labels();
                let (major, minor) = (entry.major.to_string(), entry.minor.to_string());
                let device = ("device", entry.device.as_str());
                let place = [("major", major.as_str()), ("minor", minor.as_str())];
                let labels = [id, device, place[0], place[1], namespace, ("op", &entry.op), runtime];
                family.value(&labels, entry.value as f64);
            }
        }
    }
}

fn show_v2(page: &mut Page, all: &[(&Owner, m2::Metrics)]) {
    show_all(page, all, &V2);
    show_all(page, all, &V2_MEMORY);
    type Read = fn(&m2::IoEntry) -> u64;
    let tables: [(&str, &str, Read); 4] = [
        ("rbytes_bytes", "IO bytes read", |entry| entry.rbytes),
        ("wbytes_bytes", "IO bytes written", |entry| entry.wbytes),
        ("rios_total", "Number of read IOs", |entry| entry.rios),
        ("wios_total", "Number of write IOs", |entry| entry.wios),
    ];
    for (name, help, read) in tables {
        let family = page.family(&format!("container_io_{name}"), help, Kind::Gauge);
        for (owner, figures) in all {
            for entry in figures.io.as_ref().map(|io| io.usage.as_slice()).unwrap_or_default() {
                let [id, namespace, runtime] = owner.labels();
                let (major, minor) = (entry.major.to_string(), entry.minor.to_string());
                let labels = [id, ("major", &major), ("minor", &minor), namespace, runtime];
                family.value(&labels, read(entry) as f64);
            }
        }
    }
}

const V1: [Figure<m1::Metrics>; 8] = [
    ("pids_current", "The current number of pids", |m| Some(m.pids.as_ref()?.current)),
    ("pids_limit", "The limit to the number of pids allowed", |m| Some(m.pids.as_ref()?.limit)),
    ("cpu_total_nanoseconds", "The total cpu time", |m| Some(m.cpu.as_ref()?.usage.as_ref()?.total)),
    ("cpu_kernel_nanoseconds", "The total kernel cpu time", |m| Some(m.cpu.as_ref()?.usage.as_ref()?.kernel)),
    ("cpu_user_nanoseconds", "The total user cpu time", |m| Some(m.cpu.as_ref()?.usage.as_ref()?.user)),
    ("cpu_throttle_periods_total", "The total cpu throttle periods", |m| {
        Some(m.cpu.as_ref()?.throttling.as_ref()?.periods)
    }),
    ("cpu_throttled_periods_total", "The total cpu throttled periods", |m| {
        Some(m.cpu.as_ref()?.throttling.as_ref()?.throttled_periods)
    }),
    ("cpu_throttled_time_nanoseconds", "The total cpu throttled time", |m| {
        Some(m.cpu.as_ref()?.throttling.as_ref()?.throttled_time)
    }),
];

/// Figures of memory that are named after their fields.
macro_rules! memory {
    ($($name:literal $more:literal $field:ident)*) => {
        [$((
            concat!("memory_", $name, "_bytes"),
            concat!("The ", $name, " amount", $more),
            |m| Some(m.memory.as_ref()?.$field),
        )),*]
    };
}

/// Figures of a kind of memory: its name, what it is called, and the field.
macro_rules! entries {
    ($($name:literal $called:literal $field:ident)*) => {
        [$(
            (concat!("memory_", $name, "_failcnt_total"), concat!("The ", $name, " failcnt"),
                |m| Some(m.memory.as_ref()?.$field.as_ref()?.failcnt)),
            (concat!("memory_", $name, "_limit_bytes"), concat!("The ", $called, " limit"),
                |m| Some(m.memory.as_ref()?.$field.as_ref()?.limit)),
            (concat!("memory_", $name, "_max_bytes"), concat!("The ", $called, " maximum usage"),
                |m| Some(m.memory.as_ref()?.$field.as_ref()?.max)),
            (concat!("memory_", $name, "_usage_bytes"), concat!("The ", $called, " usage"),
                |m| Some(m.memory.as_ref()?.$field.as_ref()?.usage)),
        )*]
    };
}

const V1_MEMORY: [Figure<m1::Metrics>; 32] = memory! {
    "cache" " used" cache
    "rss" " used" rss
    "rss_huge" " used" rss_huge
    "mapped_file" " used" mapped_file
    "dirty" "" dirty
    "writeback" "" writeback
    "pgpgin" "" pg_pg_in
    "pgpgout" "" pg_pg_out
    "pgfault" "" pg_fault
    "pgmajfault" "" pg_maj_fault
    "inactive_anon" "" inactive_anon
    "active_anon" "" active_anon
    "inactive_file" "" inactive_file
    "active_file" "" active_file
    "unevictable" "" unevictable
    "hierarchical_memory_limit" "" hierarchical_memory_limit
    "hierarchical_memsw_limit" "" hierarchical_swap_limit
    "total_cache" " used" total_cache
    "total_rss" " used" total_rss
    "total_rss_huge" " used" total_rss_huge
    "total_mapped_file" " used" total_mapped_file
    "total_dirty" "" total_dirty
    "total_writeback" "" total_writeback
    "total_pgpgin" "" total_pg_pg_in
    "total_pgpgout" "" total_pg_pg_out
    "total_pgfault" "" total_pg_fault
    "total_pgmajfault" "" total_pg_maj_fault
    "total_inactive_anon" "" total_inactive_anon
    "total_active_anon" "" total_active_anon
    "total_inactive_file" "" total_inactive_file
    "total_active_file" "" total_active_file
    "total_unevictable" "" total_unevictable
};

const V1_ENTRIES: [Figure<m1::Metrics>; 16] = entries! {
    "usage" "memory" usage
    "swap" "swap" swap
    "kernel" "kernel" kernel
    "kerneltcp" "kerneltcp" kernel_tcp
};

const V2: [Figure<m2::Metrics>; 13] = [
    ("pids_current", "The current number of pids (cgroup v2)", |m| Some(m.pids.as_ref()?.current)),
    ("pids_limit", "The limit to the number of pids allowed (cgroup v2)", |m| Some(m.pids.as_ref()?.limit)),
    ("cpu_usage_usec_microseconds", "Total cpu usage (cgroup v2)", |m| Some(m.cpu.as_ref()?.usage_usec)),
    ("cpu_user_usec_microseconds", "Current cpu usage in user space (cgroup v2)", |m| {
        Some(m.cpu.as_ref()?.user_usec)
    }),
    ("cpu_system_usec_microseconds", "Current cpu usage in kernel space (cgroup v2)", |m| {
        Some(m.cpu.as_ref()?.system_usec)
    }),
    ("cpu_nr_periods_total", "Current cpu number of periods (only if controller is enabled)", |m| {
        Some(m.cpu.as_ref()?.nr_periods)
    }),
    (
        "cpu_nr_throttled_total",
        "Total number of times tasks have been throttled (only if controller is enabled)",
        |m| Some(m.cpu.as_ref()?.nr_throttled),
    ),
    (
        "cpu_throttled_usec_microseconds",
        "Total time duration for which tasks have been throttled. (only if controller is enabled)",
        |m| Some(m.cpu.as_ref()?.throttled_usec),
    ),
    ("memory_usage_bytes", "Current memory usage (cgroup v2)", |m| Some(m.memory.as_ref()?.usage)),
    ("memory_usage_limit_bytes", "Current memory usage limit (cgroup v2)", |m| {
        Some(m.memory.as_ref()?.usage_limit)
    }),
    ("memory_swap_usage_bytes", "Current swap usage (cgroup v2)", |m| Some(m.memory.as_ref()?.swap_usage)),
    ("memory_swap_limit_bytes", "Current swap usage limit (cgroup v2)", |m| {
        Some(m.memory.as_ref()?.swap_limit)
    }),
    ("memory_oom_total", "The number of times a container has received an oom event", |m| {
        Some(m.memory_events.as_ref()?.oom)
    }),
];

const V2_MEMORY: [Figure<m2::Metrics>; 31] = memory! {
    "file_mapped" "" file_mapped
    "file_dirty" "" file_dirty
    "file_writeback" "" file_writeback
    "pgactivate" "" pgactivate
    "pgdeactivate" "" pgdeactivate
    "pgfault" "" pgfault
    "pgmajfault" "" pgmajfault
    "pglazyfree" "" pglazyfree
    "pgrefill" "" pgrefill
    "pglazyfreed" "" pglazyfreed
    "pgscan" "" pgscan
    "pgsteal" "" pgsteal
    "inactive_anon" "" inactive_anon
    "active_anon" "" active_anon
    "inactive_file" "" inactive_file
    "active_file" "" active_file
    "unevictable" "" unevictable
    "anon" "" anon
    "file" "" file
    "kernel_stack" "" kernel_stack
    "slab" "" slab
    "sock" "" sock
    "shmem" "" shmem
    "anon_thp" "" anon_thp
    "workingset_refault" "" workingset_refault
    "workingset_activate" "" workingset_activate
    "workingset_nodereclaim" "" workingset_nodereclaim
    "slab_reclaimable" "" slab_reclaimable
    "slab_unreclaimable" "" slab_unreclaimable
    "thp_fault_alloc" "" thp_fault_alloc
    "thp_collapse_alloc" "" thp_collapse_alloc
};
