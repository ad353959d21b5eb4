//! What all threads do, for people who wonder why the daemon hangs.

use std::fmt::Write;

use corten_types::{Result, ResultExt};
use tokio::runtime::Handle;

/// Writes to the log and to `<temporary folder>/containerd.<pid>.stacks.log`.
///
/// # Errors
/// Those of the file system.
pub fn dump() -> Result<()> {
    let text = text();
    tracing::info!("=== BEGIN stack dump ===\n{text}\n=== END stack dump ===");
    let path = std::env::temp_dir().join(format!("containerd.{}.stacks.log", std::process::id()));
    corten_durable::write_file(&path, text.as_bytes(), 0o600).with_context(|| path.display().to_string())?;
    tracing::info!(path = %path.display(), "stack dump written");
    Ok(())
}

/// A paragraph for the tasks, then one for each thread: its name and state, the system call that it is in and,
/// where the kernel tells, how it came there.
fn text() -> String {
    let mut out = String::new();
    if let Ok(handle) = Handle::try_current() {
        let metrics = handle.metrics();
        let _ = writeln!(
            out,
            "tasks: {} alive, {} waiting for a worker, {} workers\n",
            metrics.num_alive_tasks(),
            metrics.global_queue_depth(),
            metrics.num_workers()
        );
    }
    for entry in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let read = |name: &str| {
            let text = std::fs::read_to_string(entry.path().join(name)).unwrap_or_default();
            text.trim_end().to_owned()
        };
        let status = read("status");
        let state = status.lines().find_map(|line| line.strip_prefix("State:")).unwrap_or_default().trim();
        let _ = writeln!(
            out,
            "thread {} {:?}: {state}\nsystem call: {}\nwaits in: {}\n{}\n",
            entry.file_name().display(),
            read("comm"),
            read("syscall"),
            read("wchan"),
            read("stack"),
        );
    }
    out
}
