//! One file per gRPC service: decode, call the domain, encode. No behaviour lives here.

mod containers;
mod content;
mod diff;
mod encoded;
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
use std::time::SystemTime;

use corten_api::keys::{LEASE, MAX_MESSAGE, NAMESPACE};
use corten_api::services as api;
use corten_content::Store;
use corten_diff::Differs;
use corten_events::Exchange;
use corten_images::{ImageService, VerifierDir};
use corten_metadata::{Collector, Containers, Images, Leases, Namespaces, Sandboxes};
use corten_mounts::Activations;
use corten_runtime::{SandboxControllers, ShimSandboxes, Tasks};
use corten_snapshots::Snapshots;
use corten_types::{Context, Error, Namespace, ResultExt};
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::server::Router;
use tonic::{Request, Status};
use tower::layer::util::{Identity, Stack};

use encoded::Encoded;
pub use streaming::Streams;
#[cfg(fuzzing)]
pub use transfer::read_only as read_transfer;
use unknown::Named;

use crate::calls::Watch;
use crate::plugins::Plugins;
use crate::plugins::parts::GRPC;

/// What the services that answer always stand on: events, introspection, version, health.
#[derive(Clone)]
pub struct Base {
    pub exchange: Exchange,
    /// The parts and what came of them.
    pub plugins: Arc<Plugins>,
    pub uuid_file: PathBuf,
    /// When the daemon started.
    pub started: SystemTime,
    /// Asked about runtimes.
    pub tasks: Option<Tasks>,
}

/// What the others stand on. There is none of it without the database.
#[derive(Clone)]
pub struct Services {
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
    pub settings: Settings,
}

/// Windows that let a blob flow; the protocol's own are meant for web pages.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Bytes that clients may send at once.
const FRAME: u32 = 128 << 10;
/// Calls that one connection may have open; waits and subscriptions are such.
const STREAMS: u32 = 16_384;

/// Options of the configuration that services ask for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Blobs of a push that are sent at once.
    pub uploads: usize,
    /// Roots of certs.d where a client names none.
    pub hosts_dirs: Vec<PathBuf>,
    /// Whether blobs are fetched in parts, and in which.
    pub parts: Option<corten_registry::Parts>,
    /// What bounds requests to each registry, whoever makes them.
    pub limits: Arc<corten_registry::Limits>,
    /// Whether a pull is asked about before.
    pub verifier: Option<Arc<VerifierDir>>,
}

/// Bytes of the longest message, each way.
#[derive(Clone, Copy, Debug)]
pub struct MessageLimits {
    receive: usize,
    send: usize,
}

impl MessageLimits {
    /// Zero stands for what is usual.
    pub fn new(receive: usize, send: usize) -> Self {
        let or_usual = |size| if size == 0 { MAX_MESSAGE } else { size };
        Self { receive: or_usual(receive), send: or_usual(send) }
    }
}

/// The services whose parts work, on one server. What is not there answers that it is unimplemented.
pub fn router(
    base: Base,
    services: Option<Services>,
    limits: MessageLimits,
    watch: &Watch,
) -> Router<Stack<Named, Stack<Watch, Identity>>> {
    let (routes, names) = routes(base, services, limits, watch);
    tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS)
        .max_frame_size(FRAME)
        .layer(watch.clone())
        .layer(Named(names.into()))
        .add_routes(routes)
}

/// The services whose parts work, and their full names.
pub fn routes(
    base: Base,
    services: Option<Services>,
    limits: MessageLimits,
    watch: &Watch,
) -> (Routes, Vec<&'static str>) {
    let plugins = base.plugins.clone();
    let (mut routes, mut names) = (Routes::default(), Vec::new());
    macro_rules! add {
        ($on:expr, $($id:literal: $server:path $(, but $method:path)?);* $(;)?) => {
            $(if plugins.works(GRPC, $id) {
                names.push(<$server as NamedService>::NAME);
                watch.serve(<$server as NamedService>::NAME);
                let server = <$server>::new($on.clone())
                    .max_decoding_message_size(limits.receive)
                    .max_encoding_message_size(limits.send);
                $(let server = Encoded::<_, $method>::new(server, $on.clone(), limits);)?
                routes = routes.add_service(server);
            })*
        };
    }
    add!(
        base,
        "events": api::events::events_server::EventsServer<Base>;
        "introspection": api::introspection::introspection_server::IntrospectionServer<Base>;
        "version": api::version::version_server::VersionServer<Base>;
        "healthcheck": corten_api::health::health_server::HealthServer<Base>;
    );
    if let Some(services) = services {
        add!(
            services,
            "containers": api::containers::containers_server::ContainersServer<Services>, but containers::List;
            "content": api::content::content_server::ContentServer<Services>, but content::Read;
            "diff": api::diff::diff_server::DiffServer<Services>;
            "images": api::images::images_server::ImagesServer<Services>;
            "leases": api::leases::leases_server::LeasesServer<Services>;
            "mounts": api::mounts::mounts_server::MountsServer<Services>;
            "namespaces": api::namespaces::namespaces_server::NamespacesServer<Services>;
            "sandboxes": api::sandbox::store_server::StoreServer<Services>;
            "sandbox-controllers": api::sandbox::controller_server::ControllerServer<Services>;
            "snapshots": api::snapshots::snapshots_server::SnapshotsServer<Services>;
            "streaming": api::streaming::streaming_server::StreamingServer<Services>;
            "tasks": api::tasks::tasks_server::TasksServer<Services>;
            "transfer": api::transfer::transfer_server::TransferServer<Services>;
        );
    }
    (routes, names)
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

/// Does what may take long where there is much: others are served meanwhile.
fn at_length<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

/// A stream of answers that are known already.
fn answers<T: Send + 'static>(list: Vec<T>) -> Answers<T> {
    Box::pin(tokio_stream::iter(list.into_iter().map(Ok)))
}

/// A stream of answers.
type Answers<T> = std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<T, Status>> + Send>>;
