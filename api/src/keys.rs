//! Names of metadata headers and of types that travel as JSON inside an Any.

/// Header with the namespace of a call.
pub const NAMESPACE: &str = "containerd-namespace";
/// Header with the namespace of a ttrpc call.
pub const NAMESPACE_TTRPC: &str = "containerd-namespace-ttrpc";
/// Header with the lease that new objects join.
pub const LEASE: &str = "containerd-lease";

/// An OCI runtime specification, JSON.
pub const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// An OCI process, JSON.
pub const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// OCI resources, JSON.
pub const LINUX_RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
/// Features of an OCI runtime, JSON.
pub const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// The limit of a gRPC message in both directions, bytes (spec 01 §0.1).
pub const MAX_MESSAGE: usize = 16 << 20;
