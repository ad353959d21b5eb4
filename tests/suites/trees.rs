//! What is unpacked is bit-exact with what Debian's containerd unpacks from the same layers.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use corten_api::services::snapshots::ViewSnapshotRequest;
use corten_tests::disk::{Disk, make_file_system};
use corten_tests::{Client, Entry, ImageBuilder, Layer, Node, Peers, Scratch, command, tree};

type Tree = BTreeMap<String, String>;

/// `CAP_NET_RAW` in the form that the kernel keeps.
const NET_RAW: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// An access control list with an entry for user 7.
const ACL: [u8; 44] = *b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\x07\0\0\0\x04\0\x04\0\xff\xff\xff\xff\x10\0\x04\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";

fn layer(entries: &[Entry]) -> Vec<u8> {
    entries.iter().fold(Layer::new(), Layer::entry).finish()
}

/// Modes, owners, times, attributes.
fn attributes() -> Vec<u8> {
    layer(&[
        Entry::dir("./", 0o711).owner(5, 6),
        Entry::dir("bin/", 0o755).time(1_500_000_000),
        Entry::file("bin/setuid", 0o4755, b"s"),
        Entry::file("bin/both", 0o6711, b"b").owner(1000, 2000),
        Entry::file("bin/setgid", 0o2755, b"g").owner(0, 42),
        Entry::file("bin/ping", 0o755, b"p").owner(7, 8).xattr("security.capability", NET_RAW),
        Entry::dir("tmp/", 0o1777),
        Entry::dir("mail", 0o2775).owner(0, 8),
        Entry::dir("opt", 0o700).owner(123_456, 7).xattr("user.note", b"a folder\0with\nmuch"),
        Entry::file("opt/none", 0, b""),
        Entry::file("opt/noted", 0o640, b"x").xattr("user.one", b"1").xattr("user.empty", b""),
        Entry::file("opt/overlay", 0o640, b"x")
            .xattr("trusted.overlay.metacopy", b"")
            .xattr("user.overlay.x", b"y"),
        Entry::dir("opt/opaque", 0o750)
            .xattr("trusted.overlay.opaque", b"y")
            .xattr("user.overlay.opaque", b"y"),
        Entry::file("opt/system", 0o640, b"x")
            .xattr("system.posix_acl_access", ACL)
            .xattr("security.other", b"o"),
        Entry::file("opt/trusted", 0o640, b"x").xattr("trusted.mine", b"t"),
        Entry::symlink("opt/link", "noted").owner(3, 4).xattr("trusted.on.link", b"l"),
        Entry::file("opt/nanos", 0o644, b"n").pax("mtime", "1234567890.123456789"),
        Entry::file("opt/half", 0o644, b"n").pax("mtime", "1234567890.5").pax("atime", "99.25"),
        Entry::file("opt/epoch", 0o644, b"n").time(0),
        Entry::file("opt/before", 0o644, b"n").pax("mtime", "-100.5"),
        Entry::file("opt/late", 0o644, b"n").pax("mtime", "9999999999.000000001"),
        Entry::dir("opt/timed", 0o755).pax("mtime", "77.000000007"),
        Entry::file("opt/timed/in", 0o600, b"i"),
        Entry::file("opt/large.owner", 0o644, b"").owner(3_000_000_000, 4_000_000_000),
        Entry::file("opt/pax.owner", 0o644, b"").pax("uid", "2500000000").pax("gid", "99").pax("uname", "x"),
        Entry::file("opt/odd.mode", 0o177_644, b""),
    ])
}

/// All kinds of files.
fn kinds() -> Vec<u8> {
    let sparse = Entry::pax_sparse("kinds/sparse", &[(4096, b"one"), (1 << 21, b"two")], 5 << 20);
    Layer::new()
        .entry(&Entry::dir("kinds", 0o755))
        .entry(&Entry::file("kinds/file", 0o644, &[7; 10_000]))
        .entry(&Entry::link("kinds/second", "kinds/file").time(1_700_000_000))
        .entry(&Entry::link("kinds/third", "./kinds/file"))
        .entry(&Entry::symlink("kinds/dangling", "/nowhere/at/all"))
        .entry(&Entry::symlink("kinds/relative", "../kinds/file").pax("mtime", "55.000000055"))
        .entry(&Entry::link("kinds/link.of.link", "kinds/dangling"))
        .entry(&Entry::device(b'3', "kinds/null", 0o666, 1, 3))
        .entry(&Entry::device(b'4', "kinds/loop", 0o660, 7, 200).owner(0, 6))
        .entry(&Entry::device(b'3', "kinds/wide", 0o600, 300, 70_000))
        .entry(&Entry::new(b'6', "kinds/fifo", 0o622).xattr("trusted.on.fifo", b"f"))
        .entry(&Entry::new(0, "kinds/old.file", 0o644).data(b"old"))
        .entry(&Entry::new(0, "kinds/old.folder/", 0o750))
        .entry(&sparse)
        .entry(&Entry::file("kinds/twice", 0o644, b"first"))
        .entry(&Entry::file("kinds/twice", 0o600, b"second").owner(1, 1))
        .entry(&Entry::file("kinds/became.folder", 0o644, b"file"))
        .entry(&Entry::dir("kinds/became.folder", 0o711))
        .entry(&Entry::dir("kinds/became.file", 0o755))
        .entry(&Entry::file("kinds/became.file/in", 0o755, b""))
        .entry(&Entry::file("kinds/became.file", 0o644, b"file"))
        .finish()
}

/// Names: long, deep, odd, through links, and folders that are never listed.
fn names(longest: usize) -> Vec<u8> {
    let long = "n".repeat(longest);
    let deep = "d/".repeat(80);
    let wide = format!("names/{}/{}", "a".repeat(120), "b".repeat(130));
    layer(&[
        Entry::file("names/unlisted/folders/file", 0o644, b"u").owner(9, 9),
        Entry::file(format!("names/{long}"), 0o644, b"gnu"),
        Entry::file("short", 0o644, b"pax").pax("path", format!("names/p{}", &long[1..])),
        Entry::symlink("names/far", format!("/{}", "far/".repeat(100))),
        Entry::symlink("names/pax.far", "short").pax("linkpath", "pax/".repeat(60)),
        Entry::file(&wide, 0o644, b"wide"),
        Entry::link("names/of.wide", &wide),
        Entry::file(format!("names/{deep}bottom"), 0o644, b"deep"),
        Entry::file(b"names/not\xff\xfeutf8".as_slice(), 0o644, b"bytes"),
        Entry::file("names/ gr\u{fc}n \n\t'\"", 0o644, b"odd"),
        Entry::file("/names/absolute", 0o644, b"a"),
        Entry::file("./names/../names/./dots", 0o644, b"d"),
        Entry::file("../../names/above", 0o644, b"above"),
        Entry::dir("names/real", 0o755),
        Entry::symlink("names/to.real", "real"),
        Entry::file("names/to.real/through", 0o644, b"t"),
        Entry::symlink("names/to.root", "/names"),
        Entry::file("names/to.root/through.root", 0o644, b"t"),
        Entry::new(b'g', "pax_global_header", 0o644).data(b"19 comment=for all\n"),
        Entry::file("names/last", 0o644, b"l"),
    ])
}

/// What the next layers hide and replace.
fn below() -> Vec<u8> {
    let mut entries = vec![Entry::dir("d", 0o755).owner(4, 4).xattr("user.below", b"b")];
    for name in ["gone", "gone.folder/in", "kept", "again", "file.to.folder", "link.to.folder/in"] {
        entries.push(Entry::file(format!("d/{name}"), 0o644, name.as_bytes()));
    }
    entries.extend([
        Entry::symlink("d/gone.link", "kept"),
        Entry::link("d/kept.too", "d/kept"),
        Entry::dir("d/folder.to.file", 0o755),
        Entry::file("d/folder.to.file/in", 0o644, b""),
        Entry::dir("d/folder.to.link", 0o755),
        Entry::symlink("d/link.to.file", "kept"),
        Entry::new(b'6', "d/fifo.to.file", 0o644),
        Entry::dir("d/merged", 0o750).owner(11, 12).xattr("user.merged", b"below").time(1_111_111_111),
        Entry::file("d/merged/below", 0o644, b""),
        Entry::dir("d/opaque", 0o700),
        Entry::file("d/opaque/below", 0o644, b""),
        Entry::dir("d/opaque/sub", 0o755),
        Entry::file("d/opaque/sub/below", 0o644, b""),
        Entry::dir("d/late", 0o700),
        Entry::file("d/late/below", 0o644, b""),
        Entry::dir("d/unlisted", 0o2751).owner(21, 22).xattr("user.un", b"listed").time(1_222_222_222),
        Entry::dir("d/unlisted/sub", 0o711).owner(23, 24),
        Entry::file("d/unlisted/sub/below", 0o644, b""),
    ]);
    layer(&entries)
}

fn above() -> Vec<u8> {
    layer(&[
        Entry::dir("d", 0o711).owner(14, 4),
        Entry::whiteout("d/", "gone"),
        Entry::whiteout("d/", "gone.folder"),
        Entry::whiteout("d/", "gone.link"),
        Entry::whiteout("d/", "never.was"),
        Entry::whiteout("d/", "again"),
        Entry::file("d/again", 0o600, b"new"),
        Entry::dir("d/file.to.folder", 0o755),
        Entry::file("d/file.to.folder/in", 0o644, b""),
        Entry::file("d/folder.to.file", 0o644, b"file"),
        Entry::symlink("d/folder.to.link", "kept"),
        Entry::file("d/link.to.file", 0o644, b"no longer a link"),
        Entry::file("d/fifo.to.file", 0o644, b"no longer a fifo"),
        Entry::dir("d/merged", 0o705).owner(31, 32).time(1_333_333_333),
        Entry::file("d/merged/above", 0o644, b""),
        Entry::dir("d/opaque", 0o755),
        Entry::file("d/opaque/.wh..wh..opq", 0o644, b""),
        Entry::file("d/opaque/above", 0o644, b""),
        Entry::dir("d/late", 0o755),
        Entry::file("d/late/above", 0o644, b""),
        Entry::file("d/late/.wh..wh..opq", 0o644, b""),
        Entry::file("d/unlisted/sub/above", 0o644, b""),
        Entry::whiteout("", ".wh.aufs"),
        Entry::file(".wh..wh.plnk/1.2", 0o644, b"books of another file system"),
    ])
}

/// Removals in what was removed or hidden before, and returns.
fn top() -> Vec<u8> {
    layer(&[
        Entry::file("d/gone", 0o644, b"back"),
        Entry::dir("d/gone.folder", 0o755),
        Entry::file("d/gone.folder/new", 0o644, b""),
        Entry::whiteout("d/opaque/", "above"),
        Entry::whiteout("d/late/", "above"),
        Entry::whiteout("d/", "merged"),
        Entry::whiteout("", "bin"),
        Entry::file("d/kept", 0o644, b"changed, the other name is not"),
    ])
}

fn image(layers: Vec<Vec<u8>>) -> ImageBuilder {
    layers.into_iter().fold(ImageBuilder::new(), ImageBuilder::layer)
}

/// An image in a node, and what became of it: the raw directory of each layer where there are such, the top
/// one first; and the tree as a container has it.
fn unpack(node: &Node, image: &ImageBuilder, snapshotter: &str) -> (Vec<Tree>, Tree) {
    // Kernels give times by a clock that lags behind a little.
    let begun = SystemTime::now() - Duration::from_secs(1);
    let archive = node.join("image.tar");
    image.clone().build().save(&archive, "lab/trees:1").unwrap();
    // The client of the original unpacks by itself, through the diff service; ours lets the daemon do it.
    let debian = Peers::find().containerd_2_1().join("ctr");
    let archive = archive.to_str().unwrap();
    let local: &[&str] = if snapshotter == "overlayfs" { &[] } else { &["--local"] };
    let arguments = [&["images", "import", "--snapshotter", snapshotter], local, &[archive]].concat();
    command::run(node.foreign_ctr_command(&debian, arguments)).ok();
    let directories = directories(node, snapshotter);
    let raw = directories.iter().map(|folder| tree::describe(folder, begun)).collect();
    forget(node, snapshotter);
    (raw, view(node, snapshotter, begun))
}

fn top_snapshot(node: &Node, snapshotter: &str) -> String {
    let table = node.ctr(["snapshots", "--snapshotter", snapshotter, "ls"]).ok();
    let rows: Vec<Vec<&str>> = table.lines().skip(1).map(|row| row.split_whitespace().collect()).collect();
    let parents: Vec<&str> = rows.iter().filter(|row| row.len() == 3).map(|row| row[1]).collect();
    rows.iter().map(|row| row[0]).find(|name| !parents.contains(name)).unwrap().to_owned()
}

/// The command that mounts a view of all layers, which [`forget`] removes.
fn mounting(node: &Node, snapshotter: &str, target: &str) -> String {
    let client = Client::new(&node.address(), Some(node.namespace()));
    let request = ViewSnapshotRequest {
        snapshotter: snapshotter.into(),
        key: "view".into(),
        parent: top_snapshot(node, snapshotter),
        // The collector leaves it alone.
        labels: [("containerd.io/gc.root".into(), "x".into())].into(),
    };
    client.wait(client.snapshots().view(request)).unwrap();
    let show = ["snapshots", "--snapshotter", snapshotter, "mounts", target, "view"];
    let shown =
        command::run(node.foreign_ctr_command(&Peers::find().containerd_2_1().join("ctr"), show)).ok();
    shown.lines().next().unwrap_or_default().to_owned()
}

fn forget(node: &Node, snapshotter: &str) {
    node.ctr(["snapshots", "--snapshotter", snapshotter, "rm", "view"]).ok();
}

/// The directories of an overlay's layers, by a view that [`forget`] removes.
fn directories(node: &Node, snapshotter: &str) -> Vec<PathBuf> {
    let line = mounting(node, snapshotter, "/nowhere");
    let layers = line.split("lowerdir=").nth(1).unwrap_or_default();
    let layers = layers.trim().split(',').next().unwrap();
    layers.split(':').filter(|layer| !layer.is_empty()).map(PathBuf::from).collect()
}

/// The tree as a container gets it.
fn view(node: &Node, snapshotter: &str, begun: SystemTime) -> Tree {
    let target = node.join("view");
    std::fs::create_dir_all(&target).unwrap();
    let mut shell = Command::new("sh");
    shell.arg("-ec").arg(mounting(node, snapshotter, target.to_str().unwrap()));
    command::run(shell).ok();
    let described = tree::describe(&target, begun);
    unmount(&target);
    forget(node, snapshotter);
    described
}

fn unmount(target: &Path) {
    rustix::mount::unmount(target, rustix::mount::UnmountFlags::empty()).unwrap();
}

/// Unpacks with both daemons and compares.
fn same_as_debian(layers: Vec<Vec<u8>>, snapshotter: &str) -> (Vec<Tree>, Tree) {
    let (ours, debian) = (Node::start(), Node::peer(&Peers::find().containerd_2_1()).start());
    let image = image(layers);
    let (our_layers, mut our_view) = unpack(&ours, &image, snapshotter);
    let (layers, view) = unpack(&debian, &image, snapshotter);
    if snapshotter == "native" {
        forgive_copies(&view, &mut our_view);
    }
    assert_eq!(our_layers.len(), layers.len());
    let mut found = Vec::new();
    for (index, (ours, theirs)) in our_layers.iter().zip(&layers).enumerate() {
        let named = |line: String| format!("layer {index} from the top: {line}");
        found.extend(tree::differences(ours, theirs).into_iter().map(named));
    }
    found.extend(tree::differences(&our_view, &view).into_iter().map(|line| format!("view: {line}")));
    assert!(found.is_empty(), "ours, then Debian's:\n{}", found.join("\n"));
    for node in [ours, debian] {
        node.ctr(["images", "rm", "--sync", "lab/trees:1"]).ok();
        node.finish();
    }
    (our_layers, our_view)
}

/// What the original's copies lose and ours keep: times of folders, and that two links are the same one.
fn forgive_copies(theirs: &Tree, ours: &mut Tree) {
    for (name, line) in theirs {
        let Some(ours) = ours.get_mut(name) else { continue };
        if line.starts_with('4') && line.contains(" now") {
            let time = ours.split(' ').nth(3).unwrap().to_owned();
            *ours = ours.replacen(&time, "now", 1);
        } else if line.starts_with("120") && ours.starts_with(line) && ours.contains(" names, first") {
            ours.truncate(line.len());
        }
    }
}

fn plain(longest: usize) -> Vec<Vec<u8>> {
    vec![attributes(), kinds(), names(longest)]
}

fn stacked() -> Vec<Vec<u8>> {
    vec![attributes(), below(), above(), top()]
}

#[test]
fn files_of_all_kinds_are_unpacked_as_debian_does_on_overlayfs() {
    let (layers, view) = same_as_debian(plain(255), "overlayfs");
    assert_eq!(layers.len(), 3);
    // The comparison would pass if nothing were unpacked.
    assert!(view["bin/ping"].contains("security.capability="), "{}", view["bin/ping"]);
    assert!(view["kinds/third"].contains("3 names, first kinds/file"), "{}", view["kinds/third"]);
    assert!(view["opt/nanos"].contains("1234567890.123456789"), "{}", view["opt/nanos"]);
}

#[test]
fn files_of_all_kinds_are_unpacked_as_debian_does_by_copies() {
    same_as_debian(plain(255), "native");
}

#[test]
fn layers_hide_and_replace_as_with_debian_on_overlayfs() {
    let (_, view) = same_as_debian(stacked(), "overlayfs");
    assert!(!view.contains_key("d/gone.link") && !view.contains_key("d/opaque/below"));
    assert!(view.contains_key("d/unlisted/sub/below") && view.contains_key("d/gone.folder/new"));
}

#[test]
fn layers_hide_and_replace_as_with_debian_by_copies() {
    same_as_debian(stacked(), "native");
}

#[test]
fn all_snapshotters_show_the_same_trees() {
    let disk = Disk::new("btrfs", 512);
    let scratch = Scratch::new();
    make_file_system(&scratch.join("empty"), "ext4", 64);
    let config = format!(
        "version = 3\n[plugins.\"io.containerd.snapshotter.v1.btrfs\"]\nroot_path = {:?}\n\
         [plugins.\"io.containerd.snapshotter.v1.blockfile\"]\nscratch_file = {:?}\n",
        disk.join("root"),
        scratch.join("empty")
    );
    let node = Node::builder().config(&config).start();
    // The mkfs.erofs of some releases fails at names of 255 bytes.
    for layers in [plain(254), stacked()] {
        let image = image(layers);
        // A folder that an overlay merges has the attributes of the layer on top alone.
        for group in [&["overlayfs", "erofs"][..], &["native", "btrfs", "blockfile"]] {
            let views: Vec<Tree> = group.iter().map(|name| timeless(unpack(&node, &image, name).1)).collect();
            for (name, view) in group.iter().zip(&views) {
                let found = tree::differences(view, &views[0]);
                assert!(found.is_empty(), "{name}, then {}:\n{}", group[0], found.join("\n"));
            }
        }
        node.ctr(["images", "rm", "--sync", "lab/trees:1"]).ok();
    }
    node.finish();
}

/// A tree without the times of folders, which change where nothing marks what is gone, and without what a new
/// file system has at its top.
fn timeless(mut tree: Tree) -> Tree {
    tree.remove("");
    tree.remove("lost+found");
    for line in tree.values_mut().filter(|line| line.starts_with('4')) {
        let time = line.split(' ').nth(3).unwrap().to_owned();
        *line = line.replacen(&time, "some time", 1);
    }
    tree
}
