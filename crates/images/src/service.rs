//! The entrance: the stores that images live in, and what the whole daemon shares.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use corten_content::Store;
use corten_diff::Differs;
use corten_metadata::{Images, Leases};
use corten_snapshots::Snapshots;
use corten_types::{Context, Digest, Labels, Namespace, Platform, Result, timestamp};
use tokio::sync::Semaphore;

use crate::Platforms;
use crate::flight::Flights;

const LEASE_LIFE: Duration = Duration::from_secs(24 * 3600);
const EXPIRE: &str = "containerd.io/gc.expire";
/// Label of a lease: the reference that is pulled under it.
const PULLS: &str = "corten.io/pull";

/// Bounds of the service.
#[derive(Clone, Debug)]
pub struct Options {
    /// Blobs that are downloaded at once by one operation. What is asked of a registry by all of them is bounded by
    /// the registry's client.
    pub max_concurrent_downloads: usize,
    /// Layers that are extracted at once, by the whole daemon. One extracts layers in their order, each on
    /// top of the one below; more let snapshotters that can do it have them in any order.
    pub max_concurrent_unpacks: usize,
    /// Bytes that one layer may be extracted to.
    pub max_unpacked_layer_size: u64,
    /// The snapshotter where none is named.
    pub default_snapshotter: String,
    /// What layers are applied with, where it is not the usual.
    pub unpack: Vec<UnpackRule>,
    /// Whether images are unpacked only by the rules.
    pub only_by_rules: bool,
}

/// How images of some platforms are unpacked into a snapshotter.
#[derive(Clone, Debug)]
pub struct UnpackRule {
    /// The platforms.
    pub platforms: Platforms,
    /// The snapshotter.
    pub snapshotter: String,
    /// The only differ; nothing for the usual ones.
    pub differs: Option<Differs>,
}

impl Default for Options {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            max_concurrent_downloads: 3,
            max_concurrent_unpacks: processors.max(3),
            max_unpacked_layer_size: u64::MAX,
            default_snapshotter: "overlayfs".to_owned(),
            unpack: Vec::new(),
            only_by_rules: false,
        }
    }
}

/// Brings images in. Cheap to clone; what one clone works on, the others know.
#[derive(Clone, Debug)]
pub struct ImageService {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub content: Store,
    pub snapshots: Snapshots,
    pub images: Images,
    pub leases: Leases,
    pub differs: Differs,
    pub options: Options,
    pub unpacks: Semaphore,
    /// Blobs on their way, by digest; the disk is shared by all namespaces.
    pub fetching: Flights<Digest>,
    /// Layers being unpacked.
    pub unpacking: Flights<UnpackKey>,
    /// Leases of pulls that run now.
    live_leases: Mutex<HashSet<(Namespace, String)>>,
}

/// As many permits as a semaphore can have, one at least.
fn permits(count: usize) -> usize {
    count.clamp(1, Semaphore::MAX_PERMITS)
}

/// Namespace, snapshotter and chain id.
pub(crate) type UnpackKey = (Namespace, String, Digest);

impl ImageService {
    /// A service over the stores of a daemon.
    #[must_use]
    pub fn new(
        content: Store,
        snapshots: Snapshots,
        images: Images,
        leases: Leases,
        differs: Differs,
        options: Options,
    ) -> Self {
        let shared = Shared {
            content,
            snapshots,
            images,
            leases,
            differs,
            unpacks: Semaphore::new(permits(options.max_concurrent_unpacks)),
            options,
            fetching: Flights::default(),
            unpacking: Flights::default(),
            live_leases: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// What bounds the downloads of one operation.
    pub(crate) fn downloads(&self) -> Arc<Semaphore> {
        Arc::new(Semaphore::new(permits(self.shared.options.max_concurrent_downloads)))
    }

    /// The snapshotter of a request for images of a platform, which may name none: that of the first rule for it.
    pub(crate) fn snapshotter<'a>(&'a self, platform: &Platform, name: &'a str) -> &'a str {
        let options = &self.shared.options;
        let mut rules = options.unpack.iter().filter(|rule| rule.platforms.matches(platform));
        match (name, rules.next()) {
            ("", Some(rule)) => &rule.snapshotter,
            ("", None) => &options.default_snapshotter,
            (name, _) => name,
        }
    }

    /// The rule for unpacking images of a platform into a snapshotter.
    pub(crate) fn rule(&self, platform: &Platform, snapshotter: &str) -> Option<&UnpackRule> {
        let mut rules = self.shared.options.unpack.iter();
        rules.find(|rule| rule.snapshotter == snapshotter && rule.platforms.matches(platform))
    }

    /// What layers of images of a platform are applied with for a snapshotter.
    pub(crate) fn differs(&self, platform: &Platform, snapshotter: &str) -> &Differs {
        let own = self.rule(platform, snapshotter).and_then(|rule| rule.differs.as_ref());
        own.unwrap_or(&self.shared.differs)
    }

    /// Keeps what an operation brings in until it is referenced. A caller's own lease is used as it is.
    pub(crate) async fn lease(&self, ctx: &Context, pulls: &str) -> Result<Lease> {
        if ctx.lease.is_some() {
            return Ok(Lease { ctx: ctx.clone(), own: None });
        }
        let expire = timestamp::rfc3339(SystemTime::now() + LEASE_LIFE);
        let mut labels = Labels::from([(EXPIRE.to_owned(), expire)]);
        if !pulls.is_empty() {
            labels.insert(PULLS.to_owned(), pulls.to_owned());
        }
        let lease = self.shared.leases.create(ctx, "", labels).await?;
        let id = lease.id;
        self.live().insert((ctx.namespace.clone(), id.clone()));
        let own = OwnLease {
            service: self.clone(),
            namespace: ctx.namespace.clone(),
            id: id.clone(),
            pulls: pulls.to_owned(),
        };
        Ok(Lease { ctx: ctx.clone().with_lease(id), own: Some(own) })
    }

    fn live(&self) -> std::sync::MutexGuard<'_, HashSet<(Namespace, String)>> {
        self.shared.live_leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lease of an operation.
#[derive(Debug)]
pub(crate) struct Lease {
    /// The caller's context, with the lease.
    pub ctx: Context,
    own: Option<OwnLease>,
}

/// A lease that we made. Unless it is deleted it runs out by itself, so that a pull which failed or was
/// given up can go on where it was.
#[derive(Debug)]
struct OwnLease {
    service: ImageService,
    namespace: Namespace,
    id: String,
    pulls: String,
}

impl Drop for OwnLease {
    fn drop(&mut self) {
        self.service.live().remove(&(self.namespace.clone(), self.id.clone()));
    }
}

impl Lease {
    /// Ends the lease after success, with those that earlier tries at the same reference left behind.
    pub async fn succeed(self) {
        let Some(own) = &self.own else { return };
        let ctx = Context::new(own.namespace.clone());
        let mut ids = vec![own.id.clone()];
        if !own.pulls.is_empty() {
            let left = own.service.shared.leases.list(&ctx, &[]).unwrap_or_default();
            let ours = left.into_iter().filter(|lease| lease.labels.get(PULLS) == Some(&own.pulls));
            let live = own.service.live();
            ids.extend(
                ours.map(|lease| lease.id).filter(|id| !live.contains(&(own.namespace.clone(), id.clone()))),
            );
        }
        for id in ids {
            delete(&own.service, &ctx, &id).await;
        }
    }

    /// Ends the lease after a failure, unless there is something to go on from.
    pub async fn fail(self) {
        let Some(own) = &self.own else { return };
        let ctx = Context::new(own.namespace.clone());
        let resources = own.service.shared.leases.resources(&ctx, &own.id);
        if own.pulls.is_empty() || resources.is_ok_and(|resources| resources.is_empty()) {
            delete(&own.service, &ctx, &own.id).await;
        }
    }
}

async fn delete(service: &ImageService, ctx: &Context, id: &str) {
    if let Err(error) = service.shared.leases.delete(ctx, id).await
        && !error.is_not_found()
    {
        tracing::warn!(lease = id, %error, "failed to delete the lease, it will run out");
    }
}
