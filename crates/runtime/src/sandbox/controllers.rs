//! The sandbox controllers of the daemon, by name, and the events of what they do.

use std::collections::BTreeMap;
use std::sync::Arc;

use corten_api::events::{SandboxCreate, SandboxExit, SandboxStart};
use corten_api::services::sandbox::{
    ControllerCreateRequest, ControllerMetricsRequest, ControllerMetricsResponse, ControllerPlatformRequest,
    ControllerPlatformResponse, ControllerShutdownRequest, ControllerStartRequest, ControllerStartResponse,
    ControllerStatusRequest, ControllerStatusResponse, ControllerStopRequest, ControllerUpdateRequest,
    ControllerWaitRequest, ControllerWaitResponse,
};
use corten_events::Exchange;
use corten_types::{Context, Error, ErrorClass, Result};

use super::SandboxController;

/// Sends each call to the controller that it names. Clones are the same.
#[derive(Clone, Debug)]
pub struct SandboxControllers {
    exchange: Exchange,
    by_name: Arc<BTreeMap<String, Arc<dyn SandboxController>>>,
}

impl SandboxControllers {
    /// Controllers by name, `shim` and those of plugins.
    #[must_use]
    pub fn new(exchange: Exchange, by_name: BTreeMap<String, Arc<dyn SandboxController>>) -> Self {
        Self { exchange, by_name: Arc::new(by_name) }
    }

    /// A controller.
    ///
    /// # Errors
    /// InvalidArgument without a name, NotFound for one that is not known.
    pub fn get(&self, name: &str) -> Result<&Arc<dyn SandboxController>> {
        if name.is_empty() {
            let text = "invalid argument: sandbox controller name can not be empty";
            return Err(Error::bare(ErrorClass::InvalidArgument, text));
        }
        let missing = || {
            let text = format!("not found: failed to get sandbox controller by {name}");
            Error::bare(ErrorClass::NotFound, text)
        };
        self.by_name.get(name).ok_or_else(missing)
    }

    /// Creates a sandbox.
    ///
    /// # Errors
    /// Those of [`Self::get`] and of the controller.
    pub async fn create(&self, ctx: &Context, request: ControllerCreateRequest) -> Result<()> {
        let sandbox_id = request.sandbox_id.clone();
        self.get(&request.sandboxer)?.create(ctx, request).await?;
        self.exchange.publish(&ctx.namespace, "/sandboxes/create", &SandboxCreate { sandbox_id });
        Ok(())
    }

    /// Starts a sandbox.
    ///
    /// # Errors
    /// Those of [`Self::get`] and of the controller.
    pub async fn start(
        &self,
        ctx: &Context,
        request: ControllerStartRequest,
    ) -> Result<ControllerStartResponse> {
        let sandbox_id = request.sandbox_id.clone();
        let started = self.get(&request.sandboxer)?.start(ctx, request).await?;
        self.exchange.publish(&ctx.namespace, "/sandboxes/start", &SandboxStart { sandbox_id });
        Ok(started)
    }

    /// Waits for a sandbox's end, and tells of it once for each who waits.
    ///
    /// # Errors
    /// Those of [`Self::get`] and of the controller.
    pub async fn wait(
        &self,
        ctx: &Context,
        request: ControllerWaitRequest,
    ) -> Result<ControllerWaitResponse> {
        let sandbox_id = request.sandbox_id.clone();
        let exit = self.get(&request.sandboxer)?.wait(ctx, request).await?;
        let event = SandboxExit { sandbox_id, exit_status: exit.exit_status, exited_at: exit.exited_at };
        self.exchange.publish(&ctx.namespace, "/sandboxes/exit", &event);
        Ok(exit)
    }

    /// Stops a sandbox.
    ///
    /// # Errors
    /// Those of [`Self::get`] and of the controller.
    pub async fn stop(&self, ctx: &Context, request: ControllerStopRequest) -> Result<()> {
        self.get(&request.sandboxer)?.stop(ctx, request).await
    }

    /// What is known of a sandbox.
    ///
    /// # Errors
    /// Those of [`Self::get`] and of the controller.
    pub async fn status(
        &self,
        ctx: &Context,
        request: ControllerStatusRequest,
    ) -> Result<ControllerStatusResponse> {
        self.get(&request.sandboxer)?.status(ctx, request).await
    }

    /// Removes a sandbox.
    ///
    /// # Errors
    /// Those of [`Self::get`] and of the controller.
    pub async fn shutdown(&self, ctx: &Context, request: ControllerShutdownRequest) -> Result<()> {
        self.get(&request.sandboxer)?.shutdown(ctx, request).await
    }

    /// The platform of a sandbox.
    ///
    /// # Errors
    /// Those of [`Self::get`] and of the controller.
    pub async fn platform(
        &self,
        ctx: &Context,
        request: ControllerPlatformRequest,
    ) -> Result<ControllerPlatformResponse> {
        self.get(&request.sandboxer)?.platform(ctx, request).await
    }

    /// What a sandbox uses.
    ///
    /// # Errors
    /// Those of [`Self::get`] and of the controller.
    pub async fn metrics(
        &self,
        ctx: &Context,
        request: ControllerMetricsRequest,
    ) -> Result<ControllerMetricsResponse> {
        self.get(&request.sandboxer)?.metrics(ctx, request).await
    }

    /// Tells a sandbox's controller that its record has changed.
    ///
    /// # Errors
    /// Those of [`Self::get`] and of the controller.
    pub async fn update(&self, ctx: &Context, request: ControllerUpdateRequest) -> Result<()> {
        let controller = self.get(&request.sandboxer)?;
        if request.sandbox.is_none() {
            return Err(Error::unknown("sandbox can not be nil"));
        }
        controller.update(ctx, request).await
    }
}
