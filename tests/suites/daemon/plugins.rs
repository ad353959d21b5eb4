//! The daemon's parts: what there is, what is disabled, what fails, and what follows from that.

use std::collections::BTreeMap;

use corten_api::services::introspection::{Plugin, PluginsRequest};
use corten_tests::{Client, Node, Peers};
use tonic::Code;

/// What only makes noise in these tests, and listens outside of the test's folder.
const NOISE: &str = "'io.containerd.grpc.v1.cri', 'io.containerd.nri.v1.nri'";

fn table(node: &Node) -> Vec<Plugin> {
    let client = Client::new(&node.address(), None);
    client.wait(client.introspection().plugins(PluginsRequest::default())).unwrap().plugins
}

/// Type and id, code and message of those that do not work.
fn failures(plugins: &[Plugin]) -> BTreeMap<String, (i32, String)> {
    let failed = plugins.iter().filter_map(|plugin| Some((plugin, plugin.init_err.clone()?)));
    failed
        .map(|(plugin, status)| (format!("{}.{}", plugin.r#type, plugin.id), (status.code, status.message)))
        .collect()
}

fn uris(plugins: &[Plugin]) -> Vec<String> {
    plugins.iter().map(|plugin| format!("{}.{}", plugin.r#type, plugin.id)).collect()
}

#[test]
fn the_table_is_that_of_debians_containerd() {
    let (mine, other) = (Node::start(), Node::peer(&Peers::find().containerd_2_1()).start());
    let (own, foreign) = (table(&mine), table(&other));
    let find = |uri: &str| foreign.iter().find(|plugin| format!("{}.{}", plugin.r#type, plugin.id) == uri);
    for plugin in &own {
        let uri = format!("{}.{}", plugin.r#type, plugin.id);
        let Some(like) = find(&uri) else {
            // Since version 2.2.
            let newer = [
                "io.containerd.server.v1.",
                "io.containerd.mount",
                "io.containerd.grpc.v1.mounts",
                "io.containerd.http",
                "io.containerd.metrics",
            ];
            assert!(newer.iter().any(|one| uri.starts_with(one)), "{uri} is not known to Debian's");
            continue;
        };
        let names =
            |plugin: &Plugin| plugin.exports.keys().cloned().collect::<std::collections::BTreeSet<_>>();
        // An old export is told by nobody any more: what is told here is told there.
        assert!(names(plugin).is_superset(&names(like)), "{uri}: {:?} and {:?}", names(plugin), names(like));
        assert_eq!(plugin.platforms.is_empty(), like.platforms.is_empty(), "{uri} platforms");
        // Since version 2.2 there is one more.
        let known = plugin.capabilities.iter().filter(|one| *one != "rebase").cloned().collect::<Vec<_>>();
        assert_eq!(known, like.capabilities, "{uri}");
    }
    for (node, plugins) in [(&mine, &own), (&other, &foreign)] {
        let gc = plugins.iter().find(|plugin| plugin.r#type == "io.containerd.gc.v1").unwrap();
        let told: BTreeMap<_, _> = gc.exports.iter().collect();
        let told: Vec<String> = told.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(
            told,
            ["DeletionThreshold=0", "MutationThreshold=100", "PauseThreshold=0.02", "ScheduleDelay=0s"]
        );
        assert!(node.ctr(["plugins", "ls"]).ok().contains("io.containerd.service.v1"));
    }
    mine.finish();
    other.finish();
}

#[test]
fn what_is_disabled_takes_along_what_needs_it() {
    for disabled in [
        "'io.containerd.metadata.v1.bolt'",
        "'io.containerd.service.v1.containers-service', 'io.containerd.runtime.v2.task', 'io.containerd.lease.v1.manager', 'io.containerd.differ.v1.walking'",
        "'io.containerd.grpc.v1.containers', 'io.containerd.event.v1.exchange'",
        "'io.containerd.snapshotter.v1.native', 'io.containerd.gc.v1.scheduler'",
    ] {
        let config = format!("version = 3\ndisabled_plugins = [{disabled}, {NOISE}]\n");
        let mine = Node::builder().config(&config).start();
        let other = Node::peer(&Peers::find().containerd_2_1()).config(&config).start();
        let (own, foreign) = (table(&mine), table(&other));
        for uri in disabled.split(", ").map(|uri| uri.trim_matches('\'')) {
            assert!(!uris(&own).iter().any(|one| one == uri), "{uri} is not there");
        }
        let common = |failures: BTreeMap<String, (i32, String)>, of: &[Plugin]| -> BTreeMap<_, _> {
            let known = uris(of);
            // What is about the host, and what names other parts that it needs.
            let apart = ["snapshotter", "sandbox", "restart", "tracing", "monitor"];
            failures
                .into_iter()
                .filter(|(uri, _)| known.contains(uri) && !apart.iter().any(|word| uri.contains(word)))
                .collect()
        };
        assert_eq!(common(failures(&own), &foreign), common(failures(&foreign), &own), "{disabled}");
        let client = Client::new(&mine.address(), Some(mine.namespace()));
        let listed = client.wait(
            client.containers().list(corten_api::services::containers::ListContainersRequest::default()),
        );
        let gone = own.iter().all(|plugin| {
            !(plugin.r#type == "io.containerd.grpc.v1"
                && plugin.id == "containers"
                && plugin.init_err.is_none())
        });
        match listed {
            Ok(_) => assert!(!gone, "{disabled}"),
            Err(status) => assert_eq!((status.code(), gone), (Code::Unimplemented, true), "{disabled}"),
        }
        client.wait(client.version().version(())).unwrap();
        mine.finish();
        other.finish();
    }
}

#[test]
fn a_part_that_fails_is_shown_and_the_rest_serves() {
    let node = Node::builder()
        .config("version = 3\n[plugins.'io.containerd.snapshotter.v1.overlayfs']\nroot_path = '/proc/nonexistent'\n[plugins.'io.containerd.service.v1.diff-service']\ndefault = ['odd']\n")
        .start();
    let failed = failures(&table(&node));
    assert!(failed["io.containerd.snapshotter.v1.overlayfs"].1.contains("/proc/nonexistent"), "{failed:?}");
    assert_eq!(failed["io.containerd.grpc.v1.diff"].1, "needed differ not loaded: odd");
    assert!(node.log().contains("level=warning msg=\"failed to load plugin\""), "{}", node.log());
    let shown = node.ctr(["plugins", "ls", "id==overlayfs"]).ok();
    assert!(shown.contains(" error "), "{shown}");
    node.ctr(["snapshots", "--snapshotter", "native", "prepare", "one"]).ok();
    node.ctr(["snapshots", "--snapshotter", "native", "rm", "one"]).ok();
    assert!(node.ctr(["snapshots", "prepare", "one"]).fails(1).contains("overlayfs"));
    node.finish();

    let node = Node::builder()
        .config("version = 3\n[plugins.'io.containerd.metadata.v1.bolt']\ncontent_sharing_policy = 'odd'\n")
        .start();
    let failed = failures(&table(&node));
    let text = "unknown policy: odd: invalid argument".to_owned();
    for uri in [
        "io.containerd.metadata.v1.bolt",
        "io.containerd.grpc.v1.containers",
        "io.containerd.lease.v1.manager",
    ] {
        assert_eq!(failed[uri], (Code::InvalidArgument.into(), text.clone()), "{uri}");
    }
    node.finish();
}

#[test]
fn deprecations_of_the_host_are_told() {
    let node = Node::start();
    let listed = node.ctr(["deprecations", "list"]).ok();
    let old = !std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    assert_eq!(listed.contains("io.containerd.deprecation/cgroup-v1"), old, "{listed}");
    node.finish();
}
