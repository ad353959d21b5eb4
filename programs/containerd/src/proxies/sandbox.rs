//! A sandbox controller in another process.

use corten_api::services::sandbox::controller_client::ControllerClient;
use corten_api::services::sandbox::{
    ControllerCreateRequest, ControllerMetricsRequest, ControllerMetricsResponse, ControllerPlatformRequest,
    ControllerPlatformResponse, ControllerShutdownRequest, ControllerStartRequest, ControllerStartResponse,
    ControllerStatusRequest, ControllerStatusResponse, ControllerStopRequest, ControllerUpdateRequest,
    ControllerWaitRequest, ControllerWaitResponse,
};
use corten_runtime::SandboxController;
use corten_types::{Context, Result};
use tonic::Response;
use tonic::transport::Channel;

use super::{Connection, request};

/// Passes requests on as they are.
#[derive(Debug)]
pub struct ProxyController {
    connection: Connection,
}

impl ProxyController {
    /// The controller behind a connection.
    pub fn new(connection: Connection) -> Self {
        Self { connection }
    }

    fn client(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.connection.channel())
    }
}

macro_rules! call {
    ($this:ident.$method:ident($ctx:ident, $message:ident)) => {{
        let answer = $this.client().$method(request(Some($ctx), $message)?).await;
        answer.map(Response::into_inner).map_err(|status| $this.connection.error(&status))
    }};
}

#[async_trait::async_trait]
impl SandboxController for ProxyController {
    async fn create(&self, ctx: &Context, message: ControllerCreateRequest) -> Result<()> {
        call!(self.create(ctx, message)).map(drop)
    }

    async fn start(&self, ctx: &Context, message: ControllerStartRequest) -> Result<ControllerStartResponse> {
        call!(self.start(ctx, message))
    }

    async fn platform(
        &self,
        ctx: &Context,
        message: ControllerPlatformRequest,
    ) -> Result<ControllerPlatformResponse> {
        call!(self.platform(ctx, message))
    }

    async fn stop(&self, ctx: &Context, message: ControllerStopRequest) -> Result<()> {
        call!(self.stop(ctx, message)).map(drop)
    }

    async fn wait(&self, ctx: &Context, message: ControllerWaitRequest) -> Result<ControllerWaitResponse> {
        call!(self.wait(ctx, message))
    }

    async fn status(
        &self,
        ctx: &Context,
        message: ControllerStatusRequest,
    ) -> Result<ControllerStatusResponse> {
        call!(self.status(ctx, message))
    }

    async fn shutdown(&self, ctx: &Context, message: ControllerShutdownRequest) -> Result<()> {
        call!(self.shutdown(ctx, message)).map(drop)
    }

    async fn metrics(
        &self,
        ctx: &Context,
        message: ControllerMetricsRequest,
    ) -> Result<ControllerMetricsResponse> {
        call!(self.metrics(ctx, message))
    }

    async fn update(&self, ctx: &Context, message: ControllerUpdateRequest) -> Result<()> {
        call!(self.update(ctx, message)).map(drop)
    }
}
