//! Archives.

use corten_images::{ImageReference, ImportRequest};
use corten_types::{Digest, media_type};

use super::build::{self, Image, Layer};
use super::*;

fn prefix(name: &str) -> ImageReference {
    ImageReference {
        name: name.to_owned(),
        is_prefix: true,
        allow_overwrite: true,
        ..ImageReference::default()
    }
}

fn request(rules: Vec<ImageReference>) -> ImportRequest {
    let destination = Destination { extra_references: rules, ..Destination::default() };
    ImportRequest { destination, ..ImportRequest::default() }
}

async fn import(daemon: &Daemon, archive: Vec<u8>, request: &ImportRequest) -> Result<Vec<String>> {
    let input = std::io::Cursor::new(archive);
    let images = daemon.service.import(&ctx(), input, request, &ProgressSender::none()).await?;
    Ok(images.into_iter().map(|image| image.name).collect())
}

fn docker_archive(tags: serde_json::Value, layer: &Layer, config: &[u8]) -> Vec<u8> {
    let manifest =
        serde_json::json!([{"Config": "config.json", "RepoTags": tags, "Layers": ["one/layer.tar"]}]);
    build::archive(&[
        ("one/layer.tar".to_owned(), layer.blob.clone()),
        ("config.json".to_owned(), config.to_vec()),
        ("manifest.json".to_owned(), manifest.to_string().into_bytes()),
    ])
}

#[tokio::test]
async fn a_layout_is_imported_compressed_or_not() {
    let image = Image::new(&[Layer::gzip(&[("a", "1")]), Layer::zstd(&[("b", "2")])]);
    let annotations: &[_] = &[("org.opencontainers.image.ref.name", "1.0")];
    let archive = build::layout(&[(&image, annotations)]);
    let zstd = zstd::encode_all(archive.as_slice(), 1).unwrap();
    for archive in [archive.clone(), build::gzip(&archive), zstd] {
        let daemon = Daemon::start();
        let names = import(&daemon, archive, &request(vec![prefix("base")])).await.unwrap();
        assert_eq!(names, ["base:1.0"]);
        let labels = daemon.labels(&image.descriptor().digest);
        assert_eq!(labels["containerd.io/gc.ref.content.config"], image.config_digest().to_string());
        assert!(labels.contains_key("containerd.io/gc.ref.content.l.1"));
        assert!(daemon.leases.list(&ctx(), &[]).unwrap().is_empty());
    }
}

#[tokio::test]
async fn an_archive_may_come_byte_by_byte() {
    let image = Image::new(&[Layer::gzip(&[("a", "1")])]);
    let archive = build::layout(&[(&image, &[("io.containerd.image.name", "reg.example/a:1")])]);
    for archive in [zstd::encode_all(archive.as_slice(), 1).unwrap(), build::gzip(&archive)] {
        let daemon = Daemon::start();
        let (mut writer, reader) = tokio::io::duplex(1);
        let writing = tokio::spawn(async move {
            tokio::io::AsyncWriteExt::write_all(&mut writer, &archive).await.unwrap();
        });
        let request = request(vec![prefix("base")]);
        let images = daemon.service.import(&ctx(), reader, &request, &ProgressSender::none()).await.unwrap();
        assert_eq!(images[0].name, "reg.example/a:1");
        writing.await.unwrap();
    }
}

#[tokio::test]
async fn an_import_may_be_repeated_and_broken_off() {
    let daemon = Daemon::start();
    let image = Image::new(&[Layer::large("a", 300_000)]);
    let archive = build::layout(&[(&image, &[("io.containerd.image.name", "reg.example/a:1")])]);
    let cut = archive[..archive.len() / 2].to_vec();
    let error = import(&daemon, cut, &request(vec![prefix("x")])).await.unwrap_err();
    assert!(error.to_string().contains("unexpected end of file"), "{error}");
    assert!(daemon.names().is_empty() && daemon.leases.list(&ctx(), &[]).unwrap().is_empty());
    for _ in 0..2 {
        let names = import(&daemon, archive.clone(), &request(vec![prefix("x")])).await.unwrap();
        assert_eq!(names, ["reg.example/a:1"]);
    }
}

#[tokio::test]
async fn docker_archives_become_manifests() {
    let daemon = Daemon::start();
    let layer = Layer::plain(&[("a", "1")]);
    let config = Image::new(std::slice::from_ref(&layer)).config;
    let archive = docker_archive(serde_json::json!(["alpine:3", "a/b"]), &layer, &config);
    let names = import(&daemon, archive, &request(vec![prefix("unused")])).await.unwrap();
    assert_eq!(names, ["docker.io/library/alpine:3", "docker.io/a/b:latest"]);
    let target = daemon.images.get(&ctx(), &names[0]).unwrap().target;
    assert_eq!(target.media_type, media_type::DOCKER_MANIFEST);
    let manifest: serde_json::Value =
        serde_json::from_slice(&daemon.content.read(&ctx(), &target.digest, 1 << 20).unwrap()).unwrap();
    assert_eq!(manifest["layers"][0]["mediaType"], media_type::DOCKER_LAYER);
    assert_eq!(manifest["layers"][0]["digest"], layer.diff_id.to_string());
}

#[tokio::test]
async fn plain_layers_are_compressed_on_demand_and_their_twins_used_again() {
    let daemon = Daemon::start();
    let layer = Layer::plain(&[("a", &"text ".repeat(10_000))]);
    let config = Image::new(std::slice::from_ref(&layer)).config;
    let archive = docker_archive(serde_json::json!(["a:1"]), &layer, &config);
    let compress = ImportRequest { force_compress: true, ..request(vec![prefix("x")]) };
    let mut seen = Vec::new();
    for request in [compress, request(vec![prefix("x")])] {
        import(&daemon, archive.clone(), &request).await.unwrap();
        let target = daemon.images.get(&ctx(), "docker.io/library/a:1").unwrap().target;
        let data = daemon.content.read(&ctx(), &target.digest, 1 << 20).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&data).unwrap();
        assert_eq!(manifest["layers"][0]["mediaType"], media_type::DOCKER_LAYER_GZIP);
        seen.push(manifest["layers"][0]["digest"].as_str().unwrap().to_owned());
    }
    assert_eq!(seen[0], seen[1]);
    let digest: Digest = seen[0].parse().unwrap();
    assert_eq!(daemon.labels(&digest)["containerd.io/uncompressed"], layer.diff_id.to_string());
    let mut plain = Vec::new();
    let blob = daemon.content.read(&ctx(), &digest, 1 << 20).unwrap();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(blob.as_slice()), &mut plain).unwrap();
    assert_eq!(plain, layer.blob);
}

#[tokio::test]
async fn images_are_kept_whatever_they_run_on_where_the_index_names_no_platform() {
    let daemon = Daemon::start();
    let here = Image::new(&[Layer::gzip(&[("a", "1")])]);
    let there = Image::on("s390x", &[Layer::gzip(&[("b", "2")])]);
    let names = [[("io.containerd.image.name", "x/here:1")], [("io.containerd.image.name", "x/there:1")]];
    let archive = build::layout(&[(&here, &names[0]), (&there, &names[1])]);
    let mut only_here = request(vec![prefix("x")]);
    only_here.destination.platforms = vec![Platform::host()];
    only_here.destination.unpacks = vec![Unpack { platform: Platform::host(), ..Unpack::default() }];
    assert_eq!(import(&daemon, archive, &only_here).await.unwrap(), ["x/here:1", "x/there:1"]);
    assert_eq!(daemon.snapshot_names("overlayfs").await.len(), 2, "unpacked, as with the original");
}

#[tokio::test]
async fn an_index_may_be_recorded_as_a_whole() {
    let daemon = Daemon::start();
    let image = Image::new(&[Layer::gzip(&[("a", "1")])]);
    let mut named = request(Vec::new());
    named.destination.name = "whole".to_owned();
    let names = import(&daemon, build::layout(&[(&image, &[])]), &named).await.unwrap();
    assert_eq!(names, ["whole"]);
    assert_eq!(daemon.images.get(&ctx(), "whole").unwrap().target.media_type, media_type::OCI_INDEX);
}

#[tokio::test]
async fn what_is_no_image_is_refused() {
    let daemon = Daemon::start();
    for archive in [Vec::new(), build::archive(&[("a".to_owned(), b"b".to_vec())])] {
        let error = import(&daemon, archive, &request(vec![prefix("x")])).await.unwrap_err();
        assert_eq!(error.to_string(), "unrecognized image format");
    }
    let image = Image::new(&[Layer::gzip(&[("a", "1")])]);
    // A layer is missing.
    let files = build::layout(&[(&image, &[("io.containerd.image.name", "x/broken:1")])]);
    let layer = image.layers[0].descriptor().digest;
    let mut out = tar::Builder::new(Vec::new());
    for entry in tar::Archive::new(files.as_slice()).entries().unwrap() {
        let entry = entry.unwrap();
        if !entry.path().unwrap().to_string_lossy().contains(layer.hex()) {
            out.append(&entry.header().clone(), entry).unwrap();
        }
    }
    let error = import(&daemon, out.into_inner().unwrap(), &request(vec![prefix("x")])).await.unwrap_err();
    assert_eq!(error.to_string(), format!("content digest {layer}: not found"));
    assert!(daemon.names().is_empty());
}

#[tokio::test]
async fn an_import_that_is_given_up_stops_reading() {
    let daemon = Daemon::start();
    let (input, keep) = tokio::io::duplex(64);
    let request = request(vec![prefix("x")]);
    let (ctx, progress) = (ctx(), ProgressSender::none());
    let import = daemon.service.import(&ctx, input, &request, &progress);
    assert!(tokio::time::timeout(Duration::from_millis(100), Box::pin(import)).await.is_err());
    // The reading end is dropped, by a thread that no longer waits for bytes.
    let mut keep = keep;
    let written = async { while tokio::io::AsyncWriteExt::write_all(&mut keep, &[0; 64]).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(10), written).await.unwrap();
}
