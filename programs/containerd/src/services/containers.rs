//! Container records.

use bytes::Bytes;
use corten_api::services::containers::{self as api, containers_server};
use corten_metadata::{Container, Runtime};
use corten_types::Context;
use prost::Message;
use tonic::{Request, Response, Status};

use super::encoded::{Messages, Method, prefix};
use super::{
    Answers, MessageLimits, Services, answers, at_length, context, paths, required, status, timestamp,
};

fn from_api(container: api::Container) -> Container {
    let runtime = container.runtime.unwrap_or_default();
    Container {
        id: container.id,
        labels: container.labels,
        image: container.image,
        runtime: Runtime { name: runtime.name, options: runtime.options },
        spec: container.spec,
        snapshotter: container.snapshotter,
        snapshot_key: container.snapshot_key,
        extensions: container.extensions,
        sandbox: container.sandbox,
        ..Container::default()
    }
}

fn to_api(container: Container) -> api::Container {
    api::Container {
        id: container.id,
        labels: container.labels,
        image: container.image,
        runtime: Some(api::container::Runtime {
            name: container.runtime.name,
            options: container.runtime.options,
        }),
        spec: container.spec,
        snapshotter: container.snapshotter,
        snapshot_key: container.snapshot_key,
        created_at: timestamp(container.created_at),
        updated_at: timestamp(container.updated_at),
        extensions: container.extensions,
        sandbox: container.sandbox,
    }
}

impl Services {
    fn list_decoded(&self, ctx: &Context, filters: &[String]) -> Result<api::ListContainersResponse, Status> {
        let containers = at_length(|| self.containers.list(ctx, filters)).map_err(status)?;
        Ok(api::ListContainersResponse { containers: containers.into_iter().map(to_api).collect() })
    }
}

/// The answer of `List` comes encoded.
#[derive(Clone)]
pub struct List;

impl Method for List {
    const PATH: &'static str = "/containerd.services.containers.v1.Containers/List";
    type Request = api::ListContainersRequest;

    async fn answer(
        services: Services,
        request: Request<api::ListContainersRequest>,
        limits: MessageLimits,
    ) -> Result<Messages, Status> {
        let ctx = context(&request)?;
        let filters = request.into_inner().filters;
        let list = if filters.is_empty() {
            at_length(|| services.containers.list_all_encoded(&ctx)).map_err(status)?
        } else {
            services.list_decoded(&ctx, &filters)?.encode_to_vec()
        };
        if list.len() > limits.send {
            let (length, limit) = (list.len(), limits.send);
            let text = format!("grpc: trying to send message larger than max ({length} vs. {limit})");
            return Err(Status::resource_exhausted(text));
        }
        let head = Bytes::copy_from_slice(&prefix(list.len()));
        Ok(Box::pin(tokio_stream::iter([Ok(head), Ok(list.into())])))
    }
}

#[tonic::async_trait]
impl containers_server::Containers for Services {
    async fn get(
        &self,
        request: Request<api::GetContainerRequest>,
    ) -> Result<Response<api::GetContainerResponse>, Status> {
        let ctx = context(&request)?;
        let container = self.containers.get(&ctx, &request.into_inner().id).map_err(status)?;
        Ok(Response::new(api::GetContainerResponse { container: Some(to_api(container)) }))
    }

    async fn list(
        &self,
        request: Request<api::ListContainersRequest>,
    ) -> Result<Response<api::ListContainersResponse>, Status> {
        let ctx = context(&request)?;
        Ok(Response::new(self.list_decoded(&ctx, &request.into_inner().filters)?))
    }

    type ListStreamStream = Answers<api::ListContainerMessage>;

    async fn list_stream(
        &self,
        request: Request<api::ListContainersRequest>,
    ) -> Result<Response<Self::ListStreamStream>, Status> {
        let ctx = context(&request)?;
        let filters = request.into_inner().filters;
        let containers = at_length(|| self.containers.list(&ctx, &filters)).map_err(status)?;
        let message = |container| api::ListContainerMessage { container: Some(to_api(container)) };
        Ok(Response::new(answers(containers.into_iter().map(message).collect())))
    }

    async fn create(
        &self,
        request: Request<api::CreateContainerRequest>,
    ) -> Result<Response<api::CreateContainerResponse>, Status> {
        let ctx = context(&request)?;
        let container = required(request.into_inner().container, "container")?;
        let container = self.containers.create(&ctx, from_api(container)).await.map_err(status)?;
        Ok(Response::new(api::CreateContainerResponse { container: Some(to_api(container)) }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateContainerRequest>,
    ) -> Result<Response<api::UpdateContainerResponse>, Status> {
        let ctx = context(&request)?;
        let request = request.into_inner();
        let container = from_api(required(request.container, "container")?);
        let container =
            self.containers.update(&ctx, container, paths(request.update_mask)).await.map_err(status)?;
        Ok(Response::new(api::UpdateContainerResponse { container: Some(to_api(container)) }))
    }

    async fn delete(&self, request: Request<api::DeleteContainerRequest>) -> Result<Response<()>, Status> {
        let ctx = context(&request)?;
        self.containers.delete(&ctx, &request.into_inner().id).await.map_err(status)?;
        Ok(Response::new(()))
    }
}
