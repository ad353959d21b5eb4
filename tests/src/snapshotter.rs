//! A snapshotter in a process of its own, as far as a daemon can tell: it serves the Snapshots service on a
//! socket, over overlayfs directories of its own, and may have layers that nobody gave it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use corten_api::services::snapshots as api;
use corten_api::services::snapshots::snapshots_server::{Snapshots, SnapshotsServer};
use corten_api::types::Mount;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use crate::Scratch;

const REFERENCE: &str = "containerd.io/snapshot.ref";
const VIEW: i32 = 1;
const ACTIVE: i32 = 2;
const COMMITTED: i32 = 3;

/// What a call of a daemon was: the method, and what its headers said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// In lower case.
    pub method: &'static str,
    /// Empty without.
    pub namespace: String,
    /// Empty without.
    pub lease: String,
}

#[derive(Debug, Default)]
struct State {
    snapshots: BTreeMap<String, api::Info>,
    folders: BTreeMap<String, u64>,
    last: u64,
    /// Folders with the contents of layers, by chain ID.
    has: BTreeMap<String, PathBuf>,
    calls: Vec<Call>,
}

#[derive(Clone, Debug)]
struct Service {
    folder: PathBuf,
    state: Arc<Mutex<State>>,
}

/// The snapshotter. It keeps what it has while it does not serve.
#[derive(Debug)]
pub struct SnapshotterProcess {
    service: Service,
    running: Option<Runtime>,
    scratch: Scratch,
}

impl SnapshotterProcess {
    /// Starts serving.
    ///
    /// # Panics
    /// When the socket cannot be made.
    pub fn start() -> Self {
        let scratch = Scratch::new();
        let service = Service { folder: scratch.join("snapshots"), state: Arc::default() };
        let mut this = Self { service, running: None, scratch };
        this.serve();
        this
    }

    /// Where it serves.
    pub fn address(&self) -> PathBuf {
        self.scratch.join("s.sock")
    }

    /// The lines of a daemon's configuration that make it the snapshotter `id`.
    pub fn config(&self, id: &str) -> String {
        format!(
            "[proxy_plugins.{id}]\ntype = \"snapshot\"\naddress = \"{}\"\n[proxy_plugins.{id}.exports]\nroot = \"{}\"\n",
            self.address().display(),
            self.service.folder.display()
        )
    }

    /// Serves, again after [`SnapshotterProcess::die`].
    ///
    /// # Panics
    /// When the socket cannot be made.
    pub fn serve(&mut self) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        std::fs::remove_file(self.address()).ok();
        let (service, address) = (self.service.clone(), self.address());
        let listener = {
            let _guard = runtime.enter();
            UnixListener::bind(address).unwrap()
        };
        runtime.spawn(async move {
            let server = tonic::transport::Server::builder().add_service(SnapshotsServer::new(service));
            server.serve_with_incoming(UnixListenerStream::new(listener)).await.unwrap();
        });
        self.running = Some(runtime);
    }

    /// Ends all connections and stops to answer, as if the process had died.
    pub fn die(&mut self) {
        if let Some(runtime) = self.running.take() {
            runtime.shutdown_background();
        }
    }

    /// Gives it the contents of a layer, by the chain ID. A daemon that prepares it is told that it is there.
    pub fn give(&self, chain_id: &str, folder: &Path) {
        self.service.state().has.insert(chain_id.into(), folder.into());
    }

    /// Forgets a snapshot, as if it was lost.
    pub fn lose(&self, key: &str) {
        self.service.state().snapshots.remove(key);
    }

    /// Keys and kinds (1 view, 2 active, 3 committed) of its snapshots.
    pub fn snapshots(&self) -> Vec<(String, i32)> {
        self.service.state().snapshots.values().map(|info| (info.name.clone(), info.kind)).collect()
    }

    /// A snapshot.
    pub fn snapshot(&self, key: &str) -> Option<api::Info> {
        self.service.state().snapshots.get(key).cloned()
    }

    /// The calls since the last time this was asked.
    pub fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.service.state().calls)
    }
}

impl Drop for SnapshotterProcess {
    fn drop(&mut self) {
        self.die();
    }
}

impl Service {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn called<T>(&self, method: &'static str, request: &Request<T>) {
        let header = |key: &str| {
            request.metadata().get(key).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        let (namespace, lease) = (header("containerd-namespace"), header("containerd-lease"));
        self.state().calls.push(Call { method, namespace, lease });
    }

    fn fs(&self, id: u64) -> PathBuf {
        self.folder.join(id.to_string()).join("fs")
    }

    fn create(
        &self,
        key: String,
        parent: String,
        labels: BTreeMap<String, String>,
        kind: i32,
    ) -> Result<Vec<Mount>, Status> {
        let mut state = self.state();
        if state.snapshots.contains_key(&key) {
            return Err(Status::already_exists(format!("snapshot {key:?}: already exists")));
        }
        match state.snapshots.get(&parent) {
            None if !parent.is_empty() => return Err(missing(&parent)),
            Some(info) if info.kind != COMMITTED => {
                return Err(Status::invalid_argument(format!("parent {parent:?} is not committed snapshot")));
            }
            _ => {}
        }
        let target = labels.get(REFERENCE).filter(|_| kind == ACTIVE).cloned();
        let given = target.as_ref().and_then(|target| state.has.get(target).cloned());
        state.last += 1;
        let id = state.last;
        let now = Some(corten_types::timestamp::from_system(SystemTime::now()));
        let info =
            api::Info { name: key, parent, kind, created_at: now, updated_at: now, labels: labels.clone() };
        if let (Some(target), Some(folder)) = (target, given) {
            if !state.snapshots.contains_key(&target) {
                std::fs::create_dir_all(self.fs(id).parent().unwrap_or(&self.folder))?;
                std::os::unix::fs::symlink(folder, self.fs(id))?;
                state.folders.insert(target.clone(), id);
                let info = api::Info { name: target.clone(), kind: COMMITTED, ..info };
                state.snapshots.insert(target.clone(), info);
            }
            return Err(Status::already_exists(format!("target snapshot {target:?}: already exists")));
        }
        std::fs::create_dir_all(self.fs(id))?;
        std::fs::create_dir_all(self.folder.join(id.to_string()).join("work"))?;
        state.folders.insert(info.name.clone(), id);
        state.snapshots.insert(info.name.clone(), info.clone());
        Ok(self.show(&state, &info))
    }

    fn show(&self, state: &State, info: &api::Info) -> Vec<Mount> {
        let text = |key: &str| {
            let path = self.fs(state.folders.get(key).copied().unwrap_or_default());
            std::fs::canonicalize(&path).unwrap_or(path).display().to_string()
        };
        let mode = if info.kind == ACTIVE { "rw" } else { "ro" };
        let mut lower = Vec::new();
        let mut below = info.parent.clone();
        while let Some(parent) = state.snapshots.get(&below) {
            lower.push(text(&below));
            below = parent.parent.clone();
        }
        let bind = |source: String| Mount {
            r#type: "bind".into(),
            source,
            target: String::new(),
            options: vec![mode.into(), "rbind".into()],
        };
        let own = text(&info.name);
        let mut options = match (info.kind, lower.as_slice()) {
            (_, []) => return vec![bind(own)],
            (VIEW, [only]) => return vec![bind(only.clone())],
            (VIEW, _) => Vec::new(),
            _ => {
                let work = format!("{}/work", own.trim_end_matches("/fs"));
                vec![format!("workdir={work}"), format!("upperdir={own}")]
            }
        };
        options.push(format!("lowerdir={}", lower.join(":")));
        vec![Mount { r#type: "overlay".into(), source: "overlay".into(), target: String::new(), options }]
    }
}

fn missing(key: &str) -> Status {
    Status::not_found(format!("snapshot {key} does not exist: not found"))
}

fn usage(folder: &Path) -> (i64, i64) {
    let (mut size, mut inodes) = (0, 1);
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (more, under) = match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => usage(&entry.path()),
            Ok(metadata) => (i64::try_from(metadata.len()).unwrap_or(0), 1),
            Err(_) => (0, 0),
        };
        (size, inodes) = (size + more, inodes + under);
    }
    (size, inodes)
}

#[tonic::async_trait]
impl Snapshots for Service {
    async fn prepare(
        &self,
        request: Request<api::PrepareSnapshotRequest>,
    ) -> Result<Response<api::PrepareSnapshotResponse>, Status> {
        self.called("prepare", &request);
        let r = request.into_inner();
        let mounts = self.create(r.key, r.parent, r.labels, ACTIVE)?;
        Ok(Response::new(api::PrepareSnapshotResponse { mounts }))
    }

    async fn view(
        &self,
        request: Request<api::ViewSnapshotRequest>,
    ) -> Result<Response<api::ViewSnapshotResponse>, Status> {
        self.called("view", &request);
        let r = request.into_inner();
        let mounts = self.create(r.key, r.parent, r.labels, VIEW)?;
        Ok(Response::new(api::ViewSnapshotResponse { mounts }))
    }

    async fn mounts(
        &self,
        request: Request<api::MountsRequest>,
    ) -> Result<Response<api::MountsResponse>, Status> {
        self.called("mounts", &request);
        let (state, key) = (self.state(), request.into_inner().key);
        let info = state.snapshots.get(&key).ok_or_else(|| missing(&key))?;
        Ok(Response::new(api::MountsResponse { mounts: self.show(&state, info) }))
    }

    async fn commit(&self, request: Request<api::CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        self.called("commit", &request);
        let r = request.into_inner();
        let mut state = self.state();
        if state.snapshots.contains_key(&r.name) {
            return Err(Status::already_exists(format!("snapshot {:?}: already exists", r.name)));
        }
        let Some(info) = state.snapshots.remove(&r.key) else { return Err(missing(&r.key)) };
        let parent = if r.parent.is_empty() { info.parent } else { r.parent };
        let id = state.folders.remove(&r.key).unwrap_or_default();
        state.folders.insert(r.name.clone(), id);
        let committed = api::Info { name: r.name.clone(), parent, kind: COMMITTED, labels: r.labels, ..info };
        state.snapshots.insert(r.name, committed);
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<api::RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        self.called("remove", &request);
        let (mut state, key) = (self.state(), request.into_inner().key);
        if state.snapshots.values().any(|info| info.parent == key) {
            return Err(Status::failed_precondition(
                "cannot remove snapshot with child: failed precondition",
            ));
        }
        state.snapshots.remove(&key).ok_or_else(|| missing(&key))?;
        if let Some(id) = state.folders.remove(&key) {
            std::fs::remove_dir_all(self.folder.join(id.to_string()))?;
        }
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<api::StatSnapshotRequest>,
    ) -> Result<Response<api::StatSnapshotResponse>, Status> {
        self.called("stat", &request);
        let (state, key) = (self.state(), request.into_inner().key);
        let info = state.snapshots.get(&key).cloned().ok_or_else(|| missing(&key))?;
        Ok(Response::new(api::StatSnapshotResponse { info: Some(info) }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateSnapshotRequest>,
    ) -> Result<Response<api::UpdateSnapshotResponse>, Status> {
        self.called("update", &request);
        let r = request.into_inner();
        let new = r.info.unwrap_or_default();
        let mut state = self.state();
        let info = state.snapshots.get_mut(&new.name).ok_or_else(|| missing(&new.name))?;
        let paths = r.update_mask.unwrap_or_default().paths;
        if paths.is_empty() {
            info.labels.clone_from(&new.labels);
        }
        for path in paths {
            match path.strip_prefix("labels.") {
                Some(key) => {
                    info.labels.insert(key.into(), new.labels.get(key).cloned().unwrap_or_default());
                }
                None => info.labels.clone_from(&new.labels),
            }
        }
        Ok(Response::new(api::UpdateSnapshotResponse { info: Some(info.clone()) }))
    }

    type ListStream = tokio_stream::Iter<std::vec::IntoIter<Result<api::ListSnapshotsResponse, Status>>>;

    /// Heeds no filter.
    async fn list(
        &self,
        request: Request<api::ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        self.called("list", &request);
        let infos: Vec<api::Info> = self.state().snapshots.values().cloned().collect();
        let blocks: Vec<_> =
            infos.chunks(2).map(|info| Ok(api::ListSnapshotsResponse { info: info.to_vec() })).collect();
        Ok(Response::new(tokio_stream::iter(blocks)))
    }

    async fn usage(
        &self,
        request: Request<api::UsageRequest>,
    ) -> Result<Response<api::UsageResponse>, Status> {
        self.called("usage", &request);
        let (state, key) = (self.state(), request.into_inner().key);
        let id = state.folders.get(&key).copied().ok_or_else(|| missing(&key))?;
        let (size, inodes) = usage(&self.fs(id));
        Ok(Response::new(api::UsageResponse { size, inodes }))
    }

    async fn cleanup(&self, request: Request<api::CleanupRequest>) -> Result<Response<()>, Status> {
        self.called("cleanup", &request);
        Ok(Response::new(()))
    }
}
