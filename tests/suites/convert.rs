//! Images in other forms and on folders: `ctr images convert`, `inspect`, `mount` and `unmount`.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use corten_tests::image::{gzip, host_architecture};
use corten_tests::{Blob, Digest, Image, ImageBuilder, Layer, Node, Peers};
use corten_types::media_type;
use serde_json::json;

const OCI: &str = "example.com/lab/oci:1";
const DOCKER: &str = "example.com/lab/docker:1";

/// An image for two platforms, in Docker's types.
fn docker() -> Image {
    let mut blobs = Vec::new();
    let mut manifests = Vec::new();
    for (architecture, text) in [(host_architecture(), "here"), ("s390x", "there")] {
        let tar = Layer::new().file("file", 0o644, text.as_bytes()).finish();
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [Digest::sha256(&tar)]},
        });
        let config = Blob::new(media_type::DOCKER_CONFIG, config.to_string().into_bytes());
        let layer = Blob::new(media_type::DOCKER_LAYER_GZIP, gzip(&tar));
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type::DOCKER_MANIFEST,
            "config": config.descriptor(), "layers": [layer.descriptor()], "annotations": {"a": "b"},
        });
        let manifest = Blob::new(media_type::DOCKER_MANIFEST, manifest.to_string().into_bytes());
        let mut descriptor = manifest.descriptor();
        descriptor["platform"] = json!({"architecture": architecture, "os": "linux"});
        manifests.push(descriptor);
        blobs.extend([config, layer, manifest]);
    }
    let index = json!({"schemaVersion": 2, "mediaType": media_type::DOCKER_INDEX, "manifests": manifests});
    Image { target: Blob::new(media_type::DOCKER_INDEX, index.to_string().into_bytes()), blobs }
}

fn import(node: &Node) {
    for (name, image) in [(OCI, ImageBuilder::busybox().build()), (DOCKER, docker())] {
        let archive = node.join("image.tar");
        image.save(&archive, name).unwrap();
        node.ctr(["images", "import", "--no-unpack", "--all-platforms", archive.to_str().unwrap()]).ok();
    }
}

/// What `images inspect` shows, without times.
fn tree(node: &Node, name: &str) -> Vec<String> {
    let shown = node.ctr(["images", "inspect", name]).ok();
    let is_time = |line: &&str| line.contains("Created: ") || line.contains("Updated: ");
    shown.lines().filter(|line| !is_time(line)).map(str::to_owned).collect()
}

#[test]
fn images_are_converted_and_shown_as_by_debians_containerd() {
    let (ours, theirs) = (Node::start(), Node::peer(&Peers::find().containerd_2_1()).start());
    for node in [&ours, &theirs] {
        import(node);
    }
    let all: [&[&str]; 5] = [
        &["--oci", OCI],
        &["--uncompress", OCI],
        &["--oci", "--all-platforms", DOCKER],
        &["--uncompress", "--oci", DOCKER],
        &["--uncompress", "--platform", "linux/s390x", DOCKER],
    ];
    for flags in all {
        let convert = |node: &Node| {
            let words = ["images", "convert"].iter().chain(flags).chain(&["example.com/lab/new:1"]);
            let done = node.ctr(words);
            let tree = if done.code == Some(0) { tree(node, "example.com/lab/new:1") } else { Vec::new() };
            (done.code, done.stdout, tree)
        };
        assert_eq!(convert(&ours), convert(&theirs), "{flags:?}");
    }
    for name in [OCI, DOCKER] {
        assert_eq!(tree(&ours, name), tree(&theirs, name));
    }
    for words in
        [&["convert", "a"][..], &["convert", "nope", "b"], &["inspect", "nope"], &["mount"], &["unmount"]]
    {
        let said = |node: &Node| {
            let done = node.ctr(["images"].iter().chain(words));
            (done.code, done.stderr)
        };
        assert_eq!(said(&ours), said(&theirs), "{words:?}");
    }
    ours.finish();
    theirs.finish();
}

#[test]
fn layers_of_all_compressions_make_the_same_container() {
    let node = Node::start();
    import(&node);
    let plain = node.ctr(["images", "convert", "--uncompress", OCI, "lab/plain:1"]).ok();
    for (flag, from, to) in [("--zstd", OCI, "lab/zstd:1"), ("--gzip", "lab/zstd:1", "lab/gzip:1")] {
        node.ctr(["images", "convert", flag, from, to]).ok();
        assert!(tree(&node, to).iter().any(|line| line.contains(&flag.replace("--", ".tar+"))));
        assert_eq!(node.ctr(["run", "--rm", to, "c", "echo", "works"]).ok(), "works\n");
        assert_eq!(node.ctr(["images", "convert", "--uncompress", to, "lab/again:1"]).ok(), plain);
    }
    assert_eq!(node.ctr(["content", "active"]).ok().lines().count(), 1);
    assert_eq!(node.ctr(["leases", "ls", "-q"]).ok(), "");
    node.finish();
}

#[test]
fn an_image_is_mounted_read_and_written_and_leaves_nothing() {
    let node = Node::start();
    import(&node);
    for write in [false, true] {
        let target = node.join("target");
        std::fs::create_dir_all(&target).unwrap();
        let text = target.to_str().unwrap();
        let flags: &[&str] = if write { &["--rw"] } else { &[] };
        let shown = node.ctr(["images", "mount"].iter().chain(flags).chain(&[OCI, text])).ok();
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[0].starts_with("sha256:") && lines[1] == text, "{shown}");
        assert!(target.join("bin/busybox").exists());
        assert_eq!(std::fs::write(target.join("new"), "x").is_ok(), write);
        assert!(node.ctr(["leases", "ls"]).ok().contains(text));
        assert_eq!(node.ctr(["images", "unmount", "--rm", text]).ok(), format!("{text}\n"));
        assert!(!target.join("bin").exists());
        assert!(!node.ctr(["snapshots", "ls"]).ok().contains(text));
        assert_eq!(node.ctr(["leases", "ls", "-q"]).ok(), "");
    }
    assert!(node.ctr(["images", "mount", OCI, "/no/such/folder"]).code != Some(0));
    assert!(!node.ctr(["snapshots", "ls"]).ok().contains("/no/such/folder"));
    node.finish();
}
