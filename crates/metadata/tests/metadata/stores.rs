//! Containers, images, namespaces and sandboxes.

use std::time::{Duration, SystemTime};

use corten_metadata::Sandbox;
use corten_types::{ErrorClass, Labels};

use crate::{Lab, container, ctx, digest, image, labels, namespace, text, topics};

#[tokio::test]
async fn containers_answer_as_the_original() {
    let lab = Lab::new();
    let (ctx, containers) = (ctx(), &lab.containers);
    assert_eq!(text(containers.get(&ctx, "no")), "container \"no\" in namespace \"lab\": not found");
    assert_eq!(text(containers.get(&ctx, "")), "container \"\" in namespace \"lab\": not found");
    assert!(containers.list(&ctx, &[]).unwrap().is_empty());
    assert_eq!(
        text(containers.create(&ctx, container("a/b")).await),
        "create container failed validation: container.ID: identifier \"a/b\" must match \
         ^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$: invalid argument"
    );
    let mut large = container("x1");
    large.labels = labels(&[("k", &"v".repeat(4096))]);
    assert_eq!(
        text(containers.create(&ctx, large).await),
        "create container failed validation: containers.Labels: label key and value length (4097 bytes) \
         greater than maximum size (4096 bytes), key: k: invalid argument"
    );
    let mut keyed = container("x1");
    keyed.snapshot_key = "x1".into();
    assert_eq!(
        text(containers.create(&ctx, keyed).await),
        "create container failed validation: container.Snapshotter must be set if container.SnapshotKey \
         is set: invalid argument"
    );
    let mut runtimeless = container("x1");
    runtimeless.runtime.name.clear();
    assert_eq!(
        text(containers.create(&ctx, runtimeless).await),
        "create container failed validation: container.Runtime.Name must be set: invalid argument"
    );
    containers.create(&ctx, container("x1")).await.unwrap();
    assert_eq!(text(containers.create(&ctx, container("x1")).await), "container \"x1\": already exists");
    assert_eq!(
        text(containers.update(&ctx, container("x1"), vec!["foo".into()]).await),
        "cannot update \"foo\" field on \"x1\": invalid argument"
    );
    assert_eq!(text(containers.update(&ctx, container(""), vec![]).await), "Container.ID required");
    assert_eq!(
        text(containers.update(&ctx, container("nope"), vec![]).await),
        "container \"nope\": not found"
    );
    assert_eq!(text(containers.delete(&ctx, "nope").await), "container nope: not found");
    assert_eq!(
        containers
            .list(&ctx, &["topic==/a/b".into()])
            .unwrap_err()
            .to_string()
            .matches("invalid argument")
            .count(),
        2
    );
}

#[tokio::test]
async fn container_updates_change_what_their_mask_names() {
    let lab = Lab::new();
    let (ctx, containers) = (ctx(), &lab.containers);
    let mut first = container("c");
    first.labels = labels(&[("a", "1"), ("b.c", "2"), ("empty", "")]);
    first.snapshotter = "overlayfs".into();
    let first = containers.create(&ctx, first).await.unwrap();
    assert_eq!(first.labels, labels(&[("a", "1"), ("b.c", "2")]));

    let mut new = container("c");
    new.labels = labels(&[("b.c", "3")]);
    new.image = "ignored".into();
    let paths = vec!["labels.b.c".to_owned(), "labels.a".to_owned()];
    let changed = containers.update(&ctx, new.clone(), paths).await.unwrap();
    assert_eq!(changed.labels, labels(&[("b.c", "3")]));
    assert_eq!((changed.image.as_str(), changed.created_at), ("", first.created_at));
    assert!(changed.updated_at > first.updated_at);

    assert_eq!(
        text(containers.update(&ctx, new.clone(), vec![]).await),
        "container.Snapshotter field is immutable: invalid argument"
    );
    new.snapshotter = "overlayfs".into();
    new.runtime.name = "other".into();
    assert_eq!(
        text(containers.update(&ctx, new.clone(), vec![]).await),
        "container.Runtime.Name field is immutable: invalid argument"
    );
    new.runtime.name = first.runtime.name.clone();
    new.extensions.insert("one".into(), corten_types::Any::default());
    containers.update(&ctx, new.clone(), vec![]).await.unwrap();
    new.extensions.clear();
    new.extensions.insert("two".into(), corten_types::Any::default());
    let id = new.id.clone();
    let answer = containers.update(&ctx, new, vec!["extensions".into()]).await.unwrap();
    assert_eq!(answer.extensions.keys().collect::<Vec<_>>(), ["two"]);
    let merged = containers.get(&ctx, &id).unwrap();
    assert_eq!(merged.extensions.keys().collect::<Vec<_>>(), ["one", "two"]);
}

#[tokio::test]
async fn a_container_without_a_spec_is_kept_but_masked_updates_of_it_fail() {
    let lab = Lab::new();
    let mut bare = container("c");
    bare.spec = None;
    lab.containers.create(&ctx(), bare.clone()).await.unwrap();
    lab.containers.update(&ctx(), bare.clone(), vec![]).await.unwrap();
    assert_eq!(
        text(lab.containers.update(&ctx(), bare, vec!["labels".into()]).await),
        "update failed validation: container.Spec must be set: invalid argument"
    );
}

#[tokio::test]
async fn containers_are_listed_in_order_and_filtered() {
    let lab = Lab::new();
    for id in ["b", "a", "B", "a.1"] {
        let mut new = container(id);
        new.labels = labels(&[("io.x/y", id)]);
        lab.containers.create(&ctx(), new).await.unwrap();
    }
    let list = |filter: &str| -> Vec<String> {
        let found = lab.containers.list(&ctx(), &[filter.to_owned()]).unwrap();
        found.into_iter().map(|container| container.id).collect()
    };
    assert_eq!(list(""), ["B", "a", "a.1", "b"]);
    assert_eq!(list("id==a"), ["a"]);
    assert_eq!(list("id~=^a,labels.\"io.x/y\"!=a"), ["a.1"]);
    assert!(list("image").is_empty());
}

#[tokio::test]
async fn images_answer_as_the_original() {
    let lab = Lab::new();
    let (ctx, images, target) = (ctx(), &lab.images, digest("t"));
    for name in ["zz", ""] {
        assert_eq!(text(images.get(&ctx, name)), format!("image \"{name}\": not found"));
        assert_eq!(text(images.delete(&ctx, name, None).await), format!("image \"{name}\": not found"));
    }
    assert_eq!(text(images.create(&ctx, image("", &target), None).await), "Image.Name required");
    let mut empty = image("i1", &target);
    empty.target.size = 0;
    assert_eq!(
        text(images.create(&ctx, empty, None).await),
        "target.Size must be greater than zero: invalid argument"
    );
    let mut untyped = image("i1", &target);
    untyped.target.media_type.clear();
    assert_eq!(
        text(images.create(&ctx, untyped, None).await),
        "target.MediaType must be set: invalid argument"
    );
    let epoch = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
    let made = images.create(&ctx, image("i1", &target), Some(epoch)).await.unwrap();
    assert_eq!((made.created_at, made.updated_at), (epoch, epoch));
    assert_eq!(text(images.create(&ctx, image("i1", &target), None).await), "image \"i1\": already exists");
    assert_eq!(
        text(images.update(&ctx, image("i1", &target), vec!["name".into()], None).await),
        "cannot update \"name\" field on image \"i1\": invalid argument"
    );
    assert_eq!(
        text(images.update(&ctx, image("zz", &target), vec![], None).await),
        "image \"zz\": not found"
    );
    let other = digest("u");
    assert_eq!(
        text(images.delete(&ctx, "i1", Some(other.to_string())).await),
        format!("image \"i1\" has target {target}, not {other}: not found")
    );
    images.delete(&ctx, "i1", Some(target.to_string())).await.unwrap();
}

#[tokio::test]
async fn image_updates_reach_labels_target_and_annotations() {
    let lab = Lab::new();
    let (ctx, images) = (ctx(), &lab.images);
    images.create(&ctx, image("i", &digest("1")), None).await.unwrap();
    let mut new = image("i", &digest("2"));
    new.labels = labels(&[("a.b", "1"), ("gone", "")]);
    new.target.annotations = labels(&[("x", "y")]);
    let changed = images.update(&ctx, new.clone(), vec!["annotations.x".into()], None).await.unwrap();
    assert_eq!((&changed.target.digest, &changed.labels), (&digest("1"), &Labels::new()));
    assert_eq!(changed.target.annotations, labels(&[("x", "y")]));
    let changed = images.update(&ctx, new, vec![], None).await.unwrap();
    assert_eq!((&changed.target.digest, &changed.labels), (&digest("2"), &labels(&[("a.b", "1")])));
    let found = |filter: &str| images.list(&ctx, &[filter.to_owned()]).unwrap().len();
    assert_eq!(found(&format!("target.digest==\"{}\"", digest("2"))), 1);
    assert_eq!(found("annotations.x==y,labels.a.b==1"), 1);
    assert_eq!(found("name==j"), 0);
}

#[tokio::test]
async fn namespaces_answer_as_the_original() {
    let lab = Lab::new();
    let namespaces = &lab.namespaces;
    assert!(namespaces.labels(&namespace("foo")).unwrap().is_empty());
    assert_eq!(namespaces.list().unwrap(), []);
    namespaces.create(namespace("foo"), labels(&[("a", "1"), ("b", "")])).await.unwrap();
    assert_eq!(
        text(namespaces.create(namespace("foo"), Labels::new()).await),
        "namespace \"foo\": already exists"
    );
    for path in ["labels", "x"] {
        let error = namespaces.update(namespace("foo"), Labels::new(), vec![path.into()]).await.unwrap_err();
        assert_eq!(error.to_string(), format!("cannot update \"{path}\" field"));
        assert_eq!(error.class(), ErrorClass::InvalidArgument);
    }
    let new = labels(&[("c", "3")]);
    let paths = vec!["labels.a".to_owned(), "labels.c".to_owned()];
    assert_eq!(namespaces.update(namespace("foo"), new.clone(), paths).await.unwrap(), new);
    namespaces.update(namespace("bar"), new.clone(), vec![]).await.unwrap();
    let listed = namespaces.list().unwrap();
    assert_eq!(listed, [(namespace("bar"), new.clone()), (namespace("foo"), new)]);
    assert_eq!(text(namespaces.delete(namespace("zz")).await), "namespace \"zz\": not found");
}

#[tokio::test]
async fn a_namespace_comes_with_its_first_object_and_goes_when_it_is_empty() {
    let lab = Lab::new();
    let ctx = ctx();
    let mut events = lab.events();
    lab.containers.create(&ctx, container("c")).await.unwrap();
    assert_eq!(lab.namespaces.list().unwrap(), [(namespace("lab"), Labels::new())]);
    assert_eq!(topics(&mut events).await, ["/containers/create"]);
    assert_eq!(
        text(lab.namespaces.delete(namespace("lab")).await),
        "namespace \"lab\" must be empty, but it still has containers: failed precondition"
    );
    lab.images.create(&ctx, image("i", &digest("1")), None).await.unwrap();
    lab.blob(&ctx, &digest("1"), Labels::new()).await.unwrap();
    lab.active(&ctx, "s", "", 1).await.unwrap();
    assert_eq!(
        text(lab.namespaces.delete(namespace("lab")).await),
        "namespace \"lab\" must be empty, but it still has images, blobs, containers, \
         snapshots on \"overlayfs\" snapshotter: failed precondition"
    );
    lab.containers.delete(&ctx, "c").await.unwrap();
    lab.images.delete(&ctx, "i", None).await.unwrap();
    lab.blobs.delete(&ctx, &digest("1")).await.unwrap();
    lab.snapshots.remove(&ctx, "overlayfs", "s").await.unwrap();
    // Leases, ingests and sandboxes do not keep it.
    lab.leases.create(&ctx, "l", Labels::new()).await.unwrap();
    lab.ingests.open(&ctx, "r", None).await.unwrap();
    lab.namespaces.delete(namespace("lab")).await.unwrap();
    assert_eq!(lab.namespaces.list().unwrap(), []);
    assert!(lab.leases.list(&ctx, &[]).unwrap().is_empty());
    assert!(lab.ingests.list(&ctx).unwrap().is_empty());
}

fn sandbox(id: &str) -> Sandbox {
    Sandbox {
        id: id.to_owned(),
        labels: Labels::new(),
        runtime: String::new(),
        options: None,
        spec: None,
        sandboxer: "podsandbox".to_owned(),
        created_at: SystemTime::UNIX_EPOCH,
        updated_at: SystemTime::UNIX_EPOCH,
        extensions: Default::default(),
    }
}

#[tokio::test]
async fn sandboxes_answer_as_the_original() {
    let lab = Lab::new();
    let (ctx, sandboxes) = (ctx(), &lab.sandboxes);
    assert_eq!(text(sandboxes.get(&ctx, "zz")), "no sandbox buckets: not found");
    assert_eq!(
        text(sandboxes.create(&ctx, sandbox("")).await),
        "failed to validate sandbox: invalid sandbox ID: identifier must not be empty: invalid argument"
    );
    sandboxes.create(&ctx, sandbox("sb1")).await.unwrap();
    assert_eq!(
        text(sandboxes.create(&ctx, sandbox("sb1")).await),
        "write error: sandbox bucket \"sb1\" already exists: already exists"
    );
    assert_eq!(text(sandboxes.get(&ctx, "zz")), "bucket \"zz\" not found: not found");
    assert_eq!(
        text(sandboxes.update(&ctx, sandbox("sb1"), vec!["foo".into()]).await),
        "cannot update \"foo\" field on sandbox \"sb1\": invalid argument"
    );
    let mut other = sandbox("sb1");
    other.runtime = "other".into();
    assert_eq!(
        text(sandboxes.update(&ctx, other.clone(), vec![]).await),
        "sandbox.Runtime.Name field is immutable: invalid argument"
    );
    let changed = sandboxes.update(&ctx, other, vec!["runtime".into()]).await.unwrap();
    assert_eq!(changed.runtime, "other");
    assert_eq!(text(sandboxes.delete(&ctx, "zz").await), "failed to delete sandbox \"zz\": not found");
    sandboxes.delete(&ctx, "sb1").await.unwrap();
    assert_eq!(text(sandboxes.get(&ctx, "sb1")), "bucket \"sb1\" not found: not found");
}

#[tokio::test]
async fn records_and_counters_outlive_a_restart() {
    let lab = Lab::new();
    let made = lab.containers.create(&ctx(), container("c")).await.unwrap();
    let first = lab.ingests.open(&ctx(), "r", None).await.unwrap();
    lab.active(&ctx(), "s", "", 7).await.unwrap();
    let lab = lab.restarted();
    assert_eq!(lab.containers.get(&ctx(), "c").unwrap(), made);
    assert_eq!(lab.ingests.get(&ctx(), "r").unwrap().unwrap(), first);
    assert_eq!(lab.snapshots.stat(&ctx(), "overlayfs", "s").unwrap().id, 7);
    let second = lab.ingests.open(&ctx(), "other", None).await.unwrap();
    assert_eq!((first.backend.as_str(), second.backend.as_str()), ("lab/1/r", "lab/2/other"));
}

#[tokio::test]
async fn events_tell_of_what_was_done_once_and_not_of_what_failed() {
    let lab = Lab::new();
    let ctx = ctx();
    let mut events = lab.events();
    lab.containers.create(&ctx, container("c")).await.unwrap();
    lab.containers.create(&ctx, container("c")).await.unwrap_err();
    lab.containers.update(&ctx, container("c"), vec![]).await.unwrap();
    lab.containers.delete(&ctx, "c").await.unwrap();
    lab.images.create(&ctx, image("i", &digest("1")), None).await.unwrap();
    lab.images.update(&ctx, image("i", &digest("1")), vec![], None).await.unwrap();
    lab.images.delete(&ctx, "i", None).await.unwrap();
    lab.leases.create(&ctx, "l", Labels::new()).await.unwrap();
    lab.namespaces.create(namespace("n"), Labels::new()).await.unwrap();
    lab.namespaces.update(namespace("n"), Labels::new(), vec![]).await.unwrap();
    lab.namespaces.delete(namespace("n")).await.unwrap();
    let wanted = [
        "/containers/create",
        "/containers/update",
        "/containers/delete",
        "/images/create",
        "/images/update",
        "/images/delete",
        "/namespaces/create",
        "/namespaces/update",
        "/namespaces/delete",
    ];
    assert_eq!(topics(&mut events).await, wanted);
}
