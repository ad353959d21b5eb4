//! Namespaces.

use corten_api::services::namespaces::{self as api, namespaces_server};
use corten_types::{Error, Labels, Namespace};
use tonic::{Request, Response, Status};

use super::{Services, paths, required, status};

fn checked(namespace: Option<api::Namespace>) -> Result<(Namespace, Labels), Status> {
    let namespace = required(namespace, "namespace")?;
    Ok((Namespace::new(namespace.name).map_err(status)?, namespace.labels))
}

fn shown(name: &str, labels: Labels) -> Option<api::Namespace> {
    Some(api::Namespace { name: name.to_owned(), labels })
}

#[tonic::async_trait]
impl namespaces_server::Namespaces for Services {
    async fn get(
        &self,
        request: Request<api::GetNamespaceRequest>,
    ) -> Result<Response<api::GetNamespaceResponse>, Status> {
        let name = request.into_inner().name;
        let labels = match Namespace::new(name.as_str()) {
            Ok(namespace) => self.namespaces.labels(&namespace).map_err(status)?,
            Err(_) => Labels::new(),
        };
        Ok(Response::new(api::GetNamespaceResponse { namespace: shown(&name, labels) }))
    }

    async fn list(
        &self,
        _: Request<api::ListNamespacesRequest>,
    ) -> Result<Response<api::ListNamespacesResponse>, Status> {
        let found = self.namespaces.list().map_err(status)?;
        let namespaces =
            found.into_iter().filter_map(|(name, labels)| shown(name.as_str(), labels)).collect();
        Ok(Response::new(api::ListNamespacesResponse { namespaces }))
    }

    async fn create(
        &self,
        request: Request<api::CreateNamespaceRequest>,
    ) -> Result<Response<api::CreateNamespaceResponse>, Status> {
        let (name, labels) = checked(request.into_inner().namespace)?;
        self.namespaces.create(name.clone(), labels.clone()).await.map_err(status)?;
        Ok(Response::new(api::CreateNamespaceResponse { namespace: shown(name.as_str(), labels) }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateNamespaceRequest>,
    ) -> Result<Response<api::UpdateNamespaceResponse>, Status> {
        let request = request.into_inner();
        let (name, labels) = checked(request.namespace)?;
        self.namespaces.update(name, labels, paths(request.update_mask)).await.map_err(status)?;
        Ok(Response::new(api::UpdateNamespaceResponse::default()))
    }

    async fn delete(&self, request: Request<api::DeleteNamespaceRequest>) -> Result<Response<()>, Status> {
        let name = request.into_inner().name;
        let missing = |_| status(Error::not_found(format!("namespace {name:?}")));
        let name = Namespace::new(name.as_str()).map_err(missing)?;
        self.namespaces.delete(name).await.map_err(status)?;
        Ok(Response::new(()))
    }
}
