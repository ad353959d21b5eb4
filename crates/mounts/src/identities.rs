//! Mounts whose files' owners go through a mapping: options `uidmap=` and `gidmap=`.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use corten_sys::{MountChange, change_mount, detached_clone, user_namespace};
use corten_types::{Error, Result, ResultExt};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};

use crate::options::Options;
use crate::overlay;
use crate::system;

/// A range of users or groups that has other numbers on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMapping {
    /// The first number in the container.
    pub container: u32,
    /// Its number on the host.
    pub host: u32,
    /// How many.
    pub size: u32,
}

/// Reads `container:host:size[,…]`.
///
/// # Errors
/// InvalidArgument for anything else.
pub fn id_mappings(text: &str) -> Result<Vec<IdMapping>> {
    let wrong = || Error::invalid_argument(format!("invalid mapping of identities {text:?}"));
    let one = |part: &str| -> Option<IdMapping> {
        let mut numbers = part.split(':').map(str::parse::<u32>);
        let mut next = || numbers.next()?.ok();
        let mapping = IdMapping { container: next()?, host: next()?, size: next()? };
        (next().is_none() && part.matches(':').count() == 2).then_some(mapping)
    };
    text.split(',').map(|part| one(part).ok_or_else(wrong)).collect()
}

/// Whether the kernel maps the owners of files in a folder, and in the lower layers of an overlay on it.
#[must_use]
pub fn can_map_identities(folder: &Path) -> bool {
    let kernel = rustix::system::uname();
    let mut numbers = kernel.release().to_str().unwrap_or_default().split(['.', '-']);
    let mut number = || numbers.next().and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
    if (number(), number()) < (5, 19) {
        return false;
    }
    let mapped = || -> std::io::Result<()> {
        let namespace = user_namespace("0 1 1\n", "0 1 1\n")?;
        let tree = detached_clone(CWD, folder.as_os_str(), false)?;
        change_mount(tree.as_fd(), &MountChange { id_map: Some(namespace.as_fd()), ..MountChange::default() })
    };
    mapped().is_ok()
}

/// The mapping of a mount, held by a user namespace.
#[derive(Debug)]
pub(crate) struct Identities {
    namespace: OwnedFd,
}

impl Identities {
    /// Takes both options away from the rest.
    pub(crate) fn take(options: &mut Options) -> Result<Option<Self>> {
        let mut taken = [None, None];
        for (key, value) in ["uidmap=", "gidmap="].iter().zip(&mut taken) {
            *value = options.data.iter().rev().find_map(|option| option.strip_prefix(key)).map(str::to_owned);
            options.data.retain(|option| !option.starts_with(key));
        }
        match taken {
            [None, None] => Ok(None),
            [Some(users), Some(groups)] => {
                let lines = |text: &str| -> Result<String> {
                    let mappings = id_mappings(text)?;
                    Ok(mappings.iter().map(|m| format!("{} {} {}\n", m.container, m.host, m.size)).collect())
                };
                let namespace = user_namespace(&lines(&users)?, &lines(&groups)?)
                    .context("failed to make a user namespace with the mapping")?;
                Ok(Some(Self { namespace }))
            }
            _ => Err(Error::invalid_argument("mount options uidmap and gidmap go together")),
        }
    }

    /// A detached mount of a folder's tree with the owners mapped.
    fn mapped(&self, source: &str, recursive: bool) -> Result<OwnedFd> {
        let tree = detached_clone(CWD, OsStr::new(source), recursive).with_context(|| source.to_owned())?;
        let change =
            MountChange { id_map: Some(self.namespace.as_fd()), recursive, ..MountChange::default() };
        change_mount(tree.as_fd(), &change)
            .with_context(|| format!("failed to map the owners of {source}"))?;
        Ok(tree)
    }

    pub(crate) fn bind(&self, source: &str, recursive: bool, target: &Path) -> Result<()> {
        attach(&self.mapped(source, recursive)?, target)
    }

    /// An overlay over mapped layers; what is written goes to the upper directory with the host's numbers.
    ///
    /// Kernels before 6.15 take only attached mounts as layers. They are attached to the target, one upon
    /// the other, for the time that it takes: so there is no folder that a crash could leave behind.
    pub(crate) fn overlay(&self, options: &Options, target: &Path) -> Result<()> {
        let mut stack = Stack { target, height: 0 };
        let mut held = Vec::new();
        let mut mapped = Options { data: Vec::new(), propagation: Vec::new(), ..*options };
        for option in &options.data {
            let Some(layers) = option.strip_prefix("lowerdir=") else {
                mapped.data.push(option.clone());
                continue;
            };
            let mut short = Vec::new();
            for layer in overlay::overlay_layers(layers) {
                let tree = self.mapped(&layer, false)?;
                stack.push(&tree)?;
                short.push(format!("/proc/self/fd/{}", tree.as_raw_fd()));
                held.push(tree);
            }
            mapped.data.push(format!("lowerdir={}", short.join(":")));
        }
        let made = match overlay::detached(&mapped)? {
            Some(made) => made,
            None => {
                overlay::by_handles(&mapped, target)?;
                stack.height += 1;
                detached_clone(CWD, stack.top()?.as_os_str(), false)
                    .context("failed to detach the overlay")?
            }
        };
        drop(stack);
        attach(&made, target)
    }
}

fn attach(tree: &OwnedFd, target: &Path) -> Result<()> {
    move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(system)
}

/// Mounts upon one folder, taken away when this is dropped.
struct Stack<'a> {
    target: &'a Path,
    height: usize,
}

impl Stack<'_> {
    fn push(&mut self, tree: &OwnedFd) -> Result<()> {
        attach(tree, self.top()?.as_ref())?;
        self.height += 1;
        Ok(())
    }

    /// The folder as it is now, which may be named by a handle from before.
    fn top(&self) -> Result<std::path::PathBuf> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = openat(CWD, self.target, flags, Mode::empty()).map_err(system)?;
        Ok(std::fs::read_link(format!("/proc/self/fd/{}", handle.as_raw_fd()))?)
    }
}

impl Drop for Stack<'_> {
    fn drop(&mut self) {
        let Ok(top) = self.top() else { return };
        for _ in 0..self.height {
            if let Err(error) = unmount(&top, UnmountFlags::DETACH) {
                tracing::warn!(%error, "a layer's mount stays");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read() {
        let two = [
            IdMapping { container: 0, host: 1000, size: 10 },
            IdMapping { container: 10, host: 5000, size: 1 },
        ];
        assert_eq!(id_mappings("0:1000:10,10:5000:1").unwrap(), two);
        for wrong in ["", "0:1000", "0:1000:x", "0:1:2:3", "0:1:2,", "-1:1:1", "0:1:4294967296"] {
            assert!(id_mappings(wrong).is_err(), "{wrong}");
        }
    }
}
