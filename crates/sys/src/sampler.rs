//! Samples of what the threads of this process do with the processor: registers and the top of the stack, to be
//! unwound later by whoever has time. The signal's handler only copies, so it may come at any moment.

use std::cell::UnsafeCell;
use std::io;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::checked;

/// Bytes of a stack that are kept.
const DEPTH: usize = 32 << 10;
/// Samples that wait to be fetched.
const SLOTS: usize = 64;

const FREE: u8 = 0;
const TAKEN: u8 = 1;
const FULL: u8 = 2;

/// A thread at a moment.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// The thread.
    pub thread: i32,
    /// What it was about to do: the instruction's address.
    pub instruction: u64,
    /// Address of the first byte of `stack`.
    pub stack_pointer: u64,
    /// The frame pointer's register.
    pub frame_pointer: u64,
    /// The register of the return address, where there is one.
    pub link: u64,
    /// The stack's top, as much of it as is kept.
    pub stack: Vec<u8>,
}

/// Takes samples until it is dropped. There is one at a time.
#[derive(Debug)]
pub struct Sampler(());

#[derive(Clone, Copy)]
struct Raw {
    thread: i32,
    registers: [u64; 4],
    length: usize,
    stack: [u8; DEPTH],
}

struct Slot {
    state: AtomicU8,
    raw: UnsafeCell<MaybeUninit<Raw>>,
}

struct Slots {
    slots: Box<[Slot]>,
    next: AtomicUsize,
}

// SAFETY: a slot's contents belong to whoever changed its state from FREE to TAKEN, or found it FULL and is the
// one that fetches; states are passed on with release and acquire.
unsafe impl Sync for Slots {}

/// Made with the first sampler, and kept: a handler may come late.
static PLACES: OnceLock<Slots> = OnceLock::new();
static RUNNING: AtomicBool = AtomicBool::new(false);
static MISSED: AtomicU64 = AtomicU64::new(0);

impl Sampler {
    /// Takes a sample whenever the process has used the processor for so long.
    ///
    /// # Errors
    /// AlreadyExists while there is another sampler; those of sigaction(2) and setitimer(2).
    pub fn start(interval: Duration) -> io::Result<Self> {
        if RUNNING.swap(true, Ordering::AcqRel) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let sampler = Self(());
        let slots = PLACES.get_or_init(|| {
            let slot = || Slot { state: AtomicU8::new(FREE), raw: UnsafeCell::new(MaybeUninit::uninit()) };
            Slots { slots: (0..SLOTS).map(|_| slot()).collect(), next: AtomicUsize::new(0) }
        });
        // What an earlier one left.
        slots.slots.iter().for_each(|slot| {
            let _ = slot.state.compare_exchange(FULL, FREE, Ordering::AcqRel, Ordering::Relaxed);
        });
        MISSED.store(0, Ordering::Relaxed);
        // SAFETY: the handler keeps to what is allowed in one; all fields are set, or are zero, which is valid.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
            libc::sigemptyset(&raw mut action.sa_mask);
            checked(libc::sigaction(libc::SIGPROF, &raw const action, std::ptr::null_mut()).into())?;
        }
        set_timer(interval)?;
        Ok(sampler)
    }

    /// The samples since the last time.
    pub fn fetch(&mut self) -> Vec<Sample> {
        let slots = PLACES.get().map(|places| &places.slots[..]).unwrap_or_default();
        let full = slots.iter().filter(|slot| slot.state.load(Ordering::Acquire) == FULL);
        full.map(|slot| {
            // SAFETY: the slot is full, and nobody else fetches: there is one sampler, and this is it.
            let raw = unsafe { (*slot.raw.get()).assume_init_ref() };
            let [instruction, stack_pointer, frame_pointer, link] = raw.registers;
            let stack = raw.stack.get(..raw.length).unwrap_or_default().to_vec();
            let sample =
                Sample { thread: raw.thread, instruction, stack_pointer, frame_pointer, link, stack };
            slot.state.store(FREE, Ordering::Release);
            sample
        })
        .collect()
    }

    /// Samples that found no place.
    #[must_use]
    pub fn missed(&self) -> u64 {
        MISSED.load(Ordering::Relaxed)
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        // The handler stays: a signal that is on its way would end the process otherwise.
        let _ = set_timer(Duration::ZERO);
        RUNNING.store(false, Ordering::Release);
    }
}

fn set_timer(interval: Duration) -> io::Result<()> {
    let time = libc::timeval {
        tv_sec: interval.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_usec: interval.subsec_micros().into(),
    };
    let timer = libc::itimerval { it_interval: time, it_value: time };
    // SAFETY: the timer is valid during the call.
    checked(unsafe { libc::setitimer(libc::ITIMER_PROF, &raw const timer, std::ptr::null_mut()) }.into())?;
    Ok(())
}

/// Copies, and nothing else: no lock, no heap, only system calls that are allowed here.
extern "C" fn handle(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(places) = PLACES.get().filter(|_| RUNNING.load(Ordering::Acquire)) else { return };
    // SAFETY: this thread's errno; what it was in the middle of must not see another one.
    let errno = unsafe { *libc::__errno_location() };
    let first = places.next.fetch_add(1, Ordering::Relaxed);
    let free = (0..SLOTS)
        .filter_map(|offset| places.slots.get((first + offset) % SLOTS))
        .find(|slot| slot.state.compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok());
    match free {
        Some(slot) => {
            // SAFETY: the slot is this handler's; the context is that of the signal.
            unsafe { copy(slot.raw.get().cast(), context.cast()) };
            slot.state.store(FULL, Ordering::Release);
        }
        None => drop(MISSED.fetch_add(1, Ordering::Relaxed)),
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// # Safety
/// `raw` is writable, and `context` is a signal's.
unsafe fn copy(raw: *mut Raw, context: *const libc::ucontext_t) {
    // SAFETY: as the caller promises.
    let registers = unsafe { registers(&*context) };
    let [_, stack, ..] = registers;
    // SAFETY: each field is written without being read. The kernel checks what it copies: the read ends where
    // the stack does.
    unsafe {
        let local = libc::iovec { iov_base: (&raw mut (*raw).stack).cast(), iov_len: DEPTH };
        let remote = libc::iovec { iov_base: stack as *mut libc::c_void, iov_len: DEPTH };
        let mut copied = libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0);
        if copied < 0 {
            // A single part is copied whole or not at all by some kernels: to the end of the page at least.
            let rest = 4096 - (stack as usize & 4095);
            let local = libc::iovec { iov_len: rest, ..local };
            let remote = libc::iovec { iov_len: rest, ..remote };
            copied = libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0);
        }
        (&raw mut (*raw).length).write(usize::try_from(copied).unwrap_or(0).min(DEPTH));
        (&raw mut (*raw).registers).write(registers);
        (&raw mut (*raw).thread).write(libc::syscall(libc::SYS_gettid) as i32);
    }
}

/// Instruction, stack, frame, link.
#[cfg(target_arch = "x86_64")]
fn registers(context: &libc::ucontext_t) -> [u64; 4] {
    let register = |number: i32| context.uc_mcontext.gregs[number as usize] as u64;
    [register(libc::REG_RIP), register(libc::REG_RSP), register(libc::REG_RBP), 0]
}

/// Instruction, stack, frame, link.
#[cfg(target_arch = "aarch64")]
fn registers(context: &libc::ucontext_t) -> [u64; 4] {
    let machine = &context.uc_mcontext;
    [machine.pc, machine.sp, machine.regs[29], machine.regs[30]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_thread_is_seen_and_there_is_one_sampler_at_a_time() {
        let mut sampler = Sampler::start(Duration::from_millis(2)).unwrap();
        assert_eq!(
            Sampler::start(Duration::from_millis(2)).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        let mut samples = Vec::new();
        let mut sum = 0_u64;
        while samples.len() < 20 {
            sum = (0..200_000_u64).fold(sum, |sum, n| std::hint::black_box(sum.wrapping_mul(31) ^ n));
            samples.extend(sampler.fetch());
        }
        drop(sampler);
        assert!(samples.iter().all(|sample| sample.thread > 0 && sample.instruction > 0));
        let sample = samples.iter().find(|sample| sample.stack.len() > 256).expect("a stack");
        // This thread's stack is where a variable of it is.
        let here = (&raw const sum) as u64;
        let near = samples.iter().any(|sample| {
            sample.stack_pointer <= here && here - sample.stack_pointer < sample.stack.len() as u64
        });
        assert!(near, "{:#x} {:#x}", sample.stack_pointer, here);
        drop(Sampler::start(Duration::from_millis(2)).unwrap());
    }
}
