//! The daemon's parts, in the order in which they are listed.

/// What a part needs of others.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// One part of a type; skipped ones do not count, a failed one is a failure.
    One(&'static str),
    /// Any parts of a type, failed or not.
    Any(&'static str),
    /// A part by type and id.
    Exactly(&'static str, &'static str),
}

/// A part that this daemon has.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub kind: &'static str,
    pub id: &'static str,
    pub needs: &'static [Need],
    /// Whether it is bound to the host's platform.
    pub platform: bool,
}

impl Part {
    const fn on_host(mut self) -> Self {
        self.platform = true;
        self
    }
}

const fn part(kind: &'static str, id: &'static str, needs: &'static [Need]) -> Part {
    Part { kind, id, needs, platform: false }
}

pub const CONTENT: &str = "io.containerd.content.v1";
pub const DIFFER: &str = "io.containerd.differ.v1";
pub const EVENT: &str = "io.containerd.event.v1";
pub const GC: &str = "io.containerd.gc.v1";
pub const GRPC: &str = "io.containerd.grpc.v1";
pub const HTTP: &str = "io.containerd.http.v1";
pub const INTERNAL: &str = "io.containerd.internal.v1";
pub const LEASE: &str = "io.containerd.lease.v1";
pub const METADATA: &str = "io.containerd.metadata.v1";
pub const METRICS: &str = "io.containerd.metrics.v1";
pub const MONITOR_CONTAINER: &str = "io.containerd.monitor.container.v1";
pub const MONITOR_TASK: &str = "io.containerd.monitor.task.v1";
pub const MOUNT_HANDLER: &str = "io.containerd.mount-handler.v1";
pub const MOUNT_MANAGER: &str = "io.containerd.mount-manager.v1";
pub const RUNTIME: &str = "io.containerd.runtime.v2";
pub const SANDBOX_CONTROLLER: &str = "io.containerd.sandbox.controller.v1";
pub const SANDBOX_STORE: &str = "io.containerd.sandbox.store.v1";
pub const SERVER: &str = "io.containerd.server.v1";
pub const SERVICE: &str = "io.containerd.service.v1";
pub const SHIM: &str = "io.containerd.shim.v1";
pub const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1";
pub const STREAMING: &str = "io.containerd.streaming.v1";
pub const TRACING: &str = "io.containerd.tracing.processor.v1";
pub const TRANSFER: &str = "io.containerd.transfer.v1";
pub const VERIFIER: &str = "io.containerd.image-verifier.v1";
pub const WARNING: &str = "io.containerd.warning.v1";

use Need::{Any, Exactly, One};

/// In the order in which the original lists them. A part is behind those that it needs.
pub const PARTS: &[Part] = &[
    part(CONTENT, "content", &[]),
    part(VERIFIER, "bindir", &[]),
    part(INTERNAL, "opt", &[]),
    part(WARNING, "deprecations", &[]),
    part(EVENT, "exchange", &[]),
    part(MOUNT_HANDLER, "erofs", &[]),
    part(SNAPSHOTTER, "blockfile", &[]).on_host(),
    part(SNAPSHOTTER, "btrfs", &[]).on_host(),
    part(SNAPSHOTTER, "erofs", &[]).on_host(),
    part(SNAPSHOTTER, "native", &[]).on_host(),
    part(SNAPSHOTTER, "overlayfs", &[]).on_host(),
    part(MONITOR_TASK, "cgroups", &[One(EVENT)]).on_host(),
    part(METADATA, "bolt", &[One(CONTENT), One(EVENT), Any(SNAPSHOTTER)]),
    part(GC, "scheduler", &[One(METADATA)]),
    part(SERVER, "metrics", &[]),
    part(TRACING, "otlp", &[]),
    part(INTERNAL, "tracing", &[Any(TRACING)]),
    part(SERVICE, "containers-service", &[One(METADATA), One(EVENT)]),
    part(SERVICE, "content-service", &[One(METADATA)]),
    part(DIFFER, "erofs", &[One(METADATA)]).on_host(),
    part(MOUNT_MANAGER, "bolt", &[One(METADATA), Any(MOUNT_HANDLER)]),
    part(DIFFER, "walking", &[One(METADATA), Any(MOUNT_MANAGER)]).on_host(),
    part(SERVICE, "diff-service", &[Any(DIFFER)]),
    part(SERVICE, "images-service", &[One(METADATA), One(GC), One(EVENT), One(WARNING)]),
    part(SERVICE, "introspection-service", &[One(WARNING)]),
    part(SERVICE, "namespaces-service", &[One(METADATA), One(EVENT)]),
    part(SERVICE, "snapshots-service", &[One(METADATA)]),
    part(SHIM, "manager", &[One(EVENT), One(METADATA)]),
    part(RUNTIME, "task", &[One(SHIM), Any(MOUNT_MANAGER), One(WARNING)]).on_host(),
    part(SERVICE, "tasks-service", &[Exactly(RUNTIME, "task"), One(METADATA)]),
    part(GRPC, "containers", &[Exactly(SERVICE, "containers-service")]),
    part(GRPC, "content", &[Exactly(SERVICE, "content-service")]),
    part(GRPC, "diff", &[Exactly(SERVICE, "diff-service")]),
    part(GRPC, "events", &[Exactly(EVENT, "exchange")]),
    part(GRPC, "images", &[Exactly(SERVICE, "images-service")]),
    part(GRPC, "introspection", &[Exactly(SERVICE, "introspection-service")]),
    part(LEASE, "manager", &[One(METADATA), One(GC)]),
    part(GRPC, "leases", &[Exactly(LEASE, "manager")]),
    part(GRPC, "mounts", &[One(MOUNT_MANAGER)]),
    part(GRPC, "namespaces", &[Exactly(SERVICE, "namespaces-service")]),
    part(SANDBOX_STORE, "local", &[One(METADATA)]),
    part(TRANSFER, "local", &[One(LEASE), One(METADATA), Any(DIFFER), Any(VERIFIER), Any(SNAPSHOTTER)]),
    part(SANDBOX_CONTROLLER, "shim", &[One(SHIM), One(EVENT)]),
    part(GRPC, "sandbox-controllers", &[Any(SANDBOX_CONTROLLER)]),
    part(GRPC, "sandboxes", &[One(SANDBOX_STORE)]),
    part(GRPC, "snapshots", &[Exactly(SERVICE, "snapshots-service")]),
    part(STREAMING, "manager", &[One(METADATA)]),
    part(GRPC, "streaming", &[One(STREAMING)]),
    part(GRPC, "tasks", &[Exactly(SERVICE, "tasks-service")]),
    part(GRPC, "transfer", &[One(TRANSFER), One(STREAMING)]),
    part(GRPC, "version", &[]),
    part(GRPC, "healthcheck", &[]),
    part(SERVER, "ttrpc", &[]),
    part(MONITOR_CONTAINER, "restart", &[One(EVENT), Any(SERVICE)]),
    part(METRICS, "grpc-prometheus", &[Any(GRPC)]),
    part(SERVER, "grpc", &[Any(GRPC), Any(METRICS)]),
    part(HTTP, "pprof", &[]),
    part(SERVER, "debug", &[Any(HTTP)]),
];
