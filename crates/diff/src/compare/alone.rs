//! When the upper layer of an overlay alone tells what changed: both trees have the same layers below it, and nothing
//! in it leads elsewhere.

use std::ffi::CStr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use corten_types::{Error, Mount, Result};
use rustix::fs::Stat;

use super::side::{Folder, is_folder};

/// Options beside the layers that change nothing of what is seen.
const PLAIN: [&str; 10] = [
    "index=off",
    "userxattr",
    "ro",
    "rw",
    "volatile",
    "xino=off",
    "metacopy=off",
    "redirect_dir=off",
    "nfs_export=off",
    "relatime",
];

/// How to read an upper layer.
#[derive(Debug)]
pub(crate) struct Alone {
    /// Where it is.
    pub folder: PathBuf,
    /// Prefix of the attributes in which the overlay keeps its books.
    prefix: &'static str,
    refuted: AtomicBool,
}

impl Alone {
    /// The layer that `upper` has and `lower` has not, if that is all the difference.
    pub(crate) fn of(lower: &[Mount], upper: &[Mount]) -> Option<Self> {
        let (user, mut upper) = layers(upper)?;
        let folder = upper.remove(0);
        let lower = match lower {
            [mount] if is_plain_bind(mount) => vec![mount.source.clone()],
            _ => {
                let (same, lower) = layers(lower)?;
                if same != user {
                    return None;
                }
                lower
            }
        };
        let prefix = if user { "user.overlay." } else { "trusted.overlay." };
        (!upper.is_empty() && upper == lower).then(|| Self {
            folder: folder.into(),
            prefix,
            refuted: AtomicBool::new(false),
        })
    }

    /// Whether it was found that the layer does not tell all alone: the trees have to be walked.
    pub(crate) fn is_refuted(&self) -> bool {
        self.refuted.load(Ordering::Relaxed)
    }

    fn refute(&self) -> Error {
        self.refuted.store(true, Ordering::Relaxed);
        Error::failed_precondition("the upper layer does not tell its changes alone")
    }

    /// Whether a folder of the layer hides what the layers below have in it.
    ///
    /// # Errors
    /// That the layer does not tell all alone.
    pub(crate) fn hides(&self, folder: &Folder, name: &CStr, stat: &Stat) -> Result<bool> {
        let list = folder.attributes(name)?;
        let mut opaque = false;
        for attribute in list.split(|byte| *byte == 0) {
            match attribute.strip_prefix(self.prefix.as_bytes()) {
                None | Some(b"origin" | b"impure" | b"protattr" | b"uuid") => {}
                Some(b"opaque") if is_folder(stat) => opaque = true,
                // Contents or names that are elsewhere, and whatever later kernels think of.
                Some(_) => return Err(self.refute()),
            }
        }
        if !opaque {
            return Ok(false);
        }
        match folder.attribute(name, &format!("{}opaque", self.prefix))?.as_slice() {
            b"y" => Ok(true),
            // Whiteouts of another kind are in it.
            _ => Err(self.refute()),
        }
    }
}

/// Whether a mount shows a folder as it is.
pub(crate) fn is_plain_bind(mount: &Mount) -> bool {
    let is_mapped = |option: &String| option.starts_with("uidmap=") || option.starts_with("gidmap=");
    mount.kind == "bind" && mount.target.is_empty() && !mount.options.iter().any(is_mapped)
}

/// The layers of a single overlay, the top first, and whether its books are for users.
fn layers(mounts: &[Mount]) -> Option<(bool, Vec<String>)> {
    let [mount] = mounts else { return None };
    if mount.kind != "overlay" || !mount.target.is_empty() {
        return None;
    }
    let (mut layers, mut user) = (Vec::new(), false);
    for option in &mount.options {
        match option.split_once('=') {
            Some(("upperdir", upper)) => layers.insert(0, upper.replace('\\', "")),
            Some(("lowerdir", lower)) => layers.extend(corten_mounts::overlay_layers(lower)),
            Some(("workdir", _)) => {}
            _ if PLAIN.contains(&option.as_str()) => user |= option == "userxattr",
            _ => return None,
        }
    }
    // Layers of data only are marked by empty ones.
    (!layers.is_empty() && layers.iter().all(|layer| !layer.is_empty())).then_some((user, layers))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &str) -> Vec<Mount> {
        let options = options.split(',').map(str::to_owned).collect();
        vec![Mount { kind: kind.into(), source: source.into(), target: String::new(), options }]
    }

    #[test]
    fn only_one_layer_more_tells_its_changes_alone() {
        let found = |lower: &[Mount], upper: &[Mount]| Alone::of(lower, upper).map(|alone| alone.folder);
        let active = |options: &str| mount("overlay", "overlay", options);
        let upper = active("workdir=/w,upperdir=/u,lowerdir=/b:/a,index=off");
        assert_eq!(found(&active("lowerdir=/b:/a,index=off"), &upper), Some("/u".into()));
        assert_eq!(found(&active("lowerdir=/c:/a"), &upper), None);
        assert_eq!(found(&active("lowerdir=/b:/a,userxattr"), &upper), None);
        assert_eq!(found(&mount("bind", "/b", "ro,rbind"), &upper), None);
        let upper = active("workdir=/w,upperdir=/u,lowerdir=/b");
        assert_eq!(found(&mount("bind", "/b", "ro,rbind"), &upper), Some("/u".into()));
        assert_eq!(found(&mount("bind", "/b", "ro,rbind"), &active("lowerdir=/c:/b")), Some("/c".into()));
        assert_eq!(found(&[], &mount("bind", "/u", "rw,rbind")), None);
        for other in ["upperdir=/u,lowerdir=/b::/d", "upperdir=/u,lowerdir=/b,metacopy=on", "upperdir=/u"] {
            assert_eq!(found(&mount("bind", "/b", "ro"), &active(other)), None, "{other}");
        }
    }
}
