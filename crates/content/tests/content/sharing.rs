//! Blobs that exist already, here or elsewhere.

use std::sync::Arc;

use corten_content::Policy;
use corten_types::{Digest, Labels};

use crate::{Lab, ctx, in_namespace, text};

#[tokio::test]
async fn a_blob_that_is_known_is_told_of_and_leased() {
    let lab = Lab::new();
    lab.leases.create(&ctx(), "l", Labels::new()).await.unwrap();
    let digest = lab.put(&ctx(), b"data").await;
    let leased = ctx().with_lease("l");
    let exists = format!("content {digest}: already exists");
    assert_eq!(text(lab.expecting(&leased, "r", 4, &digest).await), exists);
    assert_eq!(lab.held("l"), [format!("content {digest}")]);
    assert!(lab.store.statuses(&ctx(), &[]).unwrap().is_empty());

    lab.leases.create(&ctx(), "m", Labels::new()).await.unwrap();
    let leased = ctx().with_lease("m");
    let mut writer = lab.open(&leased, "r", 4).await.unwrap();
    assert_eq!(lab.held("m"), ["ingests r"]);
    writer.write(b"data").unwrap();
    assert_eq!(text(writer.commit(4, None, Labels::new()).await), exists);
    assert_eq!(lab.held("m"), [format!("content {digest}")]);
    assert!(lab.store.statuses(&ctx(), &[]).unwrap().is_empty());
    assert!(!lab.ingest_folder("lab/2/r").exists());
}

#[tokio::test]
async fn without_its_lease_nothing_is_begun_or_committed() {
    let lab = Lab::new();
    let leased = ctx().with_lease("gone");
    let missing = "lease does not exist: not found";
    assert_eq!(text(lab.open(&leased, "r", 0).await), missing);
    lab.leases.create(&ctx(), "gone", Labels::new()).await.unwrap();
    let mut writer = lab.open(&leased, "r", 0).await.unwrap();
    writer.write(b"data").unwrap();
    lab.leases.delete(&ctx(), "gone").await.unwrap();
    assert_eq!(text(writer.commit(4, None, Labels::new()).await), missing);
    assert_eq!(lab.store.status(&ctx(), "r").unwrap().offset, 4);
}

#[tokio::test]
async fn a_blob_of_another_namespace_needs_no_data() {
    let lab = Lab::new();
    let digest = lab.put(&ctx(), b"0123456789").await;
    let other = in_namespace("other");
    assert_eq!(lab.expecting(&other, "r", 11, &digest).await.unwrap().offset(), 0);
    let writer = lab.expecting(&other, "s", 10, &digest).await.unwrap();
    let status = writer.status();
    assert_eq!((status.offset, status.total, status.expected), (10, 10, Some(digest.clone())));
    assert_eq!(writer.digest(), digest);
    assert!(lab.store.info(&other, &digest).is_err());
    writer.commit(10, Some(&digest), Labels::new()).await.unwrap();
    assert_eq!(lab.store.read(&other, &digest, 10).unwrap(), b"0123456789");
}

#[tokio::test]
async fn a_shared_blob_that_is_written_to_is_copied_first() {
    let lab = Lab::new();
    let digest = lab.put(&ctx(), b"01234").await;
    let other = in_namespace("other");
    let mut writer = lab.expecting(&other, "r", 0, &digest).await.unwrap();
    writer.write(b"56789").unwrap();
    assert_eq!((writer.offset(), writer.digest()), (10, Digest::sha256(b"0123456789")));
    let longer = writer.commit(10, None, Labels::new()).await.unwrap();
    assert_eq!(lab.store.read(&other, &longer, 10).unwrap(), b"0123456789");

    let mut writer = lab.expecting(&other, "s", 0, &digest).await.unwrap();
    writer.truncate().unwrap();
    assert_eq!((writer.offset(), writer.digest()), (0, Digest::sha256(b"")));
    writer.write(b"anew").unwrap();
    let anew = writer.commit(4, None, Labels::new()).await.unwrap();
    assert_eq!(lab.store.read(&other, &anew, 10).unwrap(), b"anew");
    assert_eq!(lab.store.read(&ctx(), &digest, 10).unwrap(), b"01234");
}

#[tokio::test]
async fn isolated_namespaces_share_only_what_is_marked() {
    let lab = Lab::at(Arc::new(tempfile::tempdir().unwrap()), Policy::Isolated);
    let digest = lab.put(&ctx(), b"data").await;
    let other = in_namespace("other");
    assert_eq!(lab.expecting(&other, "r", 4, &digest).await.unwrap().offset(), 0);
    let labels = Labels::from([("containerd.io/namespace.shareable".into(), "true".into())]);
    lab.namespaces.update(ctx().namespace, labels, vec![]).await.unwrap();
    assert_eq!(lab.expecting(&other, "s", 4, &digest).await.unwrap().offset(), 4);
}
