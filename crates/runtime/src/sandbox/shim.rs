//! The controller `shim`: each sandbox is a shim that serves the sandbox service (spec 01 §10, spec 02 §9).

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use corten_api::runtime_sandbox as api;
use corten_api::services::sandbox::{
    ControllerCreateRequest, ControllerMetricsRequest, ControllerMetricsResponse, ControllerPlatformRequest,
    ControllerPlatformResponse, ControllerShutdownRequest, ControllerStartRequest, ControllerStartResponse,
    ControllerStatusRequest, ControllerStatusResponse, ControllerStopRequest, ControllerUpdateRequest,
    ControllerWaitRequest, ControllerWaitResponse,
};
use corten_ttrpc::{CallOptions, Client};
use corten_types::{Any, Context, Error, ErrorClass, Result, ResultExt, timestamp};
use prost::Message;
use prost_types::Timestamp;

use super::SandboxController;
use super::table::Table;
use crate::binary;
use crate::bootstrap::Endpoint;
use crate::bundle::Bundle;
use crate::connection::Connection;
use crate::log::ShimLog;
use crate::table::Key;
use crate::tasks::{Inner, Tasks, blocking};

const SERVICE: &str = "containerd.runtime.sandbox.v1.Sandbox";
/// What a time is that was never set.
const NEVER: Timestamp = Timestamp { seconds: -62_135_596_800, nanos: 0 };

/// Sandboxes whose shims the daemon starts. Clones are the same ones.
#[derive(Clone, Debug)]
pub struct ShimSandboxes {
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub inner: Arc<Inner>,
    pub table: Table,
}

/// A sandbox whose shim is connected.
#[derive(Debug)]
pub(super) struct Sandbox {
    pub key: Key,
    pub bundle: Bundle,
    pub endpoint: Endpoint,
    pub client: Connection,
    /// Its shim was told to end: its going is no accident.
    pub ending: AtomicBool,
    pub _log: Option<ShimLog>,
}

impl Tasks {
    /// The sandboxes of shims; their containers' tasks are among these tasks.
    #[must_use]
    pub fn sandboxes(&self) -> ShimSandboxes {
        ShimSandboxes { shared: Arc::new(Shared { inner: self.inner.clone(), table: Table::default() }) }
    }
}

impl Sandbox {
    pub(super) async fn call<Q: Message, R: Message + Default>(
        &self,
        method: &str,
        request: &Q,
        timeout: Option<Duration>,
    ) -> Result<R> {
        let options = CallOptions { namespace: Some(self.key.namespace.to_string()), timeout };
        self.client.call(SERVICE, method, request, options).await
    }
}

fn key(ctx: &Context, id: &str) -> Key {
    Key { namespace: ctx.namespace.clone(), id: id.to_owned() }
}

fn or_epoch(time: Option<Timestamp>) -> Option<Timestamp> {
    Some(time.unwrap_or_default())
}

impl ShimSandboxes {
    async fn find(&self, ctx: &Context, id: &str) -> Result<Arc<Sandbox>> {
        self.shared.table.get(&key(ctx, id)).await.ok_or_else(|| Error::not_found(""))
    }

    async fn find_to_start(&self, ctx: &Context, id: &str) -> Result<Arc<Sandbox>> {
        let unknown = |_| Error::unknown(format!("unable to find sandbox {id:?}"));
        self.find(ctx, id).await.map_err(unknown)
    }
}

#[async_trait::async_trait]
impl SandboxController for ShimSandboxes {
    async fn create(&self, ctx: &Context, request: ControllerCreateRequest) -> Result<()> {
        let id = match &request.sandbox {
            Some(sandbox) => sandbox.sandbox_id.clone(),
            None => request.sandbox_id.clone(),
        };
        let key = key(ctx, &id);
        self.shared.table.reserve(&key).await?;
        // A creation never stops half-way.
        let shared = self.shared.clone();
        tokio::spawn(async move { shared.create(key, request).await }).await.map_err(Error::internal)?
    }

    async fn start(&self, ctx: &Context, request: ControllerStartRequest) -> Result<ControllerStartResponse> {
        let id = request.sandbox_id;
        let sandbox = self.find_to_start(ctx, &id).await?;
        let start = api::StartSandboxRequest { sandbox_id: id.clone() };
        let started: Result<api::StartSandboxResponse> = sandbox.call("StartSandbox", &start, None).await;
        let started = match started {
            Ok(started) => started,
            Err(error) => {
                let shared = self.shared.clone();
                // Whoever asked may go; what failed goes all the same.
                tokio::spawn(async move { shared.clean_up(&sandbox).await }).await.ok();
                return Err(error.context(format!("failed to start sandbox {id}")));
            }
        };
        Ok(ControllerStartResponse {
            sandbox_id: id,
            pid: started.pid,
            created_at: or_epoch(started.created_at),
            address: sandbox.endpoint.to_string(),
            version: sandbox.endpoint.version.unsigned_abs(),
            spec: started.spec,
            ..Default::default()
        })
    }

    async fn platform(
        &self,
        ctx: &Context,
        request: ControllerPlatformRequest,
    ) -> Result<ControllerPlatformResponse> {
        let sandbox = self.find(ctx, &request.sandbox_id).await?;
        let asked = api::PlatformRequest { sandbox_id: request.sandbox_id };
        let answer: Result<api::PlatformResponse> = sandbox.call("Platform", &asked, None).await;
        let platform = answer.context("failed to get sandbox platform")?.platform;
        Ok(ControllerPlatformResponse { platform })
    }

    async fn stop(&self, ctx: &Context, request: ControllerStopRequest) -> Result<()> {
        let Ok(sandbox) = self.find(ctx, &request.sandbox_id).await else { return Ok(()) };
        let ControllerStopRequest { sandbox_id, timeout_secs, .. } = request;
        let stop = api::StopSandboxRequest { sandbox_id, timeout_secs };
        let stopped: Result<api::StopSandboxResponse> = sandbox.call("StopSandbox", &stop, None).await;
        match stopped {
            Err(error) if error.is_not_found() || error.class() == ErrorClass::Unavailable => Ok(()),
            // What does not run any more is stopped.
            Err(error) if Client::is_closed(&error) => Ok(()),
            stopped => stopped.map(drop).context("failed to stop sandbox"),
        }
    }

    async fn wait(&self, ctx: &Context, request: ControllerWaitRequest) -> Result<ControllerWaitResponse> {
        let id = request.sandbox_id;
        let sandbox = self.find(ctx, &id).await?;
        let wait = api::WaitSandboxRequest { sandbox_id: id.clone() };
        let exit: Result<api::WaitSandboxResponse> = sandbox.call("WaitSandbox", &wait, None).await;
        let exit = exit.with_context(|| format!("failed to wait sandbox {id}"))?;
        Ok(ControllerWaitResponse { exit_status: exit.exit_status, exited_at: or_epoch(exit.exited_at) })
    }

    async fn status(
        &self,
        ctx: &Context,
        request: ControllerStatusRequest,
    ) -> Result<ControllerStatusResponse> {
        let ControllerStatusRequest { sandbox_id: id, verbose, .. } = request;
        let Ok(sandbox) = self.find(ctx, &id).await else {
            return Ok(ControllerStatusResponse {
                sandbox_id: id,
                created_at: Some(NEVER),
                exited_at: Some(timestamp::now()),
                ..Default::default()
            });
        };
        let asked = api::SandboxStatusRequest { sandbox_id: id.clone(), verbose };
        let known: Result<api::SandboxStatusResponse> = sandbox.call("SandboxStatus", &asked, None).await;
        let known = known.with_context(|| format!("failed to query sandbox {id} status"))?;
        Ok(ControllerStatusResponse {
            sandbox_id: known.sandbox_id,
            pid: known.pid,
            state: known.state,
            info: known.info,
            created_at: or_epoch(known.created_at),
            exited_at: or_epoch(known.exited_at),
            extra: known.extra,
            address: sandbox.endpoint.to_string(),
            version: sandbox.endpoint.version.unsigned_abs(),
        })
    }

    async fn shutdown(&self, ctx: &Context, request: ControllerShutdownRequest) -> Result<()> {
        let sandbox = self.find(ctx, &request.sandbox_id).await?;
        let shared = self.shared.clone();
        tokio::spawn(async move { shared.shutdown(&sandbox).await }).await.map_err(Error::internal)?
    }

    async fn metrics(
        &self,
        ctx: &Context,
        request: ControllerMetricsRequest,
    ) -> Result<ControllerMetricsResponse> {
        let sandbox = self.find(ctx, &request.sandbox_id).await?;
        let asked = api::SandboxMetricsRequest { sandbox_id: request.sandbox_id };
        let answer: api::SandboxMetricsResponse = sandbox.call("SandboxMetrics", &asked, None).await?;
        Ok(ControllerMetricsResponse { metrics: answer.metrics })
    }

    async fn update(&self, _: &Context, _: ControllerUpdateRequest) -> Result<()> {
        Ok(())
    }
}

impl Shared {
    /// Bundle, shim, sandbox in the shim; and back again if it fails.
    async fn create(self: Arc<Self>, key: Key, request: ControllerCreateRequest) -> Result<()> {
        let bundle = match self.make_bundle(&key, &request).await {
            Ok(bundle) => bundle,
            Err(error) => {
                self.table.remove(&key);
                return Err(error);
            }
        };
        let launched = self.launch(&key, &bundle, &request).await;
        let launched = launched.with_context(|| format!("failed to start new shim for sandbox {}", key.id));
        let sandbox = match launched {
            Ok(sandbox) => sandbox,
            Err(error) => {
                self.table.abandon(&key);
                self.undo(&key, &bundle).await;
                return Err(error);
            }
        };
        self.table.ready(sandbox.clone());
        self.watch(&sandbox);
        let create = api::CreateSandboxRequest {
            sandbox_id: key.id.clone(),
            bundle_path: bundle.path.to_string_lossy().into_owned(),
            rootfs: request.rootfs,
            options: request.options,
            netns_path: request.netns_path,
            annotations: request.annotations,
        };
        let created: Result<api::CreateSandboxResponse> = sandbox.call("CreateSandbox", &create, None).await;
        if let Err(error) = created {
            self.clean_up(&sandbox).await;
            return Err(error.context(format!("failed to create sandbox {}", key.id)));
        }
        Ok(())
    }

    async fn make_bundle(&self, key: &Key, request: &ControllerCreateRequest) -> Result<Bundle> {
        let config = &self.inner.config;
        let (state, root) = (config.sandbox_dir.clone(), config.sandbox_root_dir.clone());
        let spec = request.sandbox.as_ref().and_then(|sandbox| sandbox.spec.as_ref());
        let (spec, key) = (spec.map(|spec| spec.value.clone()).unwrap_or_default(), key.clone());
        blocking(move || {
            make_private(&state)?;
            make_private(&root)?;
            Bundle::create(&state, &root, &key.namespace, &key.id, &spec)
        })
        .await
    }

    async fn launch(
        &self,
        key: &Key,
        bundle: &Bundle,
        request: &ControllerCreateRequest,
    ) -> Result<Arc<Sandbox>> {
        let runtime =
            request.sandbox.as_ref().and_then(|sandbox| sandbox.runtime.clone()).unwrap_or_default();
        let config = &self.inner.config;
        let binary = self.inner.resolve(&runtime.name)?;
        bundle.write_shim_binary(&binary)?;
        let log = ShimLog::open(&bundle.file("log"), self.inner.log.clone())?;
        let options: Option<&Any> = runtime.options.as_ref();
        let started = binary::start(config, &self.inner.dialects, &binary, bundle, options).await;
        let endpoint = started.context("start failed")?.stamped();
        let (noted, at) = (bundle.clone(), endpoint.clone());
        blocking(move || noted.write_bootstrap(&at)).await?;
        let client = endpoint.connect(config, config.timeouts.start).await?;
        let (key, bundle) = (key.clone(), bundle.clone());
        Ok(Arc::new(Sandbox {
            key,
            bundle,
            endpoint,
            client,
            ending: AtomicBool::new(false),
            _log: Some(log),
        }))
    }

    /// Buries the sandbox when its shim goes away.
    pub(super) fn watch(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let closed = sandbox.client.closed();
        let (shared, sandbox): (Weak<Self>, Weak<Sandbox>) = (Arc::downgrade(self), Arc::downgrade(sandbox));
        tokio::spawn(async move {
            closed.await;
            let (Some(shared), Some(sandbox)) = (shared.upgrade(), sandbox.upgrade()) else { return };
            if !sandbox.ending.load(Ordering::SeqCst) && shared.table.leave(&sandbox) {
                let Key { namespace, id } = &sandbox.key;
                tracing::warn!(%namespace, id, "sandbox shim disconnected, cleaning up");
                shared.bury(&sandbox.key, &sandbox.bundle).await;
            }
        });
    }

    /// Clears away after a dead shim, and tells of it as of a task's end, which is all that clients know.
    pub(super) async fn bury(&self, key: &Key, bundle: &Bundle) {
        let binary = bundle.shim_binary();
        let exit = self.inner.clean_up(bundle, binary.as_deref(), 0).await;
        self.inner.publish_exit(key, &key.id, exit);
        self.inner.publish_deletion(key, exit);
        if let Ok(Some(endpoint)) = bundle.endpoint() {
            crate::delete::dismiss(&self.inner.config, &endpoint, bundle).await;
        }
        self.remove(key, bundle).await;
    }

    /// Undoes the start of a shim that failed, perhaps half-way.
    async fn undo(&self, key: &Key, bundle: &Bundle) {
        if let Some(binary) = bundle.shim_binary() {
            let _ = binary::delete(&self.inner.config, &binary, bundle).await;
        }
        self.remove(key, bundle).await;
    }

    /// Ends a sandbox and its shim.
    async fn shutdown(&self, sandbox: &Arc<Sandbox>) -> Result<()> {
        let shutdown = api::ShutdownSandboxRequest { sandbox_id: sandbox.key.id.clone() };
        sandbox.ending.store(true, Ordering::SeqCst);
        let ended: Result<api::ShutdownSandboxResponse> =
            sandbox.call("ShutdownSandbox", &shutdown, None).await;
        match ended {
            // It went while it answered.
            Err(error) if Client::is_closed(&error) => {}
            Err(error) => {
                sandbox.ending.store(false, Ordering::SeqCst);
                return Err(error.context("failed to shutdown sandbox"));
            }
            Ok(_) => {}
        }
        self.dismiss(sandbox).await;
        Ok(())
    }

    /// Removes a sandbox that could not be made or started.
    async fn clean_up(&self, sandbox: &Arc<Sandbox>) {
        let shutdown = api::ShutdownSandboxRequest { sandbox_id: sandbox.key.id.clone() };
        let limit = Some(self.inner.config.timeouts.cleanup);
        sandbox.ending.store(true, Ordering::SeqCst);
        let ended: Result<api::ShutdownSandboxResponse> =
            sandbox.call("ShutdownSandbox", &shutdown, limit).await;
        if let Err(error) = ended {
            let Key { namespace, id } = &sandbox.key;
            tracing::warn!(%namespace, id, %error, "failed to shutdown sandbox");
        }
        self.dismiss(sandbox).await;
    }

    /// Lets a shim that was told to end go, by force if it does not, and removes its bundle.
    async fn dismiss(&self, sandbox: &Arc<Sandbox>) {
        if !self.table.leave(sandbox) {
            return;
        }
        let Sandbox { key, bundle, client, .. } = &**sandbox;
        let limit = self.inner.config.timeouts.shutdown;
        if tokio::time::timeout(limit, client.closed()).await.is_err() {
            client.close();
            // A shim without the sandbox service knows at least this.
            crate::delete::dismiss(&self.inner.config, &sandbox.endpoint, bundle).await;
            if let Some(binary) = bundle.shim_binary() {
                let _ = binary::delete(&self.inner.config, &binary, bundle).await;
            }
        }
        self.remove(key, bundle).await;
    }

    pub(super) async fn remove(&self, key: &Key, bundle: &Bundle) {
        let this = bundle.clone();
        if let Err(error) = blocking(move || this.delete(corten_mounts::unmount_all)).await {
            tracing::warn!(namespace = %key.namespace, id = key.id, %error, "failed to remove bundle");
        }
        self.table.remove(key);
    }
}

/// A folder for the daemon alone.
fn make_private(folder: &Path) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    let made = builder.create(folder);
    made.and_then(|()| std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)))
        .with_context(|| format!("mkdir {}", folder.display()))
}
