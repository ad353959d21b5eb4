//! Images going out: to registries and into archives, by our `ctr` and Debian's, read by others.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::path::Path;

use corten_tests::{Finished, Image, ImageBuilder, Node, Peers, Registry, command, peers};

fn two_platforms() -> Image {
    let host = corten_tests::image::host_architecture();
    let other = if host == "arm64" { "amd64" } else { "arm64" };
    let own = corten_tests::Layer::new().file("other", 0o644, other.as_bytes()).finish();
    let foreign = ImageBuilder::busybox().layer(own).architecture(other);
    Image::index(vec![(ImageBuilder::busybox().build(), host), (foreign.build(), other)])
}

/// Pull, tag, push, export, import through `client` against our daemon.
fn go_out_and_come_back(client: &Path) {
    let node = Node::start();
    let (from, to) = (Registry::start(), Registry::start());
    let image = from.push(&two_platforms(), "lab/box:1");
    let ctr = |args: &[&str]| -> Finished { command::run(node.foreign_ctr_command(client, args)) };
    ctr(&["images", "pull", "--plain-http", "--all-platforms", &image]).ok();
    let there = format!("{}/other/box:2", to.host());
    ctr(&["images", "tag", &image, &there]).ok();
    ctr(&["images", "push", "--plain-http", &there]).ok();
    // Again, when everything is there; and to a neighbour that can mount it.
    ctr(&["images", "push", "--plain-http", &there]).ok();
    let beside = format!("{}/lab/neighbour:3", from.host());
    ctr(&["images", "push", "--plain-http", &beside, &image]).ok();
    let archive = node.join("out.tar");
    let archive = archive.to_str().unwrap();
    ctr(&["images", "export", "--all-platforms", archive, &image, &there]).ok();
    ctr(&["images", "rm", "--sync", &image, &there]).ok();
    assert_eq!(ctr(&["content", "ls", "-q"]).ok(), "");
    ctr(&["images", "import", "--no-unpack", archive]).ok();
    let mut names: Vec<String> = ctr(&["images", "ls", "-q"]).ok().lines().map(Into::into).collect();
    names.sort();
    let mut wanted = vec![image.clone(), there.clone()];
    wanted.sort();
    assert_eq!(names, wanted);
    ctr(&["images", "rm", "--sync", &image, &there]).ok();
    for name in [&there, &beside] {
        ctr(&["images", "pull", "--plain-http", "--all-platforms", name]).ok();
        assert_eq!(ctr(&["run", "--rm", name, "c", "echo", "back"]).ok(), "back\n");
    }
    node.finish();
}

#[test]
fn images_go_out_and_come_back_through_our_ctr() {
    go_out_and_come_back(&peers::programs().join("ctr"));
}

#[test]
fn images_go_out_and_come_back_through_debians_ctr() {
    go_out_and_come_back(&Peers::find().containerd_2_1().join("ctr"));
}

#[test]
fn missing_content_is_neither_pushed_nor_exported() {
    let node = Node::start();
    let registry = Registry::start();
    let image = registry.push(&two_platforms(), "lab/box:1");
    node.ctr(["images", "pull", "--plain-http", &image]).ok();
    let archive = node.join("out.tar");
    let archive = archive.to_str().unwrap();
    // The layer of the other platform was not pulled.
    assert!(
        node.ctr(["images", "export", "--all-platforms", archive, &image]).fails(1).contains("not found")
    );
    assert!(!Path::new(archive).exists(), "half an archive is none");
    let other = Registry::start();
    let there = format!("{}/x/y:1", other.host());
    assert!(node.ctr(["images", "push", "--plain-http", &there, &image]).fails(1).contains("not found"));
    assert!(node.ctr(["images", "pull", "--plain-http", &there]).fails(1).contains("not found"));
    node.ctr(["images", "export", archive, &image]).ok();
    assert!(node.ctr(["images", "export", archive, "nope"]).fails(1).contains("image \"nope\": not found"));
    assert!(Path::new(archive).exists(), "what failed left the older archive alone");
    node.finish();
}

#[test]
fn umoci_unpacks_what_is_exported() {
    let node = Node::start();
    let registry = Registry::start();
    let image = registry.push(&ImageBuilder::busybox().build(), "lab/box:1");
    node.ctr(["images", "pull", "--plain-http", &image]).ok();
    let (archive, layout) = (node.join("out.tar"), node.join("layout"));
    node.ctr(["images", "export", archive.to_str().unwrap(), &image]).ok();
    tar::Archive::new(std::fs::File::open(&archive).unwrap()).unpack(&layout).unwrap();
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(layout.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest[0]["RepoTags"], serde_json::json!([image]));
    assert!(layout.join(manifest[0]["Layers"][0].as_str().unwrap()).is_file());
    let mut umoci = std::process::Command::new(Peers::find().umoci());
    let bundle = node.join("bundle");
    umoci.arg("unpack").arg("--image").arg(format!("{}:1", layout.display())).arg(&bundle);
    command::run(umoci).ok();
    assert!(bundle.join("rootfs/bin/busybox").is_file());
    node.finish();
}

#[test]
fn images_are_labelled_checked_and_measured() {
    let node = Node::start();
    let registry = Registry::start();
    let image = registry.push(&ImageBuilder::busybox().build(), "lab/box:1");
    node.ctr(["images", "pull", "--plain-http", &image]).ok();
    assert_eq!(node.ctr(["images", "label", &image, "a=b", "c=d"]).ok(), "a=b,c=d\n");
    assert_eq!(node.ctr(["images", "label", &image, "a="]).ok(), "c=d\n");
    assert_eq!(node.ctr(["images", "label", "--replace-all", &image, "x=y"]).ok(), "x=y\n");
    assert!(node.ctr(["images", "check"]).ok().contains("complete (3/3)"));
    assert_eq!(node.ctr(["images", "check", "-q"]).ok(), format!("{image}\n"));
    assert_eq!(node.ctr(["images", "usage", &image]).ok().lines().count(), 2);
    node.finish();
}

#[test]
fn an_import_names_what_it_is_told_to() {
    let node = Node::start();
    let archive = node.join("in.tar");
    let name = "example.com/lab/box:1";
    let image = ImageBuilder::busybox().build();
    image.save(&archive, name).unwrap();
    let import = |flags: &[&str]| {
        let mut args = vec!["images", "import", "--no-unpack"];
        args.extend(flags);
        args.push(archive.to_str().unwrap());
        node.ctr(args).ok();
        let mut names: Vec<String> = node.ctr(["images", "ls", "-q"]).ok().lines().map(Into::into).collect();
        names.sort();
        node.ctr(["images", "rm", "--sync"].into_iter().chain(names.iter().map(String::as_str))).ok();
        names
    };
    let digest = format!("import-{}@{}", today(), image.target.digest());
    assert_eq!(import(&[]), [name]);
    assert_eq!(import(&["--digests"]), [name, digest.as_str()]);
    assert_eq!(import(&["--digests", "--skip-digest-for-named"]), [name]);
    assert_eq!(import(&["--index-name", "example.com/lab/all:2"]), ["example.com/lab/all:2", name]);
    node.finish();
}

/// The day, as it stands in names that an import makes.
fn today() -> String {
    corten_types::timestamp::rfc3339(std::time::SystemTime::now()).chars().take(10).collect()
}
