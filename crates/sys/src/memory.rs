//! The C library's heap.

/// Gives unused heap back to the system.
pub fn trim_heap() {
    // SAFETY: has no preconditions.
    unsafe { libc::malloc_trim(0) };
}

/// Tells the allocator to keep to a few arenas and to give back early.
pub fn economize_heap(arenas: i32) {
    // SAFETY: sets tunables; called before there are threads.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, arenas);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 << 10);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 << 10);
    }
}
