//! `events`.

use clap::Args;
use corten_api::services::events::SubscribeRequest;
use corten_api::{events as told, message_name, services, unpack};
use corten_types::{Any, Error, Labels, Result};
use serde_json::{Value, json};

use crate::client::Daemon;
use crate::json::Document;

/// What happens, as it happens.
#[derive(Debug, Args)]
pub struct Events {
    #[arg(value_name = "[FILTER...]")]
    filters: Vec<String>,
}

impl Events {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        let request = SubscribeRequest { filters: self.filters };
        let mut stream = daemon.events().subscribe(request).await.map_err(raw)?.into_inner();
        while let Some(envelope) = stream.message().await.map_err(raw)? {
            let Some(event) = envelope.event.as_ref().and_then(decode) else {
                let name = envelope.event.map(|event| event.type_url).unwrap_or_default();
                crate::log::warning(&format!("cannot unmarshal an event from Any: {name}"));
                continue;
            };
            let time = corten_types::timestamp::to_system(&envelope.timestamp.unwrap_or_default());
            let time = crate::output::go_time(time);
            println!("{time} {} {} {}", envelope.namespace, envelope.topic, event.text(0));
        }
        Ok(())
    }
}

/// The original tells the failures of this stream as gRPC tells them.
fn raw(status: tonic::Status) -> Error {
    if std::error::Error::source(&status).is_some() {
        return crate::client::error(status);
    }
    let code = format!("{:?}", status.code());
    Error::unknown(format!("rpc error: code = {code} desc = {}", status.message()))
}

/// Drops what is empty, as the original does.
fn object(fields: Vec<(&str, Document)>) -> Document {
    let empty = |document: &Document| match document {
        // A message that is there is told, even when nothing is in it.
        Document::Object(_) => false,
        Document::Array(list) => list.is_empty(),
        Document::Value(Value::Null) => true,
        Document::Value(Value::Bool(set)) => !set,
        Document::Value(Value::Number(number)) => number.as_u64() == Some(0),
        Document::Value(Value::String(text)) => text.is_empty(),
        Document::Value(Value::Object(map)) => map.is_empty(),
        Document::Value(Value::Array(list)) => list.is_empty(),
    };
    let kept = fields.into_iter().filter(|(_, value)| !empty(value));
    Document::Object(kept.map(|(key, value)| (key.to_owned(), value)).collect())
}

fn time(timestamp: Option<prost_types::Timestamp>) -> Document {
    match timestamp {
        None => Value::Null.into(),
        Some(at) => object(vec![("seconds", at.seconds.into()), ("nanos", at.nanos.into())]),
    }
}

fn labels(labels: Labels) -> Document {
    json!(labels).into()
}

fn value(value: impl serde::Serialize) -> Document {
    json!(value).into()
}

/// An event as JSON under the names of the wire.
fn decode(any: &Any) -> Option<Document> {
    macro_rules! event {
        ($($type:path { $($field:ident $(: $with:ident)?),* })*) => {
            $(if message_name(&any.type_url) == <$type as prost::Name>::full_name() {
                let event: $type = unpack(any).ok()?;
                return Some(object(vec![$((stringify!($field), event!(@value event.$field $(, $with)?))),*]));
            })*
        };
        (@value $value:expr) => { value($value) };
        (@value $value:expr, $with:ident) => { $with($value) };
    }
    fn runtime(runtime: Option<told::container_create::Runtime>) -> Document {
        let Some(runtime) = runtime else { return Value::Null.into() };
        let options = runtime.options.as_ref().map(crate::commands::containers::any);
        object(vec![("name", value(runtime.name)), ("options", options.unwrap_or(Value::Null.into()))])
    }
    fn mounts(mounts: Vec<corten_api::types::Mount>) -> Document {
        let mount = |one: corten_api::types::Mount| {
            object(vec![
                ("type", value(one.r#type)),
                ("source", value(one.source)),
                ("target", value(one.target)),
                ("options", value(one.options)),
            ])
        };
        Document::Array(mounts.into_iter().map(mount).collect())
    }
    fn io(io: Option<told::TaskIo>) -> Document {
        let Some(io) = io else { return Value::Null.into() };
        object(vec![
            ("stdin", value(io.stdin)),
            ("stdout", value(io.stdout)),
            ("stderr", value(io.stderr)),
            ("terminal", value(io.terminal)),
        ])
    }
    event! {
        told::ContainerCreate { id, image, runtime: runtime }
        told::ContainerUpdate { id, image, labels: labels, snapshot_key }
        told::ContainerDelete { id }
        told::ContentCreate { digest, size }
        told::ContentDelete { digest }
        told::NamespaceCreate { name, labels: labels }
        told::NamespaceUpdate { name, labels: labels }
        told::NamespaceDelete { name }
        told::SnapshotPrepare { key, parent, snapshotter }
        told::SnapshotCommit { key, name, snapshotter }
        told::SnapshotRemove { key, snapshotter }
        told::SandboxCreate { sandbox_id }
        told::SandboxStart { sandbox_id }
        told::SandboxExit { sandbox_id, exit_status, exited_at: time }
        told::TaskCreate { container_id, bundle, rootfs: mounts, io: io, checkpoint, pid }
        told::TaskStart { container_id, pid }
        told::TaskDelete { container_id, pid, exit_status, exited_at: time, id }
        told::TaskExit { container_id, id, pid, exit_status, exited_at: time }
        told::TaskOom { container_id }
        told::TaskExecAdded { container_id, exec_id }
        told::TaskExecStarted { container_id, exec_id, pid }
        told::TaskCheckpointed { container_id, checkpoint }
        told::TaskPaused { container_id }
        told::TaskResumed { container_id }
        services::images::ImageCreate { name, labels: labels }
        services::images::ImageUpdate { name, labels: labels }
        services::images::ImageDelete { name }
    }
    None
}
