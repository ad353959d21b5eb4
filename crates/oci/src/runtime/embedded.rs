//! libcontainer. Every function is for a forked child of one thread: it may block, change directories and
//! signals, and fork on.

use std::path::Path;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;

use super::executor::Process;
use super::{Streams, Target};

/// What went wrong, in the words that clients match.
pub type Failure = String;

fn builder(target: &Target, streams: Streams) -> Result<ContainerBuilder, Failure> {
    let mut builder = ContainerBuilder::new(target.id.clone(), SyscallType::default())
        .with_executor(Process)
        .with_root_path(&target.root)
        .map_err(words)?
        .with_console_socket(streams.console);
    if let Some(stdin) = streams.stdin {
        builder = builder.with_stdin(stdin);
    }
    if let Some(stdout) = streams.stdout {
        builder = builder.with_stdout(stdout);
    }
    if let Some(stderr) = streams.stderr {
        builder = builder.with_stderr(stderr);
    }
    Ok(builder)
}

/// Creates a container up to the point where its process waits to be started; answers its pid.
///
/// # Errors
/// What libcontainer says; nothing is left behind.
pub fn create(target: &Target, streams: Streams) -> Result<i32, Failure> {
    let state = target.root.join(&target.id);
    if state.exists() {
        // Of an earlier try, or of before a reboot: its owner is this shim alone.
        delete(target, true).ok();
    }
    let built = builder(target, streams)?
        .as_init(&target.bundle)
        .with_systemd(target.systemd)
        .with_no_pivot(target.no_pivot)
        .with_detach(true)
        .as_sibling(true)
        .build();
    match built {
        Ok(container) => {
            container.pid().map(|pid| pid.as_raw()).ok_or_else(|| "the container has no pid".into())
        }
        Err(error) => {
            let text = words(error);
            delete(target, true).ok();
            std::fs::remove_dir_all(state).ok();
            Err(format!("runc create failed: {text}"))
        }
    }
}

/// Runs a further process, described by a file, in a container; answers its pid.
///
/// # Errors
/// What libcontainer says.
pub fn exec(target: &Target, process: &Path, streams: Streams) -> Result<i32, Failure> {
    let pid = builder(target, streams)?
        .as_tenant()
        .with_process(Some(process))
        .with_detach(true)
        .as_sibling(true)
        .build()
        .map_err(words)?;
    Ok(pid.as_raw())
}

fn load(target: &Target) -> Result<Container, Failure> {
    let state = target.root.join(&target.id);
    if !state.join("state.json").exists() {
        return Err("container does not exist".into());
    }
    Container::load(state).map_err(words)
}

/// Lets a created container's process go.
///
/// # Errors
/// What libcontainer says.
pub fn start(target: &Target) -> Result<(), Failure> {
    load(target)?.start().map_err(words)
}

/// Removes a container's cgroups and state; with `force` its processes are killed first.
///
/// # Errors
/// What libcontainer says; that there is nothing is `container does not exist`.
pub fn delete(target: &Target, force: bool) -> Result<(), Failure> {
    load(target)?.delete(force).map_err(words)
}

/// Freezes a container.
///
/// # Errors
/// What libcontainer says.
pub fn pause(target: &Target) -> Result<(), Failure> {
    load(target)?.pause().map_err(words)
}

/// Thaws a container.
///
/// # Errors
/// What libcontainer says.
pub fn resume(target: &Target) -> Result<(), Failure> {
    load(target)?.resume().map_err(words)
}

/// Changes a container's limits; `resources` is OCI's JSON.
///
/// # Errors
/// What libcgroups says.
pub fn update(target: &Target, resources: &[u8]) -> Result<(), Failure> {
    use libcgroups::common::{CgroupConfig, CgroupManager, ControllerOpt, create_cgroup_manager};
    let resources: libcontainer::oci_spec::runtime::LinuxResources =
        serde_json::from_slice(resources).map_err(|error| format!("resources: {error}"))?;
    let container = load(target)?;
    let config = container.spec().map_err(words)?;
    let manager = create_cgroup_manager(CgroupConfig {
        cgroup_path: config.cgroup_path,
        systemd_cgroup: container.systemd(),
        container_name: target.id.clone(),
    })
    .map_err(|error| error.to_string())?;
    let options = ControllerOpt {
        resources: &resources,
        disable_oom_killer: false,
        oom_score_adj: None,
        freezer_state: None,
    };
    manager.apply(&options).map_err(|error| error.to_string())
}

/// The innermost reason is what clients match; what libcontainer wraps around it is not.
fn words(error: impl std::error::Error) -> Failure {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = inner.source();
    }
    match text.find("exec: \"") {
        Some(at) => {
            let reason = text.get(at..).unwrap_or_default().trim_end_matches(['"', ')', '}']);
            format!("unable to start container process: error during container init: {reason}")
        }
        None => text,
    }
}
