//! One file per gRPC service: decode, call the domain, encode. No behaviour lives here.

mod containers;
mod content;
mod diff;
mod events;
mod health;
mod images;
mod introspection;
mod leases;
mod mounts;
mod namespaces;
mod sandbox;
mod snapshots;
mod streaming;
mod tasks;
mod transfer;
mod unknown;
mod version;

use std::path::PathBuf;
use std::sync::Arc;

use corten_api::keys::{LEASE, MAX_MESSAGE, NAMESPACE};
use corten_api::services as api;
use corten_content::Store;
use corten_diff::Differs;
use corten_events::Exchange;
use corten_images::ImageService;
use corten_metadata::{Collector, Containers, Images, Leases, Namespaces, Sandboxes};
use corten_mounts::Activations;
use corten_runtime::{SandboxControllers, ShimSandboxes, Tasks};
use corten_snapshots::Snapshots;
use corten_types::{Context, Error, Namespace, ResultExt};
use tonic::server::NamedService;
use tonic::transport::server::Router;
use tonic::{Request, Status};
use tower::layer::util::{Identity, Stack};

use streaming::Streams;
use unknown::Named;

use crate::plugins::Plugins;
use crate::plugins::parts::GRPC;

/// What the services stand on.
#[derive(Clone)]
pub struct Services {
    pub exchange: Exchange,
    pub content: Store,
    pub differs: Differs,
    pub snapshots: Snapshots,
    pub images: Images,
    pub image_service: ImageService,
    pub leases: Leases,
    pub containers: Containers,
    pub sandboxes: Sandboxes,
    pub sandbox_controllers: SandboxControllers,
    pub shim_sandboxes: ShimSandboxes,
    pub namespaces: Namespaces,
    pub collector: Collector,
    pub activations: Activations,
    pub tasks: Tasks,
    pub streams: Arc<Streams>,
    /// The parts and what came of them.
    pub plugins: Arc<Plugins>,
    pub uuid_file: PathBuf,
}

/// Windows that let a blob flow; the protocol's own are meant for web pages.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Calls that one connection may have open; waits and subscriptions are such.
const STREAMS: u32 = 16_384;

/// The services whose parts work, on one server. What is not there answers that it is unimplemented.
pub fn router(services: Services) -> Router<Stack<Named, Identity>> {
    let plugins = services.plugins.clone();
    macro_rules! serve {
        ($($id:literal: $server:path),* $(,)?) => {{
            let all = [$(($id, <$server as NamedService>::NAME)),*];
            let working = all.iter().filter(|(id, _)| plugins.works(GRPC, id)).map(|(_, name)| *name);
            let mut router = tonic::transport::Server::builder()
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_concurrent_streams(STREAMS)
                .layer(Named(working.collect()))
                .add_optional_service(None::<api::version::version_server::VersionServer<Services>>);
            $(if plugins.works(GRPC, $id) {
                router = router.add_service(
                    <$server>::new(services.clone())
                        .max_decoding_message_size(MAX_MESSAGE)
                        .max_encoding_message_size(MAX_MESSAGE),
                );
            })*
            router
        }};
    }
    serve!(
        "containers": api::containers::containers_server::ContainersServer<Services>,
        "content": api::content::content_server::ContentServer<Services>,
        "diff": api::diff::diff_server::DiffServer<Services>,
        "events": api::events::events_server::EventsServer<Services>,
        "images": api::images::images_server::ImagesServer<Services>,
        "introspection": api::introspection::introspection_server::IntrospectionServer<Services>,
        "leases": api::leases::leases_server::LeasesServer<Services>,
        "mounts": api::mounts::mounts_server::MountsServer<Services>,
        "namespaces": api::namespaces::namespaces_server::NamespacesServer<Services>,
        "sandboxes": api::sandbox::store_server::StoreServer<Services>,
        "sandbox-controllers": api::sandbox::controller_server::ControllerServer<Services>,
        "snapshots": api::snapshots::snapshots_server::SnapshotsServer<Services>,
        "streaming": api::streaming::streaming_server::StreamingServer<Services>,
        "tasks": api::tasks::tasks_server::TasksServer<Services>,
        "transfer": api::transfer::transfer_server::TransferServer<Services>,
        "version": api::version::version_server::VersionServer<Services>,
        "healthcheck": corten_api::health::health_server::HealthServer<Services>,
    )
}

/// The status of an error; the one place where they meet.
fn status(error: Error) -> Status {
    corten_api::to_status(error)
}

/// For whom a call is made (spec 01 §0.1).
fn context<T>(request: &Request<T>) -> Result<Context, Status> {
    let header =
        |key: &str| request.metadata().get(key).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let name = header(NAMESPACE);
    if name.is_empty() {
        return Err(status(Error::failed_precondition("namespace is required")));
    }
    let namespace = Namespace::new(name).context("namespace validation").map_err(status)?;
    let lease = Some(header(LEASE)).filter(|lease| !lease.is_empty()).map(str::to_owned);
    Ok(Context { namespace, lease })
}

/// A message that a request must carry.
fn required<T>(message: Option<T>, name: &str) -> Result<T, Status> {
    message.ok_or_else(|| status(Error::invalid_argument(format!("{name} must be set"))))
}

/// The paths of an update mask.
fn paths(mask: Option<prost_types::FieldMask>) -> Vec<String> {
    mask.map(|mask| mask.paths).unwrap_or_default()
}

fn timestamp(time: std::time::SystemTime) -> Option<prost_types::Timestamp> {
    Some(corten_types::timestamp::from_system(time))
}

/// A stream of answers that are known already.
fn answers<T: Send + 'static>(list: Vec<T>) -> Answers<T> {
    Box::pin(tokio_stream::iter(list.into_iter().map(Ok)))
}

/// A stream of answers.
type Answers<T> = std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<T, Status>> + Send>>;
