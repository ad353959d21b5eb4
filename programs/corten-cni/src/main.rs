//! The built-in network as a program of its own, small since it is executed for each container.
//!
//! Called by the name of a plugin (`bridge`, `host-local`, `loopback`, `portmap`) it is that plugin of CNI. As
//! `corten-cni attach` and `corten-cni detach` it is a hook of the OCI runtime, which reads the container's state on
//! standard input: what to attach to stands in an annotation. So a container has its network whenever it is started,
//! whoever starts it, and loses it whenever it has ended, whoever finds it.

use std::io::{Read, Write};
use std::path::Path;

use corten_network::builtin::Plan;
use corten_network::plugins;
use corten_types::{Error, Result, ResultExt};

/// The largest input that is read.
const LARGEST: u64 = 16 << 20;

fn main() {
    let mut arguments = std::env::args();
    let called = arguments.next().unwrap_or_default();
    let name = Path::new(&called).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if plugins::NAMES.contains(&name) {
        std::process::exit(plugin(name));
    }
    let done = match arguments.next().as_deref() {
        Some("attach") => hook(Plan::attach),
        Some("detach") => hook(|plan, _| plan.detach()),
        _ => {
            eprintln!(
                "corten-cni: called as {name:?}: the names of plugins are {:?}; hooks are attach and detach",
                plugins::NAMES
            );
            std::process::exit(2);
        }
    };
    if let Err(failed) = done {
        eprintln!("corten-cni: {failed}");
        std::process::exit(1);
    }
}

fn input() -> Result<Vec<u8>> {
    let mut data = Vec::new();
    std::io::stdin().lock().take(LARGEST).read_to_end(&mut data).context("read standard input")?;
    Ok(data)
}

fn plugin(name: &str) -> i32 {
    let input = input().unwrap_or_default();
    let (text, code) = plugins::main(name, |name| std::env::var(name).ok(), &input);
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => code,
        Err(_) => 1,
    }
}

/// Does something with a container's plan and the id of its process.
fn hook(work: impl FnOnce(&Plan, u32) -> Result<()>) -> Result<()> {
    let state: serde_json::Value = serde_json::from_slice(&input()?)
        .map_err(|error| Error::invalid_argument(format!("the container's state: {error}")))?;
    let Some(plan) = state["annotations"][Plan::ANNOTATION].as_str() else { return Ok(()) };
    let pid = state["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default();
    work(&Plan::read(plan)?, pid)
}
