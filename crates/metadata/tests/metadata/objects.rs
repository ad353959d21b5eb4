//! Content records, ingests and leases.

use corten_metadata::Resource;
use corten_types::{ErrorClass, Labels};

use crate::{Lab, ctx, digest, image, labels, text, topics};

fn resource(kind: &str, id: &str) -> Resource {
    Resource { kind: kind.to_owned(), id: id.to_owned() }
}

#[tokio::test]
async fn content_records_answer_as_the_original() {
    let lab = Lab::new();
    let (ctx, one) = (ctx(), digest("1"));
    let mut events = lab.events();
    let missing = format!("content digest {one}: not found");
    assert_eq!(text(lab.blobs.get(&ctx, &one)), missing);
    assert_eq!(text(lab.blobs.delete(&ctx, &one).await), missing);
    assert_eq!(text(lab.blobs.update(&ctx, &one, Labels::new(), vec![]).await), missing);
    lab.blob(&ctx, &one, labels(&[("a", "1"), ("b", "")])).await.unwrap();
    assert_eq!(
        text(lab.blob(&ctx, &one, labels(&[("c", "2")])).await),
        format!("content {one}: already exists")
    );
    assert_eq!(lab.blobs.get(&ctx, &one).unwrap().labels, labels(&[("a", "1")]));
    assert_eq!(
        text(lab.blobs.update(&ctx, &one, Labels::new(), vec!["size".into()]).await),
        format!("cannot update \"size\" field on content info \"{one}\": invalid argument")
    );
    let changed = lab.blobs.update(&ctx, &one, labels(&[("c", "2")]), vec!["labels.c".into()]).await.unwrap();
    assert_eq!(changed.labels, labels(&[("a", "1"), ("c", "2")]));
    let found = |filter: &str| lab.blobs.list(&ctx, &[filter.to_owned()]).unwrap().len();
    assert_eq!((found("size==1"), found("size!=1"), found("labels.c")), (0, 1, 1));
    let error = lab.blobs.list(&ctx, &["topic==/a".into()]).unwrap_err().to_string();
    assert_eq!(error.matches("invalid argument").count(), 1);
    lab.blobs.delete(&ctx, &one).await.unwrap();
    assert_eq!(topics(&mut events).await, ["/content/create", "/content/delete"]);
}

#[tokio::test]
async fn blobs_are_seen_only_where_they_are_recorded() {
    let lab = Lab::new();
    let other = corten_types::Context::new(crate::namespace("other"));
    lab.blob(&ctx(), &digest("1"), Labels::new()).await.unwrap();
    assert!(lab.blobs.get(&other, &digest("1")).unwrap_err().is_not_found());
    assert!(lab.blobs.is_known(digest("1").as_str()).unwrap());
    assert!(!lab.blobs.is_shareable(&digest("1")).unwrap());
    let shares = labels(&[("containerd.io/namespace.shareable", "true")]);
    lab.namespaces.update(crate::namespace("lab"), shares, vec![]).await.unwrap();
    assert!(lab.blobs.is_shareable(&digest("1")).unwrap());
}

#[tokio::test]
async fn leases_answer_as_the_original() {
    let lab = Lab::new();
    let (ctx, leases) = (ctx(), &lab.leases);
    let generated = leases.create(&ctx, "", labels(&[("a", ""), ("b", "1")])).await.unwrap();
    let (nanoseconds, random) = generated.id.split_once('-').unwrap();
    assert!(nanoseconds.bytes().all(|byte| byte.is_ascii_digit()) && random.len() == 4, "{}", generated.id);
    assert_eq!(generated.labels, labels(&[("b", "1")]));
    leases.create(&ctx, "l1 any/string", Labels::new()).await.unwrap();
    assert_eq!(
        text(leases.create(&ctx, "l1 any/string", Labels::new()).await),
        "lease \"l1 any/string\": already exists"
    );
    leases.create(&ctx, "l", Labels::new()).await.unwrap();
    let missing = "lease \"nol\": not found";
    assert_eq!(text(leases.delete(&ctx, "nol").await), missing);
    assert_eq!(text(leases.resources(&ctx, "nol")), missing);
    assert_eq!(text(leases.add_resource(&ctx, "nol", resource("images", "i")).await), missing);
    let refused =
        async |kind: &str, id: &str| leases.add_resource(&ctx, "l", resource(kind, id)).await.unwrap_err();
    let error = refused("foo", "x").await;
    assert_eq!(error.class(), ErrorClass::NotImplemented);
    assert_eq!(error.to_string(), "resource type foo not supported yet: not implemented");
    assert_eq!(
        refused("content", "notdigest").await.to_string(),
        "invalid content resource id notdigest: invalid checksum digest format: invalid argument"
    );
    assert!(refused("content/x", "x").await.to_string().starts_with("invalid resource type"));
    assert!(refused("snapshots", "x").await.to_string().starts_with("invalid snapshot resource type"));
}

#[tokio::test]
async fn a_lease_lists_what_it_keeps_by_kind() {
    let lab = Lab::new();
    let (ctx, leases) = (ctx(), &lab.leases);
    leases.create(&ctx, "l", Labels::new()).await.unwrap();
    let wanted = [
        resource("content", digest("1").as_str()),
        resource("images", "any image"),
        resource("ingests", "any ref"),
        resource("snapshots/native", "a"),
        resource("snapshots/overlayfs", "b"),
    ];
    for resource in wanted.iter().rev() {
        leases.add_resource(&ctx, "l", resource.clone()).await.unwrap();
        leases.add_resource(&ctx, "l", resource.clone()).await.unwrap();
    }
    assert_eq!(leases.resources(&ctx, "l").unwrap(), wanted);
    leases.remove_resource(&ctx, "l", resource("images", "unknown")).await.unwrap();
    leases.remove_resource(&ctx, "l", wanted[1].clone()).await.unwrap();
    assert_eq!(leases.resources(&ctx, "l").unwrap().len(), 4);
}

#[tokio::test]
async fn what_is_made_joins_the_lease_of_the_caller() {
    let lab = Lab::new();
    let leased = ctx().with_lease("l");
    let missing = "lease does not exist: not found";
    assert_eq!(text(lab.blob(&leased, &digest("1"), Labels::new()).await), missing);
    assert_eq!(text(lab.ingests.open(&leased, "r", None).await), missing);
    assert_eq!(text(lab.active(&leased, "s", "", 1).await), missing);
    assert!(lab.blobs.get(&ctx(), &digest("1")).is_err());

    lab.leases.create(&ctx(), "l", Labels::new()).await.unwrap();
    lab.blob(&ctx(), &digest("1"), Labels::new()).await.unwrap();
    // It exists: that fails, and it is leased all the same.
    lab.blob(&leased, &digest("1"), Labels::new()).await.unwrap_err();
    lab.ingests.open(&leased, "r", None).await.unwrap();
    lab.images.create(&leased, image("not leased", &digest("1")), None).await.unwrap();
    let mut expiring = image("leased", &digest("1"));
    expiring.labels = labels(&[("containerd.io/gc.expire", "2999-01-01T00:00:00Z")]);
    lab.images.create(&leased, expiring, None).await.unwrap();
    let held: Vec<_> = lab.leases.resources(&ctx(), "l").unwrap().into_iter().map(|r| r.kind).collect();
    assert_eq!(held, ["content", "images", "ingests"]);
    lab.ingests.remove(&leased, "r").await.unwrap();
    lab.blobs.delete(&leased, &digest("1")).await.unwrap();
    let held: Vec<_> = lab.leases.resources(&ctx(), "l").unwrap().into_iter().map(|r| r.kind).collect();
    assert_eq!(held, ["images"]);
}

#[tokio::test]
async fn an_ingest_that_was_given_up_does_not_end_the_next_one() {
    let lab = Lab::new();
    let first = lab.ingests.open(&ctx(), "r", None).await.unwrap();
    assert_eq!(text(lab.ingests.remove(&ctx(), "nope").await), "reference nope: not found");
    lab.ingests.remove(&ctx(), "r").await.unwrap();
    let second = lab.ingests.open(&ctx(), "r", None).await.unwrap();
    assert_ne!(first.backend, second.backend);
    lab.blobs.commit(&ctx(), &first, &digest("1"), 1, Labels::new()).await.unwrap();
    assert_eq!(lab.ingests.get(&ctx(), "r").unwrap(), Some(second.clone()));
    lab.blobs.commit(&ctx(), &second, &digest("2"), 1, Labels::new()).await.unwrap();
    assert_eq!(lab.ingests.get(&ctx(), "r").unwrap(), None);
}
