//! Limits, written as v1 and v2 have them.

use std::path::Path;

use corten_types::{Error, Result};

use crate::groups::write;
use crate::resources::{BlockIo, Cpu, Memory, Resources, Throttle};
use crate::{Cgroups, devices};

/// Sets the limits that are named; others stay. Devices are only set when rules are named.
///
/// # Errors
/// The kernel's, with file and value; FailedPrecondition for a controller that this host does not have.
pub fn update(cgroups: &Cgroups, wanted: &Resources) -> Result<()> {
    devices::restrict(cgroups, &wanted.devices)?;
    if cgroups.is_unified() { v2(cgroups, wanted) } else { v1(cgroups, wanted) }
}

/// The folder of one controller, in which files are written.
struct Controller<'a>(&'a Path);

impl Controller<'_> {
    fn set(&self, file: &str, value: impl ToString) -> Result<()> {
        write(&self.0.join(file), &value.to_string())
    }

    fn set_some(&self, file: &str, value: Option<impl ToString>) -> Result<()> {
        value.map_or(Ok(()), |value| self.set(file, value))
    }

    fn has(&self, file: &str) -> bool {
        self.0.join(file).exists()
    }
}

// === v1 ===

fn v1(cgroups: &Cgroups, wanted: &Resources) -> Result<()> {
    let controller = |name: &str| {
        let missing = || Error::failed_precondition(format!("this host has no cgroup controller {name}"));
        cgroups.controller(name).map(Controller).ok_or_else(missing)
    };
    if let Some(memory) = &wanted.memory {
        memory_v1(&controller("memory")?, memory)?;
    }
    if let Some(cpu) = &wanted.cpu {
        if cpu.cpus.is_some() || cpu.mems.is_some() {
            let cpuset = controller("cpuset")?;
            cpuset.set_some("cpuset.cpus", cpu.cpus.as_ref().filter(|cpus| !cpus.is_empty()))?;
            cpuset.set_some("cpuset.mems", cpu.mems.as_ref().filter(|mems| !mems.is_empty()))?;
        }
        cpu_v1(&controller("cpu")?, cpu)?;
    }
    if let Some(limit) = wanted.pids.as_ref().and_then(|pids| pids.limit).filter(|limit| *limit != 0) {
        controller("pids")?.set("pids.max", or_max(limit))?;
    }
    if let Some(io) = &wanted.block_io {
        block_io_v1(&controller("blkio")?, io)?;
    }
    for one in &wanted.hugepage_limits {
        let file = format!("hugetlb.{}.limit_in_bytes", one.page_size);
        controller("hugetlb")?.set(&file, one.limit)?;
    }
    if let Some(network) = &wanted.network {
        if let Some(class) = network.class_id {
            controller("net_cls")?.set("net_cls.classid", class)?;
        }
        for one in &network.priorities {
            controller("net_prio")?.set("net_prio.ifpriomap", format!("{} {}", one.name, one.priority))?;
        }
    }
    for (device, rdma) in &wanted.rdma {
        controller("rdma")?.set("rdma.max", rdma_line(device, rdma))?;
    }
    if let (Some(folder), false) = (cgroups.unified(), wanted.unified.is_empty()) {
        unified(&Controller(folder), wanted)?;
    }
    Ok(())
}

fn memory_v1(memory: &Controller<'_>, wanted: &Memory) -> Result<()> {
    const LIMIT: &str = "memory.limit_in_bytes";
    const SWAP: &str = "memory.memsw.limit_in_bytes";
    // Memory may never be above memory with swap: whichever grows goes last.
    let swap = wanted.swap.filter(|swap| *swap != 0 && memory.has(SWAP));
    let limit = wanted.limit.filter(|limit| *limit != 0);
    match (limit, swap) {
        (Some(limit), Some(swap)) => {
            let swap_first = swap < 0 || u64::try_from(swap).unwrap_or(0) > current(memory, SWAP);
            if swap_first {
                memory.set(SWAP, swap)?;
            }
            memory.set(LIMIT, limit)?;
            if !swap_first {
                memory.set(SWAP, swap)?;
            }
        }
        _ => {
            memory.set_some(LIMIT, limit)?;
            memory.set_some(SWAP, swap)?;
        }
    }
    memory.set_some("memory.soft_limit_in_bytes", wanted.reservation.filter(|value| *value != 0))?;
    memory.set_some("memory.kmem.tcp.limit_in_bytes", wanted.kernel_tcp.filter(|value| *value != 0))?;
    memory.set_some("memory.swappiness", wanted.swappiness)?;
    memory.set_some("memory.oom_control", wanted.disable_oom_killer.filter(|off| *off).map(u8::from))
}

/// No limit reads as a number beyond all limits, or where it cannot be read is taken for that.
fn current(controller: &Controller<'_>, file: &str) -> u64 {
    let text = std::fs::read_to_string(controller.0.join(file)).unwrap_or_default();
    text.trim().parse().unwrap_or(u64::MAX)
}

fn cpu_v1(cpu: &Controller<'_>, wanted: &Cpu) -> Result<()> {
    cpu.set_some("cpu.shares", wanted.shares.filter(|shares| *shares != 0))?;
    cpu.set_some("cpu.rt_period_us", wanted.realtime_period.filter(|period| *period != 0))?;
    cpu.set_some("cpu.rt_runtime_us", wanted.realtime_runtime.filter(|runtime| *runtime != 0))?;
    let period = wanted.period.filter(|period| *period != 0);
    let quota = wanted.quota.filter(|quota| *quota != 0);
    // With the quota of before a period may be too short or too long: then it goes after the new quota.
    if let Some(period) = period
        && let Err(error) = cpu.set("cpu.cfs_period_us", period)
        && quota.is_none()
    {
        return Err(error);
    }
    cpu.set_some("cpu.cfs_quota_us", quota)?;
    cpu.set_some("cpu.cfs_period_us", period)?;
    cpu.set_some("cpu.cfs_burst_us", wanted.burst)?;
    cpu.set_some("cpu.idle", wanted.idle)
}

fn block_io_v1(io: &Controller<'_>, wanted: &BlockIo) -> Result<()> {
    let own = if io.has("blkio.weight") { "blkio.weight" } else { "blkio.bfq.weight" };
    io.set_some(own, wanted.weight.filter(|weight| *weight != 0))?;
    io.set_some("blkio.leaf_weight", wanted.leaf_weight.filter(|weight| *weight != 0))?;
    for one in &wanted.weight_device {
        let line = |weight: u16| format!("{}:{} {weight}", one.major, one.minor);
        io.set_some(&format!("{own}_device"), one.weight.map(line))?;
        io.set_some("blkio.leaf_weight_device", one.leaf_weight.map(line))?;
    }
    for (file, list) in [
        ("blkio.throttle.read_bps_device", &wanted.throttle_read_bps_device),
        ("blkio.throttle.write_bps_device", &wanted.throttle_write_bps_device),
        ("blkio.throttle.read_iops_device", &wanted.throttle_read_iops_device),
        ("blkio.throttle.write_iops_device", &wanted.throttle_write_iops_device),
    ] {
        for Throttle { major, minor, rate } in list {
            io.set(file, format!("{major}:{minor} {rate}"))?;
        }
    }
    Ok(())
}

// === v2 ===

fn v2(cgroups: &Cgroups, wanted: &Resources) -> Result<()> {
    let missing = || Error::failed_precondition("this host has no cgroups");
    let group = Controller(cgroups.unified().ok_or_else(missing)?);
    if let Some(memory) = &wanted.memory {
        memory_v2(&group, memory)?;
    }
    if let Some(cpu) = &wanted.cpu {
        cpu_v2(&group, cpu)?;
    }
    if let Some(limit) = wanted.pids.as_ref().and_then(|pids| pids.limit).filter(|limit| *limit != 0) {
        group.set("pids.max", or_max(limit))?;
    }
    if let Some(io) = &wanted.block_io {
        block_io_v2(&group, io)?;
    }
    for one in &wanted.hugepage_limits {
        group.set(&format!("hugetlb.{}.max", one.page_size), one.limit)?;
    }
    for (device, rdma) in &wanted.rdma {
        group.set("rdma.max", rdma_line(device, rdma))?;
    }
    unified(&group, wanted)
}

fn memory_v2(group: &Controller<'_>, wanted: &Memory) -> Result<()> {
    let limit = wanted.limit.filter(|limit| *limit != 0);
    if let Some(swap) = wanted.swap.filter(|swap| *swap != 0) {
        // v2 counts swap alone.
        let swap = match (swap, limit) {
            (..0, _) => swap,
            (_, Some(limit @ 1..)) if swap >= limit => swap - limit,
            _ => return Err(Error::invalid_argument("memory+swap limit should be >= memory limit")),
        };
        // Not every kernel counts swap; then there is nothing to limit.
        if group.has("memory.swap.max") {
            group.set("memory.swap.max", or_max(swap))?;
        }
    }
    if let (Some(limit @ 1..), Some(true)) = (limit, wanted.check_before_update) {
        let used = current(group, "memory.current");
        if u64::try_from(limit).unwrap_or(0) < used {
            return Err(Error::failed_precondition(format!(
                "rejecting memory limit {limit} because of memory usage {used}"
            )));
        }
    }
    group.set_some("memory.max", limit.map(or_max))?;
    group.set_some("memory.low", wanted.reservation.filter(|value| *value != 0).map(or_max))
}

fn cpu_v2(group: &Controller<'_>, wanted: &Cpu) -> Result<()> {
    group.set_some("cpu.idle", wanted.idle)?;
    group.set_some("cpu.weight", wanted.shares.filter(|shares| *shares != 0).map(weight))?;
    if wanted.quota.is_some_and(|quota| quota != 0) || wanted.period.is_some_and(|period| period != 0) {
        let quota = wanted.quota.filter(|quota| *quota > 0).map_or("max".into(), |quota| quota.to_string());
        let period = wanted.period.filter(|period| *period != 0).unwrap_or(100_000);
        group.set("cpu.max", format!("{quota} {period}"))?;
    }
    group.set_some("cpu.max.burst", wanted.burst)?;
    group.set_some("cpuset.cpus", wanted.cpus.as_ref().filter(|cpus| !cpus.is_empty()))?;
    group.set_some("cpuset.mems", wanted.mems.as_ref().filter(|mems| !mems.is_empty()))
}

/// v1's 2 to 262144 as v2's 1 to 10000.
pub(crate) fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn block_io_v2(group: &Controller<'_>, wanted: &BlockIo) -> Result<()> {
    if let Some(weight) = wanted.weight.filter(|weight| *weight != 0) {
        if group.has("io.bfq.weight") {
            group.set("io.bfq.weight", weight)?;
        } else {
            // 10 to 1000 as 1 to 10000.
            group.set("io.weight", 1 + (u64::from(weight).max(10) - 10) * 9999 / 990)?;
        }
    }
    for one in &wanted.weight_device {
        let line = one.weight.map(|weight| format!("{}:{} {weight}", one.major, one.minor));
        group.set_some("io.bfq.weight", line)?;
    }
    for (key, list) in [
        ("rbps", &wanted.throttle_read_bps_device),
        ("wbps", &wanted.throttle_write_bps_device),
        ("riops", &wanted.throttle_read_iops_device),
        ("wiops", &wanted.throttle_write_iops_device),
    ] {
        for Throttle { major, minor, rate } in list {
            let rate = if *rate == 0 { "max".into() } else { rate.to_string() };
            group.set("io.max", format!("{major}:{minor} {key}={rate}"))?;
        }
    }
    Ok(())
}

fn unified(group: &Controller<'_>, wanted: &Resources) -> Result<()> {
    for (file, value) in &wanted.unified {
        if file.contains('/') || file == ".." || file == "." {
            return Err(Error::invalid_argument(format!("unified resource {file:?} must be a file name")));
        }
        for line in value.lines() {
            group.set(file, line)?;
        }
    }
    Ok(())
}

fn or_max(value: i64) -> String {
    if value < 0 { "max".into() } else { value.to_string() }
}

fn rdma_line(device: &str, limits: &crate::resources::Rdma) -> String {
    let mut line = device.to_owned();
    for (key, value) in [("hca_handle", limits.hca_handles), ("hca_object", limits.hca_objects)] {
        if let Some(value) = value {
            line.push_str(&format!(" {key}={value}"));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> (tempfile::TempDir, Cgroups) {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            std::fs::write(folder.path().join(file), "").unwrap();
        }
        let cgroups = Cgroups { v1: Vec::new(), v2: Some(folder.path().to_owned()) };
        (folder, cgroups)
    }

    fn resources(json: serde_json::Value) -> Resources {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn limits_are_written_as_v2_has_them() {
        let files =
            ["memory.max", "memory.swap.max", "memory.low", "cpu.weight", "cpu.max", "pids.max", "io.max"];
        let (folder, cgroups) = folder(&files);
        let wanted = resources(serde_json::json!({
            "memory": {"limit": 1000, "swap": 1500, "reservation": 500},
            "cpu": {"shares": 1024, "quota": 50000, "period": null},
            "pids": {"limit": -1},
            "blockIO": {"throttleReadIOPSDevice": [{"major": 8, "minor": 0, "rate": 30}]},
            "devices": null, "unified": {"memory.low": "600"},
        }));
        update(&cgroups, &wanted).unwrap();
        let read = |file: &str| std::fs::read_to_string(folder.path().join(file)).unwrap();
        assert_eq!(files.map(read), ["1000", "500", "600", "39", "50000 100000", "max", "8:0 riops=30"]);
    }

    #[test]
    fn nonsense_is_refused() {
        let (_folder, cgroups) = folder(&[]);
        let wanted = resources(serde_json::json!({"unified": {"../x": "1"}}));
        assert!(update(&cgroups, &wanted).unwrap_err().to_string().contains("must be a file name"));
        let wanted = resources(serde_json::json!({"memory": {"limit": 1000, "swap": 500}}));
        assert!(update(&cgroups, &wanted).unwrap_err().to_string().contains(">= memory limit"));
        let wanted = resources(serde_json::json!({"pids": {"limit": 5}}));
        assert!(update(&cgroups, &wanted).unwrap_err().to_string().contains("pids.max"));
    }

    #[test]
    fn weights_keep_their_ends() {
        assert_eq!([weight(0), weight(2), weight(262_144), weight(u64::MAX)], [1, 1, 10000, 10000]);
    }
}
