//! Whatever becomes of a tree, the layer leads there.

use std::path::PathBuf;

use corten_mounts::TempMount;
use corten_types::media_type;
use proptest::prelude::*;

use super::edits::{Dice, edit};
use super::seen::{assert_same, assert_same_links};
use super::{Lab, bind, overlay};

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 0, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_layer_applied_to_a_copy_gives_the_changed_tree(seed in any::<u64>()) {
        let (lab, mut dice, mut clock) = (Lab::new(), Dice::new(seed), 0);
        let old = lab.new_folder("old");
        edit(&old, &mut dice, 80, &mut clock);
        let (new, copy) = (lab.folder.path().join("new"), lab.folder.path().join("copy"));
        for to in [&new, &copy] {
            std::fs::create_dir(to).unwrap();
            corten_tree::copy(&old, to).unwrap();
        }
        edit(&new, &mut dice, 40, &mut clock);
        let layer = lab.layer(&bind(&old), &bind(&new));
        lab.apply(lab.store(media_type::OCI_LAYER, &layer), &bind(&copy)).unwrap();
        assert_same(&new, &copy, "applied to a copy");
        let whole = lab.layer(&[], &bind(&new));
        let empty = lab.new_folder("empty");
        lab.apply(lab.store(media_type::OCI_LAYER, &whole), &bind(&empty)).unwrap();
        assert_same(&new, &empty, "applied to nothing");
    }

    #[test]
    fn the_upper_layer_alone_gives_the_same_bytes_as_both_trees(seed in any::<u64>()) {
        alone_and_both(seed);
    }
}

#[test]
fn a_link_that_only_a_copy_broke_is_no_change() {
    alone_and_both(13_888_585_254_844_922_429);
}

/// The layer of an overlay's upper layer alone, and of both trees.
fn alone_and_both(seed: u64) {
    let (lab, mut dice, mut clock) = (Lab::new(), Dice::new(seed), 0);
    let mut layers = Vec::new();
    for layer in 0..4 {
        let (upper, work) =
            (lab.new_folder(&format!("upper{layer}")), lab.new_folder(&format!("work{layer}")));
        if layer == 0 {
            edit(&upper, &mut dice, 100, &mut clock);
        } else {
            let all: Vec<_> =
                std::iter::once(&upper).chain(layers.iter().rev()).map(|path| path.as_path()).collect();
            let mounted =
                TempMount::new(&lab.folder.path().join("m"), &overlay(&all, Some(&work), None)).unwrap();
            edit(mounted.path(), &mut dice, 40, &mut clock);
            mounted.close().unwrap();
        }
        layers.push(upper);
    }
    let all: Vec<_> = layers.iter().rev().map(|path| path.as_path()).collect();
    let work = lab.new_folder("work");
    // An option that changes nothing, and that nobody looks behind.
    let slow = overlay(&all, None, Some("xino=auto"));
    let slowly = lab.layer(&overlay(&all[1..], None, None), &slow);
    assert_eq!(
        super::names(&lab.layer(&overlay(&all[1..], None, None), &overlay(&all, Some(&work), None))),
        super::names(&slowly)
    );
    assert!(lab.layer(&overlay(&all[1..], None, None), &overlay(&all, Some(&work), None)) == slowly);
    assert!(lab.layer(&overlay(&all[1..], None, None), &overlay(&all, None, None)) == slowly);
    // And what is made of it as an upper layer again shows the same tree.
    let (upper, work) = (lab.new_folder("again"), lab.new_folder("work-again"));
    let mut again = vec![upper.as_path()];
    again.extend(&all[1..]);
    lab.apply(lab.store(media_type::OCI_LAYER, &slowly), &overlay(&again, Some(&work), None)).unwrap();
    let (one, other) = (overlay(&all, None, None), overlay(&again, None, None));
    let folder = lab.folder.path().join("m");
    let (one, other) = (TempMount::new(&folder, &one).unwrap(), TempMount::new(&folder, &other).unwrap());
    // The overlay breaks a link when it copies one of its names up, though nothing is changed then: no layer tells that.
    let told: std::collections::HashSet<_> =
        super::names(&slowly).iter().map(|name| PathBuf::from(name.trim_end_matches('/'))).collect();
    assert_same_links(one.path(), other.path(), "as an upper layer", |path| told.contains(path));
}
