//! Images going out: to registries and into archives, by our `ctr` and Debian's, read by others.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::path::Path;

use corten_tests::image::gzip;
use corten_tests::{
    Blob, Digest, Finished, Image, ImageBuilder, Layer, Node, Peers, Registry, command, peers,
};
use corten_types::media_type;
use serde_json::json;

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
fn what_is_unpacked_of_several_platforms_is_what_debians_unpacks() {
    let registry = Registry::start();
    let debians = Peers::find().containerd_2_1().join("ctr");
    let image = registry.push(&two_platforms(), "lab/box:1");
    let node = Node::start();
    let archive = node.join("two.tar");
    let archive = archive.to_str().unwrap();
    two_platforms().save(Path::new(archive), &image).unwrap();
    let both = ["amd64", "arm64"].map(|name| format!("--platform=linux/{name}"));
    let pull = ["images", "pull", "--plain-http"];
    for client in [&peers::programs().join("ctr"), &debians] {
        let ctr = |args: &[&str]| -> Finished { command::run(node.foreign_ctr_command(client, args)) };
        // The platforms share a layer, and one has another one on top.
        for (line, snapshots) in [
            (&["images", "import", archive][..], 1),
            (&["images", "import", "--all-platforms", archive], 2),
            (&[&pull[..], &[&image]].concat(), 1),
            (&[&pull[..], &["--all-platforms", &image]].concat(), 0),
            (&[&pull[..], &["--all-platforms", "--local", &image]].concat(), 2),
            (&[&pull[..], &[&both[0], &both[1], &image]].concat(), 2),
        ] {
            ctr(line).ok();
            let found = ctr(&["snapshots", "ls"]).ok();
            assert_eq!(found.lines().count() - 1, snapshots, "{client:?} {line:?}: {found}");
            let found = ctr(&["images", "check", "--quiet"]).ok();
            assert_eq!(found.lines().count(), usize::from(snapshots > 0), "{client:?} {line:?}: {found}");
            ctr(&["images", "rm", "--sync", &image]).ok();
        }
        let refused = ctr(&[&pull[..], &["--all-platforms", &both[0], &image]].concat()).fails(1);
        assert!(refused.contains("cannot specify both --platform and --all-platforms"), "{refused}");
    }
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
fn layers_that_may_not_be_handed_on_are_sent_only_if_told() {
    let kind = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    let mut image = ImageBuilder::busybox().build();
    let manifest = String::from_utf8(image.target.data.clone()).unwrap();
    image.target.data = manifest.replace(corten_types::media_type::OCI_LAYER_GZIP, kind).into_bytes();
    let (registry, name) = (Registry::start(), "example.com/lab/box:1");
    for (node, flags) in [
        (Node::start(), &["--allow-non-distributable-blobs"][..]),
        (
            Node::peer(&Peers::find().containerd_2_1()).start(),
            &["--local", "--allow-non-distributable-blobs"][..],
        ),
    ] {
        let archive = node.join("in.tar");
        image.save(&archive, name).unwrap();
        node.ctr(["images", "import", archive.to_str().unwrap()]).ok();
        let there = format!("{}/lab/{}:1", registry.host(), node.namespace().to_lowercase());
        let push = |flags: &[&str]| {
            let words = ["images", "push", "--plain-http"].iter().chain(flags).copied();
            node.ctr(words.chain([there.as_str(), name]))
        };
        // The registry accepts no manifest whose layers it does not have.
        push(&flags[..flags.len() - 1]).fails(1);
        push(flags).ok();
        node.ctr(["images", "pull", "--plain-http", &there]).ok();
        assert_eq!(node.ctr(["run", "--rm", &there, "c", "echo", "works"]).ok(), "works\n");
        node.finish();
    }
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

fn skopeo(node: &Node, from: &str, to: &str) {
    let mut skopeo = std::process::Command::new(Peers::find().skopeo());
    // It is told nothing of this machine's policies, and keeps what it needs in the node's folder.
    skopeo.args(["--insecure-policy", "--tmpdir"]).arg(node.path()).args(["copy", "--quiet", from, to]);
    skopeo.env("HOME", node.path()).env("TMPDIR", node.path());
    command::run(skopeo).ok();
}

fn works(node: &Node, image: &str, container: &str) {
    assert_eq!(node.ctr(["run", "--rm", image, container, "echo", "works"]).ok(), "works\n", "{image}");
    node.ctr(["images", "rm", "--sync", image]).ok();
}

#[test]
fn archives_of_skopeo_and_docker_come_in_and_ours_go_there() {
    let node = Node::start();
    let at = |name: &str| node.join(name).display().to_string();
    let name = "example.com/lab/box:1";
    let made = ImageBuilder::busybox().build();
    made.save(&node.join("made.tar"), name).unwrap();
    node.ctr(["images", "import", &at("made.tar")]).ok();
    node.ctr(["images", "export", &at("ours.tar"), name]).ok();
    node.ctr(["images", "rm", "--sync", name]).ok();
    // As docker save writes it, and as an OCI layout; each back again.
    skopeo(
        &node,
        &format!("docker-archive:{}", at("ours.tar")),
        &format!("docker-archive:{}:{name}", at("docker.tar")),
    );
    node.ctr(["images", "import", &at("docker.tar")]).ok();
    node.ctr(["images", "export", &at("again.tar"), name]).ok();
    works(&node, name, "docker");
    skopeo(&node, &format!("oci-archive:{}", at("ours.tar")), &format!("oci-archive:{}:1", at("oci.tar")));
    node.ctr(["images", "import", "--base-name", "example.com/lab/box", &at("oci.tar")]).ok();
    works(&node, name, "oci");
    // What came from Docker's form goes out as that once more.
    skopeo(
        &node,
        &format!("docker-archive:{}", at("again.tar")),
        &format!("docker-archive:{}:{name}", at("third.tar")),
    );
    node.ctr(["images", "import", "--compress-blobs", &at("third.tar")]).ok();
    works(&node, name, "compressed");
    // Packed as a whole.
    let packed = corten_tests::image::gzip(&std::fs::read(node.join("docker.tar")).unwrap());
    std::fs::write(node.join("docker.tar.gz"), packed).unwrap();
    node.ctr(["images", "import", &at("docker.tar.gz")]).ok();
    works(&node, name, "packed");
    node.finish();
}

#[test]
fn what_umoci_makes_comes_in() {
    let node = Node::start();
    let name = "example.com/lab/box:1";
    ImageBuilder::busybox().build().save(&node.join("made.tar"), name).unwrap();
    node.ctr(["images", "import", "--no-unpack", node.join("made.tar").to_str().unwrap()]).ok();
    node.ctr(["images", "export", node.join("ours.tar").to_str().unwrap(), name]).ok();
    let layout = node.join("layout");
    tar::Archive::new(std::fs::File::open(node.join("ours.tar")).unwrap()).unpack(&layout).unwrap();
    // What it makes of an image keeps what is said of it, but our name is not the new one's.
    let index = std::fs::read_to_string(layout.join("index.json")).unwrap();
    let mut index: serde_json::Value = serde_json::from_str(&index).unwrap();
    index["manifests"][0]["annotations"].as_object_mut().unwrap().remove("io.containerd.image.name");
    std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
    std::fs::write(node.join("added"), "by umoci\n").unwrap();
    let mut umoci = std::process::Command::new(Peers::find().umoci());
    umoci.args(["insert", "--image"]).arg(format!("{}:1", layout.display()));
    umoci.arg("--tag").arg("new").arg(node.join("added")).arg("/added");
    command::run(umoci).ok();
    let mut archive = tar::Builder::new(std::fs::File::create(node.join("umoci.tar")).unwrap());
    archive.append_dir_all(".", &layout).unwrap();
    archive.finish().unwrap();
    node.ctr(["images", "import", "--base-name", "lab/umoci", node.join("umoci.tar").to_str().unwrap()]).ok();
    assert_eq!(node.ctr(["run", "--rm", "lab/umoci:new", "c", "cat", "/added"]).ok(), "by umoci\n");
    node.finish();
}

#[test]
fn verifiers_decide_about_pulls() {
    use std::os::unix::fs::PermissionsExt;
    let folder = corten_tests::Scratch::new();
    let config = format!(
        "[plugins.'io.containerd.image-verifier.v1.bindir']\nbin_dir = '{}'\n",
        folder.path().display()
    );
    let node = Node::builder().config(&config).start();
    let registry = Registry::start();
    let image = registry.push(&ImageBuilder::busybox().build(), "lab/box:1");
    let verifier = |name: &str, script: &str| {
        std::fs::write(folder.join(name), format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(folder.join(name), PermissionsExt::from_mode(0o755)).unwrap();
    };
    let seen = folder.path().parent().unwrap().join(format!("seen-{}", std::process::id()));
    verifier("a", &format!("echo \"$@\" >{0}; cat >>{0}; exit 0", seen.display()));
    let clients = [peers::programs().join("ctr"), Peers::find().containerd_2_1().join("ctr")];
    for client in &clients {
        command::run(node.foreign_ctr_command(client, ["images", "pull", "--plain-http", &image])).ok();
        node.ctr(["images", "rm", "--sync", &image]).ok();
    }
    let told = std::fs::read_to_string(&seen).unwrap();
    std::fs::remove_file(&seen).unwrap();
    assert!(told.starts_with(&format!("-name {image} -digest sha256:")), "{told}");
    assert!(told.contains("-stdin-media-type application/vnd.oci.descriptor.v1+json"), "{told}");
    assert!(told.contains("\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\""), "{told}");
    verifier("b", "echo not signed; exit 3");
    for client in &clients {
        let done = command::run(node.foreign_ctr_command(client, ["images", "pull", "--plain-http", &image]));
        done.fails_with("verifier b rejected image (exit code 3): not signed");
    }
    assert_eq!(node.ctr(["images", "ls", "-q"]).ok(), "");
    node.finish();
}

#[test]
fn progress_is_told_in_lines_and_to_programs() {
    let node = Node::start();
    let registry = Registry::start();
    let image = registry.push(&ImageBuilder::busybox().build(), "lab/box:1");
    let pull = |how: &str| node.ctr(["images", "pull", "--plain-http", "--progress", how, &image]).ok();
    let told = pull("json");
    let lines: Vec<serde_json::Value> =
        told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_layer: Vec<_> = lines
        .iter()
        .filter(|line| line["name"].as_str().is_some_and(|name| name.starts_with("layer-")))
        .collect();
    assert_eq!(of_layer.last().unwrap()["progress"], of_layer.last().unwrap()["total"]);
    assert!(of_layer.iter().any(|line| line["event"] == "extracted"), "{told}");
    assert_eq!(lines.last().unwrap()["event"], "done");
    let told = pull("plain");
    assert!(told.contains("\talready exists\t\n") && told.contains("elapsed: "), "{told}");
    assert_eq!(pull("none"), "");
    node.finish();
}

#[test]
fn blobs_are_made_changed_fetched_and_sent_as_by_debians_ctr() {
    let (ours, theirs) = (Node::start(), Node::peer(&Peers::find().containerd_2_1()).start());
    let registry = Registry::start();
    let image = registry.push(&ImageBuilder::busybox().build(), "lab/box:1");
    let data = b"{\"a\":1}";
    let digest = corten_tests::Digest::sha256(data).to_string();
    let manifest = ImageBuilder::busybox().build().target.digest().to_string();
    let root = format!("containerd.io/gc.root={}", 1);
    let all: [&[&str]; 21] = [
        &["ingest"],
        &["ingest", "--expected-size", "70", "key"],
        &["ingest", "--expected-digest", &digest, "other"],
        &["label", &digest, &root, "a=b"],
        &["label", &digest, "a="],
        &["label", "nope", "a=b"],
        &["get", &digest],
        &["get", "nope"],
        &["edit", &digest],
        &["edit", "--validate", "json", &digest],
        &["edit", "--editor", "sed -i s/1/2/", &digest],
        &["edit", "--editor", "true", &digest],
        &["fetch-object", "--plain-http", &image],
        &["fetch-object", "nope"],
        &["fetch-blob", "--plain-http", &image],
        &["push-object", "--plain-http", "$THERE", &digest, "application/octet-stream"],
        &["push-object", "--plain-http", "$THERE", "nope", "x"],
        &["fetch", "nope"],
        &["active", "["],
        &["rm", "nope"],
        &["rm", &digest],
    ];
    // Before the rest: by then neither daemon's collector has anything to do for a while.
    for node in [&ours, &theirs] {
        node.ctr(["content", "fetch", "--plain-http", &image]).ok();
        assert!(node.ctr(["content", "ls", "-q"]).ok().contains(&manifest));
        assert_eq!(node.ctr(["snapshots", "ls"]).ok().lines().count(), 1);
        assert_eq!(node.ctr(["images", "ls", "-q"]).ok(), format!("{image}\n"));
        node.ctr(["content", "prune", "references"]).ok();
        assert_eq!(node.ctr(["content", "ls", "-q"]).ok().lines().count(), 2, "manifest and config");
        node.ctr(["images", "rm", "--sync", &image]).ok();
    }
    ours.ctr(["content", "fetch", "--plain-http", "--metadata-only", &image]).ok();
    assert_eq!(ours.ctr(["content", "ls", "-q"]).ok().lines().count(), 2, "manifest and config");
    for words in all {
        let said = |node: &Node| {
            // Each its own: who comes second would find it there.
            let there = format!("{}/{}/copy", registry.host(), node.namespace().to_lowercase());
            let filled = words.iter().map(|word| if *word == "$THERE" { there.as_str() } else { word });
            let done = node.ctr_with_input(std::iter::once("content").chain(filled), data);
            let stderr = done.stderr.replace(&there, "$THERE");
            let errors = stderr.lines().filter(|line| !line.starts_with("time="));
            // Go lists labels in no order.
            let mut shown: Vec<_> = done.stdout.trim_end().split(',').map(str::to_owned).collect();
            if words[0] == "label" {
                shown.sort();
            }
            (done.code, shown, errors.map(str::to_owned).collect::<Vec<_>>())
        };
        assert_eq!(said(&ours), said(&theirs), "{words:?}");
    }
    ours.finish();
    theirs.finish();
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
    assert!(node.ctr(["images", "check"]).ok().contains("complete (2/2)"));
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
    node.ctr(["images", "import", "--discard-unpacked-layers", archive.to_str().unwrap()]).ok();
    node.ctr(["content", "prune", "references"]).ok();
    assert_eq!(node.ctr(["content", "ls", "-q"]).ok().lines().count(), 2, "manifest and config");
    assert_eq!(node.ctr(["run", "--rm", name, "c", "echo", "works"]).ok(), "works\n");
    node.ctr(["images", "rm", "--sync", name]).ok();
    assert_eq!(import(&["--index-name", "example.com/lab/all:2"]), ["example.com/lab/all:2", name]);
    node.finish();
}

/// The day, as it stands in names that an import makes.
fn today() -> String {
    corten_types::timestamp::rfc3339(std::time::SystemTime::now()).chars().take(10).collect()
}

/// Something about an image: a manifest that names it as its subject, and what a list says of it.
fn attached(subject: &Image, kind: &str, data: &[u8]) -> (Image, serde_json::Value) {
    let config = Blob::new("application/vnd.oci.empty.v1+json", b"{}".to_vec());
    let layer = Blob::new("text/plain", data.to_vec());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "artifactType": kind,
        "config": config.descriptor(), "layers": [layer.descriptor()], "subject": subject.target.descriptor(),
    });
    let target = Blob::new(media_type::OCI_MANIFEST, manifest.to_string().into_bytes());
    let mut descriptor = target.descriptor();
    descriptor["artifactType"] = kind.into();
    descriptor["annotations"] = json!({"about": kind});
    (Image { target, blobs: vec![config, layer] }, descriptor)
}

#[test]
fn what_is_attached_to_an_image_is_listed_and_comes_by_its_digest() {
    let (node, registry) = (Node::start(), Registry::start());
    let image = ImageBuilder::new().layer(Layer::new().file("file", 0o644, b"x").finish()).build();
    let reference = registry.push(&image, "lab/image:1");
    let list = |words: &[&str]| {
        let command = [&["images", "referrers", "--plain-http"], words, &[&reference]].concat();
        node.ctr(command).ok()
    };
    assert_eq!(list(&["--quiet"]), "");

    let (signature, signed) = attached(&image, "application/vnd.example.signature", b"signed");
    let (parts, listed) = attached(&image, "application/vnd.example.parts", b"all of it");
    // This registry keeps no lists: a tag stands in for them.
    let index =
        json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [signed, listed]});
    let target = Blob::new(media_type::OCI_INDEX, index.to_string().into_bytes());
    let of = |image: &Image| image.blobs.iter().chain([&image.target]).cloned().collect::<Vec<_>>();
    let blobs = [of(&signature), of(&parts)].concat();
    let tag = format!("lab/image:sha256-{}", image.target.digest().hex());
    registry.push(&Image { target, blobs }, &tag);

    let [first, second] = [&signature, &parts].map(|image| image.target.digest().to_string());
    assert_eq!(list(&["--quiet"]), format!("{first}\n{second}\n"));
    let table = list(&[]);
    assert_eq!(table.split_whitespace().take(4).collect::<Vec<_>>(), ["DIGEST", "ARTIFACT", "TYPE", "SIZE"]);
    let row = table.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>();
    let kind = "application/vnd.example.signature";
    assert_eq!((row[0], row[1], *row.last().unwrap()), (first.as_str(), kind, &*format!("about={kind}")));
    let all: serde_json::Value = serde_json::from_str(&list(&["--format", "json"])).unwrap();
    assert_eq!(all, json!([signed, listed]));
    assert_eq!(list(&["-q", "--artifact-type", "application/vnd.example.parts"]), format!("{second}\n"));

    let name = format!("{}/lab/image@{first}", registry.host());
    node.ctr(["content", "fetch", "--plain-http", &name]).ok();
    assert_eq!(node.ctr(["content", "get", signature.blobs[1].digest().as_str()]).ok(), "signed");
    let absent = reference.replace(":1", ":2");
    node.ctr(["images", "referrers", "--plain-http", &absent]).fails_with("not found");
}

const DOCKER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";

/// Compressed with Zstandard.
fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 1).unwrap()
}

/// An image of one layer, whose archive is `tar`.
fn single(kind: &str, data: Vec<u8>, tar: &[u8]) -> Image {
    stack(vec![Blob::new(kind, data)], &[tar])
}

fn stack(layers: Vec<Blob>, tars: &[&[u8]]) -> Image {
    let diff_ids: Vec<Digest> = tars.iter().map(|tar| Digest::sha256(tar)).collect();
    let config = json!({
        "architecture": corten_tests::image::host_architecture(), "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    Image::new(Blob::new(media_type::OCI_CONFIG, config.to_string().into_bytes()), layers)
}

/// What people's tools make of images; how each comes out was asked of Debian's containerd 2.1.
#[test]
fn images_of_all_kinds_come_in_as_far_as_they_can_be_understood() {
    let (node, registry) = (Node::start(), Registry::start());
    let tar = Layer::new().file("file", 0o644, &[7; 5000]).finish();
    let other = Layer::new().file("other", 0o644, b"other").finish();
    let (plain, packed) = (media_type::OCI_LAYER, media_type::OCI_LAYER_GZIP);
    let layer = |tar: &[u8]| Blob::new(packed, gzip(tar));
    let parts = [gzip(&tar[..600]), gzip(&tar[600..])].concat();
    let longer = [&tar[..], &[7; 700]].concat();
    let without_layers = stack(Vec::new(), &[]);
    let foreign = Blob::new("application/vnd.example.part", b"part".to_vec());
    let chart = Blob::new("application/vnd.cncf.helm.config.v1+json", b"{}".to_vec());
    let archive = Blob::new("application/vnd.cncf.helm.chart.content.v1.tar+gzip", b"chart".to_vec());
    let broken = Blob::new(media_type::OCI_CONFIG, b"not JSON".to_vec());
    for (name, image, outcome) in [
        ("a layer twice", stack(vec![layer(&tar), layer(&other), layer(&tar)], &[&tar, &other, &tar]), Ok(3)),
        ("no layers", without_layers, Ok(0)),
        ("an archive without entries", single(packed, gzip(&[0; 1024]), &[0; 1024]), Ok(1)),
        ("said to be compressed", single(packed, tar.clone(), &tar), Ok(1)),
        ("compressed with something else", single(packed, zstd(&tar), &tar), Ok(1)),
        ("compressed in two parts", single(packed, parts, &tar), Ok(1)),
        ("more after the archive's end", single(packed, gzip(&longer), &longer), Ok(1)),
        ("more after the last part", single(packed, [gzip(&tar), vec![1; 9]].concat(), &tar), Err("gzip")),
        ("Docker's Zstandard", single(DOCKER_ZSTD, zstd(&tar), &tar), Ok(1)),
        ("an empty blob", single(plain, Vec::new(), b""), Err("content size of zero")),
        ("something beside layers", stack(vec![layer(&tar), foreign], &[&tar]), Ok(1)),
        ("too few digests", stack(vec![layer(&tar), layer(&other)], &[&tar]), Err("2 != 1")),
        ("no image at all", Image::new(chart, vec![archive]), Ok(0)),
        ("a config that is none", Image::new(broken, vec![layer(&tar)]), Err("config")),
    ] {
        let reference = registry.push(&image, "lab/odd:1");
        let pulled = node.ctr(["images", "pull", "--plain-http", &reference]);
        match outcome {
            Ok(snapshots) => {
                pulled.ok();
                let found = node.ctr(["snapshots", "ls"]).ok().lines().count() - 1;
                assert_eq!(found, snapshots, "{name}");
                node.ctr(["images", "rm", "--sync", &reference]).ok();
            }
            Err(text) => {
                let told = pulled.fails(1);
                assert!(told.contains(text), "{name}: {told}");
                assert_eq!(node.ctr(["images", "ls", "-q"]).ok(), "", "{name}");
                assert_eq!(node.ctr(["snapshots", "ls"]).ok().lines().count(), 1, "{name}");
            }
        }
        // What is only kept need not be understood, unless nobody could send it.
        if outcome != Err("content size of zero") {
            node.ctr(["content", "fetch", "--plain-http", "--all-platforms", &reference]).ok();
            node.ctr(["images", "rm", "--sync", &reference]).ok();
        }
    }
}
