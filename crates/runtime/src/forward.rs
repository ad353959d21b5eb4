//! Events of shims on their way to the daemon's exchange: the service
//! `containerd.services.events.ttrpc.v1.Events` (spec 02 §7).

use std::sync::Arc;

use corten_api::events::TaskExit;
use corten_api::events_ttrpc::ForwardRequest;
use corten_api::types::Envelope;
use corten_ttrpc::{Reply, Request, Service, reply};
use corten_types::{Error, Namespace, Result};

use crate::table::Key;
use crate::tasks::Inner;

const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";

/// Takes events from shims.
pub(crate) struct Forwarder {
    inner: Arc<Inner>,
}

impl Forwarder {
    pub fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    fn forward(&self, request: ForwardRequest) -> Result<()> {
        let Some(envelope) = request.envelope else {
            return Err(Error::invalid_argument("event envelope is required"));
        };
        self.note(&envelope);
        self.inner.exchange.forward(envelope)
    }

    /// Keeps the list of running exec processes true.
    fn note(&self, envelope: &Envelope) {
        if envelope.topic != "/tasks/exit" {
            return;
        }
        let exit = envelope.event.as_ref().and_then(|event| corten_api::unpack::<TaskExit>(event).ok());
        let (Some(exit), Ok(namespace)) = (exit, Namespace::new(&*envelope.namespace)) else { return };
        let TaskExit { container_id, id, .. } = exit;
        if id == container_id {
            return;
        }
        if let Some(task) = self.inner.table.get_ready(&Key { namespace, id: container_id }) {
            task.exec_ended(&id);
        }
    }
}

impl Service for Forwarder {
    fn call(&self, request: Request) -> Reply<'_> {
        Box::pin(async move {
            match (&*request.service, &*request.method) {
                (SERVICE, "Forward") => reply(request.payload, async |request| self.forward(request)).await,
                _ => Err(request.unknown()),
            }
        })
    }
}
