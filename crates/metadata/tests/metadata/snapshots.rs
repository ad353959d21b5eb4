//! Snapshot records.

use corten_metadata::Kind;
use corten_types::{Context, Labels};

use crate::{Lab, ctx, labels, namespace, text, topics};

const REF: &str = "containerd.io/snapshot.ref";

#[tokio::test]
async fn snapshots_answer_as_the_original() {
    let lab = Lab::new();
    let (ctx, snapshots) = (ctx(), &lab.snapshots);
    let missing = "snapshot zz does not exist: not found";
    assert_eq!(text(snapshots.stat(&ctx, "overlayfs", "zz")), missing);
    assert_eq!(text(snapshots.mountable(&ctx, "overlayfs", "zz")), missing);
    assert_eq!(text(snapshots.remove(&ctx, "overlayfs", "zz").await), missing);
    assert_eq!(text(snapshots.update(&ctx, "overlayfs", "zz", Labels::new(), vec![]).await), missing);
    assert_eq!(text(lab.commit(&ctx, "n", "zz", Labels::new()).await), missing);

    lab.active(&ctx, "a", "", 1).await.unwrap();
    assert_eq!(text(lab.active(&ctx, "a", "", 9).await), "snapshot \"a\": already exists");
    assert_eq!(text(lab.active(&ctx, "b", "zz", 9).await), "parent snapshot zz does not exist: not found");
    assert_eq!(
        text(lab.active(&ctx, "b", "a", 9).await),
        "failed to create snapshot: parent \"lab/1/a\" is not committed snapshot: invalid argument"
    );
    lab.active(&ctx, "b", "", 2).await.unwrap();
    lab.snapshot(&ctx, "v0", "", 3, Kind::View, Labels::new()).await.unwrap();
    assert_eq!(
        text(lab.commit(&ctx, "n", "v0", Labels::new()).await),
        "failed to commit snapshot lab/3/v0: snapshot \"lab/3/v0\" is not active: failed precondition"
    );
    lab.commit(&ctx, "ca", "a", Labels::new()).await.unwrap();
    assert_eq!(text(lab.commit(&ctx, "ca", "b", Labels::new()).await), "snapshot \"ca\": already exists");
    assert_eq!(
        text(snapshots.mountable(&ctx, "overlayfs", "ca")),
        "failed to get active mount: requested snapshot lab/4/ca not active or view: failed precondition"
    );
    lab.active(&ctx, "child", "ca", 4).await.unwrap();
    assert_eq!(
        text(snapshots.remove(&ctx, "overlayfs", "ca").await),
        "cannot remove snapshot with child: failed precondition"
    );
    assert_eq!(
        text(snapshots.update(&ctx, "overlayfs", "ca", Labels::new(), vec!["parent".into()]).await),
        "cannot update \"parent\" field on snapshot \"ca\": invalid argument"
    );
    let target = labels(&[(REF, "ca")]);
    assert_eq!(
        text(lab.snapshot(&ctx, "new", "", 9, Kind::Active, target).await),
        "target snapshot \"ca\": already exists"
    );
}

#[tokio::test]
async fn names_are_numbered_per_namespace_and_folders_are_not() {
    let lab = Lab::new();
    let other = Context::new(namespace("other"));
    lab.active(&ctx(), "a", "", 1).await.unwrap();
    let record = lab.active(&other, "a", "", 2).await.unwrap();
    assert_eq!((record.id, record.sequence), (2, 1));
    assert_eq!(lab.snapshots.all_ids("overlayfs").unwrap().into_iter().collect::<Vec<_>>(), [1, 2]);
    assert!(lab.snapshots.all_ids("native").unwrap().is_empty());
}

#[tokio::test]
async fn a_commit_keeps_nothing_of_the_key_but_its_folder_and_parent() {
    let lab = Lab::new();
    let ctx = ctx();
    lab.active(&ctx, "base-key", "", 1).await.unwrap();
    lab.commit(&ctx, "base", "base-key", Labels::new()).await.unwrap();
    let root = labels(&[("containerd.io/gc.root", "1"), ("empty", "")]);
    lab.snapshot(&ctx, "key", "base", 2, Kind::Active, root).await.unwrap();
    lab.commit(&ctx, "name", "key", labels(&[("new", "1")])).await.unwrap();
    let record = lab.snapshots.stat(&ctx, "overlayfs", "name").unwrap();
    assert_eq!((record.id, record.parent.as_str(), record.kind), (2, "base", Kind::Committed));
    assert_eq!(record.labels, labels(&[("new", "1")]));
    assert_eq!((record.size, record.inodes), (4096, 1));
    assert!(lab.snapshots.stat(&ctx, "overlayfs", "key").is_err());
    assert_eq!(lab.snapshots.chain(&ctx, "overlayfs", "name").unwrap(), [2, 1]);
}

#[tokio::test]
async fn a_parent_may_be_given_at_commit_to_what_has_none() {
    let lab = Lab::new();
    let (ctx, snapshots) = (ctx(), &lab.snapshots);
    let rebase = async |name: &str, key: &str, parent: &str| {
        snapshots.commit(&ctx, "overlayfs", name, key, parent, Labels::new(), (1, 1)).await
    };
    for (id, key) in [(1, "k1"), (2, "k2"), (3, "k3")] {
        lab.active(&ctx, key, "", id).await.unwrap();
    }
    lab.commit(&ctx, "base", "k1", Labels::new()).await.unwrap();
    assert_eq!(
        text(rebase("n", "k2", "k3").await),
        "failed to commit snapshot: parent \"lab/3/k3\" is not committed snapshot: invalid argument"
    );
    assert_eq!(text(rebase("n", "k2", "zz").await), "parent snapshot zz does not exist: not found");
    rebase("top", "k2", "base").await.unwrap();
    assert_eq!(snapshots.chain(&ctx, "overlayfs", "top").unwrap(), [2, 1]);
    assert!(text(snapshots.remove(&ctx, "overlayfs", "base").await).contains("with child"));
    lab.active(&ctx, "k4", "base", 4).await.unwrap();
    assert!(text(rebase("n", "k4", "top").await).ends_with("invalid argument"));
}

#[tokio::test]
async fn snapshots_join_leases_and_move_with_their_commit() {
    let lab = Lab::new();
    let leased = ctx().with_lease("l");
    lab.leases.create(&ctx(), "l", Labels::new()).await.unwrap();
    let held = || -> Vec<String> {
        let resources = lab.leases.resources(&ctx(), "l").unwrap();
        resources.into_iter().map(|resource| format!("{} {}", resource.kind, resource.id)).collect()
    };
    lab.active(&leased, "key", "", 1).await.unwrap();
    assert_eq!(held(), ["snapshots/overlayfs key"]);
    lab.commit(&leased, "name", "key", Labels::new()).await.unwrap();
    assert_eq!(held(), ["snapshots/overlayfs name"]);
    // What exists joins too, though the call fails: by its key, or as the target of a label.
    lab.active(&ctx(), "other", "", 2).await.unwrap();
    lab.active(&leased, "other", "", 3).await.unwrap_err();
    assert_eq!(held(), ["snapshots/overlayfs name", "snapshots/overlayfs other"]);
    lab.snapshots.remove(&leased, "overlayfs", "name").await.unwrap();
    lab.active(&ctx(), "target-key", "", 4).await.unwrap();
    lab.commit(&ctx(), "target", "target-key", Labels::new()).await.unwrap();
    let target = labels(&[(REF, "target")]);
    lab.snapshot(&leased, "k", "", 5, Kind::Active, target).await.unwrap_err();
    assert_eq!(held(), ["snapshots/overlayfs other", "snapshots/overlayfs target"]);
}

#[tokio::test]
async fn snapshots_are_filtered_and_their_labels_updated() {
    let lab = Lab::new();
    let ctx = ctx();
    lab.active(&ctx, "k", "", 1).await.unwrap();
    lab.commit(&ctx, "base", "k", labels(&[("a", "1")])).await.unwrap();
    lab.active(&ctx, "top", "base", 2).await.unwrap();
    let names = |filter: &str| -> Vec<String> {
        let found = lab.snapshots.list(&ctx, "overlayfs", &[filter.to_owned()]).unwrap();
        found.into_iter().map(|snapshot| snapshot.name).collect()
    };
    assert_eq!(names("kind==active,parent==base"), ["top"]);
    assert_eq!(names("labels.a==1"), ["base"]);
    assert_eq!(names("parent"), ["base", "top"]);
    assert!(lab.snapshots.list(&ctx, "native", &[]).unwrap().is_empty());
    let new = labels(&[("a", ""), ("b", "2")]);
    let changed = lab.snapshots.update(&ctx, "overlayfs", "base", new, vec![]).await.unwrap();
    assert_eq!(changed.labels, labels(&[("b", "2")]));
}

#[tokio::test]
async fn views_come_and_go_without_an_event_for_their_coming() {
    let lab = Lab::new();
    let ctx = ctx();
    let mut events = lab.events();
    lab.active(&ctx, "k", "", 1).await.unwrap();
    lab.commit(&ctx, "n", "k", Labels::new()).await.unwrap();
    lab.snapshot(&ctx, "v", "n", 2, Kind::View, Labels::new()).await.unwrap();
    lab.snapshots.remove(&ctx, "overlayfs", "v").await.unwrap();
    assert_eq!(topics(&mut events).await, ["/snapshot/prepare", "/snapshot/commit", "/snapshot/remove"]);
}
