//! The requests of all services: decoded, encoded again, and their parts checked as the services check them.
//! The first byte chooses the message.
#![no_main]

use std::fmt::Debug;

use corten_api::{runc, services as api, transfer_types as transfer, types};
use corten_types::{Any, Descriptor, Digest, Filter, Labels, Mount, Namespace, Reference, labels};
use libfuzzer_sys::fuzz_target;
use prost::{Message, Name};

/// Decodes a message; what was accepted means the same after another way over the wire.
fn decode<M: Message + Default + PartialEq + Debug>(bytes: &[u8]) -> Option<M> {
    let message = M::decode(bytes).ok()?;
    let again = M::decode(message.encode_to_vec().as_slice());
    assert_eq!(again.as_ref(), Ok(&message));
    Some(message)
}

fn any(any: Option<Any>) {
    fn open<M: Message + Default + Name>(any: &Any) {
        drop(corten_api::unpack::<M>(any));
    }
    let Some(any) = any else { return };
    open::<runc::Options>(&any);
    open::<types::RuntimeRequest>(&any);
    open::<api::streaming::StreamInit>(&any);
    open::<transfer::ImageStore>(&any);
    open::<transfer::OciRegistry>(&any);
    open::<transfer::ImageImportStream>(&any);
    open::<transfer::ImageExportStream>(&any);
}

fn descriptor(descriptor: Option<types::Descriptor>) {
    drop(descriptor.map(Descriptor::try_from));
}

fn filters(filters: &[String]) {
    drop(Filter::parse(filters));
}

fn set(mut set: Labels) {
    drop(labels::validate(&set));
    labels::drop_empty(&mut set);
}

fn mounts(mounts: Vec<types::Mount>) {
    mounts.into_iter().for_each(|mount| drop(types::Mount::from(Mount::from(mount))));
}

macro_rules! requests {
    ($($module:ident::$type:ident($request:ident) $check:block)*) => {
        const REQUESTS: &[fn(&[u8])] = &[$(|bytes| {
            #[allow(unused_variables)]
            if let Some($request) = decode::<api::$module::$type>(bytes) { $check }
        }),*];
    };
}

requests! {
    containers::GetContainerRequest(r) {}
    containers::ListContainersRequest(r) { filters(&r.filters) }
    containers::CreateContainerRequest(r) {
        if let Some(container) = r.container {
            set(container.labels);
            any(container.spec);
            container.extensions.into_values().for_each(|one| any(Some(one)));
        }
    }
    containers::UpdateContainerRequest(r) {}
    containers::DeleteContainerRequest(r) {}
    content::InfoRequest(r) { drop(r.digest.parse::<Digest>()) }
    content::UpdateRequest(r) { if let Some(info) = r.info { set(info.labels) } }
    content::ListContentRequest(r) { filters(&r.filters) }
    content::DeleteContentRequest(r) { drop(r.digest.parse::<Digest>()) }
    content::ReadContentRequest(r) { drop(r.digest.parse::<Digest>()) }
    content::StatusRequest(r) {}
    content::ListStatusesRequest(r) { filters(&r.filters) }
    content::WriteContentRequest(r) { drop(r.expected.parse::<Digest>()); set(r.labels) }
    content::AbortRequest(r) {}
    diff::ApplyRequest(r) { descriptor(r.diff); mounts(r.mounts) }
    diff::DiffRequest(r) { mounts(r.left); mounts(r.right); set(r.labels) }
    events::PublishRequest(r) { any(r.event) }
    events::ForwardRequest(r) { if let Some(one) = r.envelope { drop(Namespace::new(one.namespace)); any(one.event) } }
    events::SubscribeRequest(r) { filters(&r.filters) }
    images::GetImageRequest(r) { drop(r.name.parse::<Reference>()) }
    images::ListImagesRequest(r) { filters(&r.filters) }
    images::CreateImageRequest(r) { if let Some(image) = r.image { descriptor(image.target); set(image.labels) } }
    images::UpdateImageRequest(r) { if let Some(image) = r.image { descriptor(image.target) } }
    images::DeleteImageRequest(r) { descriptor(r.target) }
    introspection::PluginsRequest(r) { filters(&r.filters) }
    introspection::PluginInfoRequest(r) { any(r.options) }
    leases::CreateRequest(r) { set(r.labels) }
    leases::DeleteRequest(r) {}
    leases::ListRequest(r) { filters(&r.filters) }
    leases::AddResourceRequest(r) {}
    leases::DeleteResourceRequest(r) {}
    leases::ListResourcesRequest(r) {}
    mounts::ActivateRequest(r) { mounts(r.mounts); set(r.labels) }
    mounts::DeactivateRequest(r) {}
    mounts::InfoRequest(r) {}
    mounts::UpdateRequest(r) {}
    mounts::ListRequest(r) { filters(&r.filters) }
    namespaces::GetNamespaceRequest(r) { drop(Namespace::new(r.name)) }
    namespaces::ListNamespacesRequest(r) {}
    namespaces::CreateNamespaceRequest(r) { if let Some(one) = r.namespace { drop(Namespace::new(one.name)) } }
    namespaces::UpdateNamespaceRequest(r) { if let Some(one) = r.namespace { set(one.labels) } }
    namespaces::DeleteNamespaceRequest(r) { drop(Namespace::new(r.name)) }
    sandbox::StoreCreateRequest(r) { if let Some(one) = r.sandbox { set(one.labels); any(one.spec) } }
    sandbox::StoreUpdateRequest(r) {}
    sandbox::StoreDeleteRequest(r) {}
    sandbox::StoreListRequest(r) { filters(&r.filters) }
    sandbox::StoreGetRequest(r) {}
    sandbox::ControllerCreateRequest(r) { mounts(r.rootfs); any(r.options) }
    sandbox::ControllerStartRequest(r) {}
    sandbox::ControllerStatusRequest(r) {}
    sandbox::ControllerUpdateRequest(r) {}
    snapshots::PrepareSnapshotRequest(r) { set(r.labels) }
    snapshots::ViewSnapshotRequest(r) { set(r.labels) }
    snapshots::CommitSnapshotRequest(r) { set(r.labels) }
    snapshots::UpdateSnapshotRequest(r) { if let Some(info) = r.info { set(info.labels) } }
    snapshots::ListSnapshotsRequest(r) { filters(&r.filters) }
    tasks::CreateTaskRequest(r) { mounts(r.rootfs); descriptor(r.checkpoint); any(r.options) }
    tasks::ExecProcessRequest(r) { any(r.spec) }
    tasks::UpdateTaskRequest(r) { any(r.resources) }
    tasks::CheckpointTaskRequest(r) { any(r.options) }
    tasks::MetricsRequest(r) { filters(&r.filters) }
    tasks::KillRequest(r) {}
    transfer::TransferRequest(r) { any(r.source); any(r.destination) }
}

fuzz_target!(|input: &[u8]| {
    if let Some((which, bytes)) = input.split_first() {
        REQUESTS[usize::from(*which) % REQUESTS.len()](bytes);
    }
});
