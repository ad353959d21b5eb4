//! Creating a task: bundle, shim, task in the shim; and back again if it fails or if the caller has
//! gone (spec 02 §8).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use corten_api::runc;
use corten_api::task_v3::{CreateTaskRequest, CreateTaskResponse};
use corten_api::types::RuntimeInfo;
use corten_mounts::{Activate, Activations, Claims};
use corten_ttrpc::Client;
use corten_types::{Any, Context, Error, ErrorClass, Labels, Mount, Namespace, Result, ResultExt};
use tokio::sync::oneshot;

use crate::bootstrap::Endpoint;
use crate::bundle::Bundle;
use crate::log::ShimLog;
use crate::records::ContainerRecord;
use crate::shim::Shim;
use crate::spec::{SpecView, features_have_idmap};
use crate::table::{Key, Reservation};
use crate::task::Task;
use crate::tasks::{Inner, Tasks, blocking};
use crate::{binary, delete};

/// Under which a shim names the kinds of mounts that it makes itself.
const ALLOW_MOUNTS: &str = "containerd.io/runtime-allow-mounts";
/// Keeps an activation as long as there is the container.
const CONTAINER_KEEPS: &str = "containerd.io/gc.bref.container";

/// What a task is created from, besides its container's record.
#[derive(Clone, Debug, Default)]
pub struct CreateTask {
    /// The container, whose id becomes the task's.
    pub container_id: String,
    /// Mounts that make the root file system; none if the bundle's specification names its own.
    pub rootfs: Vec<Mount>,
    /// Standard streams of the init process.
    pub stdio: Stdio,
    /// Folder of a checkpoint to restore from.
    pub checkpoint: Option<PathBuf>,
    /// Options of the runtime for this task, instead of the container's.
    pub options: Option<Any>,
    /// Runtime for this task, instead of the container's.
    pub runtime: Option<String>,
    /// A running shim that serves the task, instead of one to be started.
    pub shim: Option<ShimAddress>,
}

/// Standard streams of a process: named pipes, or addresses (spec 02 §6); empty for none.
#[derive(Clone, Debug, Default)]
pub struct Stdio {
    /// Where standard input comes from.
    pub stdin: String,
    /// Where standard output goes.
    pub stdout: String,
    /// Where standard error goes; unused with a terminal.
    pub stderr: String,
    /// Whether the process gets a terminal.
    pub terminal: bool,
}

/// Address of a running shim.
#[derive(Clone, Debug)]
pub struct ShimAddress {
    /// `ttrpc+unix:///…`, or without the protocol.
    pub address: String,
    /// Version of the task API.
    pub version: u32,
}

impl Tasks {
    /// Creates the task of a container and answers the process id of its init process, which waits
    /// to be started. If the future is dropped, the creation is undone in the background.
    ///
    /// # Errors
    /// NotFound without the container; AlreadyExists `task ID: already exists`; what the shim says,
    /// behind `failed to start shim: ` or `failed to create shim task: `.
    pub async fn create(&self, namespace: &Namespace, request: CreateTask) -> Result<u32> {
        let id = request.container_id.clone();
        let mut record = self.inner.records.container(namespace, &id)?;
        if let Some(runtime) = request.runtime.as_ref().filter(|runtime| !runtime.is_empty()) {
            record.runtime.clone_from(runtime);
        }
        check_options(&record.runtime, request.options.as_ref())?;
        let key = Key { namespace: namespace.clone(), id };
        let reservation = self.inner.table.reserve(&key).await?;
        let (answer, answered) = oneshot::channel();
        tokio::spawn(create(self.inner.clone(), key.clone(), record, request, answer));
        Caller { inner: self.inner.clone(), key, reservation, answered }.wait().await
    }
}

/// Whoever waits for a creation. If it stops waiting, the creation is undone, and the name counts as
/// one that is being cleared away: another creation waits for it.
struct Caller {
    inner: Arc<Inner>,
    key: Key,
    reservation: Reservation,
    answered: oneshot::Receiver<Result<Arc<Task>>>,
}

impl Caller {
    async fn wait(mut self) -> Result<u32> {
        let answer = (&mut self.answered).await;
        let answer = answer.unwrap_or_else(|_| Err(Error::internal("task creation ended without an answer")));
        answer.map(|task| task.pid())
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.answered.close();
        self.inner.table.forsake(&self.key, &self.reservation);
        // Answered, but too late to be heard.
        let unheard = self.answered.try_recv().ok().and_then(Result::ok);
        if let (Some(task), Ok(runtime)) = (unheard, tokio::runtime::Handle::try_current()) {
            let inner = self.inner.clone();
            runtime.spawn(async move { inner.discard(&task).await });
        }
    }
}

/// Task options are those of runc, whatever the runtime (spec 01 §13).
fn check_options(runtime: &str, options: Option<&Any>) -> Result<()> {
    let Some(options) = options.filter(|options| !options.value.is_empty() || !options.type_url.is_empty())
    else {
        return Ok(());
    };
    match corten_api::unpack::<runc::Options>(options) {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() && corten_api::is_registered(&options.type_url) => {
            Err(Error::unknown(format!("invalid task create option for {runtime}")))
        }
        Err(error) => Err(Error::unknown(error)),
    }
}

/// What has been made so far of a task.
#[derive(Default)]
struct Launch {
    bundle: Option<Bundle>,
    binary: Option<PathBuf>,
    log: Option<ShimLog>,
    /// Whether `start` was run, so that there may be a shim even without a connection to it.
    started: bool,
    shim: Option<Shim>,
    /// Whether the shim may have made something of the task that it has not removed.
    unfinished: bool,
    sandboxed: bool,
}

/// Creates a task, in a task of its own (of tokio's), so that it never stops half-way.
async fn create(
    inner: Arc<Inner>,
    key: Key,
    record: ContainerRecord,
    request: CreateTask,
    mut answer: oneshot::Sender<Result<Arc<Task>>>,
) {
    let mut launch = Launch::default();
    let created = inner.launch(&mut launch, &key, record, request, &mut answer).await;
    match (created, launch) {
        (Ok(pid), Launch { bundle: Some(bundle), shim: Some(shim), sandboxed, log, .. })
            if !answer.is_closed() =>
        {
            let task = Arc::new(Task::new(key, bundle, shim, sandboxed, log));
            task.set_pid(pid);
            inner.table.ready(task.clone());
            inner.watch(&task);
            if let Err(Ok(task)) = answer.send(Ok(task)) {
                inner.discard(&task).await;
            }
        }
        (created, launch) => {
            inner.table.abandon(&key);
            inner.undo(launch, &key).await;
            inner.table.remove(&key);
            let error = created.err().unwrap_or_else(|| Error::internal("task without a shim"));
            let _ = answer.send(Err(error));
        }
    }
}

impl Inner {
    /// The steps of a creation. What has been made is in `launch`, whatever the result.
    async fn launch(
        &self,
        launch: &mut Launch,
        key: &Key,
        record: ContainerRecord,
        mut request: CreateTask,
        answer: &mut oneshot::Sender<Result<Arc<Task>>>,
    ) -> Result<u32> {
        let spec = record.spec.map(|spec| spec.value).unwrap_or_default();
        let idmapped = SpecView::parse(&spec).has_idmapped_mounts();
        let options = request.options.clone().filter(|options| !options.value.is_empty()).or(record.options);
        let in_sandbox = self.sandbox_endpoint(key, record.sandbox.as_deref(), request.shim.as_ref())?;
        launch.sandboxed = in_sandbox.is_some();
        launch.binary = match self.resolve(&record.runtime) {
            Ok(binary) => Some(binary),
            Err(_) if launch.sandboxed => None,
            Err(error) => return Err(error.context("failed to start shim")),
        };
        let sandbox = record.sandbox.filter(|_| launch.sandboxed);
        let bundle = self.make_bundle(key, spec, launch.binary.clone(), sandbox).await?;
        launch.bundle = Some(bundle.clone());
        request.rootfs = self.activate(launch, &bundle, request.rootfs, options.as_ref()).await?;
        let endpoint = match in_sandbox {
            Some(endpoint) => endpoint,
            None => self
                .start_shim(launch, &bundle, options.as_ref())
                .await
                .context("start failed")
                .context("failed to start shim")?,
        };
        let endpoint = endpoint.stamped();
        if idmapped {
            self.check_idmap(launch, options.as_ref()).await?;
        }
        let noted = {
            let (bundle, endpoint) = (bundle.clone(), endpoint.clone());
            blocking(move || bundle.write_bootstrap(&endpoint))
        };
        let connecting =
            Shim::connect(&self.config, endpoint, &key.namespace, &key.id, self.config.timeouts.start);
        let (noted, shim) = tokio::join!(noted, connecting);
        let shim = launch.shim.insert(shim.context("failed to start shim")?);
        noted.context("failed to start shim")?;
        let request = create_request(&bundle, request, options);
        let created = create_in_shim(shim, request, answer, self.config.timeouts.cleanup).await;
        // Whatever it was, it may have ended what was to clear up after it, too.
        launch.unfinished = created.as_ref().is_err_and(|error| launch.started || is_unfinished(error));
        created
            .map_err(|error| if Client::is_closed(&error) { error.context("shim died") } else { error })
            .context("failed to create shim task")
    }

    /// The shim of the container's sandbox, if the container is to run inside it.
    fn sandbox_endpoint(
        &self,
        key: &Key,
        sandbox: Option<&str>,
        given: Option<&ShimAddress>,
    ) -> Result<Option<Endpoint>> {
        if let Some(given) = given.filter(|given| !given.address.is_empty()) {
            return Endpoint::given(&given.address, given.version).map(Some);
        }
        let Some(sandbox) = sandbox.filter(|sandbox| !sandbox.is_empty() && *sandbox != key.id) else {
            return Ok(None);
        };
        if !self.records.has_sandbox(&key.namespace, sandbox)? {
            return Ok(None);
        }
        let sandbox_key = Key { namespace: key.namespace.clone(), id: sandbox.to_owned() };
        let endpoint = match self.table.get_ready(&sandbox_key) {
            Some(task) => Some(task.shim.endpoint.clone()),
            None => Bundle::at(&self.config.sandbox_dir, &key.namespace, sandbox).endpoint()?,
        };
        // Older shims are started again, and find each other by their group.
        Ok(endpoint.filter(|endpoint| endpoint.version >= 3))
    }

    async fn make_bundle(
        &self,
        key: &Key,
        spec: Vec<u8>,
        binary: Option<PathBuf>,
        sandbox: Option<String>,
    ) -> Result<Bundle> {
        let (state, root) = (self.config.state_dir.clone(), self.config.root_dir.clone());
        let key = key.clone();
        blocking(move || {
            let bundle = Bundle::create(&state, &root, &key.namespace, &key.id, &spec)?;
            let noted = binary.map_or(Ok(()), |binary| bundle.write_shim_binary(&binary));
            let noted = noted.and_then(|()| sandbox.map_or(Ok(()), |sandbox| bundle.write_sandbox(&sandbox)));
            match noted {
                Ok(()) => Ok(bundle),
                Err(error) => {
                    let _ = bundle.delete(|_| Ok(()));
                    Err(error)
                }
            }
        })
        .await
    }

    async fn start_shim(
        &self,
        launch: &mut Launch,
        bundle: &Bundle,
        options: Option<&Any>,
    ) -> Result<Endpoint> {
        launch.log = Some(ShimLog::open(&bundle.file("log"), self.log.clone())?);
        let Some(binary) = &launch.binary else { return Err(Error::internal("no shim binary")) };
        (launch.started, launch.unfinished) = (true, true);
        binary::start(&self.config, &self.dialects, binary, bundle, options).await
    }

    /// Mounts what of a root file system the shim does not mount itself, until the bundle goes; answers
    /// what is left for it.
    async fn activate(
        &self,
        launch: &Launch,
        bundle: &Bundle,
        mounts: Vec<Mount>,
        options: Option<&Any>,
    ) -> Result<Vec<Mount>> {
        let Some(activations) = self.config.activations.as_ref().filter(|_| Activations::concern(&mounts))
        else {
            return Ok(mounts);
        };
        // A shim that does not know the question does nothing by itself.
        let info = match &launch.binary {
            Some(binary) => binary::info(&self.config, binary, options).await.unwrap_or_default(),
            None => RuntimeInfo::default(),
        };
        let claimed = info.annotations.get(ALLOW_MOUNTS).map(String::as_str).unwrap_or_default();
        let request = Activate {
            name: bundle.id.clone(),
            mounts: mounts.clone(),
            labels: Labels::from([(CONTAINER_KEEPS.to_owned(), bundle.id.clone())]),
            temporary: false,
            claims: Claims::parse(claimed),
        };
        let ctx = Context::new(bundle.namespace.clone());
        let activated = match activations.activate(&ctx, request).await {
            // The client has done it, or a daemon that died before it came to the task.
            Err(error) if error.is_already_exists() => activations.info(&ctx, &bundle.id),
            Err(error) if error.class() == ErrorClass::NotImplemented => return Ok(mounts),
            activated => activated,
        };
        let activation = activated.context("failed to activate root file system mounts")?;
        Ok(match activation.active.last().filter(|_| activation.system.is_empty()) {
            // All of it is mounted already.
            Some(last) => vec![Mount {
                kind: "bind".to_owned(),
                source: last.mount_point.clone(),
                target: String::new(),
                options: vec!["rbind".to_owned()],
            }],
            None => activation.system,
        })
    }

    async fn check_idmap(&self, launch: &Launch, options: Option<&Any>) -> Result<()> {
        let Some(binary) = &launch.binary else { return Ok(()) };
        let info = binary::info(&self.config, binary, options).await?;
        let features = info.features.map(|features| features.value).unwrap_or_default();
        if features_have_idmap(&features) {
            return Ok(());
        }
        Err(Error::unknown("idmap mounts not supported: the runtime's features lack `mountExtensions.idmap`"))
    }

    /// Undoes a creation that failed: nothing of the task stays in the shim, on disk or mounted.
    async fn undo(&self, launch: Launch, key: &Key) {
        let Some(bundle) = &launch.bundle else { return };
        if let Some(shim) = &launch.shim {
            self.empty_shim(shim, bundle, launch.binary.as_deref()).await;
            if !launch.sandboxed {
                self.end(shim).await;
            }
            shim.client.close();
        }
        if launch.unfinished && (launch.sandboxed || launch.started) {
            self.clean_up(bundle, launch.binary.as_deref(), 0).await;
        }
        if launch.started {
            let endpoint = launch.shim.map(|shim| shim.endpoint);
            let endpoint = endpoint.unwrap_or_else(|| Endpoint::derived(&self.config, bundle));
            delete::dismiss(&self.config, &endpoint, bundle).await;
        }
        if let Err(error) = self.remove_bundle(bundle).await {
            tracing::warn!(namespace = %key.namespace, id = key.id, %error, "failed to remove bundle");
        }
    }
}

fn create_request(bundle: &Bundle, request: CreateTask, options: Option<Any>) -> CreateTaskRequest {
    CreateTaskRequest {
        id: bundle.id.clone(),
        bundle: bundle.path.to_string_lossy().into_owned(),
        rootfs: request.rootfs.into_iter().map(Into::into).collect(),
        terminal: request.stdio.terminal,
        stdin: request.stdio.stdin,
        stdout: request.stdio.stdout,
        stderr: request.stdio.stderr,
        checkpoint: request.checkpoint.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
        parent_checkpoint: String::new(),
        options,
    }
}

/// Creates the task in its shim and answers its process id; DeadlineExceeded if the caller has gone and
/// the shim does not come to an end either.
async fn create_in_shim(
    shim: &Shim,
    request: CreateTaskRequest,
    answer: &mut oneshot::Sender<Result<Arc<Task>>>,
    patience: Duration,
) -> Result<u32> {
    let restored = !request.checkpoint.is_empty();
    let creation = async {
        let CreateTaskResponse { pid } = shim.create(request).await?;
        // A task that is restored has no process before it is started.
        if pid == 0 && !restored { Ok(shim.connect_task().await?.task_pid) } else { Ok(pid) }
    };
    tokio::pin!(creation);
    tokio::select! {
        biased;
        created = &mut creation => created,
        () = answer.closed() => {
            // A shim that is still creating knows of nothing to delete, so its answer is waited for.
            let late = tokio::time::timeout(patience, creation).await;
            late.unwrap_or_else(|_| Err(Error::new(ErrorClass::DeadlineExceeded, "")))
        }
    }
}

/// Whether a shim has not said itself how a creation ended.
fn is_unfinished(error: &Error) -> bool {
    Client::is_closed(error) || error.class() == ErrorClass::DeadlineExceeded
}
