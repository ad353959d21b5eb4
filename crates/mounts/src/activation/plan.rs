//! What of a list has to be done here, decided before anything is touched.

use corten_types::Mount;

/// What goes before the type of a mount, parted by slashes, the first to be done first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transform {
    /// Templates in its fields are filled in.
    Format,
    /// Its source is an image file, made and formatted if it is not there.
    Mkfs,
    /// Folders are made.
    Mkdir,
}

/// Types that are mounted here, whoever could do it too.
const HANDLED: [&str; 1] = ["erofs"];

/// What the caller does himself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// Types, as `erofs` or `format/mkdir/overlay`.
    pub types: Vec<String>,
    /// Transformations, as `format`.
    pub transforms: Vec<String>,
}

impl Claims {
    /// Reads the annotation of a shim: types, and transformations as `format/*`, with commas between.
    #[must_use]
    pub fn parse(annotation: &str) -> Self {
        let mut claims = Self::default();
        for word in annotation.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match word.strip_suffix("/*") {
                Some(transform) => claims.transforms.push(transform.to_owned()),
                None => claims.types.push(word.to_owned()),
            }
        }
        claims
    }

    fn has_type(&self, kind: &str) -> bool {
        self.types.iter().any(|one| one == kind)
    }

    fn has_transform(&self, name: &str) -> bool {
        self.transforms.iter().any(|one| one == name)
    }
}

/// One mount of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// All that its type asks for.
    pub transforms: Vec<Transform>,
    /// As many of them are not left to the caller.
    pub needed: usize,
    /// Its type without any.
    pub kind: String,
}

impl Step {
    fn new(mount: &Mount, claims: &Claims) -> Self {
        let (mut transforms, mut needed, mut kind) = (Vec::new(), 0, mount.kind.as_str());
        while let Some((name, rest)) = kind.split_once('/') {
            let transform = match name {
                "format" => Transform::Format,
                "mkfs" => Transform::Mkfs,
                "mkdir" => Transform::Mkdir,
                _ => break,
            };
            transforms.push(transform);
            // A later one works on what an earlier one made.
            if !claims.has_transform(name) && !claims.has_type(&mount.kind) {
                needed = transforms.len();
            }
            kind = rest;
        }
        Self { transforms, needed, kind: kind.to_owned() }
    }
}

/// How a list is activated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// One for each mount.
    pub steps: Vec<Step>,
    /// The first that is left to the caller, and perhaps transformed for him.
    pub first_system: usize,
}

impl Plan {
    /// Nothing if the caller can mount the list as it is. With `all`, everything is mounted here.
    pub(crate) fn new(mounts: &[Mount], claims: &Claims, all: bool) -> Option<Self> {
        let steps: Vec<Step> = mounts.iter().map(|mount| Step::new(mount, claims)).collect();
        let mut first_system = None;
        for (index, step) in steps.iter().enumerate() {
            if step.needed > 0 {
                first_system = Some(index);
            }
            let handled = HANDLED.contains(&step.kind.as_str()) && !claims.has_type(&step.kind);
            if handled || all {
                first_system = Some(index + 1);
            }
        }
        first_system.map(|first_system| Self { steps, first_system })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(kinds: &str, claims: &str, all: bool) -> Option<usize> {
        let mount = |kind: &str| Mount { kind: kind.to_owned(), ..Mount::default() };
        let mounts: Vec<Mount> = kinds.split(' ').filter(|kind| !kind.is_empty()).map(mount).collect();
        Plan::new(&mounts, &Claims::parse(claims), all).map(|plan| plan.first_system)
    }

    #[test]
    fn only_what_must_be_done_here_is() {
        for (kinds, claims, wanted) in [
            ("", "", None),
            ("bind", "", None),
            ("bind overlay", "", None),
            ("unknown/overlay", "", None),
            ("format/overlay", "", Some(0)),
            ("erofs bind", "", Some(1)),
            ("erofs", "", Some(1)),
            ("erofs", "erofs", None),
            ("erofs erofs overlay", "", Some(2)),
            ("erofs format/overlay", "erofs", Some(1)),
            ("bind format/mkdir/overlay", "", Some(1)),
            ("format/mkdir/overlay", "format/*,mkdir/*", None),
            ("format/mkdir/overlay", "format/mkdir/overlay", None),
            ("format/mkdir/overlay", "format/*", Some(0)),
            ("mkfs/ext4 bind bind", "", Some(0)),
        ] {
            assert_eq!(first(kinds, claims, false), wanted, "{kinds} {claims}");
        }
        assert_eq!(first("bind", "", true), Some(1));
        assert_eq!(first("", "", true), None);
    }

    #[test]
    fn a_claimed_transformation_before_one_that_is_not_is_done_too() {
        let needed = |claims: &str| {
            let mount = Mount { kind: "format/mkfs/mkdir/overlay".into(), ..Mount::default() };
            let step = Step::new(&mount, &Claims::parse(claims));
            assert_eq!((step.kind.as_str(), step.transforms.len()), ("overlay", 3));
            step.needed
        };
        assert_eq!(needed(""), 3);
        assert_eq!(needed("mkdir/*"), 2);
        assert_eq!(needed("format/*, mkdir/*"), 2);
        assert_eq!(needed("format/*,mkfs/*,mkdir/*"), 0);
    }
}
