//! What makes the daemon observable, and what observes containers: the debug socket, the metrics endpoint, traces,
//! and the restart monitor, each as the configuration wants it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use corten_config::Config;
use corten_types::{Error, Result, ResultExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::calls::{OpenCalls, Watch};
use crate::debug::{self, Debug};
use crate::metrics::{Counts, Metrics, Running};
use crate::plugins::Plugins;
use crate::plugins::parts::{INTERNAL, METRICS, MONITOR_CONTAINER, MONITOR_TASK, SERVER, TRACING};
use crate::restart::{CAPABILITIES, Monitor};
use crate::services::Services;
use crate::site::{Listener, serve};
use crate::sockets;
use crate::traces::{self, Exporter, Tracer};

/// What the configuration wants.
#[derive(Default)]
pub struct Wanted {
    /// The debug socket and its owner.
    debug: Option<(PathBuf, u32, u32)>,
    /// Address and port of the metrics endpoint.
    metrics: Option<String>,
    /// Whether the durations of calls are measured.
    histogram: bool,
    /// Whether containers' figures are among the metrics.
    containers: bool,
    /// How often the restart monitor looks.
    restart: Option<Duration>,
    traces: Option<(Tracer, Exporter)>,
}

/// Enters the parts in the table, with what came of them; within a runtime.
///
/// # Errors
/// A failure of a part that is required.
pub fn wanted(config: &Config, plugins: &mut Plugins) -> Result<Wanted> {
    let uri = |kind: &str, id: &str| format!("{kind}.{id}");
    let mut wanted = Wanted::default();
    plugins.load(MONITOR_TASK, "cgroups", |_| {
        wanted.containers = !config.flag(&uri(MONITOR_TASK, "cgroups"), "no_prometheus");
        Ok(())
    })?;
    plugins.load(SERVER, "metrics", |_| {
        let address = config.text(&uri(SERVER, "metrics"), "address");
        wanted.metrics = Some(address.to_owned()).filter(|address| !address.is_empty());
        Ok(())
    })?;
    let skipped = || Error::unknown(traces::NOT_CONFIGURED);
    wanted.traces = plugins.load(TRACING, "otlp", |_| traces::start()?.ok_or_else(skipped))?;
    plugins.load(INTERNAL, "tracing", |_| wanted.traces.as_ref().map(drop).ok_or_else(skipped))?;
    wanted.restart = plugins.load(MONITOR_CONTAINER, "restart", |entry| {
        entry.capabilities = CAPABILITIES.map(str::to_owned).into();
        corten_config::duration::parse(config.text(&uri(MONITOR_CONTAINER, "restart"), "interval"))
    })?;
    plugins.load(METRICS, "grpc-prometheus", |_| {
        wanted.histogram = config.flag(&uri(METRICS, "grpc-prometheus"), "grpc_histogram");
        Ok(())
    })?;
    plugins.load(SERVER, "debug", |_| {
        let uri = uri(SERVER, "debug");
        let address = config.text(&uri, "address");
        let owner = (config.number(&uri, "uid"), config.number(&uri, "gid"));
        let path = address.strip_prefix("unix://").unwrap_or(address);
        wanted.debug = (!path.is_empty()).then(|| (path.into(), owner.0, owner.1));
        Ok(())
    })?;
    Ok(wanted)
}

/// What runs beside the services, until it is dropped.
pub struct Observation {
    /// To be laid around the services.
    pub watch: Watch,
    tasks: JoinSet<()>,
    exporter: Option<Exporter>,
}

impl Observation {
    /// Binds what is wanted. It is served from the beginning, but tells of calls only what passes `watch`.
    ///
    /// # Errors
    /// A socket or an address that cannot be had.
    pub async fn start(wanted: &mut Wanted, services: Option<&Services>) -> Result<Self> {
        let (mut watch, mut tasks) = (Watch::default(), JoinSet::new());
        if let Some((path, uid, gid)) = &wanted.debug {
            let listener =
                sockets::listen(path, *uid, *gid).context("failed to get listener for debug endpoint")?;
            corten_sys::sample_heap(debug::HEAP_RATE);
            let calls = OpenCalls::default();
            watch.open = Some(calls.clone());
            tasks.spawn(serve(Listener::Unix(listener), Arc::new(Debug { calls })));
            tracing::info!(address = %path.display(), "serving...");
        }
        if let Some(address) = &wanted.metrics {
            let listener = listen(address).await.context("failed to get listener for metrics endpoint")?;
            let counts = Arc::new(Counts::new(wanted.histogram));
            watch.counts = Some(counts.clone());
            let running = services.filter(|_| wanted.containers).map(|services| Running {
                namespaces: services.namespaces.clone(),
                containers: services.containers.clone(),
                tasks: services.tasks.clone(),
            });
            let collector = services.map(|services| services.collector.clone());
            let metrics = Metrics { counts, collector, running, scrapes: AtomicU64::new(0) };
            tasks.spawn(serve(Listener::Tcp(listener), Arc::new(metrics)));
            tracing::info!(address, "serving...");
        }
        let (tracer, exporter) = wanted.traces.take().unzip();
        watch.tracer = tracer;
        Ok(Self { watch, tasks, exporter })
    }

    /// Begins to start containers again, once it is known which of them run.
    pub fn watch_containers(&mut self, wanted: &Wanted, services: Option<&Services>) {
        let Some((interval, services)) = wanted.restart.zip(services) else { return };
        let monitor = Monitor {
            namespaces: services.namespaces.clone(),
            containers: services.containers.clone(),
            snapshots: services.snapshots.clone(),
            tasks: services.tasks.clone(),
        };
        self.tasks.spawn(monitor.run(interval));
    }

    /// Ends it; spans that wait are sent.
    pub async fn finish(mut self, wanted: &Wanted) {
        self.tasks.abort_all();
        if let Some((path, ..)) = &wanted.debug {
            std::fs::remove_file(path).ok();
        }
        if let Some(exporter) = self.exporter.take() {
            exporter.finish().await;
        }
    }
}

/// Only numbers: a name could stand for an address that others reach.
async fn listen(address: &str) -> Result<TcpListener> {
    let text = address.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    let text = text.unwrap_or_else(|| match address.strip_prefix(':') {
        Some(port) => format!("0.0.0.0:{port}"),
        None => address.to_owned(),
    });
    let socket: SocketAddr =
        text.parse().map_err(|_| Error::invalid_argument(format!("address {address:?} is not IP:PORT")))?;
    TcpListener::bind(socket).await.with_context(|| format!("listen tcp {address}"))
}
