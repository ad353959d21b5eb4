//! Snapshotters beside overlayfs, each through its whole life, beside Debian's containerd 2.1.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use corten_api::services::leases::{AddResourceRequest, CreateRequest as CreateLease, Resource};
use corten_tests::disk::{Disk, loop_devices, make_file_system};
use corten_tests::{
    Blob, Client, Digest, Image, ImageBuilder, Layer, Node, Peers, Scratch, command, eventually,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// A snapshotter under test.
struct Kind {
    name: &'static str,
    /// Keeps what its root lies on.
    _disk: Option<Disk>,
    scratch: Scratch,
    root: PathBuf,
    /// Further settings.
    settings: String,
}

impl Kind {
    fn btrfs() -> Self {
        let disk = Disk::new("btrfs", 512);
        let root = disk.join("snapshots.of.containerd");
        Self { name: "btrfs", _disk: Some(disk), scratch: Scratch::new(), root, settings: String::new() }
    }

    fn erofs() -> Self {
        let scratch = Scratch::new();
        let root = scratch.join("erofs");
        Self { name: "erofs", _disk: None, scratch, root, settings: String::new() }
    }

    fn blockfile() -> Self {
        let scratch = Scratch::new();
        make_file_system(&scratch.join("empty"), "ext4", 32);
        let root = scratch.join("blockfile");
        let settings = format!("scratch_file = {:?}\nfs_type = \"ext4\"\n", scratch.join("empty"));
        Self { name: "blockfile", _disk: None, scratch, root, settings }
    }

    fn config(&self) -> String {
        let differs = if self.name == "erofs" {
            "[plugins.\"io.containerd.service.v1.diff-service\"]\ndefault = [\"erofs\", \"walking\"]\n"
        } else {
            ""
        };
        format!(
            "version = 3\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             {differs}[plugins.\"io.containerd.snapshotter.v1.{}\"]\nroot_path = {:?}\n{}",
            self.name, self.root, self.settings
        )
    }

    fn start(&self) -> Node {
        let node = Node::builder().config(&self.config()).start();
        self.hold_views(&node);
        node
    }

    /// Makes a lease that keeps the views these tests make: nothing else holds a view against the collector,
    /// which also runs when a daemon starts.
    fn hold_views(&self, node: &Node) {
        let client = Client::new(&node.address(), Some(node.namespace()));
        client
            .wait(client.leases().create(CreateLease { id: "views".into(), ..Default::default() }))
            .unwrap();
        for view in ["v", "w", "n"] {
            let resource = Resource { id: view.into(), r#type: format!("snapshots/{}", self.name) };
            let request = AddResourceRequest { id: "views".into(), resource: Some(resource) };
            client.wait(client.leases().add_resource(request)).unwrap();
        }
    }

    /// `ctr snapshots` of Debian, which prints mounts in one form for all daemons.
    fn snapshots(&self, node: &Node, arguments: &[&str]) -> String {
        let arguments = [&["snapshots", "--snapshotter", self.name], arguments].concat();
        command::run(node.foreign_ctr_command(&Peers::find().containerd_2_1().join("ctr"), arguments)).ok()
    }

    fn remove(&self, node: &Node, keys: &[&str]) {
        for key in keys {
            node.ctr(["snapshots", "--snapshotter", self.name, "rm", key]).ok();
        }
    }

    /// Does something with the mounted files of a snapshot that is there.
    fn with_mounted<T>(&self, node: &Node, key: &str, work: impl FnOnce(&Path) -> T) -> T {
        let target = node.join("mounted");
        std::fs::create_dir_all(&target).unwrap();
        let mut shell = Command::new("sh");
        shell.arg("-ec").arg(self.snapshots(node, &["mounts", target.to_str().unwrap(), key]));
        command::run(shell).ok();
        let done = work(&target);
        rustix::mount::unmount(&target, rustix::mount::UnmountFlags::empty()).unwrap();
        done
    }

    /// Numbers of what is on disk.
    fn on_disk(&self) -> Vec<String> {
        let mut found = Vec::new();
        for folder in ["active", "view", "snapshots"] {
            let folder = std::fs::read_dir(self.root.join(folder)).into_iter().flatten().flatten();
            found.extend(folder.map(|entry| entry.file_name().to_string_lossy().into_owned()));
        }
        found.sort();
        found
    }

    /// Nothing is left once nobody needs anything.
    fn is_clean(&self) {
        eventually("nothing is left on disk", PATIENCE, || self.on_disk().is_empty().then_some(()));
        eventually("loop devices are gone", PATIENCE, || loop_devices(&self.root).is_empty().then_some(()));
        let mounts: Vec<_> = self.scratch.mounts().into_iter().collect();
        assert!(mounts.is_empty(), "{mounts:?}");
    }
}

/// All mounts that a history of snapshots answers, with the root's path and devices' numbers taken out.
fn history(kind: &Kind, node: &Node) -> String {
    let mut told = String::new();
    for line in [
        "prepare a",
        "commit A a",
        "view v A",
        "prepare b A",
        "commit B b",
        "view w B",
        "prepare c B",
        "view n",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let (verb, names) = words.split_first().unwrap();
        let flags: &[&str] = if *verb == "commit" { &[] } else { &["--mounts", "--target", "/T"] };
        let answer = kind.snapshots(node, &[&[*verb], flags, names].concat());
        told.push_str(&format!("{line}\n{answer}\n"));
    }
    told.push_str(&kind.snapshots(node, &["ls"]));
    let device = regex::Regex::new("/dev/loop[0-9]+").unwrap();
    device.replace_all(&told.replace(&kind.root.display().to_string(), "ROOT"), "/dev/loopN").into_owned()
}

fn answers_as_debian(kind: fn() -> Kind) {
    let (ours, debians) = (kind(), kind());
    let our_node = ours.start();
    let told = history(&ours, &our_node);
    let debian = Node::peer(&Peers::find().containerd_2_1()).config(&debians.config()).start();
    debians.hold_views(&debian);
    let expected = history(&debians, &debian);
    assert!(expected.contains("mount -t"), "{expected}");
    assert_eq!(told, expected, "ours, then Debian's");
    ours.remove(&our_node, &["n", "c", "w", "v", "B", "A"]);
    ours.is_clean();
    our_node.finish();
}

fn sizes(kind: &Kind, node: &Node, key: &str) -> (u64, u64) {
    let table = kind.snapshots(node, &["usage", "-b", key]);
    let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    let number = |text: &str| text.trim_end_matches('B').parse().unwrap();
    (number(row[1]), number(row[2]))
}

/// Snapshots keep what is written to them, hide it from each other, are measured, survive a crash, and go.
fn keeps_its_word(kind: &Kind) {
    let mut node = kind.start();
    kind.snapshots(&node, &["prepare", "a"]);
    kind.with_mounted(&node, "a", |at| {
        std::fs::write(at.join("kept"), "below").unwrap();
        std::fs::write(at.join("gone"), "below").unwrap();
        std::fs::write(at.join("changed"), vec![1; 1 << 20]).unwrap();
        std::fs::create_dir(at.join("folder")).unwrap();
    });
    assert!(sizes(kind, &node, "a").0 > 0);
    node.kill_daemon();
    node.start_daemon();
    kind.snapshots(&node, &["commit", "A", "a"]);
    let measured = sizes(kind, &node, "A");
    assert!(measured.1 > 0, "{measured:?}");
    kind.snapshots(&node, &["prepare", "b", "A"]);
    kind.with_mounted(&node, "b", |at| {
        std::fs::remove_file(at.join("gone")).unwrap();
        std::fs::write(at.join("changed"), "above").unwrap();
        std::fs::write(at.join("folder/new"), "above").unwrap();
    });
    kind.snapshots(&node, &["commit", "B", "b"]);
    kind.snapshots(&node, &["prepare", "c", "B"]);
    node.kill_daemon();
    node.start_daemon();
    assert_eq!(sizes(kind, &node, "A"), measured);
    kind.with_mounted(&node, "c", |at| {
        assert!(!at.join("gone").exists());
        assert_eq!(std::fs::read_to_string(at.join("changed")).unwrap(), "above");
        assert_eq!(std::fs::read_to_string(at.join("kept")).unwrap(), "below");
        std::fs::write(at.join("kept"), "only in c").unwrap();
    });
    for (view, parent, kept, changed) in [("v", "A", "below", 1 << 20), ("w", "B", "below", 5)] {
        kind.snapshots(&node, &["view", view, parent]);
        kind.with_mounted(&node, view, |at| {
            assert_eq!(std::fs::read_to_string(at.join("kept")).unwrap(), kept);
            assert_eq!(std::fs::metadata(at.join("changed")).unwrap().len(), changed);
            assert!(std::fs::write(at.join("kept"), "x").is_err(), "a view is read only");
        });
    }
    let refused = node.ctr(["snapshots", "--snapshotter", kind.name, "rm", "A"]);
    refused.fails_with("cannot remove snapshot with child: failed precondition");
    kind.remove(&node, &["w", "v", "c", "B", "A"]);
    kind.is_clean();
    node.finish();
}

/// An image of three layers, and containers on it.
fn runs_containers(kind: &Kind) {
    let mut node = kind.start();
    let archive = node.join("image.tar");
    let second = Layer::new().file("tmp/above", 0o644, b"two\n").file("etc/.wh.group", 0o644, b"").finish();
    let third = Layer::new().file("tmp/above", 0o600, b"three\n").dir("opt", 0o700).finish();
    ImageBuilder::busybox().layer(second).layer(third).build().save(&archive, "lab/box:1").unwrap();
    let archive = archive.to_str().unwrap();
    node.ctr(["images", "import", "--snapshotter", kind.name, archive]).ok();
    let run = ["run", "--rm", "--snapshotter", kind.name, "lab/box:1"];
    let script = "cat /tmp/above; ls /etc; echo new > /tmp/above; rm /bin/nc; cat /tmp/above";
    let told = node.ctr([&run[..], &["one", "sh", "-c", script]].concat()).ok();
    assert_eq!(told, "three\npasswd\nnew\n");
    let told = node.ctr([&run[..], &["two", "sh", "-c", "cat /tmp/above; ls /bin/nc"]].concat()).ok();
    assert_eq!(told, "three\n/bin/nc\n");
    // One that goes on while the daemon is killed.
    node.ctr(["run", "-d", "--snapshotter", kind.name, "lab/box:1", "long", "sleep", "1000"]).ok();
    node.kill_daemon();
    node.start_daemon();
    let told = node.ctr(["tasks", "exec", "--exec-id", "e", "long", "cat", "/tmp/above"]).ok();
    assert_eq!(told, "three\n");
    node.ctr(["tasks", "rm", "--force", "long"]).ok();
    node.ctr(["containers", "rm", "long"]).ok();
    node.ctr(["images", "rm", "--sync", "lab/box:1"]).ok();
    kind.is_clean();
    node.finish();
}

/// Kills at random moments of imports leave nothing that hinders the next one or stays for ever.
fn survives_kills(kind: &Kind) {
    let mut node = kind.start();
    let archive = node.join("image.tar");
    let mut image = ImageBuilder::busybox();
    for number in 0..6 {
        image = image.layer(Layer::new().file(&format!("tmp/{number}"), 0o644, &[number; 100_000]).finish());
    }
    image.build().save(&archive, "lab/box:1").unwrap();
    let import = ["images", "import", "--snapshotter", kind.name, archive.to_str().unwrap()];
    let mut random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    for _ in 0..6 {
        let running = node.ctr_running(import);
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_millis(random >> 55));
        node.kill_daemon();
        drop(running.finish());
        node.start_daemon();
    }
    node.ctr(import).ok();
    let run = ["run", "--rm", "--snapshotter", kind.name, "lab/box:1", "c", "wc", "-c", "/tmp/5"];
    assert_eq!(node.ctr(run).ok(), "100000 /tmp/5\n");
    node.ctr(["images", "rm", "--sync", "lab/box:1"]).ok();
    // Leases of what was killed keep it for a day.
    for lease in node.ctr(["leases", "ls", "-q"]).ok().lines() {
        node.ctr(["leases", "rm", lease]).ok();
    }
    kind.is_clean();
    node.finish();
}

/// A layer of files, as an erofs image.
fn erofs_image(node: &Node, files: &[(&str, &str)]) -> Blob {
    let (tree, image) = (node.join("tree"), node.join("layer.erofs"));
    std::fs::remove_dir_all(&tree).ok();
    std::fs::remove_file(&image).ok();
    for (name, text) in files {
        let path = tree.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let mut make = Command::new("mkfs.erofs");
    make.args(["--quiet", "-Enoinline_data"]).arg(&image).arg(&tree);
    command::run(make).ok();
    Blob::new("application/vnd.erofs.layer.v1", std::fs::read(image).unwrap())
}

/// An image whose upper layers are erofs images on their own.
#[test]
fn layers_that_are_erofs_images_are_used_as_they_are() {
    let kind = Kind::erofs();
    let node = kind.start();
    let box_image = ImageBuilder::busybox().build();
    let mut layers: Vec<Blob> =
        box_image.blobs.iter().filter(|blob| blob.media_type.contains("layer")).cloned().collect();
    let mut config: serde_json::Value = serde_json::from_slice(&box_image.blobs[0].data).unwrap();
    let diff_ids = config["rootfs"]["diff_ids"].as_array_mut().unwrap();
    for files in [&[("tmp/one", "1"), ("tmp/both", "1")], &[("tmp/two", "2"), ("tmp/both", "2")]] {
        let layer = erofs_image(&node, files);
        diff_ids.push(serde_json::json!(layer.digest()));
        layers.push(layer);
    }
    let config = Blob::new(&box_image.blobs[0].media_type, config.to_string().into_bytes());
    let archive = node.join("image.tar");
    Image::new(config, layers.clone()).save(&archive, "lab/native:1").unwrap();
    let archive = archive.to_str().unwrap();
    // Nobody else can do anything with them.
    let refused = node.ctr(["images", "import", "--snapshotter", "overlayfs", archive]);
    refused.fails_with("application/vnd.erofs.layer.v1: no processor for media-type");
    node.ctr(["images", "import", "--snapshotter", "erofs", archive]).ok();
    let script = "cat /tmp/one /tmp/two /tmp/both; echo x > /tmp/one; cat /tmp/one";
    let run = ["run", "--rm", "--snapshotter", "erofs", "lab/native:1", "c", "sh", "-c", script];
    assert_eq!(node.ctr(run).ok(), "122x\n");
    // What is on disk is the blob.
    let snapshots = std::fs::read_dir(kind.root.join("snapshots")).unwrap().flatten();
    let digests: Vec<Digest> = snapshots
        .filter_map(|entry| std::fs::read(entry.path().join("layer.erofs")).ok())
        .map(|data| Digest::sha256(&data))
        .collect();
    assert!(layers[1..].iter().all(|layer| digests.contains(&layer.digest())), "{digests:?}");
    node.ctr(["images", "rm", "--sync", "lab/native:1"]).ok();
    kind.is_clean();
    node.finish();
}

/// After a loss of power the images of layers are mounted again when somebody needs them.
#[test]
fn erofs_layers_are_mounted_again_after_a_reboot() {
    let kind = Kind::erofs();
    let mut node = kind.start();
    let archive = node.join("image.tar");
    let above = Layer::new().file("tmp/above", 0o644, b"two\n").finish();
    ImageBuilder::busybox().layer(above).build().save(&archive, "lab/box:1").unwrap();
    node.ctr(["images", "import", "--snapshotter", "erofs", archive.to_str().unwrap()]).ok();
    kind.snapshots(&node, &["prepare", "kept", &top(&kind, &node)]);
    node.kill_daemon();
    assert!(!kind.scratch.mounts().is_empty());
    for mount in kind.scratch.mounts() {
        rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::empty()).unwrap();
    }
    node.start_daemon();
    kind.with_mounted(&node, "kept", |at| {
        assert_eq!(std::fs::read_to_string(at.join("tmp/above")).unwrap(), "two\n");
        assert!(at.join("bin/busybox").is_file());
    });
    kind.remove(&node, &["kept"]);
    node.ctr(["images", "rm", "--sync", "lab/box:1"]).ok();
    kind.is_clean();
    node.finish();
}

/// The snapshot that nobody stands on.
fn top(kind: &Kind, node: &Node) -> String {
    let table = kind.snapshots(node, &["ls"]);
    let rows: Vec<Vec<&str>> = table.lines().skip(1).map(|row| row.split_whitespace().collect()).collect();
    let parents: Vec<&str> = rows.iter().filter(|row| row.len() == 3).map(|row| row[1]).collect();
    rows.iter().map(|row| row[0]).find(|name| !parents.contains(name)).unwrap().to_owned()
}

#[test]
fn subvolumes_that_somebody_made_in_a_snapshot_go_with_it() {
    let kind = Kind::btrfs();
    let node = kind.start();
    kind.snapshots(&node, &["prepare", "a"]);
    kind.with_mounted(&node, "a", |at| {
        std::fs::create_dir(at.join("folder")).unwrap();
        for name in ["folder/inner", "folder/inner/innermost", "other"] {
            let mut make = Command::new("btrfs");
            make.args(["subvolume", "create"]).arg(at.join(name));
            command::run(make).ok();
            std::fs::write(at.join(name).join("file"), name).unwrap();
        }
    });
    kind.remove(&node, &["a"]);
    kind.is_clean();
    node.finish();
}

#[test]
fn snapshotters_that_cannot_be_are_skipped_with_the_reason() {
    let node = Node::start();
    let table = node.ctr(["plugins", "ls"]).ok();
    let status = |id: &str| {
        let row = table.lines().find(|row| row.contains("snapshotter.v1") && row.contains(id)).unwrap();
        row.split_whitespace().nth(3).unwrap().to_owned()
    };
    assert_eq!([status("blockfile"), status("erofs")], ["skip", "ok"]);
    assert!(node.log().contains("no scratch file generator: skip plugin"));
    if status("btrfs") == "skip" {
        let reason = "must be a btrfs filesystem to be used with the btrfs snapshotter: skip plugin";
        assert!(node.log().contains(reason), "{}", node.log());
    }
    let refused = node.ctr(["snapshots", "--snapshotter", "blockfile", "ls"]);
    refused.fails_with("snapshotter not loaded: blockfile");
    node.finish();
}

#[test]
fn btrfs_survives_kills() {
    survives_kills(&Kind::btrfs());
}

#[test]
fn erofs_survives_kills() {
    survives_kills(&Kind::erofs());
}

#[test]
fn blockfile_survives_kills() {
    survives_kills(&Kind::blockfile());
}

#[test]
fn btrfs_answers_mounts_as_debian_does() {
    answers_as_debian(Kind::btrfs);
}

#[test]
fn btrfs_keeps_its_word() {
    keeps_its_word(&Kind::btrfs());
}

#[test]
fn containers_run_on_btrfs() {
    runs_containers(&Kind::btrfs());
}

#[test]
fn erofs_answers_mounts_as_debian_does() {
    answers_as_debian(Kind::erofs);
}

#[test]
fn erofs_keeps_its_word() {
    keeps_its_word(&Kind::erofs());
}

#[test]
fn containers_run_on_erofs() {
    runs_containers(&Kind::erofs());
}

#[test]
fn blockfile_answers_mounts_as_debian_does() {
    answers_as_debian(Kind::blockfile);
}

#[test]
fn blockfile_keeps_its_word() {
    keeps_its_word(&Kind::blockfile());
}

#[test]
fn containers_run_on_blockfile() {
    runs_containers(&Kind::blockfile());
}
