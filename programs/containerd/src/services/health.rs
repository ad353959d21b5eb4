//! gRPC's health protocol: who is answered is served.

use corten_api::health::health_check_response::ServingStatus;
use corten_api::health::{HealthCheckRequest, HealthCheckResponse, health_server};
use tonic::{Request, Response, Status};

use super::{Answers, Base};

fn check(service: &str) -> Result<HealthCheckResponse, Status> {
    if service.is_empty() || service.starts_with("containerd.services.") {
        return Ok(HealthCheckResponse { status: ServingStatus::Serving.into() });
    }
    Err(Status::not_found("unknown service"))
}

#[tonic::async_trait]
impl health_server::Health for Base {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        check(&request.into_inner().service).map(Response::new)
    }

    type WatchStream = Answers<HealthCheckResponse>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        use futures_util::StreamExt;
        let unknown = HealthCheckResponse { status: ServingStatus::ServiceUnknown.into() };
        let now = check(&request.into_inner().service).unwrap_or(unknown);
        // It does not change while there is a connection.
        let stream = tokio_stream::once(Ok(now)).chain(futures_util::stream::pending());
        Ok(Response::new(Box::pin(stream)))
    }
}
