//! Checkpoints that go to a registry and come back.

use corten_tests::Registry;

use crate::{IMAGE, node};

#[test]
fn a_checkpoint_is_restored_from_its_registry() {
    let node = node();
    let registry = Registry::start();
    let name = format!("{}/lab/checkpoint:1", registry.host());
    node.ctr(["run", "--null-io", IMAGE, "box", "sh", "-c", "echo kept >/kept"]).ok();
    node.ctr(["c", "checkpoint", "--rw", "--image", "box", &name]).ok();
    // Nothing is left but what the registry has; the collector has been.
    node.ctr(["images", "push", "--progress", "none", "--plain-http", &name]).ok();
    node.ctr(["images", "rm", "--sync", &name]).ok();
    assert!(!node.ctr(["images", "ls", "-q"]).ok().contains(&name));

    node.ctr(["c", "restore", "--rw", "again", &name]).ok();
    assert_eq!(node.ctr(["cp", "again:/kept", &node.join("kept").display().to_string()]).ok(), "");
    assert_eq!(std::fs::read_to_string(node.join("kept")).unwrap(), "kept\n");
    assert!(node.ctr(["images", "ls", "-q"]).ok().contains(&name), "it is recorded, as other images are");
    assert_eq!(node.ctr(["leases", "ls", "-q"]).ok(), "");

    let absent = format!("{}/lab/absent:1", registry.host());
    let told = node.ctr(["c", "restore", "more", &absent]).fails(1);
    let expected = format!("ctr: failed to resolve reference \"{absent}\": {absent}: not found\n");
    assert_eq!(told, expected);
    node.ctr(["stop", "-t", "0s", "--rm", "again"]).ok();
    node.ctr(["c", "rm", "box"]).ok();
    node.finish();
}
