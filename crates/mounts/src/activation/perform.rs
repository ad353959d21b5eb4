//! Doing what is planned, in a folder of its own.

use std::path::Path;

use corten_metadata::ActiveMount;
use corten_types::{Mount, Result, ResultExt, timestamp};

use super::plan::{Plan, Step, Transform};
use super::roots::Roots;
use super::{mkdir, mkfs, template};
use crate::mount::mount_all;
use crate::unmount::unmount_all;

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Performed {
    pub active: Vec<ActiveMount>,
    pub system: Vec<Mount>,
}

/// Makes the folder and mounts in it; on failure nothing is left. With `bind`, what is mounted last is
/// offered to be bound elsewhere.
pub(crate) fn perform(
    plan: &Plan,
    mounts: &[Mount],
    bind: bool,
    folder: &Path,
    roots: &Roots,
) -> Result<Performed> {
    std::fs::create_dir(folder).with_context(|| format!("mkdir {}", folder.display()))?;
    let performed = steps(plan, mounts, bind, folder, roots);
    if performed.is_err()
        && let Err(error) = clear(folder)
    {
        tracing::warn!(folder = %folder.display(), %error, "mounts of a failed activation stay for now");
    }
    performed
}

fn steps(plan: &Plan, mounts: &[Mount], bind: bool, folder: &Path, roots: &Roots) -> Result<Performed> {
    let mut done = Performed::default();
    for (index, (mount, step)) in mounts.iter().zip(&plan.steps).enumerate() {
        if index >= plan.first_system {
            done.system.push(transform(mount, step, step.needed, &done.active, roots)?);
            continue;
        }
        let mount = transform(mount, step, step.transforms.len(), &done.active, roots)?;
        let point = folder.join(name(plan.first_system, index));
        std::fs::create_dir(&point).with_context(|| format!("mkdir {}", point.display()))?;
        mount_here(&mount, &point).with_context(|| format!("mount failed {}", mount.kind))?;
        done.active.push(ActiveMount {
            mount,
            mounted_at: Some(timestamp::now()),
            mount_point: point.display().to_string(),
        });
    }
    if let Some(last) = done.active.last().filter(|_| bind) {
        let source = last.mount_point.clone();
        let options = vec!["rbind".to_owned()];
        done.system.push(Mount { kind: "bind".into(), source, target: String::new(), options });
    }
    Ok(done)
}

/// The first mount has the highest number, so that names in order are the order of taking away.
fn name(count: usize, index: usize) -> String {
    let number = count - index;
    match count {
        0..=10 => format!("{number}"),
        11..=100 => format!("{number:02}"),
        _ => format!("{number:03}"),
    }
}

fn transform(
    mount: &Mount,
    step: &Step,
    count: usize,
    active: &[ActiveMount],
    roots: &Roots,
) -> Result<Mount> {
    let mut mount = mount.clone();
    for transform in step.transforms.iter().take(count) {
        mount = match transform {
            Transform::Format => template::format(&mount, active)?,
            Transform::Mkfs => mkfs::make(&mount, roots)?,
            Transform::Mkdir => mkdir::make(&mount, roots)?,
        };
        mount.kind = mount.kind.split_once('/').map(|(_, rest)| rest.to_owned()).unwrap_or_default();
    }
    Ok(mount)
}

fn mount_here(mount: &Mount, point: &Path) -> Result<()> {
    let made = mount_all(std::slice::from_ref(mount), point);
    match made {
        // Before Linux 6.12 erofs wants a device.
        Err(error) if mount.kind == "erofs" && error.message().contains("block device required") => {
            let mut looped = mount.clone();
            looped.options.push("loop".to_owned());
            mount_all(&[looped], point)
        }
        made => made,
    }
}

/// Takes away what is mounted in an activation's folder, and the folder.
///
/// # Errors
/// Those of the kernel; that there is no such folder is none.
pub(crate) fn clear(folder: &Path) -> Result<()> {
    unmount_all(folder)?;
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| folder.display().to_string())?,
    };
    // Never with contents: they could be somebody's data, still mounted.
    for path in entries.flatten().map(|entry| entry.path()).chain([folder.to_owned()]) {
        match std::fs::remove_dir(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("rmdir {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}
