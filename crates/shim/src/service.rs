//! The task service (spec 02 §5).

mod act;
mod checkpoint;
mod look;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use corten_api::events as told;
use corten_api::runc::Options;
use corten_api::task_v3 as task;
use corten_cgroups::Cgroups;
use corten_oci::runtime::{Checkpoint, Streams};
use corten_types::{Error, ErrorClass, Mount, Result, ResultExt, timestamp};
use tokio::sync::{Notify, watch};

use crate::cleanup;
use crate::console::Console;
use crate::events::Publisher;
use crate::helper::Reaper;
use crate::oom::Oom;
use crate::process::{Process, State, send_signal};
use crate::runtime::{Runtime, not_running};
use crate::server::Socket;
use crate::stdio::{Owner, Paths, Stdio};

/// How long output may take to be passed on at the end.
const DRAIN: Duration = Duration::from_secs(10);
/// How long a runtime may take to clear up what could not be created.
const REMAINS: Duration = Duration::from_secs(5);
const SIGKILL: u32 = 9;

/// A container and its processes.
#[derive(Debug)]
struct Container {
    bundle: PathBuf,
    runtime: Runtime,
    cgroups: Option<Cgroups>,
    oom: Option<Oom>,
    init: Process,
    /// What it is made from when it is started.
    checkpoint: Option<Checkpoint>,
    execs: BTreeMap<String, Process>,
    /// The process namespace is not its own: what it leaves behind lives on.
    shares_pids: bool,
    /// Init has ended, but not yet all execs that were running.
    ending: Option<(u32, SystemTime)>,
    rootfs_mounted: bool,
}

/// The service of one server.
#[derive(Debug)]
pub(crate) struct TaskService {
    namespace: String,
    publisher: Publisher,
    reaper: Arc<Reaper>,
    containers: Arc<Mutex<BTreeMap<String, Container>>>,
    over: watch::Sender<bool>,
    /// Where clients find this server; gone as soon as it is to end.
    socket: Arc<Socket>,
    /// Told when the last container has gone.
    emptied: Arc<Notify>,
}

type Containers<'a> = MutexGuard<'a, BTreeMap<String, Container>>;

fn not_created() -> Error {
    Error::not_found("container not created")
}

fn process<'a>(containers: &'a mut Containers<'_>, id: &str, exec: &str) -> Result<&'a mut Process> {
    let container = containers.get_mut(id).ok_or_else(not_created)?;
    if exec.is_empty() {
        return Ok(&mut container.init);
    }
    container.execs.get_mut(exec).ok_or_else(|| Error::not_found(format!("process does not exist {exec}")))
}

impl TaskService {
    pub(crate) fn new(namespace: String, publisher: Publisher, socket: Arc<Socket>) -> Self {
        Self {
            namespace,
            publisher,
            reaper: Arc::default(),
            containers: Arc::default(),
            over: watch::Sender::new(false),
            socket,
            emptied: Arc::default(),
        }
    }

    pub(crate) fn reaper(&self) -> &Reaper {
        &self.reaper
    }

    /// Resolves when the server is asked to end and has nothing left.
    pub(crate) async fn ended(&self) {
        let _ = self.over.subscribe().wait_for(|over| *over).await;
    }

    fn lock(&self) -> Containers<'_> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self) -> Self {
        Self {
            namespace: self.namespace.clone(),
            publisher: self.publisher.clone(),
            reaper: Arc::clone(&self.reaper),
            containers: Arc::clone(&self.containers),
            over: self.over.clone(),
            socket: Arc::clone(&self.socket),
            emptied: Arc::clone(&self.emptied),
        }
    }

    /// Whether there is no container, and none on its way.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty() && !self.reaper.is_starting()
    }

    /// Resolves when the last container has gone.
    pub(crate) async fn emptied(&self) {
        self.emptied.notified().await;
    }

    // === create, start, exec ===

    /// Gives up, and removes what there is by then, when `expired` resolves.
    pub(crate) async fn create(
        &self,
        request: task::CreateTaskRequest,
        expired: impl Future<Output = ()>,
    ) -> Result<task::CreateTaskResponse> {
        if self.lock().contains_key(&request.id) {
            let text =
                "OCI runtime create failed: runc create failed: container with given ID already exists";
            return Err(Error::unknown(text));
        }
        let options = match &request.options {
            Some(any) if !any.value.is_empty() => corten_api::unpack::<Options>(any)
                .map_err(|error| Error::unknown(format!("invalid options: {error}")))?,
            _ => Options::default(),
        };
        let bundle = PathBuf::from(&request.bundle);
        let rootfs = bundle.join("rootfs");
        let mounts: Vec<Mount> = request.rootfs.iter().cloned().map(Mount::from).collect();
        cleanup::save_options(&bundle, &options)?;
        corten_mounts::mount_all(&mounts, &rootfs).context("failed to mount rootfs component")?;
        let paths = Paths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let runtime = Runtime::new(&request.id, &self.namespace, &bundle, &options);
        let mut init = Process::new(paths, Vec::new());
        if !request.checkpoint.is_empty() {
            return Ok(self.create_from(&request, &options, runtime, init, !mounts.is_empty()));
        }
        let starting = self.reaper.starting();
        let created = tokio::select! {
            created = self.create_init(&request.id, &runtime, &init) => created,
            () = expired => Err(Error::new(ErrorClass::DeadlineExceeded, "")),
            () = self.ended() => Err(Error::new(ErrorClass::Canceled, "the shim ends")),
        };
        let pid = match created {
            Ok(pid) => pid,
            Err(error) => {
                // A runtime that did not end by itself has cleared up nothing.
                tokio::time::timeout(REMAINS, runtime.delete(&self.reaper, true)).await.ok();
                init.stdio.abandon();
                if !mounts.is_empty() {
                    corten_mounts::unmount_all(&rootfs).ok();
                }
                return Err(error);
            }
        };
        init.set(State::Created { pid });
        let cgroups = runtime.cgroups(pid);
        let oom = cgroups.as_ref().and_then(|cgroups| Oom::watch(&request.id, cgroups, &self.publisher));
        let container = Container {
            shares_pids: shares_pids(&bundle),
            bundle,
            runtime,
            cgroups,
            oom,
            init,
            checkpoint: None,
            execs: BTreeMap::new(),
            ending: None,
            rootfs_mounted: !mounts.is_empty(),
        };
        self.lock().insert(request.id.clone(), container);
        self.publisher.publish("/tasks/create", &create_event(&request, pid));
        self.follow(&request.id, "", pid);
        drop(starting);
        Ok(task::CreateTaskResponse { pid: pid.unsigned_abs() })
    }

    async fn create_init(&self, id: &str, runtime: &Runtime, init: &Process) -> Result<i32> {
        let work = |streams| runtime.create(&self.reaper, streams);
        self.with_streams(id, &init.paths, &init.stdio, "failed to create init process I/O", work).await
    }

    /// Makes a process with the streams that it is to have.
    async fn with_streams<F: Future<Output = Result<i32>>>(
        &self,
        id: &str,
        paths: &Paths,
        stdio: &Stdio,
        failure: &str,
        make: impl FnOnce(Streams) -> F,
    ) -> Result<i32> {
        let owner = Owner { id, namespace: &self.namespace, reaper: &self.reaper };
        if !paths.terminal {
            return make(stdio.pipes(paths, &owner).await.with_context(|| failure.to_owned())?).await;
        }
        let console = Console::new()?;
        let streams = Streams { console: Some(console.path()), ..Default::default() };
        let (pid, terminal) = with_terminal(make(streams), stdio.terminal(paths, &console, &owner)).await?;
        terminal?;
        Ok(pid)
    }

    /// Deals with the end of a process when it comes.
    fn follow(&self, id: &str, exec: &str, pid: i32) {
        let end = self.reaper.end_of(pid);
        let (this, id, exec) = (self.handle(), id.to_owned(), exec.to_owned());
        tokio::spawn(async move {
            let status = end.await.unwrap_or(255);
            // The start is told before the end, however quick the process was.
            this.started(&id, &exec).await;
            this.exited(&id, &exec, pid, status.unsigned_abs());
        });
    }

    /// Resolves when a start that is under way has been told.
    async fn started(&self, id: &str, exec: &str) {
        let changed = {
            let mut containers = self.lock();
            let Ok(process) = process(&mut containers, id, exec) else { return };
            process.starting().then(|| process.changed.subscribe())
        };
        let Some(mut changed) = changed else { return };
        loop {
            let starting = {
                let mut containers = self.lock();
                process(&mut containers, id, exec).is_ok_and(|process| process.starting())
            };
            if !starting || changed.changed().await.is_err() {
                return;
            }
        }
    }

    fn exited(&self, id: &str, exec: &str, pid: i32, status: u32) {
        let at = SystemTime::now();
        let mut containers = self.lock();
        let Some(container) = containers.get_mut(id) else { return };
        if let Some(oom) = &container.oom {
            // The reason is told before the end.
            oom.tell();
        }
        if exec.is_empty() {
            container.ending = Some((status, at));
            if container.shares_pids
                && let Some(cgroups) = &container.cgroups
            {
                for pid in cgroups.processes().unwrap_or_default() {
                    send_signal(pid, SIGKILL).ok();
                }
            }
        } else if let Some(process) = container.execs.get_mut(exec) {
            process.set(State::Stopped { pid, status, at });
            self.tell_exit(id, exec, pid, status, at);
        }
        // The end of init is told last.
        let running = container.execs.values().any(|exec| matches!(exec.state, State::Running { .. }));
        if let Some((status, at)) = container.ending.filter(|_| !running) {
            container.ending = None;
            let pid = container.init.pid();
            container.init.set(State::Stopped { pid, status, at });
            self.tell_exit(id, id, pid, status, at);
        }
    }

    fn tell_exit(&self, container: &str, id: &str, pid: i32, status: u32, at: SystemTime) {
        let event = told::TaskExit {
            container_id: container.into(),
            id: id.into(),
            pid: pid.unsigned_abs(),
            exit_status: status,
            exited_at: Some(timestamp::from_system(at)),
        };
        self.publisher.publish("/tasks/exit", &event);
    }

    pub(crate) async fn start(
        &self,
        request: task::StartRequest,
        expired: impl Future<Output = ()>,
    ) -> Result<task::StartResponse> {
        let pid = if request.exec_id.is_empty() {
            self.start_init(&request.id).await?
        } else {
            self.start_exec(&request.id, &request.exec_id, expired).await?
        };
        Ok(task::StartResponse { pid: pid.unsigned_abs() })
    }

    async fn start_init(&self, id: &str) -> Result<i32> {
        let checkpoint = self.lock().get_mut(id).and_then(|container| container.checkpoint.take());
        if let Some(checkpoint) = checkpoint {
            return self.restore(id, checkpoint).await;
        }
        let (runtime, pid) = {
            let mut containers = self.lock();
            let container = containers.get_mut(id).ok_or_else(not_created)?;
            let State::Created { pid } = container.init.state else {
                return Err(Error::unknown(format!(
                    "cannot start a {} process",
                    container.init.state.name()
                )));
            };
            container.init.begin();
            (container.runtime.clone(), pid)
        };
        let started = runtime.start(&self.reaper).await;
        let mut containers = self.lock();
        let init = process(&mut containers, id, "")?;
        if let Err(error) = started {
            init.end_begin(None);
            return Err(error);
        }
        self.publisher
            .publish("/tasks/start", &told::TaskStart { container_id: id.into(), pid: pid.unsigned_abs() });
        init.end_begin(Some(State::Running { pid }));
        Ok(pid)
    }

    /// Gives up when `expired` resolves.
    async fn start_exec(&self, id: &str, exec: &str, expired: impl Future<Output = ()>) -> Result<i32> {
        let (runtime, paths, stdio, spec) = {
            let mut containers = self.lock();
            let container = containers.get_mut(id).ok_or_else(not_created)?;
            if container.init.is_stopped() || container.ending.is_some() {
                return Err(not_running(id));
            }
            let process = container.execs.get_mut(exec);
            let process =
                process.ok_or_else(|| Error::not_found(format!("process does not exist {exec}")))?;
            if process.state != State::Added || process.starting() {
                return Err(Error::failed_precondition(format!("process {exec} was started already")));
            }
            process.begin();
            let (paths, stdio) = (process.paths.clone(), Arc::clone(&process.stdio));
            (container.runtime.clone(), paths, stdio, process.spec.clone())
        };
        let starting = self.reaper.starting();
        let result = tokio::select! {
            result = self.with_streams(id, &paths, &stdio, "failed to create exec process I/O", |streams| runtime.exec(&self.reaper, exec, &spec, streams)) => result,
            () = expired => Err(Error::new(ErrorClass::DeadlineExceeded, "")),
        };
        let mut containers = self.lock();
        let Ok(process) = process(&mut containers, id, exec) else {
            // Deleted meanwhile.
            return result.and_then(|pid| send_signal(pid, SIGKILL).map(|()| pid));
        };
        match result {
            Ok(pid) => {
                let event = told::TaskExecStarted {
                    container_id: id.into(),
                    exec_id: exec.into(),
                    pid: pid.unsigned_abs(),
                };
                self.publisher.publish("/tasks/exec-started", &event);
                process.end_begin(Some(State::Running { pid }));
                drop(containers);
                self.follow(id, exec, pid);
                drop(starting);
                Ok(pid)
            }
            Err(error) => {
                process.end_begin(Some(State::Stopped { pid: 0, status: 255, at: SystemTime::now() }));
                Err(error)
            }
        }
    }

    pub(crate) fn exec(&self, request: task::ExecProcessRequest) -> Result<()> {
        let mut containers = self.lock();
        let container = containers.get_mut(&request.id).ok_or_else(not_created)?;
        if container.execs.contains_key(&request.exec_id) {
            return Err(Error::already_exists(format!("id {}", request.exec_id)));
        }
        match container.init.state {
            State::Paused { .. } => return Err(Error::unknown("cannot exec in a paused state")),
            State::Stopped { .. } => return Err(Error::unknown("cannot exec in a stopped state")),
            _ => {}
        }
        corten_types::identifier::validate(&request.exec_id)?;
        let mut spec: serde_json::Value = serde_json::from_slice(&request.spec.unwrap_or_default().value)
            .map_err(|error| Error::invalid_argument(format!("process spec: {error}")))?;
        spec["terminal"] = request.terminal.into();
        let paths = Paths {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let process = Process::new(paths, spec.to_string().into_bytes());
        container.execs.insert(request.exec_id.clone(), process);
        let event = told::TaskExecAdded { container_id: request.id, exec_id: request.exec_id };
        self.publisher.publish("/tasks/exec-added", &event);
        Ok(())
    }

    // === the end ===

    pub(crate) async fn delete(&self, request: task::DeleteRequest) -> Result<task::DeleteResponse> {
        let (stdio, state, starting) = {
            let mut containers = self.lock();
            let process = process(&mut containers, &request.id, &request.exec_id)?;
            (Arc::clone(&process.stdio), process.state, process.starting())
        };
        if starting || matches!(state, State::Running { .. } | State::Paused { .. }) {
            let what = if matches!(state, State::Paused { .. }) { "paused" } else { "running" };
            return Err(Error::unknown(format!("cannot delete a {what} process")));
        }
        let created = matches!(state, State::Created { .. });
        if request.exec_id.is_empty() {
            self.delete_init(&request.id, created).await?;
        }
        stdio.drain(if created { Duration::from_secs(1) } else { DRAIN }).await;
        let (pid, exit) = match state {
            State::Stopped { pid, status, at } => (pid, Some((status, at))),
            State::Created { pid } => (pid, None),
            _ => (0, None),
        };
        let response = task::DeleteResponse {
            pid: pid.unsigned_abs(),
            exit_status: exit.map_or(0, |(status, _)| status),
            exited_at: exit.map(|(_, at)| timestamp::from_system(at)),
        };
        let mut containers = self.lock();
        if request.exec_id.is_empty() {
            containers.remove(&request.id);
            if containers.is_empty() {
                self.emptied.notify_one();
            }
            let event = told::TaskDelete {
                container_id: request.id,
                pid: response.pid,
                exit_status: response.exit_status,
                exited_at: response.exited_at,
                id: String::new(),
            };
            self.publisher.publish("/tasks/delete", &event);
        } else if let Some(container) = containers.get_mut(&request.id) {
            container.execs.remove(&request.exec_id);
            std::fs::remove_file(container.bundle.join(format!("{}.pid", request.exec_id))).ok();
        }
        Ok(response)
    }

    async fn delete_init(&self, id: &str, created: bool) -> Result<()> {
        let (runtime, rootfs, mounted) = {
            let containers = self.lock();
            let container = containers.get(id).ok_or_else(not_created)?;
            (container.runtime.clone(), container.bundle.join("rootfs"), container.rootfs_mounted)
        };
        runtime.delete(&self.reaper, created).await?;
        if mounted {
            corten_mounts::unmount_one(&rootfs)?;
            if corten_mounts::mount_points_below(&rootfs)?.iter().any(|point| point.starts_with(&rootfs)) {
                corten_mounts::unmount_all(&rootfs)?;
            }
        }
        Ok(())
    }

    pub(crate) fn shutdown(&self) {
        if self.lock().is_empty() {
            // When the answer is there, the name is free.
            self.socket.remove();
            self.over.send_replace(true);
        }
    }
}

/// The runtime and its terminal together; when it fails nobody waits for a terminal.
async fn with_terminal<T>(
    run: impl Future<Output = Result<i32>>,
    terminal: impl Future<Output = T>,
) -> Result<(i32, T)> {
    let (mut run, mut terminal) = (std::pin::pin!(run), std::pin::pin!(terminal));
    tokio::select! {
        pid = &mut run => { let pid = pid?; Ok((pid, terminal.await)) }
        got = &mut terminal => Ok((run.await?, got)),
    }
}

/// Without a process namespace of its own, the end of init does not end the others.
fn shares_pids(bundle: &std::path::Path) -> bool {
    let spec = std::fs::read(bundle.join("config.json")).unwrap_or_default();
    let Ok(spec) = serde_json::from_slice::<serde_json::Value>(&spec) else { return true };
    let namespaces = spec["linux"]["namespaces"].as_array().cloned().unwrap_or_default();
    !namespaces.iter().any(|one| one["type"] == "pid" && one["path"].as_str().unwrap_or_default().is_empty())
}

fn create_event(request: &task::CreateTaskRequest, pid: i32) -> told::TaskCreate {
    told::TaskCreate {
        container_id: request.id.clone(),
        bundle: request.bundle.clone(),
        rootfs: request.rootfs.clone(),
        io: Some(told::TaskIo {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        }),
        checkpoint: request.checkpoint.clone(),
        pid: pid.unsigned_abs(),
    }
}
