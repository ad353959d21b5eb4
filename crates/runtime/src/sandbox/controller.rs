//! What a sandbox controller does.

use corten_api::services::sandbox::{
    ControllerCreateRequest, ControllerMetricsRequest, ControllerMetricsResponse, ControllerPlatformRequest,
    ControllerPlatformResponse, ControllerShutdownRequest, ControllerStartRequest, ControllerStartResponse,
    ControllerStatusRequest, ControllerStatusResponse, ControllerStopRequest, ControllerUpdateRequest,
    ControllerWaitRequest, ControllerWaitResponse,
};
use corten_types::{Context, Error, Result};

/// Runs sandboxes. Requests and answers are those of the wire, since most controllers pass them on; their
/// field `sandboxer` has done its work by then. Events are published by [`crate::SandboxControllers`].
///
/// The calls about one sandbox may come at once, and may be dropped at any moment.
#[async_trait::async_trait]
pub trait SandboxController: Send + Sync + std::fmt::Debug + 'static {
    /// Makes a sandbox that does not run yet.
    async fn create(&self, ctx: &Context, request: ControllerCreateRequest) -> Result<()>;

    /// Starts it. The answer has the address at which its task service is found, if it has one.
    async fn start(&self, ctx: &Context, request: ControllerStartRequest) -> Result<ControllerStartResponse>;

    /// Which platform containers in it have.
    async fn platform(
        &self,
        ctx: &Context,
        request: ControllerPlatformRequest,
    ) -> Result<ControllerPlatformResponse>;

    /// Stops it, by force when the seconds of the request are over.
    async fn stop(&self, ctx: &Context, request: ControllerStopRequest) -> Result<()>;

    /// Waits for its end.
    async fn wait(&self, ctx: &Context, request: ControllerWaitRequest) -> Result<ControllerWaitResponse>;

    /// What is known of it.
    async fn status(
        &self,
        ctx: &Context,
        request: ControllerStatusRequest,
    ) -> Result<ControllerStatusResponse>;

    /// Removes it and all that belongs to it.
    async fn shutdown(&self, ctx: &Context, request: ControllerShutdownRequest) -> Result<()>;

    /// What it uses.
    async fn metrics(
        &self,
        ctx: &Context,
        request: ControllerMetricsRequest,
    ) -> Result<ControllerMetricsResponse>;

    /// Learns that the sandbox's record has changed.
    async fn update(&self, ctx: &Context, request: ControllerUpdateRequest) -> Result<()> {
        let _ = (ctx, request);
        Err(Error::not_implemented(""))
    }
}
