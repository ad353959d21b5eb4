//! For whom an operation is done.

use crate::Namespace;

/// The namespace and, if the caller holds one, the lease that new objects join.
#[derive(Clone, Debug)]
pub struct Context {
    /// Where the operation takes place.
    pub namespace: Namespace,
    /// Id of a lease in the same namespace (spec 01 §0.1).
    pub lease: Option<String>,
}

impl Context {
    /// A context without a lease.
    #[must_use]
    pub fn new(namespace: Namespace) -> Self {
        Self { namespace, lease: None }
    }

    /// The same context with a lease.
    #[must_use]
    pub fn with_lease(mut self, lease: impl Into<String>) -> Self {
        self.lease = Some(lease.into());
        self
    }
}
