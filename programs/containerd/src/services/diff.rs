//! Layers onto mounts, and what mounts have other than others, as a layer.

use corten_api::services::diff::{self as api, diff_server};
use corten_diff::{ApplyRequest, DiffRequest};
use corten_types::{Descriptor, Mount, timestamp};
use tonic::{Request, Response, Status};

use super::{Services, context, required, status};

fn mounts(mounts: Vec<corten_api::types::Mount>) -> Vec<Mount> {
    mounts.into_iter().map(Mount::from).collect()
}

#[tonic::async_trait]
impl diff_server::Diff for Services {
    async fn apply(
        &self,
        request: Request<api::ApplyRequest>,
    ) -> Result<Response<api::ApplyResponse>, Status> {
        let ctx = context(&request)?;
        let request = request.into_inner();
        let layer = Descriptor::try_from(required(request.diff, "diff")?).map_err(status)?;
        let request = ApplyRequest {
            payloads: request.payloads.into_iter().collect(),
            sync: request.sync_fs,
            ..ApplyRequest::new(layer, mounts(request.mounts))
        };
        let applied = self.differs.apply(&ctx, &request).await.map_err(status)?;
        let size = i64::try_from(applied.size).unwrap_or(i64::MAX);
        let descriptor = Descriptor::new(applied.media_type, applied.digest, size);
        Ok(Response::new(api::ApplyResponse { applied: Some(descriptor.into()) }))
    }

    async fn diff(&self, request: Request<api::DiffRequest>) -> Result<Response<api::DiffResponse>, Status> {
        let ctx = context(&request)?;
        let request = request.into_inner();
        let request = DiffRequest {
            lower: mounts(request.left),
            upper: mounts(request.right),
            media_type: request.media_type,
            reference: request.r#ref,
            labels: request.labels,
            source_date_epoch: request.source_date_epoch.map(|time| timestamp::to_system(&time)),
        };
        let layer = self.differs.diff(&ctx, &request).await.map_err(status)?;
        Ok(Response::new(api::DiffResponse { diff: Some(layer.into()) }))
    }
}
