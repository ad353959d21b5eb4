//! Content, labels, records and leases of pulls; unpacking is apart.

use std::sync::Arc;

use corten_images::{ImageReference, Verifier, progress};
use corten_registry::testing::Fault;
use corten_types::{Descriptor, Digest, Error, media_type};

use super::build::{self, Image, Layer};
use super::*;

fn two_layers() -> Vec<Layer> {
    vec![Layer::gzip(&[("a", "1")]), Layer::plain(&[("b", "2")])]
}

fn other_architecture() -> &'static str {
    if Platform::host().architecture == "arm64" { "s390x" } else { "arm64" }
}

/// Images for this machine, another one, and an attestation of the kind that builders add.
fn three_platforms() -> Vec<Image> {
    vec![
        Image::on(other_architecture(), &[Layer::gzip(&[("other", "")])]),
        Image::new(&two_layers()),
        Image::on("riscv64", &[Layer::gzip(&[("third", "")])]),
    ]
}

#[tokio::test]
async fn a_pull_stores_everything_and_ties_it_together() {
    let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
    let image = Image::new(&two_layers());
    let target = image.push(&registry, "1.0");
    let images = daemon.pull(&registry, "1.0", packed(&registry, "1.0")).await.unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!((images[0].name.as_str(), &images[0].target), (reference(&registry, "1.0").as_str(), &target));
    let labels = daemon.labels(&target.digest);
    let source = "containerd.io/distribution.source.127.0.0.1";
    assert_eq!(labels[source], "lab/img");
    assert_eq!(labels["containerd.io/gc.ref.content.config"], image.config_digest().to_string());
    for (index, layer) in image.layers.iter().enumerate() {
        let digest = layer.descriptor().digest;
        assert_eq!(labels[&format!("containerd.io/gc.ref.content.l.{index}")], digest.to_string());
        assert_eq!(daemon.labels(&digest)[source], "lab/img");
        assert_eq!(daemon.content.read(&ctx(), &digest, 1 << 20).unwrap(), layer.blob);
    }
    assert!(daemon.leases.list(&ctx(), &[]).unwrap().is_empty(), "the lease ends with the pull");
}

#[tokio::test]
async fn a_second_pull_fetches_nothing_and_adds_where_content_came_from() {
    let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
    let image = Image::new(&two_layers());
    image.push(&registry, "1.0");
    daemon.pull(&registry, "1.0", packed(&registry, "1.0")).await.unwrap();
    registry.forget_requests();
    daemon.pull(&registry, "1.0", packed(&registry, "1.0")).await.unwrap();
    assert_eq!(registry.lines(), ["HEAD /v2/lab/img/manifests/1.0"]);
    // The same image under another repository.
    registry.manifest("a/b", "2.0", media_type::OCI_MANIFEST, &image.manifest);
    let request = PullRequest {
        reference: format!("{}/a/b:2.0", registry.host()),
        destination: Destination { name: "second".to_owned(), ..Destination::default() },
        verifier: None,
    };
    daemon.service.pull(&ctx(), &resolver(), &request, &ProgressSender::none()).await.unwrap();
    let labels = daemon.labels(&image.layers[0].descriptor().digest);
    assert_eq!(labels["containerd.io/distribution.source.127.0.0.1"], "a/b,lab/img");
    assert_eq!(daemon.names().len(), 2);
}

#[tokio::test]
async fn another_namespace_takes_over_what_is_on_disk() {
    let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
    let image = Image::new(&two_layers());
    image.push(&registry, "1.0");
    daemon.pull(&registry, "1.0", packed(&registry, "1.0")).await.unwrap();
    registry.forget_requests();
    let other = Context::new(Namespace::new("other").unwrap());
    let request = PullRequest {
        reference: reference(&registry, "1.0"),
        destination: packed(&registry, "1.0"),
        verifier: None,
    };
    daemon.service.pull(&other, &resolver(), &request, &ProgressSender::none()).await.unwrap();
    assert_eq!(registry.lines(), ["HEAD /v2/lab/img/manifests/1.0"]);
    assert!(daemon.content.info(&other, &image.layers[1].descriptor().digest).is_ok());
}

#[tokio::test]
async fn only_the_wanted_platform_is_fetched_but_all_are_named() {
    let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
    let images = three_platforms();
    let target = build::push_index(&registry, "1.0", &images);
    let destination = Destination { platforms: vec![Platform::host()], ..packed(&registry, "1.0") };
    daemon.pull(&registry, "1.0", destination.clone()).await.unwrap();
    let labels = daemon.labels(&target.digest);
    for (index, image) in images.iter().enumerate() {
        assert_eq!(
            labels[&format!("containerd.io/gc.ref.content.m.{index}")],
            image.descriptor().digest.to_string()
        );
        assert_eq!(daemon.content.info(&ctx(), &image.descriptor().digest).is_ok(), index == 1);
    }
    assert!(!registry.lines().iter().any(|line| line.contains(images[0].config_digest().as_str())));

    // With all metadata the others have manifest and config, and no layers.
    daemon.pull(&registry, "1.0", Destination { all_metadata: true, ..destination }).await.unwrap();
    for image in &images {
        assert!(daemon.content.info(&ctx(), &image.config_digest()).is_ok());
        let layer = image.layers[0].descriptor().digest;
        assert_eq!(daemon.content.info(&ctx(), &layer).is_ok(), image.architecture == images[1].architecture);
    }
    // Without a choice everything comes.
    daemon.pull(&registry, "1.0", packed(&registry, "1.0")).await.unwrap();
    assert!(daemon.content.info(&ctx(), &images[2].layers[0].descriptor().digest).is_ok());
}

#[tokio::test]
async fn a_limit_keeps_the_best_platform() {
    let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
    let images = [
        Image::on("386", &[Layer::gzip(&[("worse", "")])]),
        Image::on("amd64", &[Layer::gzip(&[("better", "")])]),
    ];
    build::push_index(&registry, "1.0", &images);
    let platforms = vec!["linux/amd64".parse().unwrap()];
    let destination = Destination { platforms, manifest_limit: 1, ..packed(&registry, "1.0") };
    daemon.pull(&registry, "1.0", destination).await.unwrap();
    assert!(daemon.content.info(&ctx(), &images[1].config_digest()).is_ok());
    assert!(daemon.content.info(&ctx(), &images[0].config_digest()).is_err());
}

#[tokio::test]
async fn an_index_without_the_platform_says_so_and_leaves_nothing() {
    let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
    let target = build::push_index(&registry, "1.0", &[Image::on("riscv64", &two_layers())]);
    let platforms = vec!["linux/s390x".parse().unwrap()];
    let destination = Destination { platforms, ..packed(&registry, "1.0") };
    let error = daemon.pull(&registry, "1.0", destination).await.unwrap_err();
    assert_eq!(error.to_string(), format!("no match for platform in manifest {}: not found", target.digest));
    assert!(daemon.names().is_empty());
}

#[tokio::test]
async fn what_cannot_be_resolved_or_fetched_is_named_and_leaves_no_record() {
    let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
    let error = daemon.pull(&registry, "none", packed(&registry, "none")).await.unwrap_err();
    let name = reference(&registry, "none");
    assert_eq!(error.to_string(), format!("failed to resolve image: {name}: not found"));
    assert!(daemon.leases.list(&ctx(), &[]).unwrap().is_empty(), "nothing was begun");

    // A manifest of the index that the registry does not have.
    let missing = Image::on("riscv64", &[Layer::gzip(&[("gone", "")])]);
    let present = Image::new(&two_layers());
    present.push(&registry, "");
    let entries = [build::entry(&present), build::entry(&missing)];
    let index = serde_json::json!({"schemaVersion": 2, "manifests": entries}).to_string();
    registry.manifest("lab/img", "1.0", media_type::OCI_INDEX, index.as_bytes());
    let error = daemon.pull(&registry, "1.0", packed(&registry, "1.0")).await.unwrap_err();
    let url = format!("http://{}/v2/lab/img/manifests/{}", registry.host(), missing.descriptor().digest);
    assert_eq!(
        error.to_string(),
        format!("failed to copy: httpReadSeeker: failed open: content at {url} not found: not found")
    );
    assert!(daemon.names().is_empty());
}

#[tokio::test]
async fn wrong_bytes_are_refused_and_forgotten() {
    let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
    let image = Image::new(&two_layers());
    image.push(&registry, "1.0");
    let layer = image.layers[0].descriptor();
    registry.cue(layer.digest.hex(), Fault::WrongBytes, 1);
    let error = daemon.pull(&registry, "1.0", packed(&registry, "1.0")).await.unwrap_err().to_string();
    let want = format!("failed commit on ref \"layer-{}\": unexpected commit digest sha256:", layer.digest);
    assert!(error.starts_with(&want), "{error}");
    assert!(error.ends_with(&format!("expected {}: failed precondition", layer.digest)), "{error}");
    assert!(daemon.names().is_empty());
    assert!(daemon.content.info(&ctx(), &layer.digest).is_err());
    daemon.pull(&registry, "1.0", packed(&registry, "1.0")).await.unwrap();
}

#[tokio::test]
async fn documents_that_are_none_are_refused() {
    for (body, want) in [
        ("<html>", "manifest: invalid desc sha256:"),
        (r#"{"manifests":[{"a":1}]}"#, "expected manifest but found index"),
        (r#"{"config":{"mediaType":"x","digest":"sha256:../../x","size":1}}"#, "invalid checksum digest"),
    ] {
        let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
        registry.manifest("lab/img", "1.0", media_type::OCI_MANIFEST, body.as_bytes());
        let error = daemon.pull(&registry, "1.0", packed(&registry, "1.0")).await.unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
    let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
    registry.manifest("lab/img", "1.0", "text/plain", b"{}");
    let error = daemon.pull(&registry, "1.0", packed(&registry, "1.0")).await.unwrap_err().to_string();
    assert_eq!(error, "schema 1 image manifests are no longer supported: invalid argument");
}

#[tokio::test]
async fn an_empty_blob_is_refused() {
    let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
    let mut empty = Layer::plain(&[]);
    empty.blob.clear();
    let image = Image::new(&[empty]);
    image.push(&registry, "1.0");
    let error = daemon.pull(&registry, "1.0", packed(&registry, "1.0")).await.unwrap_err();
    let digest = Digest::sha256(b"");
    assert_eq!(
        error.to_string(),
        format!("unable to fetch descriptor ({digest}) which reports content size of zero: invalid argument")
    );
}

#[tokio::test]
async fn a_failed_pull_goes_on_where_it_was() {
    let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
    let image = Image::new(&[Layer::gzip(&[("a", "1")]), Layer::large("b", 1_000_000)]);
    image.push(&registry, "1.0");
    let layer = image.layers[1].descriptor();
    registry.cue(layer.digest.hex(), Fault::CutAfter(100_000), 1);
    registry.cue(layer.digest.hex(), Fault::Status(404), 99);
    let error = daemon.pull(&registry, "1.0", packed(&registry, "1.0")).await.unwrap_err();
    assert!(error.to_string().starts_with("failed to copy: "), "{error}");
    let left = daemon.leases.list(&ctx(), &[]).unwrap();
    assert_eq!(left.len(), 1, "the lease keeps what was downloaded");
    let status = daemon.content.status(&ctx(), &format!("layer-{}", layer.digest)).unwrap();
    assert_eq!((status.offset, status.total), (100_000, layer.size as u64));

    registry.recover();
    registry.forget_requests();
    daemon.pull(&registry, "1.0", packed(&registry, "1.0")).await.unwrap();
    let requests = registry.requests();
    let blobs: Vec<_> = requests.iter().filter(|request| request.target.contains("/blobs/")).collect();
    assert_eq!(blobs.len(), 1, "the rest is there already");
    assert_eq!(blobs[0].header("range"), Some("bytes=100000-"));
    assert!(daemon.leases.list(&ctx(), &[]).unwrap().is_empty(), "success ends the leases of earlier tries");
}

#[tokio::test]
async fn wrong_bytes_that_were_left_are_fetched_again() {
    let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
    let image = Image::new(&[Layer::large("b", 100_000)]);
    image.push(&registry, "1.0");
    let layer = image.layers[0].descriptor();
    let options = corten_content::WriterOptions {
        reference: format!("layer-{}", layer.digest),
        total: layer.size as u64,
        expected: None,
    };
    let mut writer = daemon.content.writer(&ctx(), options).await.unwrap();
    writer.write(b"wrong").unwrap();
    drop(writer);
    daemon.pull(&registry, "1.0", packed(&registry, "1.0")).await.unwrap();
    assert_eq!(daemon.content.read(&ctx(), &layer.digest, 1 << 20).unwrap(), image.layers[0].blob);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls_at_the_same_time_share_the_work() {
    let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
    let image = Image::new(&[Layer::large("a", 500_000), Layer::large("b", 400_000)]);
    image.push(&registry, "1.0");
    let pulls = (0..5).map(|_| daemon.pull(&registry, "1.0", packed(&registry, "1.0")));
    for result in futures_util::future::join_all(pulls).await {
        result.unwrap();
    }
    let gets = registry.lines().iter().filter(|line| line.starts_with("GET")).count();
    assert_eq!(gets, 4, "{:?}", registry.lines());
    assert!(daemon.leases.list(&ctx(), &[]).unwrap().is_empty());
}

#[tokio::test]
async fn whoever_waits_goes_on_when_the_other_gives_up() {
    let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
    let image = Image::new(&[Layer::large("a", 500_000)]);
    image.push(&registry, "1.0");
    let layer = image.layers[0].descriptor();
    registry.cue(layer.digest.hex(), Fault::HangAfter(200_000), 1);
    let slow =
        Resolver::new(ResolverOptions { default_scheme: Some(Scheme::Http), ..ResolverOptions::default() });
    let request = PullRequest {
        reference: reference(&registry, "1.0"),
        destination: packed(&registry, "1.0"),
        verifier: None,
    };
    let (service, ctx2) = (daemon.service.clone(), ctx());
    let first =
        tokio::spawn(async move { service.pull(&ctx2, &slow, &request, &ProgressSender::none()).await });
    let key = format!("layer-{}", layer.digest);
    while !daemon.content.status(&ctx(), &key).is_ok_and(|status| status.offset == 200_000) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let second = daemon.pull(&registry, "1.0", packed(&registry, "1.0"));
    tokio::pin!(second);
    assert!(futures_util::poll!(&mut second).is_pending());
    first.abort();
    second.await.unwrap();
    let ranges: Vec<_> =
        registry.requests().iter().filter_map(|request| request.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges, ["bytes=200000-"]);
}

#[tokio::test]
async fn records_are_replaced_and_more_names_depend_on_the_first() {
    let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
    let old = Image::new(&[Layer::gzip(&[("old", "")])]);
    old.push(&registry, "1.0");
    let labels = Labels::from([("a".to_owned(), "1".to_owned())]);
    daemon.pull(&registry, "1.0", Destination { labels, ..packed(&registry, "1.0") }).await.unwrap();
    let new = Image::new(&[Layer::gzip(&[("new", "")])]);
    let target = new.push(&registry, "1.0");
    let extra =
        |name: &str, add_digest| ImageReference { name: name.to_owned(), add_digest, ..Default::default() };
    let extra_references = vec![extra("repo", true), extra("alias", false)];
    let destination = Destination { extra_references, ..packed(&registry, "1.0") };
    daemon.pull(&registry, "1.0", destination).await.unwrap();
    let primary = daemon.images.get(&ctx(), &reference(&registry, "1.0")).unwrap();
    assert_eq!((primary.target, primary.labels), (target.clone(), Labels::new()));
    for name in ["alias".to_owned(), format!("repo@{}", target.digest)] {
        let image = daemon.images.get(&ctx(), &name).unwrap();
        assert_eq!(image.target.digest, target.digest);
        assert_eq!(image.labels["containerd.io/gc.bref.image"], primary.name);
        assert!(image.labels.contains_key("containerd.io/gc.expire"));
    }
}

#[tokio::test]
async fn progress_is_told_in_order() {
    let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
    let image = Image::new(&[Layer::gzip(&[("a", "1")])]);
    let target = image.push(&registry, "1.0");
    let (sender, mut receiver) = progress::channel();
    daemon.pull_telling(&registry, "1.0", packed(&registry, "1.0"), &sender).await.unwrap();
    drop(sender);
    let mut told = Vec::new();
    while let Some(message) = receiver.recv().await {
        told.push(message);
    }
    let name = reference(&registry, "1.0");
    let events: Vec<_> = told.iter().map(|message| message.event.as_str()).collect();
    assert_eq!(events[0], format!("Resolving from OCI Registry ({name})"));
    assert_eq!(events[1], format!("Pulling from OCI Registry ({name})"));
    assert_eq!((events[2], told[2].name.as_str()), ("fetching image content", name.as_str()));
    let layer = image.layers[0].descriptor();
    let key = format!("layer-{}", layer.digest);
    let of_layer: Vec<_> = told.iter().filter(|message| message.name == key).collect();
    assert_eq!(of_layer.first().unwrap().event, "waiting");
    assert_eq!(of_layer.last().unwrap().event, "complete");
    assert_eq!(of_layer[0].parents, [format!("manifest-{}", target.digest)]);
    assert_eq!((of_layer.last().unwrap().progress, of_layer[0].total), (layer.size, layer.size));
    assert_eq!(events[events.len() - 2..], ["saved", &format!("Completed pull from OCI Registry ({name})")]);
}

struct Refuse;

#[async_trait::async_trait]
impl Verifier for Refuse {
    async fn verify(&self, name: &str, _target: &Descriptor) -> Result<()> {
        Err(Error::unknown(format!("{name} is refused")))
    }
}

#[tokio::test]
async fn a_refused_image_is_not_fetched() {
    let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
    Image::new(&two_layers()).push(&registry, "1.0");
    let request = PullRequest {
        reference: reference(&registry, "1.0"),
        destination: packed(&registry, "1.0"),
        verifier: Some(Arc::new(Refuse)),
    };
    daemon.service.pull(&ctx(), &resolver(), &request, &ProgressSender::none()).await.unwrap_err();
    assert_eq!(registry.lines(), ["HEAD /v2/lab/img/manifests/1.0"]);
}

#[tokio::test]
async fn an_old_registrys_manifest_is_mended() {
    let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
    let config = registry.blob("lab/img", "application/octet-stream", b"{\"os\":\"linux\"}");
    let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": []}).to_string();
    let target = registry.manifest("lab/img", "1.0", media_type::DOCKER_MANIFEST, manifest.as_bytes());
    let images = daemon.pull(&registry, "1.0", packed(&registry, "1.0")).await.unwrap();
    assert_ne!(images[0].target.digest, target.digest);
    let data = daemon.content.read(&ctx(), &images[0].target.digest, 1 << 20).unwrap();
    assert!(String::from_utf8(data).unwrap().contains(media_type::DOCKER_CONFIG));
    let labels = daemon.labels(&images[0].target.digest);
    assert_eq!(labels["containerd.io/gc.ref.content.config"], config.digest.to_string());
}

#[tokio::test]
async fn layers_may_be_left_out_of_what_is_kept() {
    let (registry, daemon) = (ScriptedRegistry::start().await, Daemon::start());
    let target = Image::new(&two_layers()).push(&registry, "1.0");
    let destination = Destination { discard_unpacked_layers: true, ..packed(&registry, "1.0") };
    daemon.pull(&registry, "1.0", destination).await.unwrap();
    let labels = daemon.labels(&target.digest);
    assert!(labels.keys().all(|key| !key.starts_with("containerd.io/gc.ref.content.l.")), "{labels:?}");
}
