//! Leases.

use corten_api::services::leases::{self as api, leases_server};
use corten_metadata::{Lease, Resource};
use tonic::{Request, Response, Status};

use super::{Services, at_length, context, required, status, timestamp};

fn to_api(lease: Lease) -> api::Lease {
    api::Lease { id: lease.id, created_at: timestamp(lease.created_at), labels: lease.labels }
}

fn resource(resource: Option<api::Resource>) -> Result<Resource, Status> {
    let resource = required(resource, "resource")?;
    Ok(Resource { kind: resource.r#type, id: resource.id })
}

#[tonic::async_trait]
impl leases_server::Leases for Services {
    async fn create(
        &self,
        request: Request<api::CreateRequest>,
    ) -> Result<Response<api::CreateResponse>, Status> {
        let ctx = context(&request)?;
        let request = request.into_inner();
        let lease = self.leases.create(&ctx, &request.id, request.labels).await.map_err(status)?;
        Ok(Response::new(api::CreateResponse { lease: Some(to_api(lease)) }))
    }

    async fn delete(&self, request: Request<api::DeleteRequest>) -> Result<Response<()>, Status> {
        let ctx = context(&request)?;
        let request = request.into_inner();
        self.leases.delete(&ctx, &request.id).await.map_err(status)?;
        if request.sync {
            self.collector.trigger().await.map_err(status)?;
        }
        Ok(Response::new(()))
    }

    async fn list(&self, request: Request<api::ListRequest>) -> Result<Response<api::ListResponse>, Status> {
        let ctx = context(&request)?;
        let filters = request.into_inner().filters;
        let leases = at_length(|| self.leases.list(&ctx, &filters)).map_err(status)?;
        Ok(Response::new(api::ListResponse { leases: leases.into_iter().map(to_api).collect() }))
    }

    async fn add_resource(&self, request: Request<api::AddResourceRequest>) -> Result<Response<()>, Status> {
        let ctx = context(&request)?;
        let request = request.into_inner();
        self.leases.add_resource(&ctx, &request.id, resource(request.resource)?).await.map_err(status)?;
        Ok(Response::new(()))
    }

    async fn delete_resource(
        &self,
        request: Request<api::DeleteResourceRequest>,
    ) -> Result<Response<()>, Status> {
        let ctx = context(&request)?;
        let request = request.into_inner();
        self.leases.remove_resource(&ctx, &request.id, resource(request.resource)?).await.map_err(status)?;
        Ok(Response::new(()))
    }

    async fn list_resources(
        &self,
        request: Request<api::ListResourcesRequest>,
    ) -> Result<Response<api::ListResourcesResponse>, Status> {
        let ctx = context(&request)?;
        let found = self.leases.resources(&ctx, &request.into_inner().id).map_err(status)?;
        let resources = found.into_iter().map(|one| api::Resource { id: one.id, r#type: one.kind }).collect();
        Ok(Response::new(api::ListResourcesResponse { resources }))
    }
}
