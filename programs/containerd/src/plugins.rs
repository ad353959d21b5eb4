//! The daemon's parts as data: what `ctr plugins ls` shows.

use std::collections::BTreeMap;
use std::path::Path;

use corten_api::rpc::Status;
use corten_api::services::introspection::Plugin;
use corten_types::Platform;

/// A part that this daemon has.
struct Part {
    kind: &'static str,
    id: &'static str,
    requires: &'static [&'static str],
}

const fn part(kind: &'static str, id: &'static str, requires: &'static [&'static str]) -> Part {
    Part { kind, id, requires }
}

const METADATA: &str = "io.containerd.metadata.v1";
const SERVICE: &str = "io.containerd.service.v1";

/// In the order of starting.
const PARTS: [Part; 34] = [
    part("io.containerd.content.v1", "content", &[]),
    part("io.containerd.image-verifier.v1", "bindir", &[]),
    part("io.containerd.event.v1", "exchange", &[]),
    part("io.containerd.snapshotter.v1", "native", &[]),
    part("io.containerd.snapshotter.v1", "overlayfs", &[]),
    part(
        METADATA,
        "bolt",
        &["io.containerd.content.v1", "io.containerd.event.v1", "io.containerd.snapshotter.v1"],
    ),
    part("io.containerd.gc.v1", "scheduler", &[METADATA]),
    part("io.containerd.differ.v1", "walking", &[METADATA]),
    part(SERVICE, "containers-service", &[METADATA]),
    part(SERVICE, "content-service", &[METADATA]),
    part(SERVICE, "diff-service", &["io.containerd.differ.v1"]),
    part(SERVICE, "images-service", &[METADATA]),
    part(SERVICE, "introspection-service", &[]),
    part(SERVICE, "namespaces-service", &[METADATA]),
    part(SERVICE, "snapshots-service", &[METADATA]),
    part("io.containerd.shim.v1", "manager", &["io.containerd.event.v1", METADATA]),
    part("io.containerd.runtime.v2", "task", &["io.containerd.shim.v1"]),
    part(SERVICE, "tasks-service", &["io.containerd.runtime.v2"]),
    part("io.containerd.grpc.v1", "containers", &[SERVICE]),
    part("io.containerd.grpc.v1", "content", &[SERVICE]),
    part("io.containerd.grpc.v1", "diff", &[SERVICE]),
    part("io.containerd.grpc.v1", "events", &["io.containerd.event.v1"]),
    part("io.containerd.grpc.v1", "images", &[SERVICE]),
    part("io.containerd.grpc.v1", "introspection", &[SERVICE]),
    part("io.containerd.lease.v1", "manager", &[METADATA, "io.containerd.gc.v1"]),
    part("io.containerd.grpc.v1", "leases", &["io.containerd.lease.v1"]),
    part("io.containerd.grpc.v1", "namespaces", &[SERVICE]),
    part("io.containerd.sandbox.store.v1", "local", &[METADATA]),
    part("io.containerd.transfer.v1", "local", &["io.containerd.lease.v1", METADATA]),
    part("io.containerd.grpc.v1", "snapshots", &[SERVICE]),
    part("io.containerd.streaming.v1", "manager", &[METADATA]),
    part("io.containerd.grpc.v1", "tasks", &[SERVICE]),
    part("io.containerd.grpc.v1", "transfer", &["io.containerd.transfer.v1"]),
    part("io.containerd.grpc.v1", "version", &[]),
];

/// The table; `failures` by snapshotter id.
pub fn table(root: &Path, failures: &BTreeMap<String, String>) -> Vec<Plugin> {
    PARTS.iter().map(|part| describe(part, root, failures)).collect()
}

fn describe(part: &Part, root: &Path, failures: &BTreeMap<String, String>) -> Plugin {
    let folder = root.join(format!("{}.{}", part.kind, part.id)).display().to_string();
    let exports: &[(&str, &str)] = match (part.kind, part.id) {
        ("io.containerd.content.v1", _) | ("io.containerd.snapshotter.v1", _) => &[("root", folder.as_str())],
        (METADATA, _) => &[("path", folder.as_str()), ("policy", "shared")],
        ("io.containerd.runtime.v2", _) => &[("log-uri-schemes", corten_runtime::LOG_URI_SCHEMES)],
        _ => &[],
    };
    let with_platform =
        ["io.containerd.snapshotter.v1", "io.containerd.differ.v1", "io.containerd.runtime.v2"];
    let platforms =
        if with_platform.contains(&part.kind) { vec![Platform::host().into()] } else { Vec::new() };
    let capabilities = if part.id == "overlayfs" { vec!["rebase".to_owned()] } else { Vec::new() };
    let failure = failures.get(part.id).filter(|_| part.kind == "io.containerd.snapshotter.v1");
    Plugin {
        r#type: part.kind.into(),
        id: part.id.into(),
        requires: part.requires.iter().map(ToString::to_string).collect(),
        platforms,
        exports: exports.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        capabilities,
        init_err: failure.map(|message| Status { code: 2, message: message.clone(), details: Vec::new() }),
    }
}
