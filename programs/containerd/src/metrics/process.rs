//! The daemon's own process (`process_*`), as the kernel has it.

use std::fs;

use rustix::process::{Resource, getrlimit};

use super::text::{Kind, Page};

/// The unit of times in /proc: hundredths of a second, on all architectures.
const TICKS: f64 = 100.0;

/// What cannot be read is left out.
pub fn show(page: &mut Page) {
    let mut show = |name: &str, help: &str, kind: Kind, value: Option<f64>| {
        if let Some(value) = value {
            page.family(&format!("process_{name}"), help, kind).value(&[], value);
        }
    };
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name, which may hold anything; the first of them is the third field.
    let fields: Vec<f64> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0.0))
        .collect();
    let field = |number: usize| fields.get(number - 3).copied();
    let cpu = field(14).zip(field(15)).map(|(user, system)| (user + system) / TICKS);
    let help = "Total user and system CPU time spent in seconds.";
    show("cpu_seconds_total", help, Kind::Counter, cpu);
    let started = field(22).zip(boot_time()).map(|(ticks, boot)| boot + ticks / TICKS);
    let help = "Start time of the process since unix epoch in seconds.";
    show("start_time_seconds", help, Kind::Gauge, started);
    show("virtual_memory_bytes", "Virtual memory size in bytes.", Kind::Gauge, field(23));
    show("resident_memory_bytes", "Resident memory size in bytes.", Kind::Gauge, resident());
    let open = fs::read_dir("/proc/self/fd").map(|list| list.count().saturating_sub(1) as f64).ok();
    show("open_fds", "Number of open file descriptors.", Kind::Gauge, open);
    let limit = |resource| Some(getrlimit(resource).current.unwrap_or(u64::MAX) as f64);
    show("max_fds", "Maximum number of open file descriptors.", Kind::Gauge, limit(Resource::Nofile));
    let help = "Maximum amount of virtual memory available in bytes.";
    show("virtual_memory_max_bytes", help, Kind::Gauge, limit(Resource::As));
    let network = network();
    let help = "Number of bytes received by the process over the network.";
    show("network_receive_bytes_total", help, Kind::Counter, network.map(|bytes| bytes.0));
    let help = "Number of bytes sent by the process over the network.";
    show("network_transmit_bytes_total", help, Kind::Counter, network.map(|bytes| bytes.1));
}

/// Seconds since the epoch.
fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

fn resident() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024.0)
}

/// Bytes in and out of the network namespace, which is what the original shows under these names.
fn network() -> Option<(f64, f64)> {
    let text = fs::read_to_string("/proc/self/net/netstat").ok()?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("IpExt: "));
    let (names, values) = (lines.next()?, lines.next()?);
    let find = |name: &str| {
        let index = names.split_whitespace().position(|other| other == name)?;
        values.split_whitespace().nth(index)?.parse().ok()
    };
    Some((find("InOctets")?, find("OutOctets")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_itself() {
        let mut page = Page::default();
        show(&mut page);
        let text = page.finish();
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
            line.split(' ').nth(1).unwrap().parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e5);
        assert!(value("process_virtual_memory_bytes") > value("process_resident_memory_bytes"));
        assert!(value("process_open_fds") >= 3.0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - value("process_start_time_seconds")).abs() < 3600.0);
        assert_eq!(text.matches("# TYPE").count(), 9, "{text}");
    }
}
