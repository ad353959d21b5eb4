//! Events of shims on their way to the daemon's exchange: the service
//! `containerd.services.events.ttrpc.v1.Events` (spec 02 §7).

use std::sync::Arc;

use corten_api::events::{TaskDelete, TaskExit};
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
        if self.is_news(&envelope) { self.inner.exchange.forward(envelope) } else { Ok(()) }
    }

    /// Keeps what is known of the task true. False for what the daemon has told in the shim's place.
    fn is_news(&self, envelope: &Envelope) -> bool {
        let Ok(namespace) = Namespace::new(&*envelope.namespace) else { return true };
        let task = |id: String| self.inner.table.get_telling(&Key { namespace, id });
        match &*envelope.topic {
            "/tasks/exit" => {
                let Some(TaskExit { container_id, id, .. }) = decoded(envelope) else { return true };
                let init = id == container_id;
                let Some(task) = task(container_id) else { return true };
                if init {
                    return task.tell_exit();
                }
                task.exec_ended(&id);
                true
            }
            "/tasks/delete" => {
                let Some(TaskDelete { container_id, id, .. }) = decoded(envelope) else { return true };
                if !id.is_empty() && id != container_id {
                    return true;
                }
                task(container_id).is_none_or(|task| task.tell_deletion())
            }
            _ => true,
        }
    }
}

fn decoded<M: prost::Name + Default>(envelope: &Envelope) -> Option<M> {
    corten_api::unpack(envelope.event.as_ref()?).ok()
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
