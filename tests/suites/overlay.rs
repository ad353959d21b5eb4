//! The mounts of overlayfs snapshots, beside those of Debian's containerd.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::os::unix::fs::MetadataExt;

use corten_api::services::introspection::PluginsRequest;
use corten_api::services::leases::CreateRequest as CreateLease;
use corten_api::services::snapshots as api;
use corten_tests::{Client, ImageBuilder, Node, NodeBuilder, Peers, Registry};

const FOLDER: &str = "root/io.containerd.snapshotter.v1.overlayfs/snapshots";
const USERS: &str = "containerd.io/snapshot/uidmapping";
const GROUPS: &str = "containerd.io/snapshot/gidmapping";

fn ours() -> NodeBuilder {
    Node::builder()
}

fn debians() -> NodeBuilder {
    Node::peer(&Peers::find().containerd_2_1())
}

fn start(builder: NodeBuilder, options: &str) -> Node {
    let config = format!(
        "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[plugins.\"io.containerd.snapshotter.v1.overlayfs\"]\n{options}\n"
    );
    builder.config(&config).start()
}

/// What a daemon says of some snapshots, one line each, without the folder that is its own.
fn story(node: &Node) -> Vec<String> {
    let client = Client::new(&node.address(), Some(node.namespace()));
    // The collector leaves alone what belongs to a lease.
    client.wait(client.leases().create(CreateLease { id: "keeps".into(), ..Default::default() })).unwrap();
    let client = client.leased("keeps");
    let folder = node.join(FOLDER).display().to_string();
    let shown = |what: &str, mounts: Vec<corten_api::types::Mount>| -> String {
        let mounts: Vec<String> = mounts
            .into_iter()
            .map(|mount| format!("{} {} {}", mount.r#type, mount.source, mount.options.join(",")))
            .collect();
        format!("{what}: {}", mounts.join("; ")).replace(&folder, "")
    };
    let labels =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    let snapshotter = || "overlayfs".to_owned();
    let prepare = |key: &str, parent: &str, pairs: &[(&str, &str)]| {
        let request = api::PrepareSnapshotRequest {
            snapshotter: snapshotter(),
            key: key.into(),
            parent: parent.into(),
            labels: labels(pairs),
        };
        shown(key, client.wait(client.snapshots().prepare(request)).unwrap().mounts)
    };
    let view = |key: &str, parent: &str, pairs: &[(&str, &str)]| {
        let request = api::ViewSnapshotRequest {
            snapshotter: snapshotter(),
            key: key.into(),
            parent: parent.into(),
            labels: labels(pairs),
        };
        shown(key, client.wait(client.snapshots().view(request)).unwrap().mounts)
    };
    let commit = |name: &str, key: &str| {
        let request = api::CommitSnapshotRequest {
            snapshotter: snapshotter(),
            name: name.into(),
            key: key.into(),
            ..Default::default()
        };
        client.wait(client.snapshots().commit(request)).unwrap();
    };
    let mut lines = Vec::new();
    lines.push(prepare("first", "", &[]));
    lines.push(view("nothing", "", &[]));
    commit("one", "first");
    lines.push(prepare("second", "one", &[]));
    lines.push(view("look", "one", &[]));
    commit("two", "second");
    lines.push(prepare("third", "two", &[]));
    lines.push(view("look deeper", "two", &[]));
    let mapped = [(USERS, "0:1000:65536"), (GROUPS, "0:2000:65536")];
    lines.push(prepare("mapped", "", &mapped));
    lines.push(prepare("mapped over", "two", &mapped));
    lines.push(view("mapped look", "one", &mapped));
    lines.push(view("mapped look deeper", "two", &mapped));
    lines.push(prepare("half", "two", &[(USERS, "0:1000:65536")]));
    let request = api::MountsRequest { snapshotter: snapshotter(), key: "mapped over".into() };
    lines.push(shown("again", client.wait(client.snapshots().mounts(request)).unwrap().mounts));
    for key in ["one", "third", "mapped over"] {
        let request = api::StatSnapshotRequest { snapshotter: snapshotter(), key: key.into() };
        let info = client.wait(client.snapshots().stat(request)).unwrap().info.unwrap();
        lines.push(format!("{key} {:?}", info.labels).replace(&folder, ""));
    }
    let entries = std::fs::read_dir(node.join(FOLDER)).unwrap().flatten();
    let mut modes: Vec<(u64, String)> = entries
        .map(|entry| {
            let at = |name: &str| {
                let metadata = std::fs::metadata(entry.path().join(name));
                metadata.map_or(String::new(), |m| format!("{:o} {}:{}", m.mode(), m.uid(), m.gid()))
            };
            let number = entry.file_name().to_string_lossy().parse().unwrap();
            (number, format!("{number} {} | {} | {}", at(""), at("fs"), at("work")))
        })
        .collect();
    modes.sort();
    lines.extend(modes.into_iter().map(|(_, line)| line));
    lines
}

fn capabilities(node: &Node) -> Vec<String> {
    let client = Client::new(&node.address(), None);
    let request = PluginsRequest { filters: vec!["id==overlayfs".into()] };
    let plugins = client.wait(client.introspection().plugins(request)).unwrap().plugins;
    let mut capabilities = plugins.into_iter().next().unwrap().capabilities;
    // Newer than Debian's.
    capabilities.retain(|capability| capability != "rebase");
    capabilities
}

#[test]
fn mounts_labels_and_folders_are_those_of_debians_containerd() {
    for options in [
        "",
        "upperdir_label = true\nslow_chown = true",
        "sync_remove = true\nmount_options = [\"volatile\", \"metacopy=off\"]",
        // Not `index=on`: theirs is undone by an `index=off` behind it.
    ] {
        let (ours, theirs) = (start(ours(), options), start(debians(), options));
        assert_eq!(story(&ours), story(&theirs), "{options}");
        assert_eq!(capabilities(&ours), capabilities(&theirs), "{options}");
        ours.finish();
        theirs.finish();
    }
}

#[test]
fn a_container_with_mapped_owners_sees_its_own() {
    let node = Node::start();
    let registry = Registry::start();
    let name = registry.push(&ImageBuilder::busybox().build(), "lab/box:1");
    node.ctr(["images", "pull", "--plain-http", &name]).ok();
    let script = "cat /proc/self/uid_map; stat -c %u:%g /etc/passwd /bin; echo mine > /root/file";
    let mapped = ["run", "--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536", "--remap-labels"];
    let said = node.ctr(mapped.into_iter().chain([name.as_str(), "c", "sh", "-c", script])).ok();
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(words, ["0", "100000", "65536", "0:0", "0:0"], "{said}");
    // On the host it belongs to the mapped root, and the layers are as they were.
    let owners: Vec<u32> = std::fs::read_dir(node.join(FOLDER))
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::metadata(entry.path().join("fs/root/file")).ok())
        .map(|metadata| metadata.uid())
        .collect();
    assert_eq!(owners, [100_000]);
    node.ctr(["containers", "rm", "c"]).ok();
    node.finish();
}
