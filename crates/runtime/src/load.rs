//! Finding the tasks again after the daemon was restarted (spec 02 §8). Every bundle is looked at
//! on its own and all at once: one that is damaged is named in the log, and the others are served.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use corten_api::task_types::Status;
use corten_api::task_v3::StateResponse;
use corten_ttrpc::Client;
use corten_types::{Error, Namespace, Result, ResultExt, identifier};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::bootstrap::Endpoint;
use crate::bundle::{self, Bundle};
use crate::delete;
use crate::log::ShimLog;
use crate::shim::Shim;
use crate::table::Key;
use crate::task::{Exit, Task};
use crate::tasks::{Inner, Tasks, blocking};

/// Dead shims that are cleared away at a time: each takes a program to be run.
const BURIALS: usize = 8;
/// How long a shim may take to end what it has begun.
const GIVING_UP: Duration = Duration::from_secs(8);

impl Tasks {
    /// Finds the tasks that the bundles tell of. Their names are taken when this begins; it returns
    /// when every shim has answered, or after [`crate::Timeouts::serving`]: calls about tasks whose
    /// shims have not answered yet wait for them. To be called once, before clients are served.
    ///
    /// # Errors
    /// Those of the system for the folder of the bundles.
    pub async fn load(&self) -> Result<()> {
        let inner = self.inner.clone();
        let bundles = blocking(move || inner.bundles()).await?;
        let burials = Arc::new(Semaphore::new(BURIALS));
        let mut loading = JoinSet::new();
        for bundle in bundles {
            let key = Key { namespace: bundle.namespace.clone(), id: bundle.id.clone() };
            if self.inner.table.found(&key) {
                loading.spawn(self.inner.clone().restore(key, bundle, burials.clone()));
            }
        }
        let all = async { while loading.join_next().await.is_some() {} };
        if tokio::time::timeout(self.inner.config.timeouts.serving, all).await.is_err() {
            tracing::warn!(shims = loading.len(), "still waiting for shims in the background");
            loading.detach_all();
        }
        let inner = self.inner.clone();
        blocking(move || {
            inner.sweep_work_folders();
            Ok(())
        })
        .await
    }
}

impl Inner {
    /// Every bundle on disk; empty ones, and the remains of removed ones, are removed.
    fn bundles(&self) -> Result<Vec<Bundle>> {
        let mut bundles = Vec::new();
        for folder in folders(&self.config.state_dir)? {
            let Some(namespace) = name(&folder).and_then(|name| Namespace::new(name).ok()) else { continue };
            for path in folders(&folder).unwrap_or_default() {
                let Some(id) = name(&path) else { continue };
                if let Some(removed) = id.strip_prefix('.') {
                    tracing::info!(%namespace, id = removed, "removing the rest of a bundle");
                    let rest = Bundle::at(&self.config.state_dir, &namespace, id);
                    note(&rest, rest.delete_rest(corten_mounts::unmount_all));
                    continue;
                }
                let bundle = Bundle::at(&self.config.state_dir, &namespace, id);
                if identifier::validate(id).is_err() {
                    tracing::warn!(%namespace, id, "not a bundle, left alone");
                } else if bundle.is_empty() {
                    note(&bundle, bundle.delete(|_| Ok(())));
                } else {
                    bundles.push(bundle);
                }
            }
        }
        Ok(bundles)
    }

    /// Brings back one task, or clears away what is left of it.
    async fn restore(self: Arc<Self>, key: Key, bundle: Bundle, burials: Arc<Semaphore>) {
        let found = self.find(&key, &bundle).await;
        let reason = match found {
            Ok(Found::Alive { task, state }) => {
                let task: Arc<Task> = task.into();
                self.table.ready(task.clone());
                self.watch(&task);
                self.catch_up(&task, state.as_ref());
                return;
            }
            Ok(Found::Leaked(shim)) => {
                self.table.abandon(&key);
                tracing::info!(namespace = %key.namespace, id = key.id, "cleaning leaked shim process");
                let _turn = burials.acquire().await;
                if bundle.sandbox().is_none() {
                    self.end(&shim).await;
                    // It may have been asked to create the task by the daemon before this one, and gives that up now.
                    let _ = tokio::time::timeout(GIVING_UP, shim.client.closed()).await;
                    let endpoint = shim.endpoint.clone();
                    shim.client.close();
                    self.clean_up(&bundle, self.binary_of(&key, &bundle).as_deref(), 0).await;
                    delete::dismiss(&self.config, &endpoint, &bundle).await;
                }
                return self.remove_restored(&key, &bundle).await;
            }
            Err(reason) => reason,
        };
        self.table.abandon(&key);
        tracing::warn!(namespace = %key.namespace, id = key.id, %reason, "shim is gone, cleaning up");
        let _turn = burials.acquire().await;
        let binary = self.binary_of(&key, &bundle);
        let exit = self.clean_up(&bundle, binary.as_deref(), 0).await;
        self.publish_exit(&key, &key.id, exit);
        self.publish_deletion(&key, exit);
        let endpoint = bundle.endpoint().ok().flatten();
        let endpoint = endpoint.unwrap_or_else(|| Endpoint::derived(&self.config, &bundle));
        if bundle.sandbox().is_none() {
            delete::dismiss(&self.config, &endpoint, &bundle).await;
        }
        self.remove_restored(&key, &bundle).await;
    }

    /// Connects to the shim of a bundle. An error means that there is none any more.
    async fn find(&self, key: &Key, bundle: &Bundle) -> Result<Found> {
        let limit = self.config.timeouts.load;
        let endpoint =
            bundle.endpoint()?.ok_or_else(|| Error::unknown("the bundle does not say where its shim is"))?;
        if endpoint.is_of_another_boot() {
            return Err(Error::unknown("the machine was restarted"));
        }
        let sandboxed = bundle.sandbox().is_some();
        let log = if sandboxed {
            None
        } else {
            // Without its log the shim works all the same.
            ShimLog::open(&bundle.file("log"), self.log.clone())
                .inspect_err(|error| tracing::warn!(id = key.id, %error, "shim log"))
                .ok()
        };
        let shim = Shim::connect(&self.config, endpoint, &key.namespace, &key.id, limit).await?;
        let state = match shim.state("", limit).await {
            Ok(state) => Some(state),
            Err(error) if error.is_not_found() => {
                if sandboxed || !self.records.has_sandbox(&key.namespace, &key.id)? {
                    return Ok(Found::Leaked(shim));
                }
                None
            }
            Err(error) if Client::is_closed(&error) => return Err(error),
            // It lives, and knows why it cannot answer now.
            Err(error) => {
                tracing::warn!(namespace = %key.namespace, id = key.id, %error, "state of task is unknown");
                None
            }
        };
        let task = Task::new(key.clone(), bundle.clone(), shim, sandboxed, log);
        Ok(Found::Alive { task: Box::new(task), state })
    }

    /// Takes over what happened while the daemon was away. The shim has perhaps given up telling of
    /// an exit; if not, what it tells is dropped.
    fn catch_up(&self, task: &Task, state: Option<&StateResponse>) {
        let Some(state) = state else { return };
        task.set_pid(state.pid);
        if state.status == i32::from(Status::Stopped) {
            let exit = Exit { pid: state.pid, status: state.exit_status, at: state.exited_at };
            task.tell_exit();
            self.publish_exit(&task.key, &task.key.id, exit);
        }
    }

    /// The binary that serves a bundle; bundles of older daemons do not say, but their containers do.
    fn binary_of(&self, key: &Key, bundle: &Bundle) -> Option<PathBuf> {
        let noted = bundle.shim_binary();
        noted.or_else(|| {
            let record = self.records.container(&key.namespace, &key.id).ok()?;
            self.resolve(&record.runtime).ok()
        })
    }

    async fn remove_restored(&self, key: &Key, bundle: &Bundle) {
        note(bundle, self.remove_bundle(bundle).await);
        self.table.remove(key);
    }

    /// Removes the work folders of tasks that are no more.
    fn sweep_work_folders(&self) {
        for folder in folders(&self.config.root_dir).unwrap_or_default() {
            let Some(namespace) = name(&folder).and_then(|name| Namespace::new(name).ok()) else { continue };
            for path in folders(&folder).unwrap_or_default() {
                let Some(id) = name(&path) else { continue };
                let key = Key { namespace: namespace.clone(), id: id.to_owned() };
                let bundle = Bundle::at(&self.config.state_dir, &namespace, id);
                if !self.table.contains(&key) && !bundle.path.exists() {
                    note(&bundle, bundle::remove(&path));
                }
            }
        }
    }
}

/// What a bundle leads to.
enum Found {
    /// A shim that serves the task, in the state that it told.
    Alive { task: Box<Task>, state: Option<StateResponse> },
    /// A shim that knows no such task.
    Leaked(Shim),
}

fn note(bundle: &Bundle, result: Result<()>) {
    if let Err(error) = result {
        tracing::warn!(namespace = %bundle.namespace, id = bundle.id, %error, "cleaning up");
    }
}

fn folders(parent: &std::path::Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(parent).with_context(|| format!("open {}", parent.display()))?;
    let is_folder = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    Ok(entries.flatten().filter(is_folder).map(|entry| entry.path()).collect())
}

fn name(path: &std::path::Path) -> Option<&str> {
    path.file_name()?.to_str()
}
