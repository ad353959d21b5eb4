//! What filters can ask of an envelope (spec 01 §0.5): string and bool fields and label maps of the known
//! events, under their names on the wire.

use std::borrow::Cow;

use corten_api::events;
use corten_api::services::images;
use corten_api::types::Envelope;
use corten_types::Any;
use corten_types::filter::{Fields, label, text};
use prost::{Message, Name};

/// An envelope with its event decoded, if its type is known.
pub(crate) struct EnvelopeFields<'a> {
    envelope: &'a Envelope,
    event: Option<Box<dyn Fields>>,
}

impl<'a> EnvelopeFields<'a> {
    pub(crate) fn new(envelope: &'a Envelope) -> Self {
        Self { envelope, event: envelope.event.as_ref().and_then(decode) }
    }
}

impl Fields for EnvelopeFields<'_> {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["namespace", ..] => text(&self.envelope.namespace),
            ["topic", ..] => text(&self.envelope.topic),
            ["event", rest @ ..] => self.event.as_ref()?.field(rest),
            _ => None,
        }
    }
}

macro_rules! fields {
    ($($module:ident::$type:ident { $($field:ident),* } $(labels $labels:ident)?;)*) => {
        $(impl Fields for Known<$module::$type> {
            fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
                match path {
                    $([name, ..] if *name == on_the_wire(stringify!($field)) => text(&self.0.$field),)*
                    $(["labels", rest @ ..] => label(rest, &self.0.$labels),)?
                    _ => None,
                }
            }
        })*

        fn decode(any: &Any) -> Option<Box<dyn Fields>> {
            let name = corten_api::message_name(&any.type_url);
            $(if name == <$module::$type as Name>::full_name() {
                return Some(Box::new(Known(<$module::$type>::decode(any.value.as_slice()).ok()?)));
            })*
            if name == events::ContainerCreate::full_name() {
                return Some(Box::new(Known(events::ContainerCreate::decode(any.value.as_slice()).ok()?)));
            }
            if name == events::TaskCreate::full_name() {
                return Some(Box::new(Known(events::TaskCreate::decode(any.value.as_slice()).ok()?)));
            }
            None
        }
    };
}

struct Known<M>(M);

/// The name of a field in its description.
fn on_the_wire(field: &str) -> &str {
    if field == "media_type" { "mediaType" } else { field }
}

fields! {
    events::ContainerUpdate { id, image, snapshot_key } labels labels;
    events::ContainerDelete { id };
    events::ContentCreate { digest, media_type };
    events::ContentDelete { digest };
    events::NamespaceCreate { name } labels labels;
    events::NamespaceUpdate { name } labels labels;
    events::NamespaceDelete { name };
    events::SnapshotPrepare { key, parent, snapshotter };
    events::SnapshotCommit { key, name, snapshotter };
    events::SnapshotRemove { key, snapshotter };
    events::SandboxCreate { sandbox_id };
    events::SandboxStart { sandbox_id };
    events::SandboxExit { sandbox_id };
    events::TaskStart { container_id };
    events::TaskDelete { container_id, id };
    events::TaskExit { container_id, id };
    events::TaskOom { container_id };
    events::TaskExecAdded { container_id, exec_id };
    events::TaskExecStarted { container_id, exec_id };
    events::TaskPaused { container_id };
    events::TaskResumed { container_id };
    events::TaskCheckpointed { container_id, checkpoint };
    images::ImageCreate { name } labels labels;
    images::ImageUpdate { name } labels labels;
    images::ImageDelete { name };
}

impl Fields for Known<events::ContainerCreate> {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["id", ..] => text(&self.0.id),
            ["image", ..] => text(&self.0.image),
            ["runtime", "name", ..] => text(&self.0.runtime.as_ref()?.name),
            _ => None,
        }
    }
}

impl Fields for Known<events::TaskCreate> {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        let io = self.0.io.as_ref();
        match path {
            ["container_id", ..] => text(&self.0.container_id),
            ["bundle", ..] => text(&self.0.bundle),
            ["checkpoint", ..] => text(&self.0.checkpoint),
            ["io", "stdin", ..] => text(&io?.stdin),
            ["io", "stdout", ..] => text(&io?.stdout),
            ["io", "stderr", ..] => text(&io?.stderr),
            ["io", "terminal", ..] => Some(Cow::Borrowed(if io?.terminal { "true" } else { "false" })),
            _ => None,
        }
    }
}
