//! Everything behind the sockets, with the options of the configuration. Each part is entered in the table of
//! plugins with what came of it.

mod transfer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use corten_config::{Config, duration};
use corten_content::{Policy, Store};
use corten_diff::{Differ, Differs, StreamProcessor, Walking};
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
use corten_types::{Error, Result, ResultExt};

use crate::heap::TrimHeap;
use crate::observe::{self, Wanted};
use crate::plugins::Plugins;
use crate::plugins::parts::{
    CONTENT, DIFFER, EVENT, GC, METADATA, MOUNT_MANAGER, RUNTIME, SANDBOX_CONTROLLER, SERVICE, SHIM,
    SNAPSHOTTER,
};
use crate::proxies;
use crate::services::{Base, Services, Streams};

/// What there is to serve.
pub struct Assembled {
    pub base: Base,
    /// Nothing if the database cannot be used.
    pub services: Option<Services>,
    pub database: Option<Database>,
    pub wanted: Wanted,
}

/// What is on disk.
struct Stores {
    database: Database,
    content: Store,
    snapshots: Snapshots,
}

/// Opens what is on disk and starts what works by itself.
///
/// # Errors
/// A failure of a part that is required; others are only entered in the table.
pub fn services(config: &Config, mut plugins: Plugins) -> Result<Assembled> {
    let exchange = Exchange::default();
    plugins.load(EVENT, "exchange", |_| Ok(()))?;
    let stores = stores(config, &mut plugins, &exchange)?;
    let database = stores.as_ref().map(|stores| stores.database.clone());
    let services = stores.map(|stores| over(stores, config, &mut plugins, &exchange)).transpose()?;
    diff_service(config, &mut plugins)?;
    let wanted = observe::wanted(config, &mut plugins)?;
    plugins.finish()?;
    let base = Base {
        exchange,
        plugins: Arc::new(plugins),
        uuid_file: config.root.join("io.containerd.grpc.v1.introspection/uuid"),
        started: SystemTime::now(),
        tasks: services.as_ref().map(|services| services.tasks.clone()),
    };
    Ok(Assembled { base, services, database, wanted })
}

/// Opens the database and what has its records in it.
fn stores(config: &Config, plugins: &mut Plugins, exchange: &Exchange) -> Result<Option<Stores>> {
    let blobs = config.root.join(uri(CONTENT, "content"));
    plugins.load(CONTENT, "content", |entry| {
        entry.export("root", blobs.display());
        std::fs::create_dir_all(&blobs).with_context(|| blobs.display().to_string())
    })?;
    let remote = proxies::blobs(config, plugins)?;
    let backends = backends(config, plugins)?;
    let proxies = proxies::snapshotters(config, plugins)?;
    let folder = config.root.join(uri(METADATA, "bolt"));
    let policy_name = config.text(&uri(METADATA, "bolt"), "content_sharing_policy");
    plugins.load(METADATA, "bolt", |entry| {
        let (policy, name) = match policy_name {
            "" | "shared" => (Policy::Shared, "shared"),
            "isolated" => (Policy::Isolated, "isolated"),
            other => return Err(Error::invalid_argument(format!("unknown policy: {other}"))),
        };
        tracing::info!(policy = name, "metadata content store policy set");
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let file = folder.join("corten.redb");
        let sync = !config.flag(&uri(METADATA, "bolt"), "no_sync");
        let options = corten_metadata::Options { sync, ..corten_metadata::Options::default() };
        let (database, lost) = Database::open_with(&file, options)?;
        if let Some(lost) = lost {
            tell_lost(lost);
        }
        entry.export("path", file.display());
        entry.export("policy", name);
        let content = Store::with_remote(&blobs, &database, exchange, policy, remote)?;
        let snapshots = Snapshots::with_proxies(&database, exchange, backends, proxies)?;
        Ok(Stores { database, content, snapshots })
    })
}

/// Says what a damaged database cost.
fn tell_lost(lost: corten_metadata::Lost) {
    let recovered: Vec<_> = lost.recovered.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
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

/// What stands on the stores.
fn over(stores: Stores, config: &Config, plugins: &mut Plugins, exchange: &Exchange) -> Result<Services> {
    let Stores { database, content, snapshots } = stores;
    let exchange = exchange.clone();
    let images = Images::new(database.clone(), exchange.clone());
    let leases = Leases::new(database.clone());
    let containers = Containers::new(database.clone(), exchange.clone());
    let sandboxes = Sandboxes::new(database.clone());
    let folder = config.state.join(uri(MOUNT_MANAGER, "bolt")).join("t");
    let activations = Activations::open(&folder, std::slice::from_ref(&config.root), &database)?;
    let streams = Arc::new(Streams::new(leases.clone()));
    let sweepers: Vec<Arc<dyn Sweeper>> = vec![
        Arc::new(activations.clone()),
        Arc::new(snapshots.clone()),
        Arc::new(content.clone()),
        streams.clone(),
        Arc::new(TrimHeap),
    ];
    let options = collector_options(config, plugins)?;
    let collector = Collector::start(database.clone(), exchange.clone(), sweepers, options);
    let records = StoredRecords { containers: containers.clone(), sandboxes: sandboxes.clone() };
    let mounting = plugins.load(MOUNT_MANAGER, "bolt", |_| Ok(activations.clone()))?;
    let tasks = tasks(config, plugins, records, &exchange, mounting.clone())?;
    let known = differs(config, plugins, &content, mounting)?;
    let differs = chosen(config, &known);
    tell_unused(config);
    let settings = transfer::settings(config, plugins)?;
    let image_service = ImageService::new(
        content.clone(),
        snapshots.clone(),
        images.clone(),
        leases.clone(),
        differs.clone(),
        transfer::image_options(config, plugins, &snapshots, &known)?,
    );
    let shim_sandboxes = tasks.sandboxes();
    let shim = plugins.load(SANDBOX_CONTROLLER, "shim", |_| Ok(shim_sandboxes.clone()))?;
    let mut controllers = proxies::controllers(config, plugins)?;
    controllers.extend(shim.map(|shim| ("shim".to_owned(), Arc::new(shim) as Arc<dyn SandboxController>)));
    Ok(Services {
        namespaces: Namespaces::new(database, exchange.clone()),
        sandbox_controllers: SandboxControllers::new(exchange, controllers),
        shim_sandboxes,
        streams,
        settings,
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
    })
}

/// Opens a snapshotter in its folder, with the options under its URI.
type Start<'a> = &'a dyn Fn(&Path, &str) -> Result<Arc<dyn Backend>>;

/// The snapshotters that work here.
fn backends(config: &Config, plugins: &mut Plugins) -> Result<Vec<Arc<dyn Backend>>> {
    let mut backends: Vec<Arc<dyn Backend>> = Vec::new();
    let mut open = |id: &str, start: Start<'_>| {
        let uri = uri(SNAPSHOTTER, id);
        let folder = snapshotter_folder(config, &uri);
        let opened = plugins.load(SNAPSHOTTER, id, |entry| {
            entry.export("root", folder.display());
            let backend = start(&folder, &uri)?;
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
        for key in ["default_size", "dmverity_mode"] {
            let value = config.text(uri, key);
            if !["", "off", "auto"].contains(&value) {
                return Err(Error::not_implemented(format!("{key} {value:?} of erofs is not supported")));
            }
        }
        let options = ErofsOptions {
            ovl_mount_options: config.texts(uri, "ovl_mount_options"),
            set_immutable: config.flag(uri, "set_immutable"),
            enable_fsverity: config.flag(uri, "enable_fsverity"),
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

/// The differs that work here, by their names.
type KnownDiffers = BTreeMap<String, Arc<dyn Differ>>;

/// All differs.
fn differs(
    config: &Config,
    plugins: &mut Plugins,
    content: &Store,
    mounting: Option<Activations>,
) -> Result<KnownDiffers> {
    let walking = Walking::new(content.clone(), config.root.join("tmpmounts"))
        .with_processors(stream_processors(config))
        .with_activations(mounting)
        .with_sync(config.flag(&uri(SERVICE, "diff-service"), "sync_fs"));
    let erofs = plugins.load(DIFFER, "erofs", |_| {
        if config.flag(&uri(DIFFER, "erofs"), "enable_dmverity") {
            return Err(Error::not_implemented("enable_dmverity of erofs is not supported"));
        }
        corten_diff::Erofs::open(content.clone(), walking.clone())
    })?;
    let mut known = proxies::differs(config, plugins)?;
    known.insert("walking".to_owned(), Arc::new(walking));
    known.extend(erofs.map(|erofs| ("erofs".to_owned(), Arc::new(erofs) as _)));
    Ok(known)
}

/// Those that the service tries, in this order. Without one of them it is told to have failed.
fn chosen(config: &Config, known: &KnownDiffers) -> Differs {
    let names = config.texts(&uri(SERVICE, "diff-service"), "default");
    Differs::new(names.iter().filter_map(|name| known.get(name).cloned()).collect())
}

/// Says of options that ask for something of the CRI that they do nothing without it.
fn tell_unused(config: &Config) {
    for (key, what) in [("blockio_config_file", "blockio"), ("rdt_config_file", "RDT")] {
        let path = config.text(&uri(SERVICE, "tasks-service"), key);
        match (path.is_empty(), std::fs::metadata(path)) {
            (true, _) => {}
            (false, Err(error)) => {
                tracing::error!(error = format!("open {path}: {error}"), "{what} initialization failed");
            }
            (false, Ok(_)) => tracing::warn!(path, "{key} has no effect: classes are not supported"),
        }
    }
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
    let pause = config.plugin(&uri).get("pause_threshold").and_then(toml::Value::as_float);
    let delay = |key: &str| duration::parse(config.text(&uri, key));
    let options = plugins.load(GC, "scheduler", |entry| {
        let options = CollectorOptions {
            pause_threshold: pause.unwrap_or_default().clamp(0.0, 0.5),
            deletion_threshold: config.number(&uri, "deletion_threshold"),
            mutation_threshold: config.number(&uri, "mutation_threshold"),
            schedule_delay: delay("schedule_delay")?,
            startup_delay: delay("startup_delay")?,
        };
        entry.export("PauseThreshold", options.pause_threshold);
        entry.export("DeletionThreshold", options.deletion_threshold);
        entry.export("MutationThreshold", options.mutation_threshold);
        entry.export("ScheduleDelay", duration::format(options.schedule_delay));
        Ok(options)
    })?;
    Ok(options.unwrap_or_default())
}

/// The table of tasks. Without its part it is there, and nobody can reach it.
fn tasks(
    config: &Config,
    plugins: &mut Plugins,
    records: StoredRecords,
    exchange: &Exchange,
    mounting: Option<Activations>,
) -> Result<Tasks> {
    let records = Arc::new(records);
    let open = |config: &Config| {
        let mut runtime = runtime(config);
        runtime.activations = mounting.clone();
        Tasks::open(runtime, records.clone(), exchange.clone())
    };
    let opened = plugins.load(SHIM, "manager", |_| open(config))?;
    plugins.load(RUNTIME, "task", |entry| {
        entry.export("log-uri-schemes", corten_runtime::LOG_URI_SCHEMES);
        Ok(())
    })?;
    // Options of a part that failed must not keep the table from being there.
    opened.map_or_else(|| open(&Config { plugins: toml::Table::new(), ..config.clone() }), Ok)
}

/// The service needs all the differs that it is told to use.
fn diff_service(config: &Config, plugins: &mut Plugins) -> Result<()> {
    plugins.load(DIFFER, "walking", |_| Ok(()))?;
    let wanted = config.texts(&uri(SERVICE, "diff-service"), "default");
    let missing = wanted.iter().find(|id| !plugins.works(DIFFER, id));
    let failure = missing.map(|id| {
        let unknown = || Error::unknown(format!("needed differ not loaded: {id}"));
        plugins.failure(DIFFER, id).unwrap_or_else(unknown)
    });
    plugins.load(SERVICE, "diff-service", |_| failure.map_or(Ok(()), Err)).map(drop)
}

fn stream_processors(config: &Config) -> Vec<StreamProcessor> {
    let configured = config.stream_processors.clone().into_iter();
    configured
        .map(|(id, one)| StreamProcessor {
            id,
            accepts: one.accepts,
            returns: one.returns,
            path: one.path,
            args: one.args,
            env: one.env,
        })
        .collect()
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
    runtime.grpc = Some(Arc::new(proxies::Shims));
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
