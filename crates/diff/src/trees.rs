//! The two trees of a comparison, mounted for as long as it takes where they cannot be read otherwise.

use std::io::Write;
use std::path::Path;

use corten_mounts::{TempMount, read_only};
use corten_types::{Mount, Result, ResultExt};

use crate::compare::{Alone, Layer, Side, changes, is_plain_bind};

/// Both trees.
#[derive(Debug)]
pub(crate) struct Trees {
    lower: Tree,
    upper: Tree,
    alone: Option<Alone>,
}

#[derive(Debug)]
struct Tree {
    side: Side,
    mounted: Option<TempMount>,
}

impl Trees {
    /// Opens them. Of an overlay over the very tree that it is compared with, the upper layer is enough.
    ///
    /// # Errors
    /// Those of mounting.
    pub(crate) fn open(lower: &[Mount], upper: &[Mount], folder: &Path) -> Result<Self> {
        let alone = Alone::of(lower, upper);
        let upper = match &alone {
            Some(alone) => {
                let side = Side::open(&alone.folder, true);
                let side = side.with_context(|| alone.folder.display().to_string())?;
                Tree { side, mounted: None }
            }
            None => Tree::open(upper, folder)?,
        };
        Ok(Self { lower: Tree::open(lower, folder)?, upper, alone })
    }

    /// Writes the layer that leads from the lower to the upper tree.
    ///
    /// # Errors
    /// Those of the file systems and of the output; when [`Self::is_refuted`] afterwards, the trees have to be opened
    /// by [`Self::open_whole`] and the layer to be begun anew.
    pub(crate) fn write(&self, output: &mut dyn Write, latest: Option<i64>) -> Result<()> {
        let mut layer = Layer::new(output, &self.upper.side, latest);
        changes(&self.lower.side, &self.upper.side, self.alone.as_ref(), |path, change| {
            layer.change(path, change)
        })?;
        layer.finish().map(drop)
    }

    /// Whether the upper layer turned out not to be enough.
    pub(crate) fn is_refuted(&self) -> bool {
        self.alone.as_ref().is_some_and(Alone::is_refuted)
    }

    /// The same with all of the upper tree.
    ///
    /// # Errors
    /// Those of mounting.
    pub(crate) fn open_whole(self, upper: &[Mount], folder: &Path) -> Result<Self> {
        Ok(Self { lower: self.lower, upper: Tree::open(upper, folder)?, alone: None })
    }

    /// Takes the mounts away.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(crate) fn close(self) -> Result<()> {
        for tree in [self.upper, self.lower] {
            drop(tree.side);
            tree.mounted.map_or(Ok(()), TempMount::close)?;
        }
        Ok(())
    }
}

impl Tree {
    fn open(mounts: &[Mount], folder: &Path) -> Result<Self> {
        if let [mount] = mounts
            && is_plain_bind(mount)
        {
            let side = Side::open(Path::new(&mount.source), false).with_context(|| mount.source.clone())?;
            return Ok(Self { side, mounted: None });
        }
        let mounted = TempMount::new(folder, &read_only(mounts))?;
        Ok(Self { side: Side::open(mounted.path(), false)?, mounted: Some(mounted) })
    }
}
