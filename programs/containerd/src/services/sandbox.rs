//! Sandbox records, and controllers of sandboxes.

use corten_api::services::sandbox::{self as api, controller_server, store_server};
use corten_api::types;
use corten_metadata::Sandbox;
use corten_types::timestamp::to_system;
use corten_types::{Error, ErrorClass};
use tonic::{Request, Response, Status};

use super::{Services, context, required, status, timestamp};

fn from_api(sandbox: types::Sandbox) -> Sandbox {
    let runtime = sandbox.runtime.unwrap_or_default();
    Sandbox {
        id: sandbox.sandbox_id,
        labels: sandbox.labels,
        runtime: runtime.name,
        options: runtime.options,
        spec: sandbox.spec,
        sandboxer: sandbox.sandboxer,
        created_at: to_system(&sandbox.created_at.unwrap_or_default()),
        updated_at: to_system(&sandbox.updated_at.unwrap_or_default()),
        extensions: sandbox.extensions,
    }
}

fn to_api(sandbox: Sandbox) -> types::Sandbox {
    types::Sandbox {
        sandbox_id: sandbox.id,
        runtime: Some(types::sandbox::Runtime { name: sandbox.runtime, options: sandbox.options }),
        spec: sandbox.spec,
        labels: sandbox.labels,
        created_at: timestamp(sandbox.created_at),
        updated_at: timestamp(sandbox.updated_at),
        extensions: sandbox.extensions,
        sandboxer: sandbox.sandboxer,
    }
}

#[tonic::async_trait]
impl store_server::Store for Services {
    async fn create(
        &self,
        request: Request<api::StoreCreateRequest>,
    ) -> Result<Response<api::StoreCreateResponse>, Status> {
        let ctx = context(&request)?;
        let sandbox = required(request.into_inner().sandbox, "sandbox")?;
        required(sandbox.runtime.as_ref(), "sandbox.Runtime")?;
        let sandbox = from_api(sandbox);
        let sandbox = self.sandboxes.create(&ctx, sandbox).await.map_err(status)?;
        Ok(Response::new(api::StoreCreateResponse { sandbox: Some(to_api(sandbox)) }))
    }

    async fn update(
        &self,
        request: Request<api::StoreUpdateRequest>,
    ) -> Result<Response<api::StoreUpdateResponse>, Status> {
        let ctx = context(&request)?;
        let request = request.into_inner();
        let sandbox = from_api(required(request.sandbox, "sandbox")?);
        let sandbox = self.sandboxes.update(&ctx, sandbox, request.fields).await.map_err(status)?;
        Ok(Response::new(api::StoreUpdateResponse { sandbox: Some(to_api(sandbox)) }))
    }

    async fn delete(
        &self,
        request: Request<api::StoreDeleteRequest>,
    ) -> Result<Response<api::StoreDeleteResponse>, Status> {
        let ctx = context(&request)?;
        self.sandboxes.delete(&ctx, &request.into_inner().sandbox_id).await.map_err(status)?;
        Ok(Response::new(api::StoreDeleteResponse {}))
    }

    async fn list(
        &self,
        request: Request<api::StoreListRequest>,
    ) -> Result<Response<api::StoreListResponse>, Status> {
        let ctx = context(&request)?;
        let found = self.sandboxes.list(&ctx, &request.into_inner().filters).map_err(status)?;
        Ok(Response::new(api::StoreListResponse { list: found.into_iter().map(to_api).collect() }))
    }

    async fn get(
        &self,
        request: Request<api::StoreGetRequest>,
    ) -> Result<Response<api::StoreGetResponse>, Status> {
        let ctx = context(&request)?;
        let sandbox = self.sandboxes.get(&ctx, &request.into_inner().sandbox_id).map_err(status)?;
        Ok(Response::new(api::StoreGetResponse { sandbox: Some(to_api(sandbox)) }))
    }
}

#[tonic::async_trait]
impl controller_server::Controller for Services {
    async fn create(
        &self,
        request: Request<api::ControllerCreateRequest>,
    ) -> Result<Response<api::ControllerCreateResponse>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        let sandbox_id = r.sandbox_id.clone();
        self.sandbox_controllers.create(&ctx, r).await.map_err(status)?;
        Ok(Response::new(api::ControllerCreateResponse { sandbox_id }))
    }

    async fn start(
        &self,
        request: Request<api::ControllerStartRequest>,
    ) -> Result<Response<api::ControllerStartResponse>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        let started = self.sandbox_controllers.start(&ctx, r).await.map_err(status)?;
        // The original leaves these out here.
        Ok(Response::new(api::ControllerStartResponse {
            address: String::new(),
            version: 0,
            spec: None,
            ..started
        }))
    }

    async fn platform(
        &self,
        _: Request<api::ControllerPlatformRequest>,
    ) -> Result<Response<api::ControllerPlatformResponse>, Status> {
        // As the original, whatever the controller could say.
        Err(status(Error::bare(ErrorClass::NotImplemented, "method Platform not implemented")))
    }

    async fn stop(
        &self,
        request: Request<api::ControllerStopRequest>,
    ) -> Result<Response<api::ControllerStopResponse>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        self.sandbox_controllers.stop(&ctx, r).await.map_err(status)?;
        Ok(Response::new(api::ControllerStopResponse {}))
    }

    async fn wait(
        &self,
        request: Request<api::ControllerWaitRequest>,
    ) -> Result<Response<api::ControllerWaitResponse>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        Ok(Response::new(self.sandbox_controllers.wait(&ctx, r).await.map_err(status)?))
    }

    async fn status(
        &self,
        request: Request<api::ControllerStatusRequest>,
    ) -> Result<Response<api::ControllerStatusResponse>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        let known = self.sandbox_controllers.status(&ctx, r).await.map_err(status)?;
        // The original leaves these out here, and has something empty for what more there is.
        Ok(Response::new(api::ControllerStatusResponse {
            address: String::new(),
            version: 0,
            extra: Some(known.extra.clone().unwrap_or_default()),
            ..known
        }))
    }

    async fn shutdown(
        &self,
        request: Request<api::ControllerShutdownRequest>,
    ) -> Result<Response<api::ControllerShutdownResponse>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        self.sandbox_controllers.shutdown(&ctx, r).await.map_err(status)?;
        Ok(Response::new(api::ControllerShutdownResponse {}))
    }

    async fn metrics(
        &self,
        request: Request<api::ControllerMetricsRequest>,
    ) -> Result<Response<api::ControllerMetricsResponse>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        Ok(Response::new(self.sandbox_controllers.metrics(&ctx, r).await.map_err(status)?))
    }

    async fn update(
        &self,
        request: Request<api::ControllerUpdateRequest>,
    ) -> Result<Response<api::ControllerUpdateResponse>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        self.sandbox_controllers.update(&ctx, r).await.map_err(status)?;
        Ok(Response::new(api::ControllerUpdateResponse {}))
    }
}
