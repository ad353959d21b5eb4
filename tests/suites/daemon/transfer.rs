//! How images are unpacked, as `unpack_config` says: on our daemon and on Debian's, with Debian's `ctr`.

use corten_tests::{ImageBuilder, Node, NodeBuilder, Peers};

const NAME: &str = "example.com/lab/box:1";

fn both() -> [NodeBuilder; 2] {
    [Node::builder(), Node::peer(&Peers::find().containerd_2_1())]
}

/// A daemon with options of what moves images, and an archive of one beside it.
fn start(builder: NodeBuilder, options: &str) -> Node {
    let head = "version = 3\ndisabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.cri.v1.images', \
                'io.containerd.cri.v1.runtime']\n[plugins.'io.containerd.transfer.v1.local']\n";
    let node = builder.config(&format!("{head}{options}")).start();
    ImageBuilder::busybox().build().save(&node.join("image.tar"), NAME).unwrap();
    node
}

/// An entry of `unpack_config`.
fn entry(platform: &str, snapshotter: &str, differ: &str) -> String {
    format!(
        "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nplatform = '{platform}'\n\
         snapshotter = '{snapshotter}'\ndiffer = '{differ}'\n"
    )
}

fn host() -> String {
    format!("linux/{}", corten_tests::image::host_architecture())
}

/// Imports the image, and says into which snapshotters it was unpacked.
fn import(node: &Node, snapshotter: &[&str]) -> Result<Vec<&'static str>, String> {
    let ctr = Peers::find().containerd_2_1().join("ctr");
    let archive = node.join("image.tar").display().to_string();
    let mut words = vec!["images", "import", "--local=false"];
    words.extend(snapshotter);
    words.push(&archive);
    let done = corten_tests::command::run(node.foreign_ctr_command(&ctr, words));
    if done.code != Some(0) {
        return Err(done.stderr);
    }
    let unpacked = |name: &&str| {
        let list = corten_tests::command::run(
            node.foreign_ctr_command(&ctr, ["snapshots", "--snapshotter", name, "ls"]),
        );
        list.ok().lines().count() > 1
    };
    Ok(["native", "overlayfs"].into_iter().filter(unpacked).collect())
}

fn finish(node: Node) {
    node.ctr(["images", "rm", "--sync", NAME]);
    node.finish();
}

#[test]
fn images_are_unpacked_where_the_configuration_says() {
    for builder in both() {
        let node = start(builder, &entry(&host(), "native", "walking"));
        assert_eq!(import(&node, &[]).unwrap(), ["native"], "no snapshotter is asked for");
        finish(node);
    }
    // Platforms count only when they are to be checked.
    for builder in both() {
        let node = start(builder, &entry("linux/s390x", "native", "walking"));
        assert_eq!(import(&node, &["--snapshotter", "native"]).unwrap(), ["native"]);
        finish(node);
    }
    for builder in both() {
        let options =
            format!("check_platform_supported = true\n{}", entry("linux/s390x", "native", "walking"));
        let node = start(builder, &options);
        let refused = import(&node, &["--snapshotter", "native"]).unwrap_err();
        let wanted = "unable to initialize unpacker: no unpack platforms defined: invalid argument";
        assert!(refused.contains(wanted), "{refused}");
        finish(node);
    }
}

#[test]
fn the_differ_of_the_configuration_unpacks() {
    // One that leaves layers of other snapshotters to others, of whom there are none here.
    let node = start(Node::builder(), &entry(&host(), "native", "erofs"));
    let refused = import(&node, &["--snapshotter", "native"]).unwrap_err();
    assert!(refused.contains("mounts are not of the erofs snapshotter"), "{refused}");
    finish(node);
}

#[test]
fn entries_that_cannot_be_followed_fail_the_part_alone() {
    for (entry, why) in [
        (entry(&host(), "nope", ""), "snapshotter \"nope\" not found: not found"),
        (
            entry(&host(), "native", "nope"),
            "failed to get instance for diff plugin \"nope\": no plugins registered for io.containerd.differ.v1.nope: \
             plugin: not found",
        ),
        (
            entry("a/b/c/d/e", "native", ""),
            "io.containerd.transfer.v1: platform configuration a/b/c/d/e invalid",
        ),
    ] {
        for builder in both() {
            let node = start(builder, &entry);
            let list = node.ctr(["plugins", "ls", "-d", "type==io.containerd.transfer.v1"]).ok();
            assert!(list.contains(why), "{why}: {list}");
            node.ctr(["images", "ls"]).ok();
            node.finish();
        }
    }
}

#[test]
fn options_that_do_nothing_say_so() {
    let config = "version = 3\n[plugins.'io.containerd.service.v1.tasks-service']\n\
                  blockio_config_file = '/nonexistent/blockio.yaml'\nrdt_config_file = '/dev/null'\n";
    let node = Node::builder().config(config).start();
    let log = node.log();
    assert!(log.contains("blockio initialization failed"), "{log}");
    assert!(log.contains("rdt_config_file has no effect"), "{log}");
    node.finish();
}

#[test]
fn images_of_erofs_are_verified_where_the_kernel_can() {
    let erofs = "version = 3\n[plugins.'io.containerd.snapshotter.v1.erofs']\n";
    let list = |options: &str| {
        let node = Node::builder().config(&format!("{erofs}{options}\n")).start();
        let list = node.ctr(["plugins", "ls", "-d", "id==erofs,type==io.containerd.snapshotter.v1"]).ok();
        node.finish();
        list
    };
    let verity = list("enable_fsverity = true");
    let refused = verity.contains("failed to check fsverity support on \"")
        && verity.contains("enable fsverity failed: operation not supported");
    assert!(refused || !verity.contains("Error:"), "{verity}");
    assert!(list("dmverity_mode = 'on'").contains("dmverity_mode \"on\" of erofs is not supported"));
}

#[test]
fn a_database_that_does_not_sync_keeps_its_records_over_a_restart() {
    let mut node = Node::builder()
        .config("version = 3\n[plugins.'io.containerd.metadata.v1.bolt']\nno_sync = true\n")
        .start();
    node.ctr(["namespaces", "create", "kept"]).ok();
    node.stop_daemon();
    node.start_daemon();
    assert!(node.ctr(["namespaces", "ls", "-q"]).ok().contains("kept"));
    node.ctr(["namespaces", "create", "kept2"]).ok();
    node.kill_daemon();
    node.start_daemon();
    let names = node.ctr(["namespaces", "ls", "-q"]).ok();
    assert!(names.contains("kept2"), "what the daemon was told is with the kernel: {names}");
    node.finish();
}
