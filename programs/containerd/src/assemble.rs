//! Everything behind the sockets, with the options of the configuration. Each part is entered in the table of
//! plugins with what came of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use corten_config::Config;
use corten_content::{Policy, RemoteBlobs, Store};
use corten_diff::{Differ, Differs, Walking};
use corten_events::Exchange;
use corten_images::ImageService;
use corten_metadata::{
    Collector, CollectorOptions, Containers, Database, Images, Leases, Namespaces, Sandboxes, Sweeper,
};
use corten_mounts::Activations;
use corten_runtime::{SandboxController, SandboxControllers, StoredRecords, Tasks, Timeouts};
use corten_snapshots::{
    Backend, Blockfile, BlockfileOptions, Btrfs, Erofs, ErofsOptions, Native, Overlay, OverlayOptions,
    Snapshots,
};
use corten_types::{Error, Result};

use crate::plugins::Plugins;
use crate::plugins::parts::{
    CONTENT, DIFFER, GC, METADATA, MOUNT_MANAGER, RUNTIME, SANDBOX_CONTROLLER, SERVICE, SHIM, SNAPSHOTTER,
};
use crate::proxies;
use crate::services::Services;

/// Opens what is on disk and starts what works by itself.
///
/// # Errors
/// Whatever keeps the daemon from serving; a part that fails alone is only entered in the table.
pub fn services(config: &Config, mut plugins: Plugins) -> Result<(Database, Services)> {
    let root = |uri: &str| config.root.join(uri);
    let (database, blobs) = database(config, &mut plugins)?;
    let exchange = Exchange::default();
    let content = content(config, blobs, &database, &exchange)?;
    let backends = backends(config, &mut plugins)?;
    let proxies = proxies::snapshotters(config, &mut plugins)?;
    let snapshots = Snapshots::with_proxies(&database, &exchange, backends, proxies)?;
    let images = Images::new(database.clone(), exchange.clone());
    let leases = Leases::new(database.clone());
    let containers = Containers::new(database.clone(), exchange.clone());
    let sandboxes = Sandboxes::new(database.clone());
    let folder = config.state.join(uri(MOUNT_MANAGER, "bolt")).join("t");
    let activations = Activations::open(&folder, std::slice::from_ref(&config.root), &database)?;
    let sweepers: Vec<Arc<dyn Sweeper>> =
        vec![Arc::new(activations.clone()), Arc::new(snapshots.clone()), Arc::new(content.clone())];
    let options = collector_options(config, &mut plugins)?;
    let collector = Collector::start(database.clone(), exchange.clone(), sweepers, options);
    let records = StoredRecords { containers: containers.clone(), sandboxes: sandboxes.clone() };
    let mut runtime = runtime(config);
    runtime.activations = plugins.load(MOUNT_MANAGER, "bolt", |_| Ok(activations.clone()))?;
    let tasks = Tasks::open(runtime, Arc::new(records), exchange.clone())?;
    plugins.load(SHIM, "manager", |_| Ok(()))?;
    plugins.load(RUNTIME, "task", |entry| {
        entry.export("log-uri-schemes", corten_runtime::LOG_URI_SCHEMES);
        Ok(())
    })?;
    let differs = differs(config, &mut plugins, &content)?;
    let image_service = ImageService::new(
        content.clone(),
        snapshots.clone(),
        images.clone(),
        leases.clone(),
        differs.clone(),
        corten_images::Options::default(),
    );
    let shim_sandboxes = tasks.sandboxes();
    let shim = plugins.load(SANDBOX_CONTROLLER, "shim", |_| Ok(shim_sandboxes.clone()))?;
    let mut controllers = proxies::controllers(config, &mut plugins)?;
    controllers.extend(shim.map(|shim| ("shim".to_owned(), Arc::new(shim) as Arc<dyn SandboxController>)));
    plugins.finish()?;
    let services = Services {
        namespaces: Namespaces::new(database.clone(), exchange.clone()),
        sandbox_controllers: SandboxControllers::new(exchange.clone(), controllers),
        shim_sandboxes,
        plugins: Arc::new(plugins),
        uuid_file: root("io.containerd.grpc.v1.introspection").join("uuid"),
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
        activations,
        tasks,
    };
    Ok((database, services))
}

type Blobs = Option<Arc<dyn RemoteBlobs>>;

fn database(config: &Config, plugins: &mut Plugins) -> Result<(Database, Blobs)> {
    let folder = config.root.join(format!("{METADATA}.bolt"));
    std::fs::create_dir_all(&folder)?;
    let (database, lost) = Database::open(&folder.join("corten.redb"))?;
    if let Some(lost) = lost {
        let recovered: Vec<_> =
            lost.recovered.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        let among: Vec<_> = lost.among.into_iter().collect();
        tracing::error!(
            set_aside = %lost.set_aside.display(),
            reason = lost.reason,
            recovered = recovered.join(", "),
            missing = lost.missing.map_or("unknown".to_owned(), |missing| missing.to_string()),
            among = among.join(", "),
            "the database was damaged: it has been set aside, and what could be read of it is in a new one"
        );
    }
    let policy = config.text(&uri(METADATA, "bolt"), "content_sharing_policy").to_owned();
    plugins.load(CONTENT, "content", |entry| {
        entry.export("root", config.root.join(uri(CONTENT, "content")).display());
        Ok(())
    })?;
    let blobs = proxies::blobs(config, plugins)?;
    plugins.load(crate::plugins::parts::EVENT, "exchange", |_| Ok(()))?;
    plugins.load(METADATA, "bolt", |entry| {
        entry.export("path", folder.join("corten.redb").display());
        entry.export("policy", policy);
        Ok(())
    })?;
    Ok((database, blobs))
}

fn content(config: &Config, blobs: Blobs, database: &Database, exchange: &Exchange) -> Result<Store> {
    let policy = match config.text(&uri(METADATA, "bolt"), "content_sharing_policy") {
        "" | "shared" => Policy::Shared,
        "isolated" => Policy::Isolated,
        other => return Err(Error::invalid_argument(format!("unknown policy: {other}"))),
    };
    Store::with_remote(&config.root.join(uri(CONTENT, "content")), database, exchange, policy, blobs)
}

/// The snapshotters that work here.
fn backends(config: &Config, plugins: &mut Plugins) -> Result<Vec<Arc<dyn Backend>>> {
    let mut backends: Vec<Arc<dyn Backend>> = Vec::new();
    let mut open = |id: &str, start: &dyn Fn(&Path, &str) -> Result<Arc<dyn Backend>>| {
        let uri = uri(SNAPSHOTTER, id);
        let folder = snapshotter_folder(config, &uri);
        let opened = plugins.load(SNAPSHOTTER, id, |entry| {
            let backend = start(&folder, &uri)?;
            entry.export("root", folder.display());
            entry.capabilities = backend.capabilities();
            Ok(backend)
        })?;
        backends.extend(opened);
        Ok::<(), Error>(())
    };
    open("blockfile", &|folder, uri| {
        let defaults = BlockfileOptions::default();
        let options = BlockfileOptions {
            scratch_file: config.text(uri, "scratch_file").into(),
            fs_type: match config.text(uri, "fs_type") {
                "" => defaults.fs_type,
                kind => kind.to_owned(),
            },
            mount_options: config.texts(uri, "mount_options"),
            recreate_scratch: config.flag(uri, "recreate_scratch"),
        };
        Ok(Arc::new(Blockfile::open(folder, options)?))
    })?;
    open("btrfs", &|folder, _| Ok(Arc::new(Btrfs::open(folder)?)))?;
    open("erofs", &|folder, uri| {
        let options = ErofsOptions {
            ovl_mount_options: config.texts(uri, "ovl_mount_options"),
            set_immutable: config.flag(uri, "set_immutable"),
            mkfs_options: config.texts(&self::uri(DIFFER, "erofs"), "mkfs_options"),
        };
        Ok(Arc::new(Erofs::open(folder, options)?))
    })?;
    open("native", &|folder, _| Ok(Arc::new(Native::open(folder)?)))?;
    open("overlayfs", &|folder, uri| {
        let options = OverlayOptions {
            mount_options: config.texts(uri, "mount_options"),
            upperdir_label: config.flag(uri, "upperdir_label"),
            sync_remove: config.flag(uri, "sync_remove"),
            slow_chown: config.flag(uri, "slow_chown"),
        };
        Ok(Arc::new(Overlay::open(folder, options)?))
    })?;
    Ok(backends)
}

/// The differs, in the order in which they are tried.
fn differs(config: &Config, plugins: &mut Plugins, content: &Store) -> Result<Differs> {
    let walking = Walking::new(content.clone(), config.root.join("tmpmounts"));
    let erofs =
        plugins.load(DIFFER, "erofs", |_| corten_diff::Erofs::open(content.clone(), walking.clone()))?;
    let proxies = proxies::differs(config, plugins)?;
    let mut list: Vec<Arc<dyn Differ>> = Vec::new();
    for name in config.texts(&uri(SERVICE, "diff-service"), "default") {
        match name.as_str() {
            "walking" => list.push(Arc::new(walking.clone())),
            "erofs" => list.extend(erofs.clone().map(|erofs| Arc::new(erofs) as _)),
            other => match proxies.get(other) {
                Some(proxy) => list.push(Arc::clone(proxy)),
                None => tracing::warn!(differ = name, "a differ that is configured is not there"),
            },
        }
    }
    Ok(Differs::new(list))
}

/// Where a snapshotter keeps its data: below the daemon's root, unless it is told otherwise.
fn snapshotter_folder(config: &Config, uri: &str) -> PathBuf {
    match config.text(uri, "root_path") {
        "" => config.root.join(uri),
        path => path.into(),
    }
}

fn collector_options(config: &Config, plugins: &mut Plugins) -> Result<CollectorOptions> {
    let uri = uri(GC, "scheduler");
    let table = config.plugin(&uri);
    let duration = |key: &str| corten_config::duration::parse(config.text(&uri, key));
    let pause = table.get("pause_threshold").and_then(toml::Value::as_float).unwrap_or_default();
    let options = CollectorOptions {
        pause_threshold: pause.clamp(0.0, 0.5),
        deletion_threshold: config.number(&uri, "deletion_threshold"),
        mutation_threshold: config.number(&uri, "mutation_threshold"),
        schedule_delay: duration("schedule_delay")?,
        startup_delay: duration("startup_delay")?,
    };
    plugins.load(GC, "scheduler", |entry| {
        entry.export("PauseThreshold", options.pause_threshold);
        entry.export("DeletionThreshold", options.deletion_threshold);
        entry.export("MutationThreshold", options.mutation_threshold);
        entry.export("ScheduleDelay", corten_config::duration::format(options.schedule_delay));
        Ok(())
    })?;
    Ok(options)
}

fn runtime(config: &Config) -> corten_runtime::Config {
    let text = |path: PathBuf| path.display().to_string();
    let mut runtime = corten_runtime::Config::new(
        &config.state,
        &config.root,
        &text(config.grpc_address()),
        &text(config.ttrpc_address()),
    );
    runtime.debug = matches!(config.debug.level.as_str(), "debug" | "trace");
    let limit = |name: &str| config.timeout(&format!("io.containerd.timeout.{name}"));
    runtime.timeouts = Timeouts {
        load: limit("shim.load"),
        cleanup: limit("shim.cleanup"),
        shutdown: limit("shim.shutdown"),
        state: limit("task.state"),
        stats: limit("metrics.shimstats"),
        ..Timeouts::default()
    };
    let manager = uri(SHIM, "manager");
    runtime.env = config.texts(&manager, "env");
    if !config.text(&manager, "socket_dir").is_empty() {
        runtime.socket_dir = config.text(&manager, "socket_dir").into();
    }
    runtime
}

fn uri(kind: &str, id: &str) -> String {
    format!("{kind}.{id}")
}
