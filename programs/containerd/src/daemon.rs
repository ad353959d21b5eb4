//! The daemon's life: folders, stores, tasks, sockets, and the orderly end.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use corten_content::{Policy, Store};
use corten_diff::{Differs, Walking};
use corten_events::Exchange;
use corten_images::ImageService;
use corten_metadata::{
    Collector, CollectorOptions, Containers, Database, Images, Leases, Namespaces, Sandboxes, Sweeper,
};
use corten_runtime::{SandboxControllers, StoredRecords, Tasks};
use corten_snapshots::{Backend, Native, Overlay, OverlayOptions, Snapshots};
use corten_types::{Error, Result, ResultExt};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;
use crate::services::{Services, router};
use crate::{VERSION, notify, plugins};

/// The longest name of a socket that the kernel takes, less a margin.
const LONGEST_SOCKET: usize = 104;

/// Runs until it is told to end. Containers go on.
///
/// # Errors
/// Whatever keeps it from serving.
pub async fn run(config: Config) -> Result<()> {
    let begun = Instant::now();
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    tracing::info!(revision = "", version = VERSION, "starting containerd");
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let _broken_pipe = signal(SignalKind::pipe())?;
    folders(&config)?;
    let (database, services) = assemble(&config).await?;
    let tasks = services.tasks.clone();

    // The sockets come last: who finds them finds everything behind them.
    let ttrpc = listen(&config.ttrpc_address, &config)?;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let events = corten_ttrpc::Server::new(tasks.event_service()).require_peer(uid, gid);
    let (stop, stopping) = tokio::sync::watch::channel(false);
    let mut until = stopping.clone();
    let ttrpc_server = tokio::spawn(async move {
        events.serve(ttrpc, async move { drop(until.wait_for(|stop| *stop).await) }).await;
    });
    tracing::info!(address = %config.ttrpc_address.display(), "serving...");
    if let Err(error) = tasks.load().await {
        tracing::error!(%error, "tasks could not all be found again");
    }
    let grpc = listen(&config.grpc_address, &config)?;
    tracing::info!(address = %config.grpc_address.display(), "serving...");
    let mut until = stopping;
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(grpc);
    let server = router(services).serve_with_incoming_shutdown(incoming, async move {
        drop(until.wait_for(|stop| *stop).await);
    });
    let mut server = tokio::spawn(server);
    notify::tell("READY=1");
    tracing::info!("containerd successfully booted in {:.6}s", begun.elapsed().as_secs_f64());

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = &mut server => {
            let failed = |error: &dyn std::fmt::Display| Error::internal(format!("server: {error}"));
            ended.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
        }
    }
    notify::tell("STOPPING=1");
    for address in [&config.grpc_address, &config.ttrpc_address] {
        std::fs::remove_file(address).ok();
    }
    stop.send_replace(true);
    // Streams of events never end by themselves.
    let patience = std::time::Duration::from_millis(500);
    if tokio::time::timeout(patience, &mut server).await.is_err() {
        server.abort();
    }
    ttrpc_server.abort();
    tokio::task::spawn_blocking(move || database.close()).await.ok();
    Ok(())
}

/// Folders with the modes that containers in user namespaces need and other users must not have.
fn folders(config: &Config) -> Result<()> {
    for (path, mode) in [(&config.root, 0o700), (&config.state, 0o711)] {
        std::fs::create_dir_all(path).with_context(|| path.display().to_string())?;
        std::fs::set_permissions(path, Permissions::from_mode(mode))?;
    }
    let temporary = config.root.join("tmpmounts");
    std::fs::create_dir_all(&temporary)?;
    if let Err(error) = corten_mounts::TempMount::clear(&temporary) {
        tracing::warn!(%error, "mounts of an earlier run could not be taken away");
    }
    Ok(())
}

/// Everything behind the sockets.
async fn assemble(config: &Config) -> Result<(Database, Services)> {
    let plugin = |uri: &str| config.root.join(uri);
    let metadata = plugin("io.containerd.metadata.v1.bolt");
    std::fs::create_dir_all(&metadata)?;
    let (database, lost) = Database::open(&metadata.join("corten.redb"))?;
    if let Some(lost) = lost {
        tracing::error!(
            set_aside = %lost.set_aside.display(), reason = lost.reason,
            "the database was damaged and has been set aside: records of images, containers and snapshots are lost"
        );
    }
    let exchange = Exchange::default();
    let content =
        Store::open(&plugin("io.containerd.content.v1.content"), &database, &exchange, Policy::Shared)?;
    let (backends, failures) = backends(config);
    let snapshots = Snapshots::new(&database, &exchange, backends)?;
    let images = Images::new(database.clone(), exchange.clone());
    let leases = Leases::new(database.clone());
    let containers = Containers::new(database.clone(), exchange.clone());
    let sandboxes = Sandboxes::new(database.clone());
    let sweepers: Vec<Arc<dyn Sweeper>> = vec![Arc::new(snapshots.clone()), Arc::new(content.clone())];
    let collector =
        Collector::start(database.clone(), exchange.clone(), sweepers, CollectorOptions::default());
    let records = StoredRecords { containers: containers.clone(), sandboxes: sandboxes.clone() };
    let text = |path: &Path| path.display().to_string();
    let mut runtime = corten_runtime::Config::new(
        &config.state,
        &config.root,
        &text(&config.grpc_address),
        &text(&config.ttrpc_address),
    );
    runtime.debug = matches!(config.log_level.as_str(), "debug" | "trace");
    let tasks = Tasks::open(runtime, Arc::new(records), exchange.clone())?;
    let walking = Walking::new(content.clone(), config.root.join("tmpmounts"));
    let differs = Differs::new(vec![Arc::new(walking)]);
    let image_service = ImageService::new(
        content.clone(),
        snapshots.clone(),
        images.clone(),
        leases.clone(),
        differs.clone(),
        corten_images::Options::default(),
    );
    let services = Services {
        namespaces: Namespaces::new(database.clone(), exchange.clone()),
        sandbox_controllers: SandboxControllers::new(exchange.clone(), BTreeMap::new()),
        plugins: plugins::table(&config.root, &failures),
        uuid_file: plugin("io.containerd.grpc.v1.introspection").join("uuid"),
        streams: Arc::default(),
        exchange,
        content,
        differs,
        snapshots,
        images,
        image_service,
        leases,
        containers,
        sandboxes,
        collector,
        tasks,
    };
    Ok((database, services))
}

/// The snapshotters that work here, and why others do not.
fn backends(config: &Config) -> (Vec<Arc<dyn Backend>>, BTreeMap<String, String>) {
    let (mut backends, mut failures): (Vec<Arc<dyn Backend>>, _) = (Vec::new(), BTreeMap::new());
    let folder = |name: &str| config.root.join(format!("io.containerd.snapshotter.v1.{name}"));
    let opened: [(&str, Result<Arc<dyn Backend>>); 2] = [
        (
            "overlayfs",
            Overlay::open(&folder("overlayfs"), OverlayOptions::default()).map(|b| Arc::new(b) as _),
        ),
        ("native", Native::open(&folder("native")).map(|b| Arc::new(b) as _)),
    ];
    for (name, backend) in opened {
        let disabled = config.disabled_plugins.contains(&format!("io.containerd.snapshotter.v1.{name}"));
        match backend {
            Ok(backend) if !disabled => backends.push(backend),
            Ok(_) => drop(failures.insert(name.to_owned(), "disabled: skip plugin".to_owned())),
            Err(error) => {
                tracing::warn!(id = name, %error, "failed to load plugin");
                failures.insert(name.to_owned(), error.to_string());
            }
        }
    }
    (backends, failures)
}

/// A socket for the group that is configured; one that a dead daemon left is replaced.
fn listen(path: &Path, config: &Config) -> Result<UnixListener> {
    if path.as_os_str().len() > LONGEST_SOCKET {
        let text = format!("{}: unix socket path too long (> {LONGEST_SOCKET})", path.display());
        return Err(Error::invalid_argument(text));
    }
    if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        std::fs::set_permissions(folder, Permissions::from_mode(0o770))?;
        chown(folder, Some(config.uid), Some(config.gid)).ok();
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::from(error).context(path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(|| path.display().to_string())?;
    std::fs::set_permissions(path, Permissions::from_mode(0o660))?;
    chown(path, Some(config.uid), Some(config.gid)).ok();
    Ok(listener)
}
