//! Activation of mounts.

use corten_api::services::mounts::{self as api, mounts_server};
use corten_api::types;
use corten_metadata::Activation;
use corten_mounts::{Activate, Claims};
use corten_types::{Error, Mount};
use tonic::{Request, Response, Status};

use super::{Answers, Services, answers, context, status};

fn to_api(activation: Activation) -> types::ActivationInfo {
    let active = activation.active.into_iter().map(|active| types::ActiveMount {
        mount: Some(active.mount.into()),
        mounted_at: active.mounted_at,
        mount_point: active.mount_point,
        ..Default::default()
    });
    types::ActivationInfo {
        name: activation.name,
        active: active.collect(),
        system: activation.system.into_iter().map(types::Mount::from).collect(),
        labels: activation.labels,
    }
}

#[tonic::async_trait]
impl mounts_server::Mounts for Services {
    async fn activate(
        &self,
        request: Request<api::ActivateRequest>,
    ) -> Result<Response<api::ActivateResponse>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        let activate = Activate {
            name: r.name,
            mounts: r.mounts.into_iter().map(Mount::from).collect(),
            labels: r.labels,
            temporary: r.temporary,
            claims: Claims::default(),
        };
        let activation = self.activations.activate(&ctx, activate).await.map_err(status)?;
        Ok(Response::new(api::ActivateResponse { info: Some(to_api(activation)) }))
    }

    async fn deactivate(&self, request: Request<api::DeactivateRequest>) -> Result<Response<()>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        self.activations.deactivate(&ctx, &r.name).await.map(Response::new).map_err(status)
    }

    async fn info(&self, request: Request<api::InfoRequest>) -> Result<Response<api::InfoResponse>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        let activation = self.activations.info(&ctx, &r.name).map_err(status)?;
        Ok(Response::new(api::InfoResponse { info: Some(to_api(activation)) }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateRequest>,
    ) -> Result<Response<api::UpdateResponse>, Status> {
        context(&request)?;
        // As the original.
        Err(status(Error::not_implemented("")))
    }

    type ListStream = Answers<api::ListMessage>;

    async fn list(&self, request: Request<api::ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        // The original does not look at the filters either.
        let found = self.activations.list(&context(&request)?).map_err(status)?;
        let messages = found.into_iter().map(|one| api::ListMessage { info: Some(to_api(one)) });
        Ok(Response::new(answers(messages.collect())))
    }
}
