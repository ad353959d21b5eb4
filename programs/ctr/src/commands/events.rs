//! `events`.

use std::io::Write;

use clap::Args;
use corten_api::services::events::SubscribeRequest;
use corten_api::{events as told, message_name, services, unpack};
use corten_types::{Any, Labels, Result};
use serde_json::{Map, Value, json};

use crate::client::{Daemon, error};

/// What happens, as it happens.
#[derive(Debug, Args)]
pub struct Events {
    filters: Vec<String>,
}

impl Events {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        let request = SubscribeRequest { filters: self.filters };
        let mut stream = daemon.events().subscribe(request).await.map_err(error)?.into_inner();
        while let Some(envelope) = stream.message().await.map_err(error)? {
            let Some(event) = envelope.event.as_ref().and_then(decode) else {
                eprintln!("an event of an unknown type on {}", envelope.topic);
                continue;
            };
            let time = corten_types::timestamp::to_system(&envelope.timestamp.unwrap_or_default());
            let time = corten_types::timestamp::rfc3339(time).replace('T', " ").replace('Z', " +0000 UTC");
            let mut out = std::io::stdout().lock();
            writeln!(out, "{time} {} {} {event}", envelope.namespace, envelope.topic)?;
            out.flush()?;
        }
        Ok(())
    }
}

/// Drops what is empty, as the original does.
fn object(fields: Vec<(&str, Value)>) -> Value {
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_u64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
    };
    let kept = fields.into_iter().filter(|(_, value)| !empty(value));
    Value::Object(kept.map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>())
}

fn time(timestamp: Option<prost_types::Timestamp>) -> Value {
    timestamp.map_or(Value::Null, |at| json!({"seconds": at.seconds, "nanos": at.nanos}))
}

fn labels(labels: Labels) -> Value {
    json!(labels)
}

/// An event as JSON under the names of the wire.
fn decode(any: &Any) -> Option<Value> {
    macro_rules! event {
        ($($type:path { $($field:ident $(: $with:ident)?),* })*) => {
            $(if message_name(&any.type_url) == <$type as prost::Name>::full_name() {
                let event: $type = unpack(any).ok()?;
                return Some(object(vec![$((stringify!($field), event!(@value event.$field $(, $with)?))),*]));
            })*
        };
        (@value $value:expr) => { json!($value) };
        (@value $value:expr, $with:ident) => { $with($value) };
    }
    fn runtime(runtime: Option<told::container_create::Runtime>) -> Value {
        let Some(runtime) = runtime else { return Value::Null };
        let options = runtime.options.map(|any| object(vec![("type_url", json!(any.type_url))]));
        object(vec![("name", json!(runtime.name)), ("options", options.unwrap_or(Value::Null))])
    }
    fn mounts(mounts: Vec<corten_api::types::Mount>) -> Value {
        let mount = |one: corten_api::types::Mount| {
            object(vec![
                ("type", json!(one.r#type)),
                ("source", json!(one.source)),
                ("target", json!(one.target)),
                ("options", json!(one.options)),
            ])
        };
        Value::Array(mounts.into_iter().map(mount).collect())
    }
    fn io(io: Option<told::TaskIo>) -> Value {
        let Some(io) = io else { return Value::Null };
        object(vec![
            ("stdin", json!(io.stdin)),
            ("stdout", json!(io.stdout)),
            ("stderr", json!(io.stderr)),
            ("terminal", json!(io.terminal)),
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
        told::TaskPaused { container_id }
        told::TaskResumed { container_id }
        services::images::ImageCreate { name, labels: labels }
        services::images::ImageUpdate { name, labels: labels }
        services::images::ImageDelete { name }
    }
    None
}
