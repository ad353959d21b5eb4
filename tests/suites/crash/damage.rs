//! The file of the database is damaged while the daemon is down.

use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use corten_tests::{Client, Node, Registry};

use crate::pulls::{self, Sample};
use crate::{check_disk, records};

/// Overwrites some of the database with zeroes.
fn damage(node: &Node, from: u64, length: usize) -> PathBuf {
    let folder = node.root().join("io.containerd.metadata.v1.bolt");
    let file = std::fs::File::options().write(true).open(folder.join("corten.redb")).unwrap();
    file.write_all_at(&vec![0; length], from).unwrap();
    folder
}

#[test]
fn a_daemon_with_a_damaged_database_starts_with_what_can_be_read_and_keeps_what_is_on_disk() {
    let registry = Registry::start();
    let samples = [Sample::push(&registry, "one"), Sample::push(&registry, "two")];
    let mut node = Node::start();
    samples.iter().for_each(|sample| sample.pull(&node));
    let before = pulls::view(&node.address(), node.namespace(), &samples);
    assert!(before.len() == 2 && before.values().all(|state| state == "whole"), "{before:?}");

    node.stop_daemon();
    let folder = damage(&node, 0, 4096);
    node.start_daemon();
    assert!(node.log().contains("the database was damaged"), "{}", node.log());
    assert_eq!(pulls::view(&node.address(), node.namespace(), &samples), before);

    node.stop_daemon();
    damage(&node, 0, usize::try_from(std::fs::metadata(folder.join("corten.redb")).unwrap().len()).unwrap());
    node.start_daemon();
    assert!(pulls::view(&node.address(), node.namespace(), &samples).is_empty());
    let files = || {
        std::fs::read_dir(node.root().join("io.containerd.content.v1.content/blobs/sha256")).unwrap().count()
    };
    let (count, client) = (files(), Client::new(&node.address(), Some(node.namespace())));
    assert!(count > 0);
    records::collect(&client);
    assert_eq!(files(), count, "nobody knows them, and they stay");
    // Who pulls again finds them.
    samples[0].pull(&node);
    assert_eq!(pulls::view(&node.address(), node.namespace(), &samples).len(), 1);
    for file in std::fs::read_dir(&folder).unwrap().flatten() {
        if file.file_name().to_string_lossy().contains(".damaged") {
            std::fs::remove_file(file.path()).unwrap();
        }
    }
    check_disk(&node, node.namespace());
    assert!(files() < count, "now what nobody knows goes");
    node.finish();
}
