//! Archives that are damaged or made to do harm: each gives one clear error or just what it says, nothing of a failure
//! is visible, and a good image comes in afterwards.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use corten_tests::image::gzip;
use corten_tests::{Blob, Digest, Entry, Finished, Image, ImageBuilder, Layer, Node};
use corten_types::media_type;
use serde_json::json;

const NAME: &str = "example.com/lab/strange:1";
const GOOD: &str = "example.com/lab/good:1";

fn import(node: &Node, archive: &[u8]) -> Finished {
    let file = node.join("in.tar");
    std::fs::write(&file, archive).unwrap();
    node.ctr(["images", "import", file.to_str().unwrap()])
}

/// The archive of an image whose second layer is this blob; its config says what the layer is extracted to.
fn with_layer(blob: Blob, diff_id: Digest) -> Vec<u8> {
    let base = Layer::new().file("base", 0o644, b"base").finish();
    let config = json!({
        "architecture": corten_tests::image::host_architecture(), "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [Digest::sha256(&base), diff_id]},
    });
    let config = Blob::new(media_type::OCI_CONFIG, config.to_string().into_bytes());
    let image = Image::new(config, vec![Blob::new(media_type::OCI_LAYER_GZIP, gzip(&base)), blob]);
    saved(&image)
}

fn saved(image: &Image) -> Vec<u8> {
    let scratch = corten_tests::Scratch::new();
    image.save(&scratch.join("image.tar"), NAME).unwrap();
    std::fs::read(scratch.join("image.tar")).unwrap()
}

fn plain(tar: &[u8]) -> Vec<u8> {
    with_layer(Blob::new(media_type::OCI_LAYER, tar.to_vec()), Digest::sha256(tar))
}

/// The import fails, says why, and nothing of it is there.
fn refused(node: &Node, what: &str, archive: &[u8], texts: &[&str]) {
    let done = import(node, archive);
    assert_eq!(done.code, Some(1), "{what}: {done:?}");
    let lines: Vec<_> = done.stderr.lines().filter(|line| line.starts_with("ctr: ")).collect();
    assert_eq!(lines.len(), 1, "{what}: {done:?}");
    assert!(texts.iter().any(|text| lines[0].contains(text)), "{what}: {}", lines[0]);
    nothing_is_visible(node, what);
}

fn nothing_is_visible(node: &Node, what: &str) {
    assert_eq!(node.ctr(["images", "ls", "-q"]).ok(), "", "{what}");
    assert_eq!(node.ctr(["content", "active"]).ok().lines().count(), 1, "{what}");
    // A layer below may be kept until the collector has been; what was being extracted may not.
    let snapshots = node.ctr(["snapshots", "ls"]).ok();
    assert!(!snapshots.contains("extract-"), "{what}: {snapshots}");
}

fn a_good_image_comes_in(node: &Node) {
    let file = node.join("good.tar");
    ImageBuilder::busybox().build().save(&file, GOOD).unwrap();
    node.ctr(["images", "import", file.to_str().unwrap()]).ok();
    assert_eq!(node.ctr(["run", "--rm", GOOD, "good", "echo", "fine"]).ok(), "fine\n");
    node.ctr(["images", "rm", "--sync", GOOD]).ok();
}

fn sample() -> Vec<u8> {
    Layer::new().file("one", 0o644, &[1; 3000]).file("two", 0o644, &[2; 100_000]).finish()
}

#[test]
fn layers_that_are_cut_off_or_damaged_are_refused() {
    let node = Node::start();
    let tar = sample();
    let whole = Digest::sha256(&tar);
    let ended = &["unexpected EOF", "unexpected end of file", "ends early", "truncated"][..];
    refused(&node, "cut in a file", &plain(&tar[..50_000]), ended);
    refused(&node, "cut in a header", &plain(&tar[..700]), ended);
    let packed = gzip(&tar);
    for (what, kind, packed) in [
        ("gzip", media_type::OCI_LAYER_GZIP, packed.clone()),
        ("zstd", media_type::OCI_LAYER_ZSTD, zstd::encode_all(tar.as_slice(), 1).unwrap()),
    ] {
        let layer = |data: &[u8]| with_layer(Blob::new(kind, data.to_vec()), whole.clone());
        refused(
            &node,
            &format!("{what}, cut"),
            &layer(&packed[..packed.len() / 2]),
            &["unexpected", "incomplete", "corrupt", "invalid"],
        );
        let mut damaged = packed.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 0xff;
        damaged[middle + 1] ^= 0xff;
        refused(
            &node,
            &format!("{what}, damaged"),
            &layer(&damaged),
            &["corrupt", "invalid", "checksum", "wrong diff id", "damaged", "unexpected"],
        );
    }
    let mut checksum = packed;
    let length = checksum.len();
    checksum[length - 6] ^= 1;
    let blob = Blob::new(media_type::OCI_LAYER_GZIP, checksum);
    refused(
        &node,
        "gzip, wrong checksum",
        &with_layer(blob, whole.clone()),
        &["corrupt", "checksum", "invalid"],
    );
    let blob = Blob::new(media_type::OCI_LAYER_GZIP, b"this is no archive at all, of no kind".to_vec());
    refused(&node, "no archive", &with_layer(blob, whole), &["failed to extract layer", "invalid"]);
    a_good_image_comes_in(&node);
    node.finish();
}

/// A header with other bytes in one of its fields, sealed again.
fn edited(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut entry = Entry::file("strange", 0o644, b"data").encode();
    entry[at..at + bytes.len()].copy_from_slice(bytes);
    entry[148..156].fill(b' ');
    let sum: u32 = entry[..512].iter().map(|byte| u32::from(*byte)).sum();
    entry[148..156].copy_from_slice(format!("{sum:0>6o}\0 ").as_bytes());
    entry
}

#[test]
fn entries_that_cannot_be_are_refused() {
    let node = Node::start();
    let layer = |bytes: &[u8]| plain(&Layer::new().bytes(bytes).finish());
    let any = &["failed to extract layer"][..];
    refused(&node, "a size that is no number", &layer(&edited(124, b"zzzzzzzzzzz\0")), any);
    refused(&node, "a size beyond the end", &layer(&edited(124, b"77777777777\0")), any);
    refused(&node, "a size below nothing", &layer(&edited(124, &[0xff; 12])), any);
    let mut broken = Entry::file("strange", 0o644, b"data").encode();
    broken[150] ^= 1;
    refused(&node, "a header with a wrong checksum", &layer(&broken), any);
    let long = Entry::file("long", 0o644, b"").pax("path", "p/".repeat(3000)).encode();
    refused(&node, "a path longer than any can be", &layer(&long), &["a path of more than 4095 bytes"]);
    let name = Entry::file("n".repeat(300), 0o644, b"").encode();
    refused(&node, "a name longer than any can be", &layer(&name), &["file name too long"]);
    let whiteout = Entry::file("folder/.wh...", 0o644, b"").encode();
    refused(&node, "a whiteout of a parent", &layer(&whiteout), &["invalid whiteout name"]);
    let nul = Entry::file("x", 0o644, b"").pax("path", b"a\0b").encode();
    refused(&node, "a name with NUL", &layer(&nul), &["NUL"]);
    let huge = Entry::file("huge", 0o644, b"").xattr("user.huge", vec![b'x'; 100_000]).encode();
    refused(&node, "an attribute of 100 kB", &layer(&huge), &["user.huge"]);
    let endless = Entry::file("endless", 0o644, b"").xattr("user.endless", vec![b'x'; 9 << 20]).encode();
    refused(&node, "attributes of 9 MB", &layer(&endless), &["an extended header of"]);
    let missing = Entry::link("link", "nowhere").encode();
    refused(&node, "a hard link to nothing", &layer(&missing), &["no such file or directory"]);
    let itself = Entry::link("itself", "itself").encode();
    refused(&node, "a hard link to itself", &layer(&itself), &["no such file or directory"]);
    let circle = [
        Entry::symlink("a", "b").encode(),
        Entry::symlink("b", "a").encode(),
        Entry::file("a/file", 0o644, b"").encode(),
    ]
    .concat();
    refused(
        &node,
        "a file behind links in a circle",
        &layer(&circle),
        &["too many levels of symbolic links"],
    );
    let through =
        [Entry::file("file", 0o644, b"").encode(), Entry::file("file/below", 0o644, b"").encode()].concat();
    refused(&node, "a file below a file", &layer(&through), &["not a directory"]);
    let overlap = Entry::pax_sparse("s", &[(0, &[1; 600]), (100, &[2; 600])], 5000).encode();
    refused(&node, "fragments that overlap", &layer(&overlap), &["overlap"]);
    let outside = Entry::pax_sparse("s", &[(9000, &[1; 600])], 5000).encode();
    refused(&node, "a fragment outside", &layer(&outside), &["outside"]);
    a_good_image_comes_in(&node);
    node.finish();
}

#[test]
fn entries_that_are_only_strange_are_as_they_say() {
    let node = Node::start();
    let terabyte: u64 = 1 << 40;
    let deep = "d/".repeat(1000);
    let layer = Layer::new()
        // What comes later counts, whatever was there before.
        .file("twice", 0o644, b"first")
        .file("twice", 0o600, b"second")
        .dir("was-folder", 0o755)
        .file("was-folder/file", 0o644, b"")
        .file("was-folder", 0o644, b"file now")
        .file("was-file", 0o644, b"")
        .dir("was-file", 0o755)
        .symlink("loop", "loop")
        .entry(&Entry::pax_sparse("sparse", &[(terabyte - 4, b"tail")], terabyte))
        .entry(&Entry::file("deep", 0o644, b"bottom").pax("path", format!("{deep}file")))
        .entry(&Entry::file(b"caf\xe9 \xff", 0o644, b"latin"))
        .entry(&Entry::file("new\nline", 0o644, b""))
        .entry(&Entry::file("attributed", 0o644, b"").xattr("user.small", b"value"))
        .finish();
    let image = ImageBuilder::busybox().layer(layer);
    import(&node, &saved(&image.build())).ok();
    let run = |script: &str| node.ctr(["run", "--rm", NAME, "see", "sh", "-c", script]).ok();
    let script = format!(
        "cat twice was-folder; stat -c %a twice; ls -d was-file/; readlink loop; stat -c %s sparse; \
         tail -c 4 sparse; cd {}; cat file; cd /; ls | grep -c caf; cat caf*; ls new*line | wc -l",
        deep.trim_end_matches('/')
    );
    let want = format!("secondfile now600\nwas-file/\nloop\n{terabyte}\ntailbottom1\nlatin1\n");
    assert_eq!(run(&script), want);
    // A hole takes up nothing.
    let used = node.ctr(["images", "usage", NAME]).ok();
    assert!(!used.contains("TiB") && !used.contains("GiB"), "{used}");
    node.finish();
}

/// The files of an archive with some of them changed, added, or left out.
fn rearranged(change: impl Fn(&str, &mut Vec<u8>) -> bool, more: &[(&str, &[u8])]) -> Vec<u8> {
    let good = saved(&ImageBuilder::busybox().build());
    let mut out = tar::Builder::new(Vec::new());
    let mut add = |name: &str, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        out.append_data(&mut header, name, data).unwrap();
    };
    for entry in tar::Archive::new(good.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let (name, mut data) = (entry.path().unwrap().display().to_string(), Vec::new());
        std::io::Read::read_to_end(&mut entry, &mut data).unwrap();
        if !name.ends_with('/') && change(&name, &mut data) {
            add(&name, &data);
        }
    }
    for (name, data) in more {
        add(name, data);
    }
    out.into_inner().unwrap()
}

#[test]
fn archives_whose_documents_do_not_fit_are_refused() {
    let node = Node::start();
    let without = |left_out: &'static str| rearranged(move |name, _| !name.contains(left_out), &[]);
    let with = |changed: &'static str, data: &'static [u8]| {
        rearranged(
            move |name, old| {
                if name == changed {
                    *old = data.to_vec();
                }
                true
            },
            &[],
        )
    };
    // These first: later on the store may have the manifest from other archives.
    let manifest = ImageBuilder::busybox().build().target.digest();
    let hex = manifest.hex().to_owned();
    let other = rearranged(
        move |name, data| {
            if name.ends_with(&hex) {
                data.push(b' ');
            }
            true
        },
        &[],
    );
    refused(&node, "a manifest of other bytes", &other, &["unexpected commit digest"]);
    let hex = manifest.hex().to_owned();
    let lost = rearranged(move |name, _| !name.ends_with(&hex), &[]);
    refused(&node, "no manifest", &lost, &["not found"]);
    refused(&node, "nothing", b"", &["unrecognized image format"]);
    refused(&node, "noise", &[7; 5000], &["archive", "header", "unrecognized image format", "invalid"]);
    let whole = saved(&ImageBuilder::busybox().build());
    refused(&node, "half", &whole[..whole.len() / 2], &["unexpected end of file", "unexpected EOF"]);
    let packed = gzip(&whole);
    refused(
        &node,
        "half, packed",
        &packed[..packed.len() / 2],
        &["unexpected end of file", "unexpected EOF", "incomplete"],
    );
    refused(&node, "no index", &without("index.json"), &["missing index.json in OCI layout"]);
    refused(&node, "an index that is none", &with("index.json", b"{\"manifests\": 7}"), &["index"]);
    refused(&node, "a layout that is none", &with("oci-layout", b"{"), &["oci-layout"]);
    let version = with("oci-layout", b"{\"imageLayoutVersion\":\"9\"}");
    refused(&node, "another layout", &version, &["unsupported OCI version 9"]);
    let circle = json!([{"Config": "a", "RepoTags": ["x:1"], "Layers": ["a"]}]).to_string();
    let mut links = tar::Builder::new(Vec::new());
    for (name, target) in [("a", "b"), ("b", "a")] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        links.append_link(&mut header, name, target).unwrap();
    }
    let mut header = tar::Header::new_gnu();
    header.set_size(circle.len() as u64);
    links.append_data(&mut header, "manifest.json", circle.as_bytes()).unwrap();
    refused(&node, "links in a circle", &links.into_inner().unwrap(), &["no file \"a\" in the archive"]);
    // Twice the same is not wrong.
    let twice = rearranged(|_, _| true, &[("index.json", b"{\"schemaVersion\":2,\"manifests\":[]}")]);
    let done = import(&node, &twice);
    assert!(done.code == Some(0) || done.stderr.contains("filtered out"), "{done:?}");
    a_good_image_comes_in(&node);
    node.finish();
}

#[test]
fn a_layer_may_not_grow_beyond_what_the_configuration_allows() {
    let limit = "[plugins.'io.containerd.transfer.v1.local']\nmax_unpacked_layer_size = 20000000\n";
    let node = Node::builder().config(limit).start();
    let bomb = Layer::new().file("zeros", 0o644, &vec![0; 30_000_000]).finish();
    let blob = Blob::new(media_type::OCI_LAYER_GZIP, gzip(&bomb));
    assert!(blob.data.len() < 100_000);
    let archive = with_layer(blob, Digest::sha256(&bomb));
    refused(&node, "a bomb", &archive, &["the layer is larger than 20000000 bytes when uncompressed"]);
    a_good_image_comes_in(&node);
    node.finish();
}
