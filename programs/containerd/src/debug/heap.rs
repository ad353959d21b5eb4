//! Who holds the heap, by samples that are taken from the start on while there is a debug socket.

use std::fmt::Write;

use corten_types::Result;

use super::pprof::{Frame, Line, Profile};

/// Mean bytes between samples, as in Go.
pub const RATE: usize = 512 << 10;

/// The profile, scaled up from the samples to what they stand for.
///
/// # Errors
/// None in practice.
pub fn profile() -> Result<Vec<u8>> {
    let (rate, sites) = corten_sys::heap_samples();
    let mut profile = Profile::new(&[
        ("alloc_objects", "count"),
        ("alloc_space", "bytes"),
        ("inuse_objects", "count"),
        ("inuse_space", "bytes"),
    ]);
    profile.period("space", "bytes", i64::try_from(rate).unwrap_or(i64::MAX));
    for site in sites {
        let (made, held) = (scaled(site.allocated, rate), scaled(site.held, rate));
        let frames: Vec<Frame> = site.stack.iter().map(|address| resolve(*address)).collect();
        profile.sample(callers(&frames), &[made.0, made.1, held.0, held.1], &[]);
    }
    backtrace::clear_symbol_cache();
    Ok(profile.finish()?)
}

/// The same as text, as `debug=1` asks for it.
pub fn text() -> String {
    let (rate, mut sites) = corten_sys::heap_samples();
    let sum = |pick: fn(&corten_sys::HeapSite) -> (u64, u64)| {
        sites.iter().map(pick).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    };
    let (held, made) = (sum(|site| site.held), sum(|site| site.allocated));
    let head = format!("heap profile: {}: {} [{}: {}] @ heap/{}\n", held.0, held.1, made.0, made.1, 2 * rate);
    let mut text = head;
    sites.sort_by_key(|site| std::cmp::Reverse(site.held.1));
    // Writing to a string cannot fail.
    for site in sites {
        let (held, made) = (site.held, site.allocated);
        let _ = write!(text, "{}: {} [{}: {}] @", held.0, held.1, made.0, made.1);
        for address in &site.stack {
            let _ = write!(text, " {address:#x}");
        }
        text.push('\n');
        let frames: Vec<Frame> = site.stack.iter().map(|address| resolve(*address)).collect();
        for frame in callers(&frames) {
            for line in &frame.lines {
                let _ =
                    writeln!(text, "#\t{:#x}\t{}\t{}:{}", frame.address, line.function, line.file, line.line);
            }
        }
        text.push('\n');
    }
    backtrace::clear_symbol_cache();
    let usage = corten_sys::heap_usage();
    let _ = writeln!(text, "# HeapInuse = {}\n# HeapIdle = {}", usage.used, usage.free);
    text
}

/// Blocks and bytes that sampled ones stand for: a block of `s` bytes is hit with the chance 1 - e^(-s/rate).
fn scaled((blocks, bytes): (u64, u64), rate: usize) -> (i64, i64) {
    if blocks == 0 || bytes == 0 || rate == 0 {
        return (0, 0);
    }
    let average = bytes as f64 / blocks as f64;
    let scale = 1.0 / (1.0 - (-average / rate as f64).exp());
    ((blocks as f64 * scale) as i64, (bytes as f64 * scale) as i64)
}

/// The stack without the allocator's own part of it, which is at most its first few frames.
fn callers(frames: &[Frame]) -> &[Frame] {
    const OWN: [&str; 4] = ["corten_sys::heap", "SampledHeap", "__rust_alloc", "__rust_realloc"];
    let own =
        |frame: &Frame| frame.lines.iter().any(|line| OWN.iter().any(|part| line.function.contains(part)));
    let head = frames.get(..12).unwrap_or(frames);
    let first = head.iter().rposition(own).map_or(0, |last| last + 1);
    // A stack that has nothing else is shown whole.
    frames.get(first..).filter(|rest| !rest.is_empty()).unwrap_or(frames)
}

/// What is at an address, with what was inlined there.
pub fn resolve(address: usize) -> Frame {
    let mut lines = Vec::new();
    // A return address is behind its call.
    backtrace::resolve(std::ptr::without_provenance_mut(address.saturating_sub(1)), |symbol| {
        lines.push(Line {
            function: symbol.name().map(|name| format!("{name:#}")).unwrap_or_default(),
            file: symbol.filename().map(|path| path.display().to_string()).unwrap_or_default(),
            line: symbol.lineno().unwrap_or(0),
        });
    });
    Frame { address: address as u64, lines }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_stand_for_what_was_not_sampled() {
        // Blocks of the rate's size are hit with a chance of 63 %.
        assert_eq!(scaled((63, 63 * 1024), 1024).0, 99);
        // Large blocks are always hit.
        assert_eq!(scaled((2, 200 << 20), RATE), (2, 200 << 20));
        assert_eq!(scaled((0, 0), RATE), (0, 0));
    }

    #[test]
    fn an_address_is_resolved_to_its_function() {
        let here = resolve(an_address_is_resolved_to_its_function as fn() as usize + 8);
        assert!(here.lines.iter().any(|line| line.function.contains("an_address_is_resolved")), "{here:?}");
    }
}
