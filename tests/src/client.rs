//! A gRPC client of a daemon, for what `ctr` does not offer: calls one after the other, on the caller's thread.

use std::path::Path;

use corten_api::client::{Headers, Service};
use corten_api::keys::MAX_MESSAGE;
use corten_api::services as api;
use tonic::Status;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

/// A daemon's services. It connects with the first call, and again when the daemon was started again.
#[derive(Debug)]
pub struct Client {
    runtime: tokio::runtime::Runtime,
    channel: Channel,
    headers: Headers,
}

macro_rules! clients {
    ($($method:ident: $path:ident :: $module:ident :: $client:ident;)*) => {
        impl Client {
            $(#[allow(missing_docs)] pub fn $method(&self) -> api::$path::$module::$client<Service> {
                api::$path::$module::$client::new(self.service())
                    .max_decoding_message_size(MAX_MESSAGE)
                    .max_encoding_message_size(MAX_MESSAGE)
            })*
        }
    };
}

clients! {
    containers: containers::containers_client::ContainersClient;
    content: content::content_client::ContentClient;
    diff: diff::diff_client::DiffClient;
    events: events::events_client::EventsClient;
    images: images::images_client::ImagesClient;
    introspection: introspection::introspection_client::IntrospectionClient;
    leases: leases::leases_client::LeasesClient;
    mounts: mounts::mounts_client::MountsClient;
    namespaces: namespaces::namespaces_client::NamespacesClient;
    sandbox_controller: sandbox::controller_client::ControllerClient;
    sandboxes: sandbox::store_client::StoreClient;
    snapshots: snapshots::snapshots_client::SnapshotsClient;
    tasks: tasks::tasks_client::TasksClient;
    transfer: transfer::transfer_client::TransferClient;
    version: version::version_client::VersionClient;
}

impl Client {
    /// A client of the daemon at this socket; `None` sends no namespace.
    ///
    /// # Panics
    /// When a runtime cannot be made.
    pub fn new(address: &Path, namespace: Option<&str>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let address = address.to_owned();
        let connector = tower::service_fn(move |_| {
            let address = address.clone();
            async move { tokio::net::UnixStream::connect(address).await.map(hyper_util::rt::TokioIo::new) }
        });
        let channel = {
            let _guard = runtime.enter();
            // The windows of clients of the original grow too.
            let endpoint = Endpoint::from_static("http://localhost").http2_adaptive_window(true);
            endpoint.connect_with_connector_lazy(connector)
        };
        let namespace = namespace.map(|name| name.parse().unwrap());
        Self { runtime, channel, headers: Headers { namespace, lease: None } }
    }

    /// The same, and what is made belongs to a lease.
    ///
    /// # Panics
    /// When the lease's name cannot be a header.
    #[must_use]
    pub fn leased(mut self, lease: &str) -> Self {
        self.headers.lease = Some(lease.parse().unwrap());
        self
    }

    /// The connection, for calls of one's own making.
    #[must_use]
    pub fn service(&self) -> Service {
        InterceptedService::new(self.channel.clone(), self.headers.clone())
    }

    /// Waits for the answer of a call.
    ///
    /// # Errors
    /// The status that was answered; of class Unavailable when the connection was lost.
    pub fn wait<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Status> {
        self.runtime.block_on(call).map(tonic::Response::into_inner)
    }

    /// Waits for whatever else is done with a call's answer, as streams are.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }
}
