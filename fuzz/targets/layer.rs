//! Layers onto a folder: whatever they say, nothing outside of it is touched.
#![no_main]

mod tar;

use std::fs;

use corten_diff::{ApplyOptions, apply};
use corten_types::Mount;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let archive = match input.first() {
        // As it is, also compressed.
        Some(0x1f | 0x28) | None => input.to_vec(),
        Some(_) => tar::with_checksums(input),
    };
    let folder = std::env::temp_dir().join("layer");
    let (tree, canary) = (folder.join("a/tree"), folder.join("a/canary"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&tree).expect("a folder");
    fs::write(&canary, "alive").expect("a file");
    let mount = Mount { kind: "bind".into(), source: tree.display().to_string(), ..Mount::default() };
    let options = ApplyOptions { limit: 1 << 20, mount_folder: folder.join("a"), ..ApplyOptions::default() };
    drop(apply(&mut archive.as_slice(), &[mount], &options));
    let names = |folder: &std::path::Path| {
        let entries = fs::read_dir(folder).expect("the folder").map(|entry| entry.expect("an entry"));
        let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
        names.sort_unstable();
        names
    };
    assert_eq!(names(&folder), ["a"]);
    assert_eq!(names(&folder.join("a")), ["canary", "tree"]);
    assert_eq!(fs::read(&canary).expect("the file"), b"alive");
});
