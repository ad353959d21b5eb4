//! What every client of the daemon puts on its calls.

use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::keys::{LEASE, NAMESPACE};

/// A connection with headers.
pub type Service = InterceptedService<Channel, Headers>;

/// Adds namespace and lease to calls, those that are given.
#[derive(Clone, Debug, Default)]
pub struct Headers {
    /// The namespace of the calls.
    pub namespace: Option<AsciiMetadataValue>,
    /// The lease that new objects join.
    pub lease: Option<AsciiMetadataValue>,
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        for (key, value) in [(NAMESPACE, &self.namespace), (LEASE, &self.lease)] {
            if let Some(value) = value {
                request.metadata_mut().insert(key, value.clone());
            }
        }
        Ok(request)
    }
}
