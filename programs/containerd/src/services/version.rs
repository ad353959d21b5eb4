//! The daemon's version.

use corten_api::services::version::{VersionResponse, version_server};
use tonic::{Request, Response, Status};

use super::Base;

#[tonic::async_trait]
impl version_server::Version for Base {
    async fn version(&self, _: Request<()>) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(VersionResponse { version: crate::VERSION.into(), revision: String::new() }))
    }
}
