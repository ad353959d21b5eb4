//! Where processor time goes: stacks of the threads that run, a hundred times in each second of it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use corten_sys::Sampler;
use corten_types::{Error, Result};

use super::heap::resolve;
use super::pprof::{Frame, Profile};
use super::unwind::Unwinder;

/// Processor time between samples.
const PERIOD: Duration = Duration::from_millis(10);
/// How often samples are fetched: before their places run out.
const FETCH: Duration = Duration::from_millis(50);

/// Looks for so long, which keeps the thread, and answers the profile. One at a time.
///
/// # Errors
/// FailedPrecondition while another one looks.
pub fn profile(duration: Duration) -> Result<Vec<u8>> {
    let mut unwinder = Unwinder::of_this_process();
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Error::failed_precondition("Could not enable CPU profiling: cpu profiling already in use")
        }
        _ => Error::internal(format!("Could not enable CPU profiling: {error}")),
    };
    let mut sampler = Sampler::start(PERIOD).map_err(failed)?;
    let (begun, mut stacks) = (Instant::now(), HashMap::<(i32, Vec<u64>), i64>::new());
    while let Some(left) = duration.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) {
        std::thread::sleep(left.min(FETCH));
        for sample in sampler.fetch() {
            *stacks.entry((sample.thread, unwinder.stack(&sample))).or_default() += 1;
        }
    }
    if sampler.missed() > 0 {
        tracing::warn!(missed = sampler.missed(), "samples of the processor's time found no place");
    }
    drop(sampler);
    write(&stacks, begun.elapsed())
}

fn write(stacks: &HashMap<(i32, Vec<u64>), i64>, duration: Duration) -> Result<Vec<u8>> {
    let period = i64::try_from(PERIOD.as_nanos()).unwrap_or(i64::MAX);
    let mut profile = Profile::new(&[("samples", "count"), ("cpu", "nanoseconds")]);
    profile.period("cpu", "nanoseconds", period);
    profile.lasted(duration);
    let mut known: HashMap<u64, Frame> = HashMap::new();
    for ((thread, addresses), count) in stacks {
        let resolved = addresses.iter().map(|address| {
            let frame = known.entry(*address).or_insert_with(|| resolve(*address as usize + 1));
            frame.address = *address;
            frame.clone()
        });
        let frames: Vec<Frame> = resolved.collect();
        let name = std::fs::read_to_string(format!("/proc/self/task/{thread}/comm")).unwrap_or_default();
        profile.sample(&frames, &[*count, count.saturating_mul(period)], &[("thread", name.trim())]);
    }
    backtrace::clear_symbol_cache();
    Ok(profile.finish()?)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[inline(never)]
    fn a_function_that_is_busy(until: Instant) -> u64 {
        let mut sum = 0;
        while Instant::now() < until {
            sum = (0..10_000_u64).fold(sum, |sum, n| std::hint::black_box(sum ^ n));
        }
        sum
    }

    #[test]
    fn a_busy_function_and_its_callers_are_in_the_profile() {
        let until = Instant::now() + Duration::from_secs(2);
        let busy = std::thread::Builder::new().name("busy".into());
        let busy = busy.spawn(move || a_function_that_is_busy(until)).unwrap();
        let file = profile(Duration::from_secs(1)).unwrap();
        busy.join().unwrap();
        let mut text = Vec::new();
        flate2::read::GzDecoder::new(file.as_slice()).read_to_end(&mut text).unwrap();
        let text = String::from_utf8_lossy(&text);
        assert!(text.contains("a_function_that_is_busy"), "{text}");
        assert!(text.contains("thread_start") || text.contains("start_thread"), "unwound to the end: {text}");
        assert!(text.contains("busy"));
    }
}
