//! A choice of platforms.

use corten_types::Platform;

/// The platforms that are wanted; all of them where none is named.
#[derive(Clone, Debug, Default)]
pub struct Platforms(Vec<Platform>);

impl Platforms {
    /// Every platform.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Each of these and what it can run too; all platforms where the list is empty.
    #[must_use]
    pub fn like(platforms: &[Platform]) -> Self {
        Self(platforms.to_vec())
    }

    /// Whether all are wanted.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a platform is wanted.
    #[must_use]
    pub fn matches(&self, platform: &Platform) -> bool {
        self.rank(platform).is_some()
    }

    /// How much a platform is wanted, least for the best; nothing for one that is not.
    #[must_use]
    pub fn rank(&self, platform: &Platform) -> Option<usize> {
        if self.is_all() {
            return Some(0);
        }
        // What the first one can run is better than what only the second one can.
        let ranks = self.0.iter().enumerate();
        ranks.filter_map(|(index, wanted)| Some(index * 100 + wanted.rank(platform)?)).min()
    }
}
