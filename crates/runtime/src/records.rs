//! What the runtime needs to know of the records of containers and sandboxes.

use corten_metadata::{Containers, Sandboxes};
use corten_types::{Any, Context, Namespace, Result};

/// The part of a container's record that its task is made from.
#[derive(Clone, Debug, Default)]
pub struct ContainerRecord {
    /// Name of the runtime, as `io.containerd.runc.v2`, or path of a shim.
    pub runtime: String,
    /// Options of the runtime.
    pub options: Option<Any>,
    /// The OCI specification.
    pub spec: Option<Any>,
    /// Sandbox that the container belongs to.
    pub sandbox: Option<String>,
}

/// Looks up records. Calls are short and may be made anywhere.
pub trait Records: Send + Sync + 'static {
    /// A container's record.
    ///
    /// # Errors
    /// NotFound `container "…" in namespace "…"`.
    fn container(&self, namespace: &Namespace, id: &str) -> Result<ContainerRecord>;

    /// Whether there is a sandbox of this name.
    ///
    /// # Errors
    /// Those of the database.
    fn has_sandbox(&self, namespace: &Namespace, id: &str) -> Result<bool>;
}

/// The records of the daemon's database.
#[derive(Clone, Debug)]
pub struct StoredRecords {
    /// Containers.
    pub containers: Containers,
    /// Sandboxes.
    pub sandboxes: Sandboxes,
}

impl Records for StoredRecords {
    fn container(&self, namespace: &Namespace, id: &str) -> Result<ContainerRecord> {
        let container = self.containers.get(&Context::new(namespace.clone()), id)?;
        Ok(ContainerRecord {
            runtime: container.runtime.name,
            options: container.runtime.options,
            spec: container.spec,
            sandbox: Some(container.sandbox).filter(|sandbox| !sandbox.is_empty()),
        })
    }

    fn has_sandbox(&self, namespace: &Namespace, id: &str) -> Result<bool> {
        match self.sandboxes.get(&Context::new(namespace.clone()), id) {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }
}
