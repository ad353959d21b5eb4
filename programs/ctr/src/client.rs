//! The connection: made with the first call, its calls in one namespace.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use corten_api::client::{Headers, Service};
use corten_api::keys::MAX_MESSAGE;
use corten_api::services as api;
use corten_types::{Error, ErrorClass, Result};
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use crate::Global;

const CONNECT: Duration = Duration::from_secs(10);

/// A daemon, perhaps not spoken to yet.
#[derive(Clone, Debug)]
pub struct Client {
    pub namespace: String,
    pub address: PathBuf,
    connect_timeout: Duration,
    /// Asks for what is deprecated while the command does its work.
    asking: Arc<Mutex<Option<JoinHandle<()>>>>,
}

macro_rules! clients {
    ($($method:ident: $path:ident :: $module:ident :: $client:ident;)*) => {
        /// A connected daemon.
        #[derive(Clone, Debug)]
        pub struct Daemon {
            pub namespace: String,
            channel: Channel,
            headers: Headers,
            service: Service,
        }

        impl Daemon {
            /// The same, what is made belongs to a lease.
            pub fn leased(&self, lease: &str) -> Result<Self> {
                let lease = lease.parse().map_err(|_| Error::invalid_argument("malformed lease"))?;
                let headers = Headers { lease: Some(lease), ..self.headers.clone() };
                let service = InterceptedService::new(self.channel.clone(), headers.clone());
                Ok(Self { namespace: self.namespace.clone(), channel: self.channel.clone(), headers, service })
            }

            /// The same for another namespace.
            pub fn of(&self, namespace: &str) -> Result<Self> {
                let name = namespace.parse().map_err(|_| Error::invalid_argument("malformed namespace"))?;
                let headers = Headers { namespace: Some(name), ..self.headers.clone() };
                let service = InterceptedService::new(self.channel.clone(), headers.clone());
                Ok(Self { namespace: namespace.to_owned(), channel: self.channel.clone(), headers, service })
            }

            /// The connection, for services that are not the daemon's own.
            pub fn service(&self) -> Service {
                self.service.clone()
            }

            $(pub fn $method(&self) -> api::$path::$module::$client<Service> {
                api::$path::$module::$client::new(self.service.clone())
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
    namespaces: namespaces::namespaces_client::NamespacesClient;
    snapshots: snapshots::snapshots_client::SnapshotsClient;
    streaming: streaming::streaming_client::StreamingClient;
    tasks: tasks::tasks_client::TasksClient;
    transfer: transfer::transfer_client::TransferClient;
    version: version::version_client::VersionClient;
    sandboxes: sandbox::store_client::StoreClient;
    controller: sandbox::controller_client::ControllerClient;
}

impl Client {
    pub fn new(global: &Global) -> Self {
        Self {
            namespace: global.namespace.clone(),
            address: global.address.clone(),
            connect_timeout: Some(global.connect_timeout).filter(|time| !time.is_zero()).unwrap_or(CONNECT),
            asking: Arc::default(),
        }
    }

    /// Waits until what is deprecated has been told.
    pub async fn tell_deprecations(&self) {
        let asking = self.asking.lock().ok().and_then(|mut asking| asking.take());
        if let Some(asking) = asking {
            let _ = tokio::time::timeout(Duration::from_secs(1), asking).await;
        }
    }

    fn ask_deprecations(&self, daemon: &Daemon) {
        tell_of_bad_setting();
        if !wants_deprecations() {
            return;
        }
        let mut service = daemon.introspection();
        let asking = tokio::spawn(async move {
            // A daemon that does not know the call is old, not wrong.
            let Ok(about) = service.server(()).await else { return };
            warn_of(&about.into_inner());
        });
        if let Ok(mut known) = self.asking.lock() {
            *known = Some(asking);
        }
    }

    /// Connects.
    ///
    /// # Errors
    /// `cannot access socket …`, with what to do about it.
    pub async fn connect(&self) -> Result<Daemon> {
        let daemon = self.dial().await?;
        self.ask_deprecations(&daemon);
        Ok(daemon)
    }

    /// Connects, and asks for nothing.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn dial(&self) -> Result<Daemon> {
        let path = self.address.display().to_string();
        if let Err(error) = std::fs::metadata(&self.address) {
            let why = Error::from(error);
            let text = format!("cannot access socket {path}: stat {path}: {}", why.message());
            return Err(Error::bare(why.class(), text).with_hint(
                "is the daemon running? Start it with `systemctl start containerd` or `containerd &`",
            ));
        }
        let address = self.address.clone();
        let connector = tower::service_fn(move |_| {
            let address = address.clone();
            async move { tokio::net::UnixStream::connect(address).await.map(hyper_util::rt::TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost")
            .connect_timeout(self.connect_timeout)
            // A socket behind which nobody answers is noticed, too.
            .http2_keep_alive_interval(self.connect_timeout)
            .keep_alive_timeout(self.connect_timeout)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20);
        let refused = |error: tonic::transport::Error| {
            let mut source: &dyn std::error::Error = &error;
            while let Some(inner) = source.source() {
                source = inner;
            }
            let why = match source.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error) {
                Some(number) => Error::from(std::io::Error::from_raw_os_error(number)).message().to_owned(),
                None => source.to_string(),
            };
            let text = format!("failed to dial {path:?}: dial unix {path}: connect: {why}");
            Error::bare(ErrorClass::Unavailable, text)
                .with_hint("may you use the socket? Its group may, and root")
        };
        let channel = endpoint.connect_with_connector(connector).await.map_err(refused)?;
        let namespace = self.namespace.parse().map_err(|_| Error::invalid_argument("malformed namespace"))?;
        let headers = Headers { namespace: Some(namespace), lease: None };
        let service = InterceptedService::new(channel.clone(), headers.clone());
        Ok(Daemon { namespace: self.namespace.clone(), channel, headers, service })
    }
}

/// The variable that keeps deprecations from being told.
const SUPPRESS: &str = "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS";
const YES: [&str; 6] = ["1", "t", "T", "true", "TRUE", "True"];
const NO: [&str; 6] = ["0", "f", "F", "false", "FALSE", "False"];

/// Whether deprecations are told.
fn wants_deprecations() -> bool {
    !std::env::var(SUPPRESS).is_ok_and(|text| YES.contains(&text.as_str()))
}

/// A value that means neither is told, and suppresses nothing.
fn tell_of_bad_setting() {
    let Some(text) = std::env::var(SUPPRESS).ok().filter(|text| !text.is_empty()) else { return };
    if !YES.contains(&text.as_str()) && !NO.contains(&text.as_str()) {
        let why = format!("strconv.ParseBool: parsing {text:?}: invalid syntax");
        crate::log::warning_of(&format!("Failed to parse {SUPPRESS}={text}"), &why);
    }
}

/// Tells what the daemon was asked for and will no longer do.
pub fn warn_of(about: &api::introspection::ServerResponse) {
    if wants_deprecations() {
        for one in &about.deprecations {
            crate::log::warning(&format!("DEPRECATION: {}", one.message));
        }
    }
}

/// The error that a status tells.
pub fn error(status: Status) -> Error {
    if std::error::Error::source(&status).is_some() {
        // No answer of a daemon's, but a connection that ended or never spoke.
        return Error::unavailable(lost(&status));
    }
    let known = corten_api::from_status(&status);
    let class = known.class();
    // As Go's client: the class is told once.
    if matches!(class, ErrorClass::Unknown) || known.message().ends_with(class.text()) {
        return known;
    }
    Error::new(class, known.message())
}

/// Why a connection does not serve any more, the innermost reason.
fn lost(status: &Status) -> String {
    let (mut text, mut source) = (status.message().to_owned(), std::error::Error::source(status));
    while let Some(inner) = source {
        text = inner.to_string();
        source = inner.source();
    }
    format!("error reading from server: {}", text.split(" (os error").next().unwrap_or_default())
}
