//! Sandbox records.

use corten_api::services::sandbox::{self as api, store_server};
use corten_api::types;
use corten_metadata::Sandbox;
use corten_types::timestamp::to_system;
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
        let sandbox = from_api(required(request.into_inner().sandbox, "sandbox")?);
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
