//! The supervisor of containers (spec 02): one small process of one thread per container or group of them.
//!
//! It creates containers through an OCI runtime, copies their streams, collects their ends, answers the
//! daemon over ttrpc and tells it events. It survives the daemon; when it dies itself, `delete` clears up
//! after it. The OCI runtime works in forked children, so that this process never grows.

mod bootstrap;
mod cleanup;
mod console;
mod dispatch;
mod events;
mod flags;
mod helper;
mod launch;
mod log;
mod oom;
mod process;
mod runtime;
mod server;
mod service;
mod stdio;

pub use flags::{Action, Flags};

use corten_types::Result;

/// Does what the command line asks for; answers the exit code.
///
/// # Errors
/// What a person should read on standard error.
pub fn main(args: impl Iterator<Item = String>) -> Result<i32> {
    let flags = Flags::parse(args)?;
    match flags.action {
        Action::Version => flags::print_version(),
        Action::Info => cleanup::info()?,
        Action::Start => launch::start(&flags)?,
        Action::Delete => cleanup::delete(&flags)?,
        Action::Serve => server::serve(flags)?,
    }
    Ok(0)
}
