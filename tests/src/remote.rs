//! Parts of a daemon in processes of their own, as far as it can tell: a store of blobs, a differ and a sandbox
//! controller, each on a socket. What they are called with is kept for the tests to look at.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use corten_api::services::content as blobs;
use corten_api::services::content::content_server::{Content, ContentServer};
use corten_api::services::diff::diff_server::{Diff, DiffServer};
use corten_api::services::diff::{ApplyRequest, ApplyResponse, DiffRequest, DiffResponse};
use corten_api::services::sandbox as boxes;
use corten_api::services::sandbox::controller_server::{Controller, ControllerServer};
use corten_api::types::Descriptor;
use corten_types::Digest;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::Scratch;

/// What the parts know.
#[derive(Debug, Default)]
struct State {
    blobs: BTreeMap<String, Vec<u8>>,
    /// Bytes of all writes, whatever became of them.
    arrived: usize,
    /// The diff ID that the differ answers for a layer; others are not its own.
    layers: BTreeMap<String, String>,
    /// Method and namespace.
    calls: Vec<(String, String)>,
}

#[derive(Clone, Debug, Default)]
struct Parts {
    state: Arc<Mutex<State>>,
}

/// A process with all three parts. It keeps what it has while it does not serve.
#[derive(Debug)]
pub struct PartsProcess {
    parts: Parts,
    running: Option<Runtime>,
    scratch: Scratch,
}

impl PartsProcess {
    /// Starts serving.
    ///
    /// # Panics
    /// When the socket cannot be made.
    pub fn start() -> Self {
        let mut this = Self { parts: Parts::default(), running: None, scratch: Scratch::new() };
        this.serve();
        this
    }

    /// Where it serves.
    pub fn address(&self) -> PathBuf {
        self.scratch.join("p.sock")
    }

    /// The lines of a daemon's configuration that make it the part `id` of a type.
    pub fn config(&self, kind: &str, id: &str) -> String {
        format!("[proxy_plugins.{id}]\ntype = \"{kind}\"\naddress = \"{}\"\n", self.address().display())
    }

    /// Serves, again after [`PartsProcess::die`].
    ///
    /// # Panics
    /// When the socket cannot be made.
    pub fn serve(&mut self) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        std::fs::remove_file(self.address()).ok();
        let (parts, address) = (self.parts.clone(), self.address());
        let listener = {
            let _guard = runtime.enter();
            UnixListener::bind(address).unwrap()
        };
        runtime.spawn(async move {
            let server = tonic::transport::Server::builder()
                .add_service(ContentServer::new(parts.clone()).max_decoding_message_size(16 << 20))
                .add_service(DiffServer::new(parts.clone()))
                .add_service(ControllerServer::new(parts));
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

    /// The blobs that it keeps: digest and bytes.
    pub fn blobs(&self) -> BTreeMap<String, Vec<u8>> {
        self.parts.state().blobs.clone()
    }

    /// Bytes of all writes so far, whatever became of them.
    pub fn arrived(&self) -> usize {
        self.parts.state().arrived
    }

    /// Makes a layer its differ's own: applying writes a file `applied` and answers this diff ID.
    pub fn claim(&self, layer: &str, diff_id: &str) {
        self.parts.state().layers.insert(layer.into(), diff_id.into());
    }

    /// Methods and namespaces of the calls since the last time this was asked.
    pub fn calls(&self) -> Vec<(String, String)> {
        std::mem::take(&mut self.parts.state().calls)
    }
}

impl Drop for PartsProcess {
    fn drop(&mut self) {
        self.die();
    }
}

impl Parts {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn called<T>(&self, method: &str, request: &Request<T>) {
        let namespace = request.metadata().get("containerd-namespace").and_then(|value| value.to_str().ok());
        let namespace = namespace.unwrap_or_default().to_owned();
        self.state().calls.push((method.to_owned(), namespace));
    }

    fn info(&self, digest: &str) -> Result<blobs::Info, Status> {
        let state = self.state();
        let size = state.blobs.get(digest).map(Vec::len);
        let missing = || Status::not_found(format!("content digest {digest}: not found"));
        let size = i64::try_from(size.ok_or_else(missing)?).unwrap_or(0);
        Ok(blobs::Info { digest: digest.into(), size, ..Default::default() })
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Content for Parts {
    async fn info(
        &self,
        request: Request<blobs::InfoRequest>,
    ) -> Result<Response<blobs::InfoResponse>, Status> {
        self.called("info", &request);
        let info = Parts::info(self, &request.into_inner().digest)?;
        Ok(Response::new(blobs::InfoResponse { info: Some(info) }))
    }

    async fn update(
        &self,
        request: Request<blobs::UpdateRequest>,
    ) -> Result<Response<blobs::UpdateResponse>, Status> {
        self.called("update", &request);
        let info = request.into_inner().info.unwrap_or_default();
        Ok(Response::new(blobs::UpdateResponse { info: Some(Parts::info(self, &info.digest)?) }))
    }

    type ListStream = Answers<blobs::ListContentResponse>;

    async fn list(
        &self,
        request: Request<blobs::ListContentRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        self.called("list", &request);
        let digests: Vec<String> = self.state().blobs.keys().cloned().collect();
        let infos: Result<Vec<_>, Status> = digests.iter().map(|digest| Parts::info(self, digest)).collect();
        let message = blobs::ListContentResponse { info: infos? };
        Ok(Response::new(Box::pin(tokio_stream::iter([Ok(message)]))))
    }

    async fn delete(&self, request: Request<blobs::DeleteContentRequest>) -> Result<Response<()>, Status> {
        self.called("delete", &request);
        let digest = request.into_inner().digest;
        let gone = self.state().blobs.remove(&digest);
        gone.map(|_| Response::new(())).ok_or_else(|| Status::not_found(format!("{digest}: not found")))
    }

    type ReadStream = Answers<blobs::ReadContentResponse>;

    async fn read(
        &self,
        request: Request<blobs::ReadContentRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        self.called("read", &request);
        let r = request.into_inner();
        Parts::info(self, &r.digest)?;
        let number = |signed: i64| usize::try_from(signed).unwrap_or(0);
        let data = self.state().blobs[&r.digest].clone();
        let from = number(r.offset).min(data.len());
        let end = if r.size > 0 { (from + number(r.size)).min(data.len()) } else { data.len() };
        let parts: Vec<_> = data[from..end]
            .chunks(64 << 10)
            .scan(0, |offset, chunk| {
                let part = blobs::ReadContentResponse { offset: *offset, data: chunk.to_vec().into() };
                *offset += i64::try_from(chunk.len()).unwrap_or(0);
                Some(Ok(part))
            })
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(parts))))
    }

    async fn status(
        &self,
        request: Request<blobs::StatusRequest>,
    ) -> Result<Response<blobs::StatusResponse>, Status> {
        self.called("status", &request);
        Err(Status::not_found("no ingest is kept: not found"))
    }

    async fn list_statuses(
        &self,
        request: Request<blobs::ListStatusesRequest>,
    ) -> Result<Response<blobs::ListStatusesResponse>, Status> {
        self.called("list_statuses", &request);
        Ok(Response::new(blobs::ListStatusesResponse::default()))
    }

    type WriteStream = Answers<blobs::WriteContentResponse>;

    async fn write(
        &self,
        request: Request<Streaming<blobs::WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        self.called("write", &request);
        let this = self.clone();
        let mut data: Vec<u8> = Vec::new();
        let answers = request.into_inner().map(move |message| {
            let message = message?;
            if message.action != 0 {
                if usize::try_from(message.offset) != Ok(data.len()) {
                    return Err(Status::out_of_range("another offset is next"));
                }
                data.extend_from_slice(&message.data);
                this.state().arrived += message.data.len();
            }
            let digest = Digest::sha256(&data).to_string();
            if message.action == 2 {
                if !message.expected.is_empty() && message.expected != digest {
                    return Err(Status::failed_precondition("unexpected commit digest"));
                }
                this.state().blobs.insert(digest.clone(), data.clone());
            }
            let offset = i64::try_from(data.len()).unwrap_or(0);
            Ok(blobs::WriteContentResponse { action: message.action, offset, digest, ..Default::default() })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn abort(&self, request: Request<blobs::AbortRequest>) -> Result<Response<()>, Status> {
        self.called("abort", &request);
        Err(Status::not_found("no ingest is kept: not found"))
    }
}

#[tonic::async_trait]
impl Diff for Parts {
    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        self.called("apply", &request);
        let request = request.into_inner();
        let layer = request.diff.unwrap_or_default();
        let Some(digest) = self.state().layers.get(&layer.digest).cloned() else {
            return Err(Status::unimplemented("not a layer of mine: not implemented"));
        };
        let mount = request.mounts.first().cloned().unwrap_or_default();
        let upper = mount.options.iter().find_map(|option| option.strip_prefix("upperdir="));
        std::fs::write(Path::new(upper.unwrap_or(&mount.source)).join("applied"), "elsewhere\n")?;
        let media_type = "application/vnd.oci.image.layer.v1.tar".into();
        let applied = Descriptor { media_type, digest, size: 1, ..Default::default() };
        Ok(Response::new(ApplyResponse { applied: Some(applied) }))
    }

    async fn diff(&self, request: Request<DiffRequest>) -> Result<Response<DiffResponse>, Status> {
        self.called("diff", &request);
        Err(Status::unimplemented("nothing to compare: not implemented"))
    }
}

#[tonic::async_trait]
impl Controller for Parts {
    async fn create(
        &self,
        request: Request<boxes::ControllerCreateRequest>,
    ) -> Result<Response<boxes::ControllerCreateResponse>, Status> {
        self.called("create", &request);
        let sandbox_id = request.into_inner().sandbox_id;
        Ok(Response::new(boxes::ControllerCreateResponse { sandbox_id }))
    }

    async fn start(
        &self,
        request: Request<boxes::ControllerStartRequest>,
    ) -> Result<Response<boxes::ControllerStartResponse>, Status> {
        self.called("start", &request);
        let sandbox_id = request.into_inner().sandbox_id;
        Ok(Response::new(boxes::ControllerStartResponse { sandbox_id, pid: 42, ..Default::default() }))
    }

    async fn platform(
        &self,
        request: Request<boxes::ControllerPlatformRequest>,
    ) -> Result<Response<boxes::ControllerPlatformResponse>, Status> {
        self.called("platform", &request);
        Ok(Response::new(boxes::ControllerPlatformResponse::default()))
    }

    async fn stop(
        &self,
        request: Request<boxes::ControllerStopRequest>,
    ) -> Result<Response<boxes::ControllerStopResponse>, Status> {
        self.called("stop", &request);
        Ok(Response::new(boxes::ControllerStopResponse {}))
    }

    async fn wait(
        &self,
        request: Request<boxes::ControllerWaitRequest>,
    ) -> Result<Response<boxes::ControllerWaitResponse>, Status> {
        self.called("wait", &request);
        Ok(Response::new(boxes::ControllerWaitResponse { exit_status: 7, exited_at: None }))
    }

    async fn status(
        &self,
        request: Request<boxes::ControllerStatusRequest>,
    ) -> Result<Response<boxes::ControllerStatusResponse>, Status> {
        self.called("status", &request);
        let sandbox_id = request.into_inner().sandbox_id;
        Err(Status::not_found(format!("sandbox {sandbox_id:?} is not here: not found")))
    }

    async fn shutdown(
        &self,
        request: Request<boxes::ControllerShutdownRequest>,
    ) -> Result<Response<boxes::ControllerShutdownResponse>, Status> {
        self.called("shutdown", &request);
        Ok(Response::new(boxes::ControllerShutdownResponse {}))
    }

    async fn metrics(
        &self,
        request: Request<boxes::ControllerMetricsRequest>,
    ) -> Result<Response<boxes::ControllerMetricsResponse>, Status> {
        self.called("metrics", &request);
        Ok(Response::new(boxes::ControllerMetricsResponse::default()))
    }

    async fn update(
        &self,
        request: Request<boxes::ControllerUpdateRequest>,
    ) -> Result<Response<boxes::ControllerUpdateResponse>, Status> {
        self.called("update", &request);
        Ok(Response::new(boxes::ControllerUpdateResponse {}))
    }
}
