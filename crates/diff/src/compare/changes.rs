//! Both trees at once, in the order of their paths.

use std::ffi::{CStr, CString};

use corten_types::{Result, ResultExt};
use rustix::fs::Stat;

use super::alone::Alone;
use super::same::same;
use super::side::{Folder, Side, is_folder, is_linked};

/// Folders that stay open on the way down; those above are opened again on the way back.
const OPEN: usize = 32;

/// Which names of a folder can have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// All.
    Both,
    /// Those that the upper layer has.
    Upper,
}

/// Something that is other than it was, or may have to be told for the sake of something else.
#[derive(Debug)]
pub(crate) enum Change<'a> {
    Gone,
    There(There<'a>),
}

/// Something in the upper tree.
#[derive(Debug)]
pub(crate) struct There<'a> {
    pub folder: &'a Folder,
    pub name: &'a CStr,
    pub stat: &'a Stat,
    /// It is as before, but has further names that may not be.
    pub is_unchanged: bool,
}

/// A folder on the way.
struct Frame {
    /// Bytes of its path.
    length: usize,
    names: std::collections::btree_set::IntoIter<CString>,
    scope: Scope,
    /// In each tree: open, closed for a while, or not there.
    lower: Slot,
    upper: Slot,
}

#[derive(Debug)]
enum Slot {
    Missing,
    Closed,
    Open(Folder),
}

impl Slot {
    fn new(folder: Option<Folder>) -> Self {
        folder.map_or(Self::Missing, Self::Open)
    }

    fn close(&mut self) {
        if matches!(self, Self::Open(_)) {
            *self = Self::Closed;
        }
    }

    fn open(&mut self, side: &Side, path: &[u8]) -> Result<Option<&Folder>> {
        if matches!(self, Self::Closed) {
            *self = Self::new(side.folder(path)?);
        }
        match self {
            Self::Open(folder) => Ok(Some(folder)),
            _ => Ok(None),
        }
    }
}

/// Calls `each` with the path of everything that changed, from `lower` to `upper`. With `alone` the upper tree is the
/// raw upper layer of an overlay over the lower one.
///
/// # Errors
/// Those of the file systems and of `each`; that the upper layer does not tell all alone ([`Alone::is_refuted`]).
pub(crate) fn changes(
    lower: &Side,
    upper: &Side,
    alone: Option<&Alone>,
    mut each: impl FnMut(&[u8], Change<'_>) -> Result<()>,
) -> Result<()> {
    let scope = if alone.is_some() { Scope::Upper } else { Scope::Both };
    let (mut path, mut frames) = (Vec::new(), Vec::new());
    frames.push(frame(&path, lower.folder(b"")?, upper.folder(b"")?, scope)?);
    while let Some(frame) = frames.last_mut() {
        path.truncate(frame.length);
        let Some(name) = frame.names.next() else {
            frames.pop();
            continue;
        };
        let lower_folder = frame.lower.open(lower, &path)?;
        let upper_folder = frame.upper.open(upper, &path)?;
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        let step =
            Step { lower: (lower, lower_folder), upper: (upper, upper_folder), alone, scope: frame.scope };
        let below = step.take(&path, &name, &mut each);
        let below = below.with_context(|| String::from_utf8_lossy(&path).into_owned())?;
        if let Some(below) = below {
            if let Some(above) = frames.len().checked_sub(OPEN).and_then(|index| frames.get_mut(index)) {
                above.lower.close();
                above.upper.close();
            }
            frames.push(below);
        }
    }
    Ok(())
}

fn frame(path: &[u8], lower: Option<Folder>, upper: Option<Folder>, scope: Scope) -> Result<Frame> {
    let mut names = upper.as_ref().map(Folder::names).transpose()?.unwrap_or_default();
    if scope == Scope::Both
        && let Some(lower) = &lower
    {
        names.extend(lower.names()?);
    }
    let (lower, upper) = (Slot::new(lower), Slot::new(upper));
    Ok(Frame { length: path.len(), names: names.into_iter(), scope, lower, upper })
}

/// One name in both trees.
struct Step<'a> {
    lower: (&'a Side, Option<&'a Folder>),
    upper: (&'a Side, Option<&'a Folder>),
    alone: Option<&'a Alone>,
    scope: Scope,
}

impl Step<'_> {
    /// Tells the change, and answers the folder to go into.
    fn take(
        &self,
        path: &[u8],
        name: &CStr,
        each: &mut impl FnMut(&[u8], Change<'_>) -> Result<()>,
    ) -> Result<Option<Frame>> {
        let stat = |(side, folder): (&Side, Option<&Folder>)| match folder {
            Some(folder) => side.stat(folder, name),
            None => Ok(None),
        };
        let (old, new) = (stat(self.lower)?, stat(self.upper)?);
        let (Some(new), Some(folder)) = (new, self.upper.1) else {
            if old.is_some() {
                each(path, Change::Gone)?;
            }
            return Ok(None);
        };
        let hides = match self.alone {
            Some(alone) => alone.hides(folder, name, &new)?,
            None => false,
        };
        let before = self.lower.1.zip(old.as_ref());
        let is_unchanged = match before {
            Some(before) => same(before, (folder, &new), name)?,
            None => false,
        };
        if !is_unchanged || is_linked(&new) {
            each(path, Change::There(There { folder, name, stat: &new, is_unchanged }))?;
        }
        if !is_folder(&new) {
            return Ok(None);
        }
        let lower = match before {
            Some((folder, old)) if is_folder(old) => folder.folder(name)?,
            _ => None,
        };
        let scope = if hides { Scope::Both } else { self.scope };
        frame(path, lower, folder.folder(name)?, scope).map(Some)
    }
}
