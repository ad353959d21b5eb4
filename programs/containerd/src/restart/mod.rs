//! The restart monitor (spec 00 §7): containers whose labels say that they are to run are started again when
//! they do not, and those that are to be stopped are stopped.
//!
//! It looks at what is, not at events, so nothing is missed while the daemon is away. Each container has its
//! own worker: a shim that does not answer keeps no other container from being started.

mod policy;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use corten_api::task_types::{Process, Status};
use corten_metadata::{Container, Containers, Namespaces};
use corten_runtime::{CreateTask, Stdio, Tasks};
use corten_snapshots::Snapshots;
use corten_types::{Context, Namespace, Result, ResultExt};
use tokio::sync::Semaphore;

use policy::{COUNT, LOG_PATH, LOG_URI, Policy, STATUS};

/// Where the setting is 0.
const INTERVAL: Duration = Duration::from_secs(10);
/// What introspection shows.
pub const CAPABILITIES: [&str; 4] = ["no", "always", "on-failure", "unless-stopped"];
/// Containers that are started or stopped at once.
const WORKERS: usize = 16;
const SIGKILL: u32 = 9;

/// What the monitor stands on.
#[derive(Clone)]
pub struct Monitor {
    pub namespaces: Namespaces,
    pub containers: Containers,
    pub snapshots: Snapshots,
    pub tasks: Tasks,
}

/// Namespace and id of a container.
type Key = (Namespace, String);

/// What the monitor remembers from one look to the next.
#[derive(Default)]
struct Memory {
    interval: Duration,
    /// Containers that a worker is busy with.
    busy: Mutex<HashSet<Key>>,
    /// Pids of tasks that were found created, but not started.
    created: Mutex<HashMap<Key, u32>>,
}

/// What is to be done about a container.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    Start { count: i64 },
    Stop,
}

impl Monitor {
    /// Looks now, and then again and again, until the task that runs this is dropped.
    pub async fn run(self, interval: Duration) {
        let interval = if interval.is_zero() { INTERVAL } else { interval };
        let memory = Arc::new(Memory { interval, ..Memory::default() });
        let permits = Arc::new(Semaphore::new(WORKERS));
        loop {
            if let Err(error) = self.look(&memory, &permits).await {
                tracing::error!(%error, "reconcile");
            }
            tokio::time::sleep(interval).await;
        }
    }

    /// One look at all containers; what is to be done is done by workers.
    async fn look(&self, memory: &Arc<Memory>, permits: &Arc<Semaphore>) -> Result<()> {
        let filter = [format!("labels.{STATUS:?}")];
        let mut created = HashMap::new();
        for (namespace, _) in self.namespaces.list()? {
            let ctx = Context::new(namespace);
            for container in self.containers.list(&ctx, &filter)? {
                let key = (ctx.namespace.clone(), container.id.clone());
                if !lock(&memory.busy).insert(key.clone()) {
                    continue;
                }
                match self.wanted(&key, &container, memory, &mut created).await {
                    Some(change) => {
                        self.clone().work(change, key, container, memory.clone(), permits.clone());
                    }
                    None => drop(lock(&memory.busy).remove(&key)),
                }
            }
        }
        *lock(&memory.created) = created;
        Ok(())
    }

    /// Compares what a container's labels want with what is.
    async fn wanted(
        &self,
        key: &Key,
        container: &Container,
        memory: &Memory,
        created: &mut HashMap<Key, u32>,
    ) -> Option<Change> {
        let process = match self.tasks.get(&key.0, &key.1, "").await {
            Ok(process) => process,
            Err(error) if error.is_not_found() => {
                // Whoever made the record a moment ago is about to make the task.
                if container.created_at.elapsed().unwrap_or_default() < memory.interval {
                    return None;
                }
                Process { status: Status::Stopped.into(), ..Process::default() }
            }
            Err(error) => {
                tracing::error!(namespace = %key.0, id = key.1, %error, "monitor");
                return None;
            }
        };
        if process.status() == Status::Created {
            created.insert(key.clone(), process.pid);
            // Whoever created it is about to start it.
            if lock(&memory.created).get(key) != Some(&process.pid) {
                return None;
            }
        }
        decide(&process, container).unwrap_or_else(|error| {
            tracing::error!(namespace = %key.0, id = key.1, %error, "policy reconcile");
            None
        })
    }

    /// Does it beside everything else.
    fn work(
        self,
        change: Change,
        key: Key,
        container: Container,
        memory: Arc<Memory>,
        permits: Arc<Semaphore>,
    ) {
        tokio::spawn(async move {
            if let Ok(_permit) = permits.acquire().await {
                let done = match change {
                    Change::Stop => self.end_task(&key).await,
                    Change::Start { count } => self.start(&key, container, count).await,
                };
                if let Err(error) = done {
                    tracing::error!(namespace = %key.0, id = key.1, %error, "apply change");
                }
            }
            lock(&memory.busy).remove(&key);
        });
    }

    /// Starts a container's task anew. It is counted first: a start that fails counts too.
    async fn start(&self, key: &Key, container: Container, count: i64) -> Result<()> {
        let ctx = Context::new(key.0.clone());
        if container.labels.contains_key(LOG_PATH) && !container.labels.contains_key(LOG_URI) {
            tracing::warn!(
                "Label {LOG_PATH:?} is no longer supported since containerd v2.0. Use {LOG_URI:?} instead."
            );
        }
        let counted = Container {
            id: container.id.clone(),
            labels: [(COUNT.to_owned(), count.to_string())].into(),
            ..Container::default()
        };
        self.containers.update(&ctx, counted, vec![format!("labels.{COUNT}")]).await?;
        // If it cannot be ended, the name is taken, and creating says so.
        if let Err(error) = self.end_task(key).await {
            tracing::warn!(namespace = %key.0, id = key.1, %error, "the old task could not be deleted");
        }
        let rootfs = if container.snapshot_key.is_empty() {
            Vec::new()
        } else {
            self.snapshots.mounts(&ctx, &container.snapshotter, &container.snapshot_key).await?
        };
        let stdio = stdio(&container);
        let create = CreateTask { container_id: container.id, rootfs, stdio, ..CreateTask::default() };
        self.tasks.create(&key.0, create).await?;
        self.tasks.start(&key.0, &key.1, "").await?;
        Ok(())
    }

    /// Kills and deletes a container's task, if there is one.
    async fn end_task(&self, key: &Key) -> Result<()> {
        let (namespace, id) = key;
        let killed = self.tasks.kill(namespace, id, "", SIGKILL, true).await;
        if killed.is_ok() {
            self.tasks.wait(namespace, id, "").await.context("wait")?;
        }
        // What cannot be killed has ended, or was never started.
        match self.tasks.delete(namespace, id).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

/// What the labels want, given how the task is.
fn decide(process: &Process, container: &Container) -> Result<Option<Change>> {
    let labels = &container.labels;
    Ok(match (labels.get(STATUS).map(String::as_str), process.status()) {
        (_, Status::Unknown) => None,
        (Some("running"), Status::Running | Status::Paused | Status::Pausing) => None,
        (Some("running"), _) => Policy::of(labels)?
            .restarts(process.exit_status, labels)?
            .then(|| Change::Start { count: policy::next_count(labels) }),
        (Some("stopped"), Status::Stopped) => None,
        (Some("stopped"), _) => Some(Change::Stop),
        _ => None,
    })
}

/// The streams that the labels name, or none. A terminal is one only if its output goes anywhere.
fn stdio(container: &Container) -> Stdio {
    let Some(uri) = container.labels.get(LOG_URI).filter(|uri| !uri.is_empty()) else {
        return Stdio::default();
    };
    let spec = container.spec.as_ref().map(|spec| spec.value.as_slice()).unwrap_or_default();
    let spec: serde_json::Value = serde_json::from_slice(spec).unwrap_or_default();
    let terminal = spec.pointer("/process/terminal").and_then(serde_json::Value::as_bool).unwrap_or(false);
    let stderr = if terminal { String::new() } else { uri.clone() };
    Stdio { stdin: String::new(), stdout: uri.clone(), stderr, terminal }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(status: Status, labels: &[(&str, &str)]) -> Option<Change> {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let container = Container { labels, ..Container::default() };
        decide(&Process { status: status.into(), ..Process::default() }, &container).unwrap()
    }

    #[test]
    fn only_what_differs_from_what_is_wanted_is_changed() {
        let (running, stopped) = ([(STATUS, "running")], [(STATUS, "stopped")]);
        for status in [Status::Running, Status::Paused, Status::Pausing, Status::Unknown] {
            assert_eq!(decided(status, &running), None);
        }
        assert_eq!(decided(Status::Stopped, &running), Some(Change::Start { count: 1 }));
        assert_eq!(decided(Status::Stopped, &stopped), None);
        assert_eq!(decided(Status::Running, &stopped), Some(Change::Stop));
        assert_eq!(decided(Status::Paused, &stopped), Some(Change::Stop));
        assert_eq!(decided(Status::Stopped, &[(STATUS, "paused")]), None);
        assert_eq!(decided(Status::Stopped, &[]), None);
    }
}
