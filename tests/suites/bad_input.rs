//! Bad input gives a clear error and loses nothing: nothing is visible half-done, and a second try
//! works.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use corten_tests::image::{gzip, host_architecture};
use corten_tests::{Blob, Digest, Fault, Image, ImageBuilder, Layer, Node, ScriptedRegistry};
use corten_types::media_type;
use serde_json::json;
use tar::EntryType;

const ALWAYS: usize = usize::MAX;

fn pull(node: &Node, reference: &str) -> corten_tests::Finished {
    node.ctr(["images", "pull", "--plain-http", reference])
}

/// Neither image nor committed snapshot nor extraction in progress can be seen.
fn nothing_is_visible(node: &Node) {
    assert_eq!(node.ctr(["images", "ls", "-q"]).ok(), "");
    let snapshots = node.ctr(["snapshots", "ls"]).ok();
    assert_eq!(snapshots.lines().count(), 1, "{snapshots}");
}

fn works_on_the_second_try(node: &Node, registry: &ScriptedRegistry) {
    registry.recover();
    let reference = registry.reference();
    pull(node, &reference).ok();
    assert_eq!(node.ctr(["run", "--rm", &reference, "again", "echo", "works"]).ok(), "works\n");
}

fn layer_digest(image: &Image) -> Digest {
    image.blobs.last().unwrap().digest()
}

#[test]
fn a_layer_with_other_bytes_than_its_digest_says_is_refused() {
    let image = ImageBuilder::busybox().build();
    let layer = image.blobs.last().unwrap().clone();
    let mut other = layer.data.clone();
    *other.last_mut().unwrap() ^= 1;
    let registry = ScriptedRegistry::start(image);
    registry.cue(layer.digest().hex(), Fault::Instead(other), ALWAYS);
    let node = Node::start();
    let message = pull(&node, &registry.reference()).fails_with("unexpected commit digest");
    assert!(message.contains(layer.digest().as_str()), "{message}");
    nothing_is_visible(&node);
    works_on_the_second_try(&node, &registry);
    node.finish();
}

#[test]
fn a_layer_whose_diff_id_does_not_match_is_refused() {
    let tar = Layer::new().file("a", 0o644, b"a").finish();
    let wrong = Digest::sha256(b"something else");
    let config = json!({
        "architecture": corten_tests::image::host_architecture(), "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [wrong]},
    });
    let image = Image::new(
        Blob::new(media_type::OCI_CONFIG, config.to_string().into_bytes()),
        vec![Blob::new(media_type::OCI_LAYER_GZIP, gzip(&tar))],
    );
    let registry = ScriptedRegistry::start(image);
    let node = Node::start();
    let message = pull(&node, &registry.reference()).fails_with("wrong diff id");
    assert!(message.contains(wrong.as_str()), "{message}");
    nothing_is_visible(&node);
    node.finish();
}

#[test]
fn entries_that_point_outside_stay_inside() {
    let node = Node::start();
    let victim = node.join("victim");
    std::fs::create_dir(&victim).unwrap();
    std::fs::write(victim.join("secret"), "secret").unwrap();
    let outside = victim.to_str().unwrap();
    let up = "../".repeat(12);
    let layer = Layer::new()
        .file(&format!("{up}{}/dotdot", outside.trim_start_matches('/')), 0o644, b"x")
        .file(&format!("{outside}/absolute"), 0o644, b"x")
        .symlink("way-out", outside)
        .file("way-out/through", 0o644, b"x")
        .finish();
    let registry = ScriptedRegistry::start(ImageBuilder::busybox().layer(layer).build());
    pull(&node, &registry.reference()).ok();
    let found: Vec<_> = std::fs::read_dir(&victim).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(found, ["secret"], "nothing was written outside");
    let inside = node.ctr(["run", "--rm", &registry.reference(), "see", "ls", outside]).ok();
    assert_eq!(inside, "absolute\ndotdot\nthrough\n", "it went to the same place inside");
    node.finish();
}

#[test]
fn a_hard_link_to_a_file_outside_is_refused() {
    let node = Node::start();
    std::fs::write(node.join("secret"), "secret").unwrap();
    let target =
        format!("{}{}", "../".repeat(12), node.join("secret").to_str().unwrap().trim_start_matches('/'));
    let layer = Layer::new().raw("stolen", EntryType::Link, &target, 0o644, b"").finish();
    let registry = ScriptedRegistry::start(ImageBuilder::busybox().layer(layer).build());
    pull(&node, &registry.reference()).fails_with("no such file or directory");
    nothing_is_visible(&node);
    node.finish();
}

#[test]
fn a_truncated_layer_is_refused() {
    let tar = Layer::new().file("big", 0o644, &vec![7; 100_000]).finish();
    let cut = tar.get(..50_000).unwrap().to_vec();
    let image = ImageBuilder::busybox().layer(cut).build();
    let registry = ScriptedRegistry::start(image);
    let node = Node::start();
    let message = pull(&node, &registry.reference()).fails(1);
    assert!(message.contains("unexpected EOF") || message.contains("truncated"), "{message}");
    nothing_is_visible(&node);
    node.finish();
}

#[test]
fn a_manifest_that_is_not_json_is_refused() {
    let garbage =
        Image { target: Blob::new(media_type::OCI_MANIFEST, b"<html>hello".to_vec()), blobs: vec![] };
    let registry = ScriptedRegistry::start(garbage.clone());
    let node = Node::start();
    let message = pull(&node, &registry.reference()).fails(1);
    assert!(message.contains("manifest") && message.contains(garbage.target.digest().as_str()), "{message}");
    nothing_is_visible(&node);
    node.finish();
}

#[test]
fn an_index_without_our_platform_says_so() {
    let other = ImageBuilder::new().layer(Layer::new().file("x", 0o644, b"x").finish()).architecture("s390x");
    let registry = ScriptedRegistry::start(Image::index(vec![(other.build(), "s390x")]));
    let node = Node::start();
    pull(&node, &registry.reference()).fails_with("no match for platform in manifest");
    nothing_is_visible(&node);
    node.finish();
}

#[test]
fn a_registry_that_answers_500_is_named() {
    let registry = ScriptedRegistry::start(ImageBuilder::busybox().build());
    registry.cue("/manifests/", Fault::Status("500 Internal Server Error"), ALWAYS);
    let node = Node::start();
    let message = pull(&node, &registry.reference()).fails_with("500 Internal Server Error");
    assert!(message.contains(&registry.host()), "{message}");
    nothing_is_visible(&node);
    works_on_the_second_try(&node, &registry);
    node.finish();
}

#[test]
fn an_image_that_does_not_exist_is_not_found() {
    let registry = ScriptedRegistry::start(ImageBuilder::busybox().build());
    let node = Node::start();
    let reference = format!("{}/lab/other:2", registry.host());
    pull(&node, &reference).fails_with(&format!("{reference}: not found"));
    nothing_is_visible(&node);
    node.finish();
}

#[test]
fn a_layer_that_the_registry_lost_is_not_found() {
    let image = ImageBuilder::busybox().build();
    let digest = layer_digest(&image);
    let registry = ScriptedRegistry::start(image);
    registry.cue(digest.hex(), Fault::Status("404 Not Found"), ALWAYS);
    let node = Node::start();
    let message = pull(&node, &registry.reference()).fails_with("not found");
    assert!(message.contains(digest.as_str()), "{message}");
    nothing_is_visible(&node);
    works_on_the_second_try(&node, &registry);
    node.finish();
}

#[test]
fn a_registry_that_hangs_does_not_hold_the_caller() {
    let image = ImageBuilder::busybox().build();
    let digest = layer_digest(&image);
    let registry = ScriptedRegistry::start(image);
    registry.cue(digest.hex(), Fault::Hang, ALWAYS);
    let node = Node::start();
    let reference = registry.reference();
    node.ctr(["--timeout", "3s", "images", "pull", "--plain-http", &reference])
        .fails_with("context deadline exceeded");
    nothing_is_visible(&node);
    works_on_the_second_try(&node, &registry);
    node.finish();
}

#[test]
fn a_download_that_is_cut_goes_on_where_it_was() {
    let image = ImageBuilder::busybox().build();
    let digest = layer_digest(&image);
    let registry = ScriptedRegistry::start(image);
    registry.cue(digest.hex(), Fault::Cut(200_000), 1);
    let node = Node::start();
    let reference = registry.reference();
    if pull(&node, &reference).code != Some(0) {
        // A first try may give up, but the second starts at the cut.
        pull(&node, &reference).ok();
    }
    let resumed =
        registry.requests().iter().any(|line| line.contains(digest.hex()) && line.contains(" from 2"));
    assert!(resumed, "{:#?}", registry.requests());
    assert_eq!(node.ctr(["run", "--rm", &reference, "r", "echo", "whole"]).ok(), "whole\n");
    node.finish();
}

/// What the registry makes of the pieces of an answer costs no memory: neither pieces of one byte, nor a few that
/// are decoded to a lot.
#[test]
fn a_layer_comes_in_pieces_of_any_size_and_the_daemon_stays_small() {
    let node = Node::start();
    let most = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid().unwrap())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = most();
    let answer = |head: &str, body: &[u8]| {
        let mut answer = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n").into_bytes();
        answer.extend_from_slice(body);
        Fault::Raw(std::sync::Arc::new(answer))
    };
    for (length, encoded) in [(160 << 20, true), (100 << 10, false)] {
        let tar = Layer::new().file("zeros", 0o644, &vec![0; length]).finish();
        let config = json!({"architecture": host_architecture(), "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [Digest::sha256(&tar)]}});
        let config = Blob::new(media_type::OCI_CONFIG, config.to_string().into_bytes());
        let fault = if encoded {
            let body = zstd::encode_all(tar.as_slice(), 1).unwrap();
            answer(&format!("Content-Encoding: zstd\r\nContent-Length: {}", body.len()), &body)
        } else {
            let mut body: Vec<u8> =
                tar.iter().flat_map(|byte| [b'1', b'\r', b'\n', *byte, b'\r', b'\n']).collect();
            body.extend_from_slice(b"0\r\n\r\n");
            answer("Transfer-Encoding: chunked", &body)
        };
        let image = Image::new(config, vec![Blob::new(media_type::OCI_LAYER, tar)]);
        let layer = layer_digest(&image);
        let registry = ScriptedRegistry::start(image);
        registry.cue(layer.as_str(), fault, ALWAYS);
        pull(&node, &registry.reference()).ok();
        node.ctr(["images", "rm", "--sync", &registry.reference()]).ok();
    }
    assert!(most() < before + (48 << 10), "{before} kB before, {} kB after", most());
    node.finish();
}

#[test]
fn a_registry_that_always_cuts_the_connection_gives_an_error() {
    let image = ImageBuilder::busybox().build();
    let digest = layer_digest(&image);
    let registry = ScriptedRegistry::start(image);
    registry.cue(digest.hex(), Fault::Cut(0), ALWAYS);
    let node = Node::start();
    let message = pull(&node, &registry.reference()).fails(1);
    assert!(message.contains(digest.as_str()), "{message}");
    nothing_is_visible(&node);
    works_on_the_second_try(&node, &registry);
    node.finish();
}

/// A node that has imported busybox.
fn node_with_image() -> (Node, &'static str) {
    let (node, name) = (Node::start(), "example.com/lab/box:1");
    ImageBuilder::busybox().build().save(&node.join("image.tar"), name).unwrap();
    node.ctr(["images", "import", node.join("image.tar").to_str().unwrap()]).ok();
    (node, name)
}

fn no_task_is_left(node: &Node, id: &str) {
    assert!(node.tasks().is_empty());
    node.ctr(["containers", "rm", id]);
    assert_eq!(node.ctr(["containers", "ls", "-q"]).ok(), "");
}

#[test]
fn an_unknown_runtime_is_named() {
    let (node, image) = node_with_image();
    node.ctr(["run", "--rm", "--runtime", "io.containerd.nope.v2", image, "u", "true"]).fails_with(
        "runtime \"io.containerd.nope.v2\" binary not installed \"containerd-shim-nope-v2\": file does not exist",
    );
    node.ctr(["run", "--rm", "--runtime", "badname", image, "v", "true"])
        .fails_with("invalid runtime name badname, correct runtime name should be either format like");
    no_task_is_left(&node, "u");
    node.finish();
}

#[test]
fn a_command_that_does_not_exist_is_named() {
    let (node, image) = node_with_image();
    let message =
        node.ctr(["run", "--rm", image, "a", "no-such-command"]).fails_with("OCI runtime create failed");
    assert!(message.contains("exec: \"no-such-command\": executable file not found in $PATH"), "{message}");
    node.ctr(["run", "--rm", image, "b", "/no/such/file"]).fails_with("no such file or directory");
    node.ctr(["run", "--rm", image, "c", "/etc/passwd"]).fails_with("permission denied");
    assert_eq!(
        node.ctr(["run", "--rm", image, "a", "echo", "ok"]).ok(),
        "ok\n",
        "the same id works afterwards"
    );
    node.ctr(["run", "-d", image, "d", "sleep", "100"]).ok();
    let message = node.ctr(["tasks", "exec", "--exec-id", "e", "d", "nothing-here"]).fails(1);
    assert!(
        message.contains("OCI runtime exec failed") && message.contains("executable file not found"),
        "{message}"
    );
    node.ctr(["tasks", "rm", "--force", "d"]);
    no_task_is_left(&node, "d");
    node.finish();
}

#[test]
fn a_specification_that_the_runtime_refuses_is_an_error() {
    let (node, _) = node_with_image();
    let cases = [
        (
            "version",
            json!({"ociVersion": "9.0.0", "process": {"cwd": "/", "args": ["true"]}, "root": {"path": "rootfs"}, "linux": {}}),
        ),
        (
            "relative",
            json!({"ociVersion": "1.1.0", "process": {"cwd": "not/absolute", "args": ["true"], "user": {"uid": 0, "gid": 0}}, "root": {"path": "rootfs"}, "linux": {}}),
        ),
        ("empty", json!({})),
    ];
    for (name, spec) in cases {
        let file = node.join(format!("{name}.json"));
        std::fs::write(&file, spec.to_string()).unwrap();
        let message = node.ctr(["run", "--rm", "--config", file.to_str().unwrap(), name]).fails(1);
        assert!(message.contains("OCI runtime create failed"), "{name}: {message}");
        no_task_is_left(&node, name);
    }
    node.finish();
}

#[test]
fn unknown_things_are_not_found_in_the_words_that_scripts_match() {
    let node = Node::start();
    node.ctr(["run", "--rm", "example.com/none:1", "x", "true"])
        .fails_with("image \"example.com/none:1\": not found");
    let namespace = node.namespace().to_owned();
    node.ctr(["tasks", "kill", "none"])
        .fails_with(&format!("container \"none\" in namespace \"{namespace}\": not found"));
    let absent = Digest::sha256(b"absent");
    node.ctr(["content", "get", absent.as_str()]).fails_with(&format!("content digest {absent}: not found"));
    node.ctr(["snapshots", "rm", "none"]).fails_with("snapshot none does not exist: not found");
    node.finish();
}
