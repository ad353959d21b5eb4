//! Between the wire's messages and the vocabulary.

use corten_types::{Descriptor, Error, Mount, Platform, Result};

use crate::types;

impl From<Mount> for types::Mount {
    fn from(mount: Mount) -> Self {
        Self { r#type: mount.kind, source: mount.source, target: mount.target, options: mount.options }
    }
}

impl From<types::Mount> for Mount {
    fn from(mount: types::Mount) -> Self {
        Self { kind: mount.r#type, source: mount.source, target: mount.target, options: mount.options }
    }
}

impl From<Descriptor> for types::Descriptor {
    fn from(descriptor: Descriptor) -> Self {
        Self {
            media_type: descriptor.media_type,
            digest: descriptor.digest.to_string(),
            size: descriptor.size,
            annotations: descriptor.annotations,
        }
    }
}

impl TryFrom<types::Descriptor> for Descriptor {
    type Error = Error;

    /// # Errors
    /// InvalidArgument for a malformed digest.
    fn try_from(descriptor: types::Descriptor) -> Result<Self> {
        let mut checked = Self::new(descriptor.media_type, descriptor.digest.parse()?, descriptor.size);
        checked.annotations = descriptor.annotations;
        Ok(checked)
    }
}

impl From<Platform> for types::Platform {
    fn from(platform: Platform) -> Self {
        Self {
            os: platform.os,
            architecture: platform.architecture,
            variant: platform.variant,
            os_version: platform.os_version,
        }
    }
}

impl From<types::Platform> for Platform {
    fn from(platform: types::Platform) -> Self {
        Self {
            os: platform.os,
            architecture: platform.architecture,
            variant: platform.variant,
            os_version: platform.os_version,
            os_features: Vec::new(),
        }
    }
}
