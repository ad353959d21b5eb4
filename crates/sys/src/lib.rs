//! System calls that need `unsafe`, behind safe functions. It is forbidden everywhere else.
//!
//! Each function is one call, or a few that belong together. Nothing here decides anything.

#![allow(unsafe_code)]

mod bpf;
mod descriptors;
mod heap;
mod identities;
mod links;
mod locks;
mod loops;
mod memory;
mod mounts;
mod process;
mod sampler;
mod subvolumes;
mod task;
mod verity;

pub use bpf::{attach_device_filter, load_device_filter};
pub use descriptors::{
    bequeath, close_all_except, close_inherited, close_on_exec, hand_over, inherited, start_writeback,
};
pub use heap::{HeapSite, HeapUsage, SampledHeap, heap_samples, heap_usage, sample_heap};
pub use identities::{network_namespace_of, owner_of_namespace, user_namespace};
pub use links::set_link_up;
pub use locks::FolderLock;
pub use loops::attach_loop;
pub use memory::{economize_heap, release_text, trim_heap};
pub use mounts::{MountChange, change_mount, detached_clone, read_only_clone};
pub use process::{
    NewProcess, Program, clone_process, die_with_parent, execute, fork, kill, set_variable, spawn,
};
pub use sampler::{Sample, Sampler};
pub use subvolumes::{create_subvolume, destroy_subvolume, snapshot_subvolume, subvolume_id};
pub use task::{
    Scheduling, join_session_keyring, set_domain_name, set_groups, set_io_priority, set_personality,
    set_scheduling, unshare,
};
pub use verity::enable_verity;

use std::io;

/// The result of a call that says -1 on failure.
fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
