//! Layers into snapshots.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use corten_images::Platforms;
use corten_metadata::{Collector, CollectorOptions};
use corten_mounts::TempMount;
use corten_registry::testing::Fault;
use corten_types::{Digest, Platform};

use super::build::{self, Image, Layer};
use super::*;

const SNAPSHOTTERS: [&str; 2] = ["overlayfs", "native"];

impl Daemon {
    /// Names of all snapshots.
    pub(crate) async fn snapshot_names(&self, snapshotter: &str) -> Vec<String> {
        let records = self.snapshots.list(&ctx(), snapshotter, &[]).await.unwrap();
        records.into_iter().map(|record| record.name).collect()
    }

    /// What a container on a snapshot would see: files with their text, folders with their mode.
    async fn tree(&self, snapshotter: &str, top: &Digest) -> BTreeMap<String, String> {
        let mounts =
            self.snapshots.view(&ctx(), snapshotter, "look", top.as_str(), Labels::new()).await.unwrap();
        let mounted = TempMount::new(self.dir.path(), &mounts).unwrap();
        let mut tree = BTreeMap::new();
        walk(mounted.path(), "", &mut tree);
        drop(mounted);
        self.snapshots.remove(&ctx(), snapshotter, "look").await.unwrap();
        tree
    }

    fn collector(&self) -> Collector {
        let options = CollectorOptions { startup_delay: Duration::from_secs(3600), ..Default::default() };
        let sweepers: Vec<Arc<dyn corten_metadata::Sweeper>> =
            vec![Arc::new(self.content.clone()), Arc::new(self.snapshots.clone())];
        Collector::start(self.database.clone(), corten_events::Exchange::default(), sweepers, options)
    }
}

fn walk(folder: &std::path::Path, prefix: &str, tree: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let metadata = entry.path().symlink_metadata().unwrap();
        if metadata.is_dir() {
            tree.insert(format!("{path}/"), format!("{:o}", metadata.mode() & 0o7777));
            walk(&entry.path(), &format!("{path}/"), tree);
        } else if metadata.is_file() {
            tree.insert(path, std::fs::read_to_string(entry.path()).unwrap());
        } else {
            tree.insert(path, format!("{:?}", metadata.file_type()));
        }
    }
}

fn seen(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    entries.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}

/// Layers that add, replace and remove, in all compressions, and folders that are used without being listed.
fn stack() -> Vec<Layer> {
    vec![
        Layer::gzip(&[
            ("etc/", "755"),
            ("etc/a", "1"),
            ("etc/b", "1"),
            ("tmp/", "1777"),
            ("old/", "755"),
            ("old/x", ""),
        ]),
        Layer::zstd(&[("etc/b", "2"), ("etc/.wh.a", ""), ("tmp/c", "3"), (".wh.nothing", "")]),
        Layer::plain(&[("old/.wh..wh..opq", ""), ("old/y", "4"), ("tmp/new/d", "5")]),
    ]
}

fn stacked() -> BTreeMap<String, String> {
    seen(&[
        ("etc/", "755"),
        ("etc/b", "2"),
        ("old/", "755"),
        ("old/y", "4"),
        ("tmp/", "1777"),
        ("tmp/c", "3"),
        ("tmp/new/", "755"),
        ("tmp/new/d", "5"),
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_become_a_stack_of_snapshots() {
    for (snapshotter, at_once) in [("overlayfs", 4), ("overlayfs", 1), ("native", 4)] {
        let registry = ScriptedRegistry::start().await;
        let daemon = Daemon::with(Options { max_concurrent_unpacks: at_once, ..Options::default() });
        let image = Image::new(&stack());
        image.push(&registry, "1.0");
        daemon.pull(&registry, "1.0", unpacked(&registry, "1.0", snapshotter)).await.unwrap();
        let chain = image.chain();
        assert_eq!(daemon.tree(snapshotter, &chain[2]).await, stacked(), "{snapshotter} {at_once}");
        let config = daemon.labels(&image.config_digest());
        assert_eq!(config[&format!("containerd.io/gc.ref.snapshot.{snapshotter}")], chain[2].to_string());
        let mut want: Vec<_> = chain.iter().map(ToString::to_string).collect();
        want.sort();
        assert_eq!(daemon.snapshot_names(snapshotter).await, want, "nothing else is left");
        for (index, layer) in image.layers.iter().enumerate() {
            let uncompressed = &daemon.labels(&layer.descriptor().digest)["containerd.io/uncompressed"];
            assert_eq!(*uncompressed, layer.diff_id.to_string());
            let snapshot = daemon.snapshots.stat(&ctx(), snapshotter, chain[index].as_str()).await.unwrap();
            assert_eq!(snapshot.labels["containerd.io/snapshot.ref"], chain[index].to_string());
            assert_eq!(snapshot.labels["containerd.io/snapshot/diff-id"], layer.diff_id.to_string());
            let parent = index.checked_sub(1).map(|below| chain[below].to_string());
            assert_eq!(snapshot.parent, parent.clone().unwrap_or_default());
            assert_eq!(snapshot.labels.get("containerd.io/snapshot/parent-chain-id"), parent.as_ref());
        }
    }
}

#[tokio::test]
async fn a_layer_that_is_not_what_it_says_leaves_no_snapshot() {
    for snapshotter in SNAPSHOTTERS {
        let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
        let layers = stack();
        let wrong = Digest::sha256(b"something else");
        let diff_ids = [layers[0].diff_id.clone(), wrong.clone(), layers[2].diff_id.clone()];
        let image = Image::with_diff_ids(&Platform::host().architecture, &layers, &diff_ids);
        image.push(&registry, "1.0");
        let pull = daemon.pull(&registry, "1.0", unpacked(&registry, "1.0", snapshotter)).await;
        let blob = layers[1].descriptor().digest;
        assert_eq!(
            pull.unwrap_err().to_string(),
            format!(
                "wrong diff id {:?} calculated on extraction {:?}, desc {:?}",
                layers[1].diff_id.as_str(),
                wrong.as_str(),
                blob.as_str()
            )
        );
        assert!(daemon.names().is_empty());
        let left = daemon.snapshot_names(snapshotter).await;
        assert!(left.iter().all(|name| !name.starts_with("extract-")), "{left:?}");
    }
}

#[tokio::test]
async fn a_damaged_layer_names_itself_and_can_be_mended() {
    for snapshotter in SNAPSHOTTERS {
        let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
        let image = Image::new(&stack());
        image.push(&registry, "1.0");
        let layer = image.layers[0].descriptor();
        registry.cue(layer.digest.hex(), Fault::WrongBytes, 1);
        let pull = daemon.pull(&registry, "1.0", unpacked(&registry, "1.0", snapshotter)).await;
        let error = pull.unwrap_err().to_string();
        // What the registry did wrong is told, not what came of it.
        assert!(
            error.starts_with(&format!("failed commit on ref \"layer-{}\": unexpected", layer.digest)),
            "{error}"
        );
        assert!(daemon.names().is_empty() && daemon.snapshot_names(snapshotter).await.is_empty());
        daemon.pull(&registry, "1.0", unpacked(&registry, "1.0", snapshotter)).await.unwrap();
        assert_eq!(daemon.tree(snapshotter, &image.chain()[2]).await, stacked());
    }
}

#[tokio::test]
async fn a_layer_that_is_no_archive_names_itself() {
    let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
    let mut layer = Layer::gzip(&[("a", &"text".repeat(1000))]);
    layer.blob.truncate(layer.blob.len() / 2);
    let image = Image::new(&[layer.clone()]);
    image.push(&registry, "1.0");
    let pull = daemon.pull(&registry, "1.0", unpacked(&registry, "1.0", "")).await;
    let error = pull.unwrap_err().to_string();
    let want = format!(
        "failed to extract layer ({} {}) to overlayfs as \"extract-",
        layer.media_type,
        layer.descriptor().digest
    );
    assert!(error.starts_with(&want), "{error}");
    assert!(daemon.names().is_empty() && daemon.snapshot_names("overlayfs").await.is_empty());
}

#[tokio::test]
async fn a_config_must_fit_its_manifest() {
    let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
    let layers = stack();
    let image = Image::with_diff_ids(&Platform::host().architecture, &layers, &[layers[0].diff_id.clone()]);
    image.push(&registry, "1.0");
    let error = daemon.pull(&registry, "1.0", unpacked(&registry, "1.0", "")).await.unwrap_err();
    assert_eq!(error.to_string(), "number of layers and diffIDs don't match: 3 != 1");
}

#[tokio::test]
async fn an_unpack_goes_on_where_the_download_broke() {
    for snapshotter in SNAPSHOTTERS {
        let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
        let image = Image::new(&[Layer::gzip(&[("a", "1")]), Layer::large("b", 1_000_000)]);
        image.push(&registry, "1.0");
        let layer = image.layers[1].descriptor();
        registry.cue(layer.digest.hex(), Fault::CutAfter(100_000), 1);
        registry.cue(layer.digest.hex(), Fault::Status(404), 99);
        daemon.pull(&registry, "1.0", unpacked(&registry, "1.0", snapshotter)).await.unwrap_err();
        let left = daemon.snapshot_names(snapshotter).await;
        assert!(left.iter().all(|name| !name.starts_with("extract-")), "{left:?}");
        // The lease keeps it over a collection.
        daemon.collector().trigger().await.unwrap();
        registry.recover();
        registry.forget_requests();
        daemon.pull(&registry, "1.0", unpacked(&registry, "1.0", snapshotter)).await.unwrap();
        let ranges: Vec<_> = registry
            .requests()
            .iter()
            .filter_map(|request| request.header("range").map(str::to_owned))
            .collect();
        assert_eq!(ranges, ["bytes=100000-"]);
        let tree = daemon.tree(snapshotter, &image.chain()[1]).await;
        assert_eq!(tree["b"].len(), 1_000_000);
    }
}

#[tokio::test]
async fn wrong_bytes_that_were_left_are_extracted_anew() {
    for snapshotter in SNAPSHOTTERS {
        let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
        let image = Image::new(&[Layer::gzip(&[("a", "1")]), Layer::large("b", 100_000)]);
        image.push(&registry, "1.0");
        let layer = image.layers[1].descriptor();
        let options = corten_content::WriterOptions {
            reference: format!("layer-{}", layer.digest),
            total: layer.size as u64,
            expected: None,
        };
        let mut writer = daemon.content.writer(&ctx(), options).await.unwrap();
        writer.write(&build::tar(&[("bad", "bad")])).unwrap();
        drop(writer);
        daemon.pull(&registry, "1.0", unpacked(&registry, "1.0", snapshotter)).await.unwrap();
        let tree = daemon.tree(snapshotter, &image.chain()[1]).await;
        assert_eq!(tree.keys().collect::<Vec<_>>(), ["a", "b"]);
        let left = daemon.snapshot_names(snapshotter).await;
        assert_eq!(left.len(), 2, "{left:?}");
    }
}

#[tokio::test]
async fn a_pull_that_is_given_up_removes_what_it_extracted() {
    for snapshotter in SNAPSHOTTERS {
        let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
        let image = Image::new(&[Layer::gzip(&[("a", "1")]), Layer::large("b", 1_000_000)]);
        image.push(&registry, "1.0");
        let layer = image.layers[1].descriptor();
        registry.cue(layer.digest.hex(), Fault::HangAfter(200_000), 99);
        let status = || daemon.content.status(&ctx(), &format!("layer-{}", layer.digest));
        {
            let pull = daemon.pull(&registry, "1.0", unpacked(&registry, "1.0", snapshotter));
            tokio::pin!(pull);
            while status().is_err() || status().unwrap().offset == 0 {
                let step = tokio::time::timeout(Duration::from_millis(5), &mut pull).await;
                assert!(step.is_err(), "the pull hangs");
            }
        }
        // Removed by a task of its own.
        while daemon.snapshot_names(snapshotter).await.iter().any(|name| name.starts_with("extract-")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(daemon.names().is_empty());
        registry.recover();
        daemon.pull(&registry, "1.0", unpacked(&registry, "1.0", snapshotter)).await.unwrap();
        assert_eq!(daemon.tree(snapshotter, &image.chain()[1]).await["b"].len(), 1_000_000);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls_at_the_same_time_unpack_once() {
    for snapshotter in SNAPSHOTTERS {
        let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
        let base = Layer::large("base", 300_000);
        // Images that share layers at the bottom.
        let images: Vec<Image> = (0..4)
            .map(|n| {
                Image::new(&[
                    base.clone(),
                    Layer::gzip(&[("x", "1")]),
                    Layer::plain(&[("own", &format!("{}", n / 2))]),
                ])
            })
            .collect();
        let tags: Vec<String> = (0..4).map(|n| format!("{n}.0")).collect();
        for (image, tag) in images.iter().zip(&tags) {
            image.push(&registry, tag);
        }
        let collector = daemon.collector();
        let pulls = tags.iter().map(|tag| daemon.pull(&registry, tag, unpacked(&registry, tag, snapshotter)));
        let pulls = futures_util::future::join_all(pulls);
        tokio::pin!(pulls);
        // With a collector at work all the time.
        let results = loop {
            tokio::select! {
                results = &mut pulls => break results,
                collected = collector.trigger() => collected.unwrap(),
            }
        };
        for result in results {
            result.unwrap();
        }
        let base_fetches =
            registry.lines().iter().filter(|line| line.contains(base.descriptor().digest.hex())).count();
        assert_eq!(base_fetches, 1);
        assert_eq!(daemon.snapshot_names(snapshotter).await.len(), 4, "two shared ones and two tops");
        collector.trigger().await.unwrap();
        for (n, image) in images.iter().enumerate() {
            let tree = daemon.tree(snapshotter, &image.chain()[2]).await;
            assert_eq!(tree["own"], format!("{}", n / 2));
            assert_eq!(tree["base"].len(), 300_000);
        }
    }
}

#[tokio::test]
async fn layers_that_exist_are_neither_fetched_nor_extracted() {
    let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
    let base = stack();
    Image::new(&base).push(&registry, "1.0");
    daemon.pull(&registry, "1.0", unpacked(&registry, "1.0", "")).await.unwrap();
    let mut more = base.clone();
    more.push(Layer::gzip(&[("top", "1")]));
    let image = Image::new(&more);
    image.push(&registry, "2.0");
    // The blobs are gone, the snapshots are not.
    for layer in &base {
        daemon.content.delete(&ctx(), &layer.descriptor().digest).await.unwrap();
    }
    registry.forget_requests();
    daemon.pull(&registry, "2.0", unpacked(&registry, "2.0", "")).await.unwrap();
    let blobs = registry.lines().iter().filter(|line| line.contains("/blobs/")).count();
    assert_eq!(blobs, 2, "config and top layer: {:?}", registry.lines());
    assert_eq!(daemon.tree("overlayfs", &image.chain()[3]).await["top"], "1");
}

#[tokio::test]
async fn layers_that_exist_join_the_callers_lease() {
    for snapshotter in SNAPSHOTTERS {
        let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
        let image = Image::new(&stack());
        image.push(&registry, "1.0");
        daemon.pull(&registry, "1.0", unpacked(&registry, "1.0", snapshotter)).await.unwrap();
        let lease = daemon.leases.create(&ctx(), "mine", Labels::new()).await.unwrap();
        let request = PullRequest {
            reference: reference(&registry, "1.0"),
            destination: unpacked(&registry, "1.0", snapshotter),
            verifier: None,
        };
        let mine = ctx().with_lease(lease.id);
        daemon.service.pull(&mine, &resolver(), &request, &ProgressSender::none()).await.unwrap();
        daemon.images.delete(&ctx(), &reference(&registry, "1.0"), None).await.unwrap();
        daemon.collector().trigger().await.unwrap();
        assert_eq!(daemon.snapshot_names(snapshotter).await.len(), 3);
        assert!(daemon.content.info(&ctx(), &image.config_digest()).is_ok());
        assert_eq!(daemon.leases.list(&ctx(), &[]).unwrap().len(), 1, "it is the caller's to end");
    }
}

#[tokio::test]
async fn an_image_in_the_store_is_unpacked_from_there() {
    for snapshotter in SNAPSHOTTERS {
        let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
        let image = Image::new(&stack());
        let target =
            build::push_index(&registry, "1.0", &[Image::on("riscv64", &stack()[..1]), image.clone()]);
        daemon.pull(&registry, "1.0", packed(&registry, "1.0")).await.unwrap();
        assert!(daemon.snapshot_names(snapshotter).await.is_empty());
        registry.forget_requests();
        for _ in 0..2 {
            let platforms = Platforms::like(&[Platform::host()]);
            let top = daemon
                .service
                .unpack(&ctx(), &target, &platforms, snapshotter, &ProgressSender::none())
                .await
                .unwrap();
            assert_eq!(top, image.chain()[2]);
        }
        assert!(registry.lines().is_empty());
        assert_eq!(daemon.tree(snapshotter, &image.chain()[2]).await, stacked());
        let label = format!("containerd.io/gc.ref.snapshot.{snapshotter}");
        assert!(daemon.labels(&image.config_digest()).contains_key(&label));
        assert!(daemon.leases.list(&ctx(), &[]).unwrap().is_empty());
    }
}

#[tokio::test]
async fn an_image_of_one_platform_is_unpacked_for_any_other() {
    let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
    let image = Image::on("s390x", &stack());
    image.push(&registry, "1.0");
    daemon.pull(&registry, "1.0", unpacked(&registry, "1.0", "")).await.unwrap();
    assert_eq!(daemon.snapshot_names("overlayfs").await.len(), 3, "there is no other one to choose");
    assert!(daemon.content.info(&ctx(), &image.layers[2].descriptor().digest).is_ok());
}

#[tokio::test]
async fn an_unknown_snapshotter_is_refused() {
    let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
    Image::new(&stack()).push(&registry, "1.0");
    let error = daemon.pull(&registry, "1.0", unpacked(&registry, "1.0", "nowhere")).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "unable to initialize unpacker: no unpack platforms defined: invalid argument"
    );
}

#[tokio::test]
async fn snapshotters_that_fetch_by_themselves_are_told_what() {
    let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
    let image = Image::new(&stack());
    let target = image.push(&registry, "1.0");
    let mut destination = Destination { remote_snapshot_labels: true, ..unpacked(&registry, "1.0", "") };
    destination.unpacks[0].labels.insert("containerd.io/snapshot/max-size".to_owned(), "7".to_owned());
    daemon.pull(&registry, "1.0", destination).await.unwrap();
    let snapshot = daemon.snapshots.stat(&ctx(), "overlayfs", image.chain()[1].as_str()).await.unwrap();
    let label = |name: &str| snapshot.labels[&format!("containerd.io/snapshot/{name}")].clone();
    assert_eq!(label("cri.image-ref"), reference(&registry, "1.0"));
    assert_eq!(label("cri.manifest-digest"), target.digest.to_string());
    assert_eq!(label("cri.layer-digest"), image.layers[1].descriptor().digest.to_string());
    assert_eq!(label("cri.image-layers").split(',').count(), 2);
    assert_eq!(label("max-size"), "7");
}

#[tokio::test]
async fn everything_goes_with_the_image() {
    let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
    let image = Image::new(&stack());
    image.push(&registry, "1.0");
    daemon.pull(&registry, "1.0", unpacked(&registry, "1.0", "")).await.unwrap();
    let collector = daemon.collector();
    collector.trigger().await.unwrap();
    assert_eq!(daemon.snapshot_names("overlayfs").await.len(), 3);
    assert!(daemon.content.info(&ctx(), &image.layers[0].descriptor().digest).is_ok());
    daemon.images.delete(&ctx(), &reference(&registry, "1.0"), None).await.unwrap();
    collector.trigger().await.unwrap();
    assert!(daemon.snapshot_names("overlayfs").await.is_empty());
    assert!(daemon.content.list(&ctx(), &[]).unwrap().is_empty());
}

#[tokio::test]
async fn imported_images_are_unpacked_too() {
    let daemon = Daemon::start();
    let image = Image::new(&stack());
    let archive = build::layout(&[(&image, &[("io.containerd.image.name", "reg.example/a:1")])]);
    let unpack = corten_images::Unpack { platform: Platform::host(), ..Default::default() };
    let rule = corten_images::ImageReference {
        is_prefix: true,
        name: "reg.example".to_owned(),
        ..Default::default()
    };
    let destination =
        Destination { unpacks: vec![unpack], extra_references: vec![rule], ..Destination::default() };
    let request = corten_images::ImportRequest { destination, ..Default::default() };
    let input = std::io::Cursor::new(archive);
    daemon.service.import(&ctx(), input, &request, &ProgressSender::none()).await.unwrap();
    assert_eq!(daemon.tree("overlayfs", &image.chain()[2]).await, stacked());
    daemon.collector().trigger().await.unwrap();
    assert_eq!(daemon.snapshot_names("overlayfs").await.len(), 3);
}
