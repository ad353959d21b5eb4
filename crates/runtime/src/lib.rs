//! Tasks as the daemon sees them: it launches shims, finds them again after a restart, talks to
//! them and buries them (spec 01 §13, spec 02).
//!
//! A task's bundle holds everything that is needed to find its shim, so containers outlive the
//! daemon; [`Tasks`] is a cache of what the bundles say and the shims answer. What is acknowledged
//! is true: a task that was created can be deleted, one that failed to be created leaves nothing,
//! whoever waits for a task learns of its end even if its shim died. No caller's patience governs
//! cleanup: it goes on when the caller has gone. One bundle that cannot be read, or one shim that
//! does not answer, never keeps the others from being served. Nothing here is written with fsync:
//! no task survives the loss of power.

mod config;
mod records;
mod tasks;
mod watched;

mod create;
mod operations;

mod delete;
mod load;

mod table;
mod task;

mod binary;
mod bootstrap;
mod bundle;
mod connection;
mod dialect;
mod invoke;
mod log;
mod resolve;
mod shim;
mod spec;

mod forward;

mod sandbox;

pub use config::{Config, Timeouts};
pub use connection::{GrpcShim, GrpcShims};
pub use create::{CreateTask, ShimAddress, Stdio};
pub use operations::Exec;
pub use records::{ContainerRecord, Records, StoredRecords};
pub use sandbox::{SandboxController, SandboxControllers, ShimSandboxes};
pub use task::Exit;
pub use tasks::Tasks;

/// Schemes of log addresses that the stock shim understands (spec 02 §6), for introspection.
pub const LOG_URI_SCHEMES: &str = "fifo,binary,binary-v2,file";
