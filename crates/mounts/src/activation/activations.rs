//! The activations of the daemon: their records and what is mounted for them.
//!
//! It is mounted first and recorded then; the record is removed first and the mounts then. So what a crash
//! leaves is mounts that no record knows, which the next sweep takes away.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use corten_metadata::{Activation, ActivationRecords, Database, Sweeper};
use corten_types::{Context, Error, Labels, Mount, Namespace, Result, ResultExt, labels};
use tokio::sync::Notify;

use super::held::HeldMounts;
use super::perform::{Performed, clear, perform};
use super::plan::{Claims, Plan};
use super::roots::Roots;
use crate::table::mount_points;

/// What is to be activated.
#[derive(Clone, Debug, Default)]
pub struct Activate {
    /// Name, any string.
    pub name: String,
    /// In order.
    pub mounts: Vec<Mount>,
    /// Labels of the activation.
    pub labels: Labels,
    /// Everything is mounted, and can be bound elsewhere.
    pub temporary: bool,
    /// What is left to the caller although it could be done.
    pub claims: Claims,
}

/// All activations of all namespaces. Clones are the same ones.
#[derive(Clone, Debug)]
pub struct Activations {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    records: ActivationRecords,
    folder: PathBuf,
    roots: Roots,
    boot: String,
    /// The number of the next folder.
    next: AtomicU64,
    /// Folders without a record that are not to be swept.
    pending: Mutex<BTreeSet<u64>>,
    /// Names about which something is being done.
    busy: Mutex<HashSet<(Namespace, String)>>,
    freed: Notify,
}

impl Activations {
    /// Activations in `folder`, below which and below `roots` they may make files.
    ///
    /// # Errors
    /// Those of the file system and the database.
    pub fn open(folder: &Path, roots: &[PathBuf], database: &Database) -> Result<Self> {
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700);
        builder.create(folder).with_context(|| format!("mkdir {}", folder.display()))?;
        let records = ActivationRecords::new(database.clone());
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let highest = records.all()?.into_iter().map(|(_, activation)| activation.number).max();
        let next = numbers(folder)?.into_iter().chain(highest).max().unwrap_or(0) + 1;
        let mut allowed = vec![folder.to_owned()];
        allowed.extend_from_slice(roots);
        let shared = Shared {
            records,
            folder: folder.to_owned(),
            roots: Roots(allowed),
            boot: boot.trim().to_owned(),
            next: AtomicU64::new(next),
            pending: Mutex::default(),
            busy: Mutex::default(),
            freed: Notify::new(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Forgets the activations of an earlier boot, and those whose mounts are gone. To be called once, before
    /// clients are served.
    ///
    /// # Errors
    /// Those of the database, and when the kernel's list of mounts cannot be read.
    pub async fn load(&self) -> Result<()> {
        let mounted: HashSet<PathBuf> = mount_points()?.into_iter().collect();
        let is_gone = |activation: &Activation| {
            let is_mounted = |point: &str| mounted.contains(Path::new(point));
            activation.boot != self.shared.boot
                || activation.active.iter().any(|active| !is_mounted(&active.mount_point))
        };
        let known = self.shared.records.all()?.into_iter();
        let gone = known.filter(|(_, activation)| is_gone(activation));
        let gone = gone.map(|(namespace, activation)| (namespace, activation.name));
        self.shared.records.forget(gone.collect()).await
    }

    /// Activates a list. If the future is dropped, the activation goes on.
    ///
    /// # Errors
    /// NotImplemented when the caller can mount all of it; AlreadyExists `mount "…"`; InvalidArgument for
    /// templates and options; those of mounting.
    pub async fn activate(&self, ctx: &Context, mut request: Activate) -> Result<Activation> {
        let plan = Plan::new(&request.mounts, &request.claims, request.temporary);
        let plan = plan.ok_or_else(|| Error::not_implemented(""))?;
        labels::validate(&request.labels)?;
        labels::drop_empty(&mut request.labels);
        let (this, ctx) = (self.clone(), ctx.clone());
        let work = tokio::spawn(async move { this.activate_whole(&ctx, request, plan).await });
        work.await.map_err(Error::internal)?
    }

    async fn activate_whole(&self, ctx: &Context, request: Activate, plan: Plan) -> Result<Activation> {
        let _turn = self.turn(ctx, &request.name).await;
        if self.shared.records.get(ctx, &request.name).is_ok() {
            return Err(Error::already_exists(format!("mount {:?}", request.name)));
        }
        let folder = self.reserve();
        let Activate { name, mounts, labels, temporary, .. } = request;
        let performed = self.perform(plan, mounts, temporary, &folder).await?;
        let activation = Activation {
            name,
            number: folder.number,
            boot: self.shared.boot.clone(),
            active: performed.active,
            system: performed.system,
            labels,
        };
        if let Err(error) = self.shared.records.create(ctx, activation.clone()).await {
            let path = folder.path();
            blocking(move || clear(&path)).await.ok();
            return Err(error);
        }
        Ok(activation)
    }

    /// Mounts what must be, for as long as the answer lives. A list that needs nothing comes back as it is.
    ///
    /// # Errors
    /// As [`Activations::activate`].
    pub async fn hold(&self, mounts: Vec<Mount>) -> Result<HeldMounts> {
        let Some(plan) = Plan::new(&mounts, &Claims::default(), false) else {
            return Ok(HeldMounts { mounts, folder: None });
        };
        let folder = self.reserve();
        let performed = self.perform(plan, mounts, false, &folder).await?;
        Ok(HeldMounts { mounts: performed.system, folder: Some(folder) })
    }

    /// Takes the mounts of an activation away; what is in use goes with its last user.
    ///
    /// # Errors
    /// NotFound `missing … bucket`; those of the kernel.
    pub async fn deactivate(&self, ctx: &Context, name: &str) -> Result<()> {
        let (this, ctx, name) = (self.clone(), ctx.clone(), name.to_owned());
        let work = tokio::spawn(async move {
            let _turn = this.turn(&ctx, &name).await;
            let activation = this.shared.records.delete(&ctx, &name).await?;
            let path = this.shared.path(activation.number);
            blocking(move || clear(&path)).await
        });
        work.await.map_err(Error::internal)?
    }

    /// An activation.
    ///
    /// # Errors
    /// NotFound `mount "…" not found`.
    pub fn info(&self, ctx: &Context, name: &str) -> Result<Activation> {
        self.shared.records.get(ctx, name)
    }

    /// The activations of a namespace, by name.
    ///
    /// # Errors
    /// Those of the database.
    pub fn list(&self, ctx: &Context) -> Result<Vec<Activation>> {
        self.shared.records.list(ctx)
    }

    /// Whether a list needs more than mount(2).
    #[must_use]
    pub fn concern(mounts: &[Mount]) -> bool {
        Plan::new(mounts, &Claims::default(), false).is_some()
    }

    async fn perform(
        &self,
        plan: Plan,
        mounts: Vec<Mount>,
        bind: bool,
        folder: &Folder,
    ) -> Result<Performed> {
        let (path, roots) = (folder.path(), self.shared.roots.clone());
        blocking(move || perform(&plan, &mounts, bind, &path, &roots)).await
    }

    /// Waits until nobody else is about a name.
    async fn turn(&self, ctx: &Context, name: &str) -> Turn {
        let key = (ctx.namespace.clone(), name.to_owned());
        loop {
            let mut freed = pin!(self.shared.freed.notified());
            freed.as_mut().enable();
            if lock(&self.shared.busy).insert(key.clone()) {
                return Turn { shared: self.shared.clone(), key };
            }
            freed.await;
        }
    }

    fn reserve(&self) -> Folder {
        let number = self.shared.next.fetch_add(1, Ordering::SeqCst);
        lock(&self.shared.pending).insert(number);
        Folder { shared: self.shared.clone(), number }
    }
}

#[async_trait::async_trait]
impl Sweeper for Activations {
    async fn sweep(&self) -> Result<()> {
        // In this order: a folder that is there has been reserved, and is recorded before it is not.
        let found = numbers(&self.shared.folder)?;
        let pending = lock(&self.shared.pending).clone();
        let known: BTreeSet<u64> =
            self.shared.records.all()?.into_iter().map(|(_, activation)| activation.number).collect();
        let mut failure = Ok(());
        for number in found.into_iter().filter(|number| !pending.contains(number) && !known.contains(number))
        {
            let path = self.shared.path(number);
            if let Err(error) = blocking(move || clear(&path)).await {
                failure = Err(error);
            }
        }
        failure
    }
}

impl Shared {
    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(number.to_string())
    }
}

/// The folder of an activation that has no record yet, or never will.
#[derive(Debug)]
pub(super) struct Folder {
    shared: Arc<Shared>,
    number: u64,
}

impl Folder {
    pub(super) fn path(&self) -> PathBuf {
        self.shared.path(self.number)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        lock(&self.shared.pending).remove(&self.number);
    }
}

/// The right to do something about a name.
struct Turn {
    shared: Arc<Shared>,
    key: (Namespace, String),
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.shared.busy).remove(&self.key);
        self.shared.freed.notify_waiters();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The numbers of the folders that are there.
fn numbers(folder: &Path) -> Result<Vec<u64>> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(Error::internal)?
}
