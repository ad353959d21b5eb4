//! Parts in other processes: snapshotters, plain ones and such that have layers by themselves. The same
//! expectations hold for Debian's containerd, which proves that the snapshotter of the tests speaks the
//! contract.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::time::Duration;

use corten_api::services::leases::CreateRequest as CreateLease;
use corten_api::services::snapshots as api;
use corten_tests::snapshotter::SnapshotterProcess;
use corten_tests::{
    Client, Digest, Finished, Image, ImageBuilder, Layer, Node, NodeBuilder, Peers, ScriptedRegistry,
};
use tonic::Code;

const PATIENCE: Duration = Duration::from_secs(30);
const VERSION: &str = "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n";

fn ours() -> NodeBuilder {
    Node::builder()
}

fn debians() -> NodeBuilder {
    Node::peer(&Peers::find().containerd_2_1())
}

/// A daemon whose snapshotter `far` is in another process.
fn start(builder: NodeBuilder, snapshotter: &SnapshotterProcess) -> Node {
    // Debian's daemon unpacks by itself only with the snapshotters that are listed.
    let unpack = format!(
        "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\nplatform = \"linux/{}\"\nsnapshotter = \"far\"\n",
        corten_tests::image::host_architecture()
    );
    builder.config(&format!("{VERSION}{}{unpack}", snapshotter.config("far"))).start()
}

fn layer() -> Vec<u8> {
    Layer::new().file("said", 0o644, b"from the second layer\n").finish()
}

fn image() -> Image {
    ImageBuilder::busybox().layer(layer()).build()
}

/// The blobs of an image's layers.
fn blobs(image: &Image) -> Vec<String> {
    let layers = image.blobs.iter().filter(|blob| blob.media_type.contains("layer"));
    layers.map(|blob| blob.digest().to_string()).collect()
}

/// Diff IDs of layers, from the config.
fn diff_ids(image: &Image) -> Vec<String> {
    let config = image.blobs.iter().find(|blob| blob.media_type.contains("config")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config.data).unwrap();
    let ids = config["rootfs"]["diff_ids"].as_array().unwrap();
    ids.iter().map(|id| id.as_str().unwrap().to_owned()).collect()
}

fn chain(image: &Image) -> Vec<String> {
    let mut chain: Vec<String> = Vec::new();
    for diff_id in diff_ids(image) {
        let next = match chain.last() {
            None => diff_id,
            Some(below) => Digest::sha256(format!("{below} {diff_id}").as_bytes()).to_string(),
        };
        chain.push(next);
    }
    chain
}

fn pull(node: &Node, name: &str) -> Finished {
    node.ctr(["images", "pull", "--plain-http", "--snapshotter", "far", name])
}

fn far(node: &Node, arguments: &[&str]) -> Finished {
    node.ctr(["snapshots", "--snapshotter", "far"].iter().chain(arguments))
}

fn rows(node: &Node) -> Vec<String> {
    let listed = far(node, &["ls"]).ok();
    listed.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// Images and containers of a snapshotter in another process, from the pull to their end.
fn live(builder: NodeBuilder, is_peer: bool) {
    let snapshotter = SnapshotterProcess::start();
    let node = start(builder, &snapshotter);
    let image = image();
    let registry = ScriptedRegistry::start(image.clone());
    let name = format!("{}/lab/box:1", registry.host());
    pull(&node, &name).ok();
    let chain = chain(&image);
    let mut wanted = chain.clone();
    wanted.sort();
    assert_eq!(rows(&node), wanted);
    // It goes by keys of its own, and knows for whom it works.
    for (key, kind) in snapshotter.snapshots() {
        let mut parts = key.splitn(3, '/');
        assert_eq!((parts.next(), kind), (Some(node.namespace()), 3), "{key}");
        assert!(parts.next().unwrap().parse::<u64>().unwrap() > 0);
        assert!(chain.iter().any(|id| parts.next() == Some(id) || key.ends_with(id)), "{key}");
    }
    let calls = snapshotter.calls();
    let prepared: Vec<_> = calls.iter().filter(|call| call.method == "prepare").collect();
    assert!(prepared.len() >= 2);
    for call in prepared {
        assert_eq!(call.namespace, node.namespace());
        // Debian's daemon keeps the lease to itself.
        assert!(is_peer || !call.lease.is_empty(), "{calls:?}");
    }
    let arguments = ["run", "--rm", "--snapshotter", "far", &name, "c", "cat", "/said"];
    assert_eq!(node.ctr(arguments).ok(), "from the second layer\n");
    let arguments = ["run", "--snapshotter", "far", &name, "d", "sh", "-c", "echo kept > /file"];
    node.ctr(arguments).ok();
    let writable = snapshotter.snapshots().into_iter().find(|(key, _)| key.ends_with("/d"));
    assert_eq!(writable.unwrap().1, 2);
    let usage = far(&node, &["usage", "-b", "d"]).ok();
    let size: u64 = usage.lines().nth(1).unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
    assert_eq!(size, 5, "{usage}");
    node.ctr(["containers", "rm", "d"]).ok();
    node.ctr(["images", "rm", "--sync", &name]).ok();
    corten_tests::eventually("the snapshotter has nothing left", PATIENCE, || {
        snapshotter.snapshots().is_empty().then_some(())
    });
    assert!(rows(&node).is_empty());
    node.finish();
}

#[test]
fn images_and_containers_live_with_a_snapshotter_in_another_process() {
    live(ours(), false);
}

#[test]
fn debians_daemon_agrees_with_the_snapshotter_of_the_tests() {
    live(debians(), true);
}

/// Trees of layers that the snapshotter has.
fn give(snapshotter: &SnapshotterProcess, node: &Node, image: &Image) {
    for (index, (blob, chain_id)) in
        image.blobs.iter().filter(|blob| blob.media_type.contains("layer")).zip(chain(image)).enumerate()
    {
        let folder = node.join(format!("given-{index}"));
        tar::Archive::new(flate2::read::GzDecoder::new(blob.data.as_slice())).unpack(&folder).unwrap();
        snapshotter.give(&chain_id, &folder);
    }
}

/// No layer is downloaded: the snapshotter has them all, and a container runs from it.
fn lazy(builder: NodeBuilder) {
    let snapshotter = SnapshotterProcess::start();
    let node = start(builder, &snapshotter);
    let image = image();
    let registry = ScriptedRegistry::start(image.clone());
    give(&snapshotter, &node, &image);
    let name = format!("{}/lab/box:1", registry.host());
    pull(&node, &name).ok();
    let stored = node.ctr(["content", "ls", "-q"]).ok();
    for blob in blobs(&image) {
        assert!(!stored.contains(&blob), "layer {blob} was downloaded");
        let asked = registry.requests().into_iter().find(|request| request.contains(&blob));
        assert_eq!(asked, None, "layer {blob} was asked for");
    }
    let mut wanted = chain(&image);
    wanted.sort();
    assert_eq!(rows(&node), wanted);
    assert!(far(&node, &["info", &wanted[0]]).ok().contains("containerd.io/snapshot.ref"));
    let arguments = ["run", "--rm", "--snapshotter", "far", &name, "c", "cat", "/said"];
    assert_eq!(node.ctr(arguments).ok(), "from the second layer\n");
    // Again: they are there now.
    pull(&node, &name).ok();
    node.ctr(["images", "rm", "--sync", &name]).ok();
    corten_tests::eventually("the snapshotter has nothing left", PATIENCE, || {
        snapshotter.snapshots().is_empty().then_some(())
    });
    node.finish();
}

#[test]
fn a_snapshotter_that_has_the_layers_saves_their_download() {
    lazy(ours());
}

#[test]
fn a_snapshotter_that_has_the_layers_saves_their_download_for_debians_daemon() {
    lazy(debians());
}

/// The answers to calls that the snapshotter has a say in.
fn answers(builder: NodeBuilder) {
    let mut snapshotter = SnapshotterProcess::start();
    let node = start(builder, &snapshotter);
    let client = Client::new(&node.address(), Some(node.namespace()));
    // The collector leaves alone what belongs to a lease.
    client.wait(client.leases().create(CreateLease { id: "keeps".into(), ..Default::default() })).unwrap();
    let client = client.leased("keeps");
    let shown = |key: &str| format!("{}/", node.namespace()) + key;
    let prepare = |key: &str, parent: &str, labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        client.wait(client.snapshots().prepare(api::PrepareSnapshotRequest {
            snapshotter: "far".into(),
            key: key.into(),
            parent: parent.into(),
            labels,
        }))
    };
    let commit = |name: &str, key: &str| {
        client.wait(client.snapshots().commit(api::CommitSnapshotRequest {
            snapshotter: "far".into(),
            name: name.into(),
            key: key.into(),
            ..Default::default()
        }))
    };
    let stat = |key: &str| {
        let request = api::StatSnapshotRequest { snapshotter: "far".into(), key: key.into() };
        client.wait(client.snapshots().stat(request)).map(|answer| answer.info.unwrap())
    };
    let own = [("mine", "only"), ("containerd.io/snapshot/seen", "yes")];
    let mounts = prepare("a", "", &own).unwrap().mounts;
    assert_eq!(mounts[0].r#type, "bind");
    let inner = snapshotter.snapshot(&shown("1/a")).unwrap();
    assert_eq!(inner.labels.into_keys().collect::<Vec<_>>(), ["containerd.io/snapshot/seen"]);
    assert_eq!(stat("a").unwrap().labels.len(), 2);
    let error = prepare("a", "", &[]).unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::AlreadyExists, "snapshot \"a\": already exists"));
    let error = prepare("b", "zz", &[]).unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::NotFound, "parent snapshot zz does not exist: not found")
    );
    commit("A", "a").unwrap();
    assert_eq!(snapshotter.snapshots().len(), 1);
    assert_eq!(stat("A").unwrap().kind, 3);
    prepare("b", "A", &[]).unwrap();
    let inner = snapshotter.snapshots().into_iter().find(|(_, kind)| *kind == 2).unwrap().0;
    assert!(inner.ends_with("/b") && snapshotter.snapshot(&inner).unwrap().parent.ends_with("/A"));
    // What it has lost is not listed, and not found.
    snapshotter.lose(&inner);
    assert_eq!(rows(&node), ["A"]);
    assert_eq!(stat("b").unwrap_err().code(), Code::NotFound);
    // A target on another parent than the one that is asked for.
    let target = [("containerd.io/snapshot.ref", "T")];
    snapshotter.give("T", node.path());
    let error = prepare("c", "A", &target).unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::AlreadyExists, "target snapshot \"T\" from snapshotter: already exists")
    );
    assert_eq!(stat("T").unwrap().parent, "A");
    let error = prepare("c", "A", &target).unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::AlreadyExists, "target snapshot \"T\": already exists")
    );
    let other = [("containerd.io/snapshot.ref", "U")];
    snapshotter.give("U", node.path());
    assert_eq!(prepare("d", "", &other).unwrap_err().code(), Code::AlreadyExists);
    // It dies: so do its calls, and nothing else. It comes back.
    snapshotter.die();
    let error = stat("A").unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error:?}");
    assert_eq!(prepare("e", "", &[]).unwrap_err().code(), Code::Unavailable);
    node.ctr(["images", "ls"]).ok();
    node.ctr(["snapshots", "ls"]).ok();
    snapshotter.serve();
    corten_tests::eventually("the snapshotter is found again", PATIENCE, || stat("A").ok());
    prepare("e", "A", &[]).unwrap();
    node.finish();
}

#[test]
fn a_snapshotter_in_another_process_is_asked_and_obeyed() {
    answers(ours());
}

#[test]
fn a_snapshotter_in_another_process_is_asked_and_obeyed_by_debians_daemon() {
    answers(debians());
}
