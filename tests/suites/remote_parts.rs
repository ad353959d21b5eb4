//! Stores of blobs, differs and sandbox controllers in other processes.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::time::Duration;

use corten_api::services::content::{self as blobs, WriteAction};
use corten_api::services::sandbox as api;
use corten_tests::remote::PartsProcess;
use corten_tests::{Client, Digest, Image, ImageBuilder, Layer, Node, NodeBuilder, Peers, Registry};
use tonic::Code;

const PATIENCE: Duration = Duration::from_secs(30);
const CRI: &str = "\"io.containerd.grpc.v1.cri\"";

fn ours() -> NodeBuilder {
    Node::builder()
}

fn debians() -> NodeBuilder {
    Node::peer(&Peers::find().containerd_2_1())
}

fn layer() -> Vec<u8> {
    Layer::new().file("said", 0o644, b"from the second layer\n").finish()
}

fn image() -> Image {
    ImageBuilder::busybox().layer(layer()).build()
}

#[test]
fn a_blob_reaches_a_store_in_another_process_while_it_is_written() {
    let process = PartsProcess::start();
    let disabled = format!("disabled_plugins = [{CRI}, \"io.containerd.content.v1.content\"]\n");
    let config = format!("version = 2\n{disabled}{}", process.config("content", "blobs"));
    let node = ours().config(&config).start();
    let client = Client::new(&node.address(), Some(node.namespace()));
    let data: Vec<u8> = (0..2_500_000u32).map(|n| (n / 251) as u8).collect();
    let digest = Digest::sha256(&data).to_string();
    let message = |action: WriteAction, offset: usize, data: &[u8]| blobs::WriteContentRequest {
        action: action.into(),
        r#ref: "r".into(),
        offset: offset as i64,
        data: data.to_vec().into(),
        labels: [("containerd.io/gc.root".into(), "1".into())].into(),
        ..Default::default()
    };
    client.block_on(async {
        let (sender, requests) = tokio::sync::mpsc::channel(1);
        sender.send(message(WriteAction::Stat, 0, b"")).await.unwrap();
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        let mut answers = client.content().write(requests).await.unwrap().into_inner();
        answers.message().await.unwrap().unwrap();
        for at in (0..data.len()).step_by(500_000) {
            sender.send(message(WriteAction::Write, at, &data[at..at + 500_000])).await.unwrap();
            answers.message().await.unwrap().unwrap();
        }
        assert!(process.arrived() >= 1 << 20, "{}", process.arrived());
        assert!(process.blobs().is_empty());
        let mut last = message(WriteAction::Commit, data.len(), b"");
        (last.total, last.expected) = (data.len() as i64, digest.clone());
        sender.send(last).await.unwrap();
        answers.message().await.unwrap().unwrap();
    });
    assert_eq!(process.blobs().get(&digest), Some(&data));
    assert_eq!(process.arrived(), data.len(), "bytes went twice");
    node.finish();
}

/// Blobs of a store in another process: pulled, read, run from, exported, removed.
fn keep_blobs(builder: NodeBuilder) {
    let mut process = PartsProcess::start();
    let disabled = format!("disabled_plugins = [{CRI}, \"io.containerd.content.v1.content\"]\n");
    let config = format!("version = 2\n{disabled}{}", process.config("content", "blobs"));
    let node = builder.config(&config).start();
    let registry = Registry::start();
    let image = image();
    let name = registry.push(&image, "lab/box:1");
    node.ctr(["images", "pull", "--plain-http", &name]).ok();
    let kept = process.blobs();
    for blob in image.blobs.iter().chain([&image.target]) {
        assert_eq!(kept.get(blob.digest().as_str()), Some(&blob.data), "{}", blob.media_type);
    }
    assert_eq!(node.ctr(["run", "--rm", &name, "c", "cat", "/said"]).ok(), "from the second layer\n");
    let manifest = node.ctr(["content", "get", image.target.digest().as_str()]).ok();
    assert_eq!(manifest.as_bytes(), image.target.data);
    let archive = node.join("out.tar");
    node.ctr(["images", "export", archive.to_str().unwrap(), &name]).ok();
    node.ctr(["images", "rm", "--sync", &name]).ok();
    corten_tests::eventually("the store is empty", PATIENCE, || process.blobs().is_empty().then_some(()));
    node.ctr(["images", "import", archive.to_str().unwrap()]).ok();
    assert_eq!(node.ctr(["run", "--rm", &name, "c", "cat", "/said"]).ok(), "from the second layer\n");
    assert!(
        process
            .calls()
            .iter()
            .any(|(method, namespace)| { method == "write" && namespace == node.namespace() })
    );
    process.die();
    let error = node.ctr(["content", "get", image.target.digest().as_str()]).fails(1);
    assert!(error.contains("connect: no such file") || error.contains("connection refused"), "{error}");
    process.serve();
    corten_tests::eventually("the store is found again", PATIENCE, || {
        let got = node.ctr(["content", "get", image.target.digest().as_str()]);
        (got.code == Some(0)).then_some(())
    });
    node.finish();
}

#[test]
fn blobs_may_be_kept_by_another_process() {
    keep_blobs(ours());
}

#[test]
fn blobs_may_be_kept_by_another_process_under_debians_daemon() {
    keep_blobs(debians());
}

#[test]
fn two_stores_of_blobs_are_one_too_many() {
    let process = PartsProcess::start();
    let scratch = corten_tests::Scratch::new();
    let config = scratch.join("config.toml");
    std::fs::write(&config, format!("version = 2\n{}", process.config("content", "blobs"))).unwrap();
    let mut command = std::process::Command::new(corten_tests::peers::programs().join("containerd"));
    command.arg("--config").arg(&config).arg("--root").arg(scratch.join("root"));
    command.arg("--state").arg(scratch.join("state")).arg("--address").arg(scratch.join("s.sock"));
    let text = corten_tests::command::run(command).fails(1);
    assert!(text.contains("multiple plugins registered for io.containerd.content.v1"), "{text}");
}

#[test]
fn a_differ_in_another_process_is_asked_in_its_turn() {
    let mut process = PartsProcess::start();
    let order = "[plugins.\"io.containerd.service.v1.diff-service\"]\ndefault = [\"odd\", \"walking\"]\n";
    let config = format!("version = 2\ndisabled_plugins = [{CRI}]\n{order}{}", process.config("diff", "odd"));
    let node = ours().config(&config).start();
    let registry = Registry::start();
    let plain = registry.push(&image(), "lab/plain:1");
    node.ctr(["images", "pull", "--plain-http", &plain]).ok();
    let calls = process.calls();
    assert_eq!(calls.iter().filter(|call| **call == ("apply".into(), node.namespace().into())).count(), 2);
    assert_eq!(node.ctr(["run", "--rm", &plain, "c", "cat", "/said"]).ok(), "from the second layer\n");
    // A layer that it knows is not looked at by anyone else.
    let odd = Layer::new().file("odd", 0o644, b"x").finish();
    let image = ImageBuilder::busybox().layer(odd.clone()).build();
    let blob = image.blobs.iter().rev().find(|blob| blob.media_type.contains("layer")).unwrap();
    process.claim(blob.digest().as_str(), Digest::sha256(&odd).as_str());
    let name = registry.push(&image, "lab/odd:1");
    node.ctr(["images", "pull", "--plain-http", &name]).ok();
    assert_eq!(node.ctr(["run", "--rm", &name, "c", "cat", "/applied"]).ok(), "elsewhere\n");
    assert!(node.ctr(["run", "--rm", &name, "d", "cat", "/odd"]).code != Some(0));
    // Only what it does not know is passed on.
    process.die();
    let other = registry.push(
        &ImageBuilder::busybox().layer(Layer::new().file("more", 0o644, b"y").finish()).build(),
        "lab/other:1",
    );
    let error = node.ctr(["images", "pull", "--plain-http", &other]).fails(1);
    assert!(error.contains("unavailable"), "{error}");
    process.serve();
    corten_tests::eventually("the differ is found again", PATIENCE, || {
        (node.ctr(["images", "pull", "--plain-http", &other]).code == Some(0)).then_some(())
    });
    node.finish();
}

#[test]
fn a_sandbox_controller_in_another_process_is_known_by_its_name() {
    let mut process = PartsProcess::start();
    let config = format!("version = 2\ndisabled_plugins = [{CRI}]\n{}", process.config("sandbox", "far"));
    let node = ours().config(&config).start();
    let client = Client::new(&node.address(), Some(node.namespace()));
    let (sandbox_id, sandboxer) = ("box".to_owned(), "far".to_owned());
    let create = api::ControllerCreateRequest {
        sandbox_id: sandbox_id.clone(),
        sandboxer: sandboxer.clone(),
        ..Default::default()
    };
    assert_eq!(client.wait(client.sandbox_controller().create(create.clone())).unwrap().sandbox_id, "box");
    let start = api::ControllerStartRequest { sandbox_id: sandbox_id.clone(), sandboxer: sandboxer.clone() };
    assert_eq!(client.wait(client.sandbox_controller().start(start)).unwrap().pid, 42);
    let wait = api::ControllerWaitRequest { sandbox_id: sandbox_id.clone(), sandboxer: sandboxer.clone() };
    assert_eq!(client.wait(client.sandbox_controller().wait(wait)).unwrap().exit_status, 7);
    let status = api::ControllerStatusRequest { sandbox_id, sandboxer, verbose: false };
    let error = client.wait(client.sandbox_controller().status(status)).unwrap_err();
    let text = "sandbox \"box\" is not here: not found";
    assert_eq!((error.code(), error.message()), (Code::NotFound, text));
    let calls: Vec<String> = process.calls().into_iter().map(|(method, _)| method).collect();
    assert_eq!(calls, ["create", "start", "wait", "status"]);
    process.die();
    let error = client.wait(client.sandbox_controller().create(create)).unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error:?}");
    node.finish();
}
