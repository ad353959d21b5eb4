//! Layers made and applied by our daemon, held against Debian's containerd 2.1.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::process::Command;
use std::time::Duration;

use corten_api::services::{content, diff, snapshots};
use corten_api::types::{Descriptor, Mount};
use corten_tests::image::gzip;
use corten_tests::{Client, Digest, Image, ImageBuilder, Node, Peers, Registry};
use corten_types::media_type;
use tonic::{Code, Status};

const SNAPSHOTTERS: [&str; 2] = ["overlayfs", "native"];

/// A tree with all that there can be in one, of fixed times.
const BASE: &str = "
    mkdir -p a/b d opaque deep/er/still empty
    echo hi > a/b/f; ln a/b/f a/l; ln -s ../d a/s; mkfifo a/p; mknod c c 1 3; mknod b b 7 200
    echo 1 > opaque/one; echo 2 > opaque/two; touch gone; echo x > deep/er/still/x
    echo same > touched; echo same > content; echo f > becomes-folder; mkdir becomes-file; echo x > becomes-file/x
    echo cap > capable; chmod 4755 capable; setcap cap_net_raw+ep capable; chown 3000000:7 d
    touch \"$(printf 'n%.0s' $(seq 140))\"; mkdir -p \"$(printf 'p%.0s' $(seq 120))/$(printf 'q%.0s' $(seq 60))\"
    find . -depth -exec touch -h -d @1600000000.5 {} +; touch -d @1600000000 content";

/// Changes to it.
const CHANGES: &str = "
    rm gone; rm -r opaque; mkdir opaque; echo 3 > opaque/three; chmod 700 a/b/f; ln a/l linked
    rm becomes-folder; mkdir becomes-folder; echo n > becomes-folder/n; rm -r becomes-file; echo n > becomes-file
    echo 'größe' > 'größe'; mkdir -p new/er; touch -d @-5 new/old; touch -d @99999999999 new/late
    ln -s \"$(printf 't%.0s' $(seq 110))\" new/long-link; ln new/late new/late2; echo cap > new/cap; setcap cap_chown+ep new/cap
    f=\"$(printf 'p%.0s' $(seq 120))/$(printf 'q%.0s' $(seq 60))/f\"; echo f > \"$f\"; chmod 600 touched; chmod 644 touched
    rm -r deep/er/still; dd if=/dev/zero of=new/big bs=1000 count=1000 status=none
    find opaque becomes-folder becomes-file 'größe' linked new/long-link new/cap new/big \"$f\" a/b/f -exec touch -h -d @1600000777.25 {} +
    echo sama > content; touch -d @1600000000 content
    find . -type d -exec touch -d @1600000888 {} +";

fn service(node: &Node) -> Client {
    Client::new(&node.address(), Some(node.namespace()))
}

/// Runs a script in what mounts show.
fn inside(node: &Node, mounts: &[Mount], script: &str) {
    let target = node.join("mounted");
    std::fs::create_dir_all(&target).unwrap();
    for mount in mounts {
        let mut command = Command::new("mount");
        command
            .args(["-t", &mount.r#type, &mount.source])
            .arg(&target)
            .args(["-o", &mount.options.join(",")]);
        assert!(command.status().unwrap().success(), "{mount:?}");
    }
    let done =
        Command::new("sh").args(["-ec", script]).current_dir(&target).env("LC_ALL", "C.UTF-8").status();
    assert!(Command::new("umount").arg(&target).status().unwrap().success());
    assert!(done.unwrap().success(), "{script}");
}

/// So that the collector leaves it.
fn rooted() -> corten_types::Labels {
    [("containerd.io/gc.root".to_owned(), "now".to_owned())].into()
}

fn prepare(node: &Node, snapshotter: &str, key: &str, parent: &str) -> Vec<Mount> {
    let client = service(node);
    let (snapshotter, key, parent) = (snapshotter.into(), key.into(), parent.into());
    let request = snapshots::PrepareSnapshotRequest { snapshotter, key, parent, labels: rooted() };
    client.wait(client.snapshots().prepare(request)).unwrap().mounts
}

fn view(node: &Node, snapshotter: &str, key: &str, parent: &str) -> Vec<Mount> {
    let client = service(node);
    let (snapshotter, key, parent) = (snapshotter.into(), key.into(), parent.into());
    let request = snapshots::ViewSnapshotRequest { snapshotter, key, parent, labels: rooted() };
    client.wait(client.snapshots().view(request)).unwrap().mounts
}

fn commit(node: &Node, snapshotter: &str, name: &str, key: &str) {
    let client = service(node);
    let (snapshotter, name, key) = (snapshotter.into(), name.into(), key.into());
    let request =
        snapshots::CommitSnapshotRequest { snapshotter, name, key, labels: rooted(), ..Default::default() };
    client.wait(client.snapshots().commit(request)).unwrap();
}

fn make(node: &Node, left: Vec<Mount>, right: Vec<Mount>, media_type: &str) -> Result<Descriptor, Status> {
    let client = service(node);
    let request = diff::DiffRequest { left, right, media_type: media_type.into(), ..Default::default() };
    client.wait(client.diff().diff(request)).map(|response| response.diff.unwrap())
}

fn apply(node: &Node, layer: Descriptor, mounts: Vec<Mount>) -> Result<Descriptor, Status> {
    let client = service(node);
    let request = diff::ApplyRequest { diff: Some(layer), mounts, ..Default::default() };
    client.wait(client.diff().apply(request)).map(|response| response.applied.unwrap())
}

fn read(node: &Node, digest: &str) -> Vec<u8> {
    let client = service(node);
    client.block_on(async {
        let request = content::ReadContentRequest { digest: digest.into(), offset: 0, size: 0 };
        let (mut stream, mut data) = (client.content().read(request).await.unwrap().into_inner(), Vec::new());
        while let Some(message) = stream.message().await.unwrap() {
            data.extend_from_slice(&message.data);
        }
        data
    })
}

fn store(node: &Node, media_type: &str, data: &[u8]) -> Descriptor {
    let file = node.join("blob");
    std::fs::write(&file, data).unwrap();
    let digest = Digest::sha256(data).to_string();
    let ctr = Peers::find().containerd_2_1().join("ctr");
    let mut command = node.foreign_ctr_command(&ctr, ["content", "ingest", &digest]);
    command.stdin(std::fs::File::open(file).unwrap());
    assert!(command.status().unwrap().success());
    Descriptor { media_type: media_type.into(), digest, size: data.len() as i64, ..Default::default() }
}

/// The base's layer and the changes' layer, as this node makes them, uncompressed.
fn layers(node: &Node, snapshotter: &str) -> (Vec<u8>, Vec<u8>) {
    inside(node, &prepare(node, snapshotter, "one", ""), BASE);
    commit(node, snapshotter, "base", "one");
    let active = prepare(node, snapshotter, "two", "base");
    inside(node, &active, CHANGES);
    let below = view(node, snapshotter, "below", "base");
    let base = make(node, Vec::new(), below.clone(), media_type::OCI_LAYER).unwrap();
    let changes = make(node, below.clone(), active, media_type::OCI_LAYER).unwrap();
    // The same of the snapshot when it is committed.
    commit(node, snapshotter, "changed", "two");
    let committed =
        make(node, below, view(node, snapshotter, "above", "changed"), media_type::OCI_LAYER).unwrap();
    assert_eq!(committed, changes);
    (read(node, &base.digest), read(node, &changes.digest))
}

/// What there is in an archive, a line for each entry.
fn listed(archive: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().unwrap();
    let line = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.unwrap();
        let extensions: Vec<String> = match entry.pax_extensions().unwrap() {
            Some(all) => all
                .map(|one| {
                    let one = one.unwrap();
                    format!("{}={:?}", String::from_utf8_lossy(one.key_bytes()), one.value_bytes())
                })
                .collect(),
            None => Vec::new(),
        };
        format!("{} {:?} {extensions:?}", String::from_utf8_lossy(&entry.path_bytes()), entry.header())
    };
    entries.map(line).collect()
}

fn assert_same_layer(ours: &[u8], theirs: &[u8], what: &str) {
    let (one, other) = (listed(ours), listed(theirs));
    for (one, other) in one.iter().zip(&other) {
        assert_eq!(one, other, "{what}");
    }
    assert_eq!(one.len(), other.len(), "{what}");
    assert!(ours == theirs, "{what}: other bytes");
}

/// All of a tree, as text; without what is of times that are not restored.
fn described(node: &Node, mounts: &[Mount]) -> String {
    let out = node.join("described");
    let script = format!(
        "find . -mindepth 1 ! -type d -printf '%p %y %m %U %G %s %n %T@ %l\\n' | sed 's/\\.[0-9]* / /' | grep -v ' -5 \\| 15032385535 \\|/new/late\\|/new/old' | LC_ALL=C sort > {0};
         find . -mindepth 1 -type d -printf '%p %m %U %G\\n' | LC_ALL=C sort >> {0};
         find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum >> {0};
         find . -type f -print0 | LC_ALL=C sort -z | xargs -0 getcap >> {0}",
        out.display()
    );
    inside(node, mounts, &script);
    std::fs::read_to_string(out).unwrap()
}

#[test]
fn layers_are_byte_for_byte_those_of_debians_containerd() {
    let (ours, theirs) = (Node::start(), Node::peer(&Peers::find().containerd_2_1()).start());
    for snapshotter in SNAPSHOTTERS {
        let (our_base, our_changes) = layers(&ours, snapshotter);
        let (their_base, their_changes) = layers(&theirs, snapshotter);
        assert_same_layer(&our_base, &their_base, &format!("{snapshotter}: all of a tree"));
        assert_same_layer(&our_changes, &their_changes, &format!("{snapshotter}: changes"));
    }
    ours.finish();
    theirs.finish();
}

#[test]
fn layers_of_one_daemon_give_the_same_tree_in_the_other() {
    let (ours, theirs) = (Node::start(), Node::peer(&Peers::find().containerd_2_1()).start());
    for (from, to) in [(&ours, &theirs), (&theirs, &ours)] {
        let (base, changes) = layers(from, "overlayfs");
        let made = described(from, &view(from, "overlayfs", "look", "changed"));
        for (kind, packed) in [(media_type::OCI_LAYER, false), (media_type::OCI_LAYER_GZIP, true)] {
            let pack = |data: &[u8]| if packed { gzip(data) } else { data.to_vec() };
            let key = |name: &str| format!("{name}-{packed}");
            let (first, second) = (store(to, kind, &pack(&base)), store(to, kind, &pack(&changes)));
            let applied = apply(to, first, prepare(to, "overlayfs", &key("first"), "")).unwrap();
            assert_eq!(applied.digest, Digest::sha256(&base).to_string());
            assert_eq!(applied.media_type, media_type::OCI_LAYER);
            commit(to, "overlayfs", &key("first-done"), &key("first"));
            let mounts = prepare(to, "overlayfs", &key("second"), &key("first-done"));
            apply(to, second, mounts.clone()).unwrap();
            assert_eq!(described(to, &mounts), made);
        }
    }
    ours.finish();
    theirs.finish();
}

#[test]
fn both_daemons_refuse_the_same_in_the_same_words() {
    let (ours, theirs) = (Node::start(), Node::peer(&Peers::find().containerd_2_1()).start());
    let answers = |node: &Node| -> Vec<(Code, String)> {
        let absent = Digest::sha256(b"absent").to_string();
        let layer = |kind: &str, digest: &str| Descriptor {
            media_type: kind.into(),
            digest: digest.into(),
            size: 1,
            ..Default::default()
        };
        let text = store(node, "text/plain", b"this is no archive, and it is not compressed");
        let target = |key: &str| prepare(node, "overlayfs", key, "");
        let refused = |status: Status| (status.code(), status.message().to_owned());
        vec![
            refused(make(node, Vec::new(), Vec::new(), "foo").unwrap_err()),
            refused(
                make(node, Vec::new(), Vec::new(), "application/vnd.docker.image.rootfs.diff.tar.gzip")
                    .unwrap_err(),
            ),
            refused(apply(node, layer(media_type::OCI_LAYER, &absent), target("a")).unwrap_err()),
            refused(apply(node, layer("foo", &text.digest), target("b")).unwrap_err()),
        ]
    };
    let (one, other) = (answers(&ours), answers(&theirs));
    assert_eq!(one, other);
    for node in [&ours, &theirs] {
        let empty = make(node, Vec::new(), Vec::new(), "").unwrap();
        assert_eq!(empty.media_type, media_type::OCI_LAYER_GZIP);
        let labels = node.ctr(["content", "ls"]).ok();
        let zeros = Digest::sha256(&[0; 1024]);
        assert!(labels.contains(&format!("containerd.io/uncompressed={zeros}")), "{labels}");
    }
    ours.finish();
    theirs.finish();
}

/// `ctr snapshots diff` of both programs, with a fixed time, through each of the daemons.
#[test]
fn ctr_shows_the_changes_of_a_snapshot() {
    let peers = Peers::find();
    let node = Node::start();
    inside(&node, &prepare(&node, "overlayfs", "one", ""), BASE);
    commit(&node, "overlayfs", "base", "one");
    inside(&node, &prepare(&node, "overlayfs", "two", "base"), CHANGES);
    let mut outputs = Vec::new();
    for program in [corten_tests::peers::programs().join("ctr"), peers.containerd_2_1().join("ctr")] {
        let arguments =
            ["snapshots", "diff", "--keep", "--label", "k=v", "--media-type", media_type::OCI_LAYER, "two"];
        let mut command = node.foreign_ctr_command(&program, arguments);
        command.env("SOURCE_DATE_EPOCH", "1600000100");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        outputs.push(output.stdout);
    }
    assert!(outputs[0] == outputs[1]);
    let times = |archive: &[u8]| -> Vec<u64> {
        let mut archive = tar::Archive::new(archive);
        archive.entries().unwrap().map(|entry| entry.unwrap().header().mtime().unwrap()).collect()
    };
    assert!(times(&outputs[0]).iter().all(|time| *time <= 1_600_000_100));
    let kept = node.ctr(["content", "ls"]).ok();
    assert!(kept.contains("k=v") && kept.contains("containerd.io/gc.root="), "{kept}");
    node.finish();
}

/// A layer that a program has to make readable first: with every byte turned around.
fn encrypted() -> Image {
    let image = ImageBuilder::busybox().build();
    let at = image.blobs.iter().position(|blob| blob.media_type == media_type::OCI_LAYER_GZIP).unwrap();
    let plain = image.blobs[at].clone();
    let mut layer = plain.clone();
    layer.data = plain.data.iter().map(|byte| byte.wrapping_add(1)).collect();
    layer.media_type = format!("{}+encrypted", media_type::OCI_LAYER_GZIP);
    Image::new(image.blobs[0].clone(), vec![layer])
}

#[test]
fn encrypted_layers_are_unpacked_through_a_stream_processor() {
    let registry = Registry::start();
    let name = registry.push(&encrypted(), "lab/secret:1");
    let configured = |script: &str| {
        format!(
            "version = 2\n[stream_processors.\"lab.decoder\"]\naccepts = [\"{0}+encrypted\"]\nreturns = \"{0}\"\n\
             path = \"sh\"\nargs = [\"-c\", '''{script}''']\nenv = [\"LC_ALL=C\"]\n",
            media_type::OCI_LAYER_GZIP
        )
    };
    let good = r"[ $STREAM_PROCESSOR_MEDIATYPE = application/vnd.oci.image.layer.v1.tar+gzip+encrypted ] && tr '\001-\377\000' '\000-\377'";
    let node = Node::builder().config(&configured(good)).start();
    node.ctr(["images", "pull", "--plain-http", &name]).ok();
    assert_eq!(node.ctr(["run", "--rm", &name, "c", "echo", "readable"]).ok(), "readable\n");
    node.finish();
    let node =
        Node::builder().config(&configured("cat > /dev/null; echo the key is wrong >&2; exit 1")).start();
    node.ctr(["images", "pull", "--plain-http", &name]).fails_with("the key is wrong");
    assert_eq!(node.ctr(["snapshots", "ls"]).ok().lines().count(), 1);
    node.finish();
    // Without a configuration the usual decoder is looked for, which is not installed.
    let node = Node::start();
    node.ctr(["images", "pull", "--plain-http", &name]).fails_with("ctd-decoder");
    node.finish();
}

#[test]
fn a_comparison_that_nobody_waits_for_leaves_nothing() {
    let node = Node::start();
    let mounts = prepare(&node, "native", "one", "");
    inside(&node, &mounts, "head -c 64000000 /dev/urandom > f");
    let client = service(&node);
    let request = diff::DiffRequest { right: mounts, ..Default::default() };
    client.block_on(async {
        let given_up = tokio::time::timeout(Duration::from_millis(100), client.diff().diff(request)).await;
        assert!(given_up.is_err(), "64 MB cannot be compressed as fast");
    });
    corten_tests::eventually("the ingest is given up", Duration::from_secs(30), || {
        let active = node.ctr(["content", "active"]).ok();
        (active.lines().count() <= 1).then_some(())
    });
    node.finish();
}
