//! What the daemon is about: its threads, its tasks, and the calls that it answers. In place of goroutines.

use std::fmt::Write;
use std::fs;
use std::time::Duration;

use corten_types::Result;

use super::pprof::{Frame, Line, Profile};

/// A thread, as the kernel has it.
#[derive(Debug)]
struct Thread {
    id: u32,
    name: String,
    /// `running`, `sleeping`, …
    state: String,
    /// Processor time so far.
    time: Duration,
    /// Functions of the kernel that it is in, innermost first.
    stack: Vec<String>,
}

/// A call that is being answered: path, namespace, age.
pub type Call = (String, String, Duration);

fn threads() -> Vec<Thread> {
    let entries = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let mut threads: Vec<Thread> =
        entries.filter_map(|entry| thread(entry.file_name().to_str()?.parse().ok()?)).collect();
    threads.sort_by_key(|thread| thread.id);
    threads
}

fn thread(id: u32) -> Option<Thread> {
    let read = |file: &str| fs::read_to_string(format!("/proc/self/task/{id}/{file}"));
    let status = read("status").ok()?;
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    let state = field("State:");
    let state = state.split_once('(').map_or(state, |(_, word)| word.trim_end_matches(')'));
    let stat = read("stat").ok()?;
    let mut ticks =
        stat.rsplit(')').next()?.split_whitespace().skip(11).filter_map(|text| text.parse::<u64>().ok());
    let time = Duration::from_millis(10 * (ticks.next()? + ticks.next()?));
    let frame = |line: &str| Some(line.split_once("] ")?.1.split('+').next()?.to_owned());
    let mut stack: Vec<String> = read("stack").unwrap_or_default().lines().filter_map(frame).collect();
    if stack.is_empty() {
        stack.extend(read("wchan").ok().filter(|function| !matches!(function.as_str(), "" | "0")));
    }
    Some(Thread { id, name: field("Name:").to_owned(), state: state.to_owned(), time, stack })
}

/// Everything as text.
pub fn text(calls: &[Call]) -> String {
    let threads = threads();
    let mut text = format!("goroutine profile: total {}\n", threads.len());
    // Writing to a string cannot fail.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        let metrics = runtime.metrics();
        let _ = writeln!(
            text,
            "tasks: {} alive, {} queued, {} workers",
            metrics.num_alive_tasks(),
            metrics.global_queue_depth(),
            metrics.num_workers()
        );
    }
    let _ = writeln!(text, "calls: {} open", calls.len());
    for (path, namespace, age) in calls {
        let _ = writeln!(text, "\t{} {namespace} {:.3}s", path.trim_start_matches('/'), age.as_secs_f64());
    }
    for thread in threads {
        let time = thread.time.as_secs_f64();
        let _ = writeln!(text, "\nthread {} [{}] {} {time:.2}s", thread.id, thread.state, thread.name);
        for function in &thread.stack {
            let _ = writeln!(text, "\t{function}");
        }
    }
    text
}

/// The threads as a profile: one sample each, with what it is in.
///
/// # Errors
/// None in practice.
pub fn profile(kind: &str) -> Result<Vec<u8>> {
    let mut profile = Profile::new(&[(kind, "count")]);
    profile.period(kind, "count", 1);
    let mut known: Vec<String> = Vec::new();
    for thread in threads() {
        let name = format!("thread {}", thread.name);
        let frames: Vec<Frame> = thread
            .stack
            .iter()
            .chain([&name])
            .map(|function| {
                let index = known.iter().position(|other| other == function).unwrap_or_else(|| {
                    known.push(function.clone());
                    known.len() - 1
                });
                // Places have no addresses here; they must differ all the same.
                let line = Line { function: function.clone(), ..Line::default() };
                Frame { address: index as u64 + 1, lines: vec![line] }
            })
            .collect();
        profile.sample(&frames, &[1], &[("state", &thread.state)]);
    }
    Ok(profile.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_thread_is_among_them_and_calls_are_listed() {
        let shown = text(&[("/a.B/C".into(), "ns".into(), Duration::from_millis(1500))]);
        assert!(shown.contains(&format!("thread {} [", std::process::id())), "{shown}");
        assert!(shown.contains("calls: 1 open\n\ta.B/C ns 1.500s\n"), "{shown}");
        assert!(profile("goroutine").unwrap().len() > 50);
    }
}
