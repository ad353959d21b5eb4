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

/// Media types and annotations of the layers of an image.
fn layers(node: &Node, name: &str) -> Vec<serde_json::Value> {
    let shown = node.ctr(["images", "ls", &format!("name=={name}")]).ok();
    let digest = shown.lines().nth(1).unwrap().split_whitespace().nth(2).unwrap().to_owned();
    let manifest: serde_json::Value =
        serde_json::from_str(&node.ctr(["content", "get", &digest]).ok()).unwrap();
    manifest["layers"].as_array().unwrap().clone()
}

#[test]
fn layers_whose_files_come_one_by_one_make_the_same_container() {
    let node = Node::start();
    import(&node);
    let toc = "containerd.io/snapshot/stargz/toc.digest";
    let checksum = "io.github.containers.zstd-chunked.manifest-checksum";
    for (flag, kind, annotation) in [
        ("--estargz", media_type::OCI_LAYER_GZIP, toc),
        ("--zstdchunked", media_type::OCI_LAYER_ZSTD, checksum),
    ] {
        let name = format!("lab{}:1", flag.replace("--", "/"));
        let digest = node.ctr(["images", "convert", flag, OCI, &name]).ok();
        for layer in layers(&node, &name) {
            assert_eq!(layer["mediaType"], kind);
            assert!(layer["annotations"][annotation].is_string(), "{layer}");
        }
        assert_eq!(node.ctr(["run", "--rm", &name, "c", "echo", "works"]).ok(), "works\n");
        assert_eq!(
            node.ctr(["images", "convert", flag, &name, "lab/again:1"]).ok(),
            digest,
            "nothing changes"
        );
        node.ctr(["images", "convert", "--gzip", &name, "lab/plain:1"]).ok();
        if kind == media_type::OCI_LAYER_ZSTD {
            assert!(layers(&node, "lab/plain:1")[0]["annotations"].get(annotation).is_none());
        }
    }
    node.finish();
}

#[test]
fn layers_of_erofs_are_made_and_mounted_as_they_are() {
    let differs = "[plugins.'io.containerd.service.v1.diff-service']\ndefault = ['erofs', 'walking']\n";
    let node = Node::builder().config(differs).start();
    // What one layer removes must stay away.
    let below = Layer::new().file("kept", 0o644, b"1").file("gone", 0o644, b"2").dir("folder", 0o755);
    let below = below.file("folder/old", 0o644, b"3").finish();
    let above = Layer::new().file(".wh.gone", 0o644, b"").file("folder/.wh..wh..opq", 0o644, b"");
    let above = above.file("folder/new", 0o644, b"4").finish();
    let archive = node.join("image.tar");
    ImageBuilder::busybox().layer(below).layer(above).build().save(&archive, OCI).unwrap();
    node.ctr(["images", "import", "--no-unpack", archive.to_str().unwrap()]).ok();
    node.ctr(["images", "convert", "--erofs", OCI, "lab/erofs:1"]).ok();
    assert!(layers(&node, "lab/erofs:1").iter().all(|layer| layer["mediaType"] == media_type::EROFS_LAYER));
    // In again, so that the daemon unpacks it.
    let archive = archive.to_str().unwrap();
    node.ctr(["images", "export", archive, "lab/erofs:1"]).ok();
    node.ctr(["images", "rm", "--sync", "lab/erofs:1"]).ok();
    node.ctr(["images", "import", "--snapshotter", "erofs", archive]).ok();
    let words = ["run", "--rm", "--snapshotter", "erofs", "lab/erofs:1", "c", "sh", "-c"];
    let shown = node.ctr(words.iter().chain(&["ls /folder; ls /gone || cat /kept"])).ok();
    assert_eq!(shown, "new\n1");
    // What is mounted for them goes with them.
    node.ctr(["images", "rm", "--sync", OCI, "lab/erofs:1"]).ok();
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
