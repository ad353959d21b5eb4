//! The client of one task in one shim: the task service, in the version that the shim speaks
//! (spec 02 §5).

use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use corten_api::task_v3::{
    CheckpointTaskRequest, CloseIoRequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest, PauseRequest,
    PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse,
    StateRequest, StateResponse, StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use corten_ttrpc::CallOptions;
use corten_types::{ErrorClass, Namespace, Result};
use prost::Message;

use crate::bootstrap::Endpoint;
use crate::config::Config;
use crate::connection::Connection;

const TASK_V2: &str = "containerd.task.v2.Task";
const TASK_V3: &str = "containerd.task.v3.Task";

/// Calls the task service about the task `id`. The messages of both versions are the same.
#[derive(Debug)]
pub(crate) struct Shim {
    pub client: Connection,
    pub endpoint: Endpoint,
    namespace: String,
    id: String,
    version: AtomicI32,
}

impl Shim {
    /// Connects to a shim that listens.
    pub async fn connect(
        config: &Config,
        endpoint: Endpoint,
        namespace: &Namespace,
        id: &str,
        timeout: Duration,
    ) -> Result<Self> {
        let client = endpoint.connect(config, timeout).await?;
        let version = AtomicI32::new(endpoint.version);
        Ok(Self { client, endpoint, namespace: namespace.to_string(), id: id.to_owned(), version })
    }

    /// Calls one method. A shim may still be of the older version although a newer binary announced
    /// it, after an upgrade in place: so an unknown service is asked for again by its older name.
    async fn call<Q: Message, R: Message + Default>(
        &self,
        method: &str,
        request: &Q,
        timeout: Option<Duration>,
    ) -> Result<R> {
        let service = if self.version.load(Ordering::Relaxed) < 3 { TASK_V2 } else { TASK_V3 };
        let options = || CallOptions { namespace: Some(self.namespace.clone()), timeout };
        let result = self.client.call(service, method, request, options()).await;
        match result {
            Err(error) if error.class() == ErrorClass::NotImplemented && service == TASK_V3 => {
                let answer = self.client.call(TASK_V2, method, request, options()).await;
                if answer.is_ok() {
                    self.version.store(2, Ordering::Relaxed);
                }
                answer
            }
            result => result,
        }
    }

    pub async fn create(&self, request: CreateTaskRequest) -> Result<CreateTaskResponse> {
        self.call("Create", &request, None).await
    }

    pub async fn start(&self, exec: &str) -> Result<StartResponse> {
        self.call("Start", &StartRequest { id: self.id.clone(), exec_id: exec.to_owned() }, None).await
    }

    pub async fn delete(&self, exec: &str, timeout: Option<Duration>) -> Result<DeleteResponse> {
        self.call("Delete", &DeleteRequest { id: self.id.clone(), exec_id: exec.to_owned() }, timeout).await
    }

    pub async fn state(&self, exec: &str, timeout: Duration) -> Result<StateResponse> {
        let request = StateRequest { id: self.id.clone(), exec_id: exec.to_owned() };
        self.call("State", &request, Some(timeout)).await
    }

    pub async fn connect_task(&self) -> Result<ConnectResponse> {
        self.call("Connect", &ConnectRequest { id: self.id.clone() }, None).await
    }

    pub async fn wait(&self, exec: &str) -> Result<WaitResponse> {
        self.call("Wait", &WaitRequest { id: self.id.clone(), exec_id: exec.to_owned() }, None).await
    }

    pub async fn kill(&self, exec: &str, signal: u32, all: bool, timeout: Option<Duration>) -> Result<()> {
        let request = KillRequest { id: self.id.clone(), exec_id: exec.to_owned(), signal, all };
        self.call("Kill", &request, timeout).await
    }

    pub async fn exec(&self, mut request: ExecProcessRequest) -> Result<()> {
        request.id.clone_from(&self.id);
        self.call("Exec", &request, None).await
    }

    pub async fn resize(&self, exec: &str, width: u32, height: u32) -> Result<()> {
        let request = ResizePtyRequest { id: self.id.clone(), exec_id: exec.to_owned(), width, height };
        self.call("ResizePty", &request, None).await
    }

    pub async fn close_stdin(&self, exec: &str) -> Result<()> {
        let request = CloseIoRequest { id: self.id.clone(), exec_id: exec.to_owned(), stdin: true };
        self.call("CloseIO", &request, None).await
    }

    pub async fn pause(&self) -> Result<()> {
        self.call("Pause", &PauseRequest { id: self.id.clone() }, None).await
    }

    pub async fn resume(&self) -> Result<()> {
        self.call("Resume", &ResumeRequest { id: self.id.clone() }, None).await
    }

    pub async fn pids(&self) -> Result<PidsResponse> {
        self.call("Pids", &PidsRequest { id: self.id.clone() }, None).await
    }

    pub async fn stats(&self, timeout: Duration) -> Result<StatsResponse> {
        self.call("Stats", &StatsRequest { id: self.id.clone() }, Some(timeout)).await
    }

    pub async fn checkpoint(&self, mut request: CheckpointTaskRequest) -> Result<()> {
        request.id.clone_from(&self.id);
        self.call("Checkpoint", &request, None).await
    }

    pub async fn update(&self, mut request: UpdateTaskRequest) -> Result<()> {
        request.id.clone_from(&self.id);
        self.call("Update", &request, None).await
    }

    /// Asks the shim to end if no task is left in it.
    pub async fn shutdown(&self, timeout: Duration) -> Result<()> {
        self.call("Shutdown", &ShutdownRequest { id: self.id.clone(), now: false }, Some(timeout)).await
    }
}
