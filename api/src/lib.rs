//! The wire: containerd's messages and services, from our own descriptions of them. Names and numbers
//! are facts of the protocol (spec 01, 02, 03); everything else here maps them to the vocabulary of
//! [`corten_types`] and errors to statuses, in one place.
//!
//! Without the feature `grpc` there are only messages, which is all that shims and domain crates need.

mod any;
#[cfg(feature = "grpc")]
pub mod client;
mod convert;
pub mod keys;
#[allow(missing_docs)]
pub mod pprof;
mod status;

pub use any::{is_registered, message_name, pack, unpack};
pub use status::{code_of, error_of, from_rpc_status, rpc_status};
#[cfg(feature = "grpc")]
pub use status::{from_status, to_status};

#[allow(missing_docs, clippy::all, clippy::pedantic, rustdoc::all)]
mod messages {
    include!(concat!(env!("OUT_DIR"), "/messages.rs"));
}

#[cfg(feature = "grpc")]
#[allow(missing_docs, missing_debug_implementations, clippy::all, clippy::pedantic, rustdoc::all)]
mod stubs {
    include!(concat!(env!("OUT_DIR"), "/services/services.rs"));
}

pub use messages::containerd::events;
pub use messages::containerd::runc::v1 as runc;
pub use messages::containerd::runtime::bootstrap::v1 as bootstrap;
pub use messages::containerd::runtime::sandbox::v1 as runtime_sandbox;
pub use messages::containerd::services::events::ttrpc::v1 as events_ttrpc;
pub use messages::containerd::task::{v2 as task_v2, v3 as task_v3};
pub use messages::containerd::types;
pub use messages::containerd::types::transfer as transfer_types;
pub use messages::containerd::v1::types as task_types;
pub use messages::google::rpc;
pub use messages::io::containerd::cgroups::{v1 as cgroups_v1, v2 as cgroups_v2};
pub use messages::runtimeoptions::v1 as runtimeoptions;

/// The descriptions of all messages and services, an encoded `FileDescriptorSet`: for what works on any of them.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The services of the daemon: messages, and with the feature `grpc` clients and servers.
pub mod services {
    macro_rules! services {
        ($($doc:literal $name:ident),* $(,)?) => {$(
            #[doc = $doc]
            pub mod $name {
                pub use crate::messages::containerd::services::$name::v1::*;
                #[cfg(feature = "grpc")]
                pub use crate::stubs::containerd::services::$name::v1::*;
            }
        )*};
    }

    services! {
        "Container records." containers,
        "Blobs and ingests." content,
        "Applying and making layers." diff,
        "Publishing and subscribing." events,
        "Image records." images,
        "The daemon about itself." introspection,
        "Leases." leases,
        "Mount activation." mounts,
        "Namespaces." namespaces,
        "Sandbox records and controllers." sandbox,
        "Snapshots." snapshots,
        "Streams for other services." streaming,
        "Running containers." tasks,
        "Moving images." transfer,
        "The daemon's version." version,
    }
}

/// gRPC's health protocol.
pub mod health {
    pub use crate::messages::grpc::health::v1::*;
    #[cfg(feature = "grpc")]
    pub use crate::stubs::grpc::health::v1::*;
}
