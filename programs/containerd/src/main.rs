//! The daemon: all of it is in the library.

/// The C library's, which is sampled while there is a debug socket.
#[global_allocator]
static HEAP: corten_sys::SampledHeap = corten_sys::SampledHeap;

fn main() {
    containerd::main();
}
