//! Workers that make, change and remove records, blobs and snapshots as fast as they can; and the whole view of
//! a daemon that histories are compared with.

use std::collections::BTreeMap;
use std::path::Path;

use corten_api::services::{containers, content, images, leases, snapshots};
use corten_api::types::Descriptor;
use corten_tests::{Client, Digest};
use prost_types::FieldMask;
use tonic::{Code, Status};

use crate::history::{History, Key, Kind, State};
use crate::random::Random;

/// The label that tells the versions of an object apart.
const VERSION: &str = "version";
pub const SNAPSHOTTER: &str = "overlayfs";

/// One worker with objects of its own.
pub struct Worker {
    client: Client,
    name: String,
    /// The snapshotter of its snapshots.
    snapshotter: String,
    random: Random,
    pub history: History,
}

impl Worker {
    /// A worker that goes on from `history`.
    pub fn new(client: Client, name: &str, snapshotter: &str, random: Random, history: History) -> Self {
        Self { client, name: name.into(), snapshotter: snapshotter.into(), random, history }
    }

    /// Works until `stop` says so; from then on the daemon may be lost.
    pub fn work(&mut self, stop: impl Fn() -> bool) {
        while !stop() {
            let kind = match self.random.below(8) {
                0 => Kind::Lease,
                1 => Kind::Image,
                2 | 3 => Kind::Container,
                4 | 5 => Kind::Blob,
                _ => Kind::Snapshot,
            };
            let key = (kind, format!("{}-{}", self.name, self.random.below(5)));
            if let Err(status) = self.change(&key) {
                assert!(lost(&status) && stop(), "{key:?}, while the daemon ran: {status:?}");
                return;
            }
        }
    }

    /// The next change in an object's life.
    fn change(&mut self, key: &Key) -> Result<(), Status> {
        let state = self.history.state(key);
        let version = self.random.below(1_000_000).to_string();
        let next = match (key.0, state.as_deref()) {
            (Kind::Snapshot, None) => Some("active".to_owned()),
            (Kind::Snapshot, Some("active")) => Some("committed".to_owned()),
            (Kind::Snapshot | Kind::Lease, Some(_)) => None,
            (_, None) => Some(version),
            (_, Some(_)) => (self.random.below(2) == 0).then_some(version),
        };
        self.history.begin(key, next.clone());
        let client = &self.client;
        let done = match key.0 {
            Kind::Image => image(client, &key.1, &state, &next),
            Kind::Container => container(client, &key.1, &state, &next),
            Kind::Lease => lease(client, &key.1, &next),
            Kind::Blob => blob(client, &key.1, &state, &next),
            Kind::Snapshot => snapshot(client, &self.snapshotter, &key.1, &next),
            Kind::Pull => unreachable!("workers of their own do that"),
        };
        done.inspect(|()| self.history.acknowledge(key))
    }
}

/// Whether a call ended because the daemon did.
fn lost(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal)
        && !status.message().contains("panic")
}

fn labels(version: &str) -> BTreeMap<String, String> {
    [(VERSION, version), ("containerd.io/gc.root", "test")].map(|(k, v)| (k.into(), v.into())).into()
}

fn mask() -> Option<FieldMask> {
    Some(FieldMask { paths: vec![format!("labels.{VERSION}")] })
}

fn image(client: &Client, name: &str, state: &State, next: &State) -> Result<(), Status> {
    let mut images = client.images();
    let Some(version) = next else {
        let request = images::DeleteImageRequest { name: name.into(), ..Default::default() };
        return client.wait(images.delete(request));
    };
    let target = Descriptor {
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        digest: Digest::sha256(name.as_bytes()).to_string(),
        size: 1,
        ..Default::default()
    };
    let image = images::Image {
        name: name.into(),
        labels: labels(version),
        target: Some(target),
        ..Default::default()
    };
    if state.is_none() {
        let request = images::CreateImageRequest { image: Some(image), ..Default::default() };
        return client.wait(images.create(request)).map(drop);
    }
    let request =
        images::UpdateImageRequest { image: Some(image), update_mask: mask(), ..Default::default() };
    client.wait(images.update(request)).map(drop)
}

fn container(client: &Client, id: &str, state: &State, next: &State) -> Result<(), Status> {
    let mut containers = client.containers();
    let Some(version) = next else {
        return client.wait(containers.delete(containers::DeleteContainerRequest { id: id.into() }));
    };
    let container = Some(containers::Container {
        id: id.into(),
        labels: labels(version),
        runtime: Some(containers::container::Runtime { name: "io.containerd.runc.v2".into(), options: None }),
        spec: Some(prost_types::Any { type_url: "test".into(), value: vec![1; 4000] }),
        ..Default::default()
    });
    if state.is_none() {
        return client.wait(containers.create(containers::CreateContainerRequest { container })).map(drop);
    }
    let request = containers::UpdateContainerRequest { container, update_mask: mask() };
    client.wait(containers.update(request)).map(drop)
}

fn lease(client: &Client, id: &str, next: &State) -> Result<(), Status> {
    let mut leases = client.leases();
    let Some(version) = next else {
        return client.wait(leases.delete(leases::DeleteRequest { id: id.into(), sync: false }));
    };
    let labels = BTreeMap::from([(VERSION.to_owned(), version.clone())]);
    client.wait(leases.create(leases::CreateRequest { id: id.into(), labels })).map(drop)
}

/// The bytes of a blob; those who know its name know them.
pub fn bytes_of(name: &str) -> Vec<u8> {
    let mut random = Random::of(name);
    let length = 1 + random.below(200_000);
    (0..length).map(|_| random.below(256) as u8).collect()
}

fn blob(client: &Client, name: &str, state: &State, next: &State) -> Result<(), Status> {
    let mut content = client.content();
    let data = bytes_of(name);
    let digest = Digest::sha256(&data).to_string();
    let Some(version) = next else {
        return client.wait(content.delete(content::DeleteContentRequest { digest }));
    };
    if state.is_some() {
        let info = Some(content::Info { digest, labels: labels(version), ..Default::default() });
        return client.wait(content.update(content::UpdateRequest { info, update_mask: mask() })).map(drop);
    }
    let request = |action: content::WriteAction, offset: i64, bytes: &[u8]| content::WriteContentRequest {
        action: action as i32,
        r#ref: name.into(),
        total: data.len() as i64,
        expected: digest.clone(),
        offset,
        data: bytes.to_vec().into(),
        labels: labels(version),
    };
    let cut = || Status::unavailable("the stream ended before the answer");
    client.block_on(async {
        let (sender, requests) = tokio::sync::mpsc::channel(16);
        let send = async |request| sender.send(request).await.map_err(|_| cut());
        send(request(content::WriteAction::Stat, 0, b"")).await?;
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        let mut answers = content.write(requests).await?.into_inner();
        // What an earlier life of the daemon took in, or has as a blob not swept yet, is not sent again.
        let mut at = answers.message().await?.ok_or_else(cut)?.offset;
        for chunk in data.get(at as usize..).unwrap_or_default().chunks(30_000) {
            send(request(content::WriteAction::Write, at, chunk)).await?;
            at = answers.message().await?.ok_or_else(cut)?.offset;
        }
        send(request(content::WriteAction::Commit, at, b"")).await?;
        let last = answers.message().await?.ok_or_else(cut)?;
        assert_eq!(last.action, content::WriteAction::Commit as i32, "{last:?}");
        Ok(())
    })
}

fn snapshot(client: &Client, snapshotter: &str, name: &str, next: &State) -> Result<(), Status> {
    let mut service = client.snapshots();
    let (snapshotter, labels) = (snapshotter.to_owned(), labels("1"));
    let key = format!("{name}-active");
    match next.as_deref() {
        Some("active") => {
            let parent = String::new();
            let request = snapshots::PrepareSnapshotRequest { snapshotter, key, parent, labels };
            client.wait(service.prepare(request)).map(drop)
        }
        Some(_) => {
            let parent = String::new();
            let request =
                snapshots::CommitSnapshotRequest { snapshotter, name: name.into(), key, labels, parent };
            client.wait(service.commit(request))
        }
        None => {
            let request = snapshots::RemoveSnapshotRequest { snapshotter, key: name.into() };
            client.wait(service.remove(request))
        }
    }
}

/// All objects that a daemon shows in one namespace, each with its state.
///
/// # Panics
/// When it does not answer.
pub fn view(address: &Path, namespace: &str, snapshotter: &str) -> BTreeMap<Key, String> {
    let client = Client::new(address, Some(namespace));
    let mut seen = BTreeMap::new();
    let version = |labels: &BTreeMap<String, String>| labels.get(VERSION).cloned().unwrap_or_default();
    let listed = client.wait(client.images().list(images::ListImagesRequest::default())).unwrap();
    for image in listed.images.iter().filter(|image| image.labels.contains_key(VERSION)) {
        seen.insert((Kind::Image, image.name.clone()), version(&image.labels));
    }
    let listed = client.wait(client.containers().list(containers::ListContainersRequest::default())).unwrap();
    for container in listed.containers.iter().filter(|container| container.labels.contains_key(VERSION)) {
        assert_eq!(container.spec.as_ref().map_or(0, |spec| spec.value.len()), 4000, "a half record");
        seen.insert((Kind::Container, container.id.clone()), version(&container.labels));
    }
    let listed = client.wait(client.leases().list(leases::ListRequest::default())).unwrap();
    for lease in listed.leases.iter().filter(|lease| lease.labels.contains_key(VERSION)) {
        seen.insert((Kind::Lease, lease.id.clone()), version(&lease.labels));
    }
    let names: BTreeMap<String, String> = (0..4)
        .flat_map(|worker| (0..5).map(move |n| format!("w{worker}-{n}")))
        .map(|name| (Digest::sha256(&bytes_of(&name)).to_string(), name))
        .collect();
    for info in blobs(&client) {
        if let Some(name) = names.get(&info.digest) {
            assert_eq!(info.size as usize, bytes_of(name).len());
            seen.insert((Kind::Blob, name.clone()), version(&info.labels));
        }
    }
    for info in snapshots(&client, snapshotter).iter().filter(|info| info.labels.contains_key(VERSION)) {
        let (name, state) = match info.name.strip_suffix("-active") {
            Some(name) => (name, "active"),
            None => (info.name.as_str(), "committed"),
        };
        let before = seen.insert((Kind::Snapshot, name.into()), state.into());
        assert_eq!(before, None, "{name} is active and committed");
    }
    seen
}

/// Everything in the content store.
pub fn blobs(client: &Client) -> Vec<content::Info> {
    client.block_on(async {
        let mut all = Vec::new();
        let mut answers =
            client.content().list(content::ListContentRequest::default()).await.unwrap().into_inner();
        while let Some(answer) = answers.message().await.unwrap() {
            all.extend(answer.info);
        }
        all
    })
}

/// Every snapshot of a snapshotter.
pub fn snapshots(client: &Client, snapshotter: &str) -> Vec<snapshots::Info> {
    let request = snapshots::ListSnapshotsRequest { snapshotter: snapshotter.into(), ..Default::default() };
    client.block_on(async {
        let mut all = Vec::new();
        let mut answers = client.snapshots().list(request).await.unwrap().into_inner();
        while let Some(answer) = answers.message().await.unwrap() {
            all.extend(answer.info);
        }
        all
    })
}

/// Has the collector run, and answers when it has.
pub fn collect(client: &Client) {
    let id = "collect-now".to_owned();
    let lease = leases::CreateRequest { id: id.clone(), ..Default::default() };
    client.wait(client.leases().create(lease)).unwrap();
    client.wait(client.leases().delete(leases::DeleteRequest { id, sync: true })).unwrap();
}
