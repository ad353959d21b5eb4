//! The C library's heap, and a sampled record of who holds it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Return addresses that are kept of a stack.
const DEPTH: usize = 64;
/// Different stacks that are kept; samples of further ones are dropped.
const MAX_STACKS: usize = 16 << 10;
/// Slots that tell quickly that a block is no sample.
const SLOTS: usize = 4096;

/// The heap of the C library. While [`sample_heap`] is in force, blocks are sampled; otherwise this costs one
/// look at a number per call. To be used as a program's `#[global_allocator]`.
#[derive(Debug)]
pub struct SampledHeap;

/// What was allocated by one stack, as far as it was sampled.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeapSite {
    /// Return addresses, innermost first.
    pub stack: Vec<usize>,
    /// Blocks so far, and their bytes.
    pub allocated: (u64, u64),
    /// Blocks that are not freed, and their bytes.
    pub held: (u64, u64),
}

/// Bytes of the heap.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeapUsage {
    /// Handed out.
    pub used: usize,
    /// Kept by the library for later.
    pub free: usize,
    /// Taken from the system by its own mapping, block by block; part of `used`.
    pub mapped: usize,
}

const UNKNOWN: i64 = i64::MIN;

/// Mean distance of samples in bytes; 0 for none.
static RATE: AtomicUsize = AtomicUsize::new(0);
/// Samples by a hash of their address.
static FILTER: [AtomicU8; SLOTS] = [const { AtomicU8::new(0) }; SLOTS];
static SAMPLES: Mutex<Option<Samples>> = Mutex::new(None);

thread_local! {
    /// Bytes until the next sample; [`UNKNOWN`] before the first.
    static LEFT: Cell<i64> = const { Cell::new(UNKNOWN) };
    /// The thread is keeping books: what that allocates is not sampled.
    static BUSY: Cell<bool> = const { Cell::new(false) };
    /// State of the generator of distances.
    static RANDOM: Cell<u64> = const { Cell::new(0) };
}

#[derive(Default)]
struct Samples {
    sites: Vec<HeapSite>,
    stacks: HashMap<Vec<usize>, usize>,
    /// Site and size of each block that is held, by address.
    blocks: HashMap<usize, (usize, usize)>,
}

/// Takes a sample every so many bytes on average from now on; 0 ends it and forgets all samples.
pub fn sample_heap(bytes: usize) {
    quietly(|| {
        RATE.store(bytes, Ordering::Relaxed);
        let mut samples = samples();
        *samples = (bytes > 0).then(Samples::default);
        FILTER.iter().for_each(|slot| slot.store(0, Ordering::Relaxed));
    });
}

/// The distance of samples, and what was sampled so far; nothing while sampling is off.
#[must_use]
pub fn heap_samples() -> (usize, Vec<HeapSite>) {
    let sites = quietly(|| samples().as_ref().map(|samples| samples.sites.clone()));
    (RATE.load(Ordering::Relaxed), sites.flatten().unwrap_or_default())
}

/// What the C library says of its heap.
#[must_use]
pub fn heap_usage() -> HeapUsage {
    // SAFETY: has no preconditions.
    let info = unsafe { libc::mallinfo2() };
    HeapUsage { used: info.uordblks + info.hblkhd, free: info.fordblks, mapped: info.hblkhd }
}

// SAFETY: all blocks come from and go to the system's allocator, unchanged.
unsafe impl GlobalAlloc for SampledHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        let block = unsafe { System.alloc(layout) };
        made(block, layout.size());
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        let block = unsafe { System.alloc_zeroed(layout) };
        made(block, layout.size());
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        goes(block);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(block, layout) };
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Before the address can be another thread's.
        goes(block);
        // SAFETY: as the caller promises.
        let block = unsafe { System.realloc(block, layout, size) };
        made(block, size);
        block
    }
}

#[inline]
fn made(block: *mut u8, size: usize) {
    let rate = RATE.load(Ordering::Relaxed);
    if rate != 0 && !block.is_null() {
        count(block as usize, size, rate);
    }
}

#[inline]
fn goes(block: *mut u8) {
    if RATE.load(Ordering::Relaxed) != 0 && slot(block as usize).load(Ordering::Relaxed) != 0 {
        forget(block as usize);
    }
}

#[cold]
fn count(block: usize, size: usize, rate: usize) {
    // While the thread ends there may be no place to count in.
    let due = LEFT.try_with(|left| {
        let before = if left.get() == UNKNOWN { distance(rate) } else { left.get() };
        let rest = before.saturating_sub_unsigned(size as u64);
        left.set(if rest > 0 { rest } else { distance(rate) });
        rest <= 0
    });
    if due == Ok(true) {
        quietly(|| keep(block, size));
    }
}

fn keep(block: usize, size: usize) {
    let mut stack = Stack { addresses: [0; DEPTH], length: 0 };
    // SAFETY: the callback takes the pointer for what it is, and only during the call.
    unsafe { _Unwind_Backtrace(note, (&raw mut stack).cast()) };
    let stack = stack.addresses.get(..stack.length).unwrap_or_default();
    let mut samples = samples();
    let Some(samples) = samples.as_mut() else { return };
    let site = match samples.stacks.get(stack) {
        Some(site) => *site,
        None if samples.sites.len() >= MAX_STACKS => return,
        None => {
            samples.stacks.insert(stack.to_vec(), samples.sites.len());
            samples.sites.push(HeapSite { stack: stack.to_vec(), ..HeapSite::default() });
            samples.sites.len() - 1
        }
    };
    let full = slot(block).load(Ordering::Relaxed) == u8::MAX;
    let Some(totals) = samples.sites.get_mut(site).filter(|_| !full) else { return };
    for (blocks, bytes) in [&mut totals.allocated, &mut totals.held] {
        *blocks += 1;
        *bytes += size as u64;
    }
    samples.blocks.insert(block, (site, size));
    slot(block).fetch_add(1, Ordering::Relaxed);
}

#[cold]
fn forget(block: usize) {
    quietly(|| {
        let mut samples = samples();
        let Some(samples) = samples.as_mut() else { return };
        let Some((site, size)) = samples.blocks.remove(&block) else { return };
        slot(block).fetch_sub(1, Ordering::Relaxed);
        if let Some(totals) = samples.sites.get_mut(site) {
            totals.held.0 -= 1;
            totals.held.1 -= size as u64;
        }
    });
}

/// Does what may allocate without being sampled. Nothing, if the thread is about it already.
fn quietly<T>(work: impl FnOnce() -> T) -> Option<T> {
    if BUSY.try_with(|busy| busy.replace(true)) != Ok(false) {
        return None;
    }
    let done = work();
    let _ = BUSY.try_with(|busy| busy.set(false));
    Some(done)
}

fn samples() -> MutexGuard<'static, Option<Samples>> {
    SAMPLES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn slot(block: usize) -> &'static AtomicU8 {
    // The index is below the number of slots.
    &FILTER[((block >> 4) ^ (block >> 16)) % SLOTS]
}

/// Bytes until the next sample: distributed so that each byte is as likely to be hit as any other.
fn distance(rate: usize) -> i64 {
    let random = RANDOM.try_with(|state| {
        // xorshift, begun with an address, which differs from thread to thread.
        let mut x = if state.get() == 0 { (&raw const *state) as u64 | 1 } else { state.get() };
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        state.set(x);
        x
    });
    let share = (random.unwrap_or(1) >> 11) as f64 / (1_u64 << 53) as f64;
    (-(1.0 - share).ln() * rate as f64) as i64 + 1
}

struct Stack {
    addresses: [usize; DEPTH],
    length: usize,
}

type Note = extern "C" fn(*mut c_void, *mut c_void) -> c_int;

// Of the unwinder that every Rust program is linked with.
unsafe extern "C" {
    fn _Unwind_Backtrace(note: Note, data: *mut c_void) -> c_int;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
}

extern "C" fn note(context: *mut c_void, data: *mut c_void) -> c_int {
    // SAFETY: `data` is the stack of `keep`, and nobody else has it.
    let stack = unsafe { &mut *data.cast::<Stack>() };
    let Some(place) = stack.addresses.get_mut(stack.length) else { return 5 };
    // SAFETY: the context is the unwinder's, valid during this call.
    *place = unsafe { _Unwind_GetIP(context) };
    // The outermost frame may have none.
    stack.length += usize::from(*place != 0);
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static HEAP: SampledHeap = SampledHeap;

    fn held() -> u64 {
        heap_samples().1.iter().map(|site| site.held.1).sum()
    }

    #[test]
    fn blocks_are_known_from_their_making_to_their_end() {
        assert_eq!(heap_samples(), (0, Vec::new()));
        // Every block is larger than any distance that is likely.
        sample_heap(64);
        let kept: Vec<Vec<u8>> = (0..16).map(|_| vec![1; 1 << 20]).collect();
        let with = held();
        assert!(with >= 16 << 20, "{with}");
        let of_test = heap_samples().1.iter().filter(|site| site.stack.len() > 3).count();
        assert!(of_test > 0);
        std::thread::scope(|scope| drop(scope.spawn(move || drop(kept)).join()));
        let without = held();
        assert!(without < with - (15 << 20), "{with} {without}");
        let mut grown = vec![0_u8; 1 << 20];
        grown.resize(8 << 20, 0);
        assert!(held() >= without + (7 << 20));
        drop(grown);
        assert!(heap_usage().used > 0);
        sample_heap(0);
        assert_eq!(heap_samples(), (0, Vec::new()));
    }
}
