//! Files that no record knows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use corten_metadata::Sweeper;
use corten_types::{Digest, Labels};

use crate::{Lab, ctx, in_namespace};

#[tokio::test]
async fn what_a_crash_left_is_removed_and_nothing_else() {
    let lab = Lab::new();
    let known = lab.put(&ctx(), b"known").await;
    let unknown = Digest::sha256(b"unknown");
    std::fs::write(lab.blob_file(&unknown), b"unknown").unwrap();
    let stray = lab.ingest_folder("lab/77/stray");
    std::fs::create_dir(&stray).unwrap();
    std::fs::write(stray.join("data"), b"x").unwrap();
    drop(lab.open(&ctx(), "resting", 0).await.unwrap());
    let lab = lab.restarted();
    lab.store.sweep().await.unwrap();
    assert!(lab.blob_file(&known).exists() && !lab.blob_file(&unknown).exists() && !stray.exists());
    assert_eq!(lab.store.status(&ctx(), "resting").unwrap().offset, 0);
}

#[tokio::test]
async fn a_file_goes_with_its_last_record() {
    let lab = Lab::new();
    let (other, collector) = (in_namespace("other"), lab.collector());
    let digest = lab.put(&ctx(), b"data").await;
    let writer = lab.expecting(&other, "r", 4, &digest).await.unwrap();
    let root = Labels::from([("containerd.io/gc.root".into(), "1".into())]);
    writer.commit(4, Some(&digest), root).await.unwrap();
    collector.trigger().await.unwrap();
    assert!(lab.store.info(&ctx(), &digest).is_err());
    assert_eq!(lab.store.read(&other, &digest, 10).unwrap(), b"data");
    lab.store.delete(&other, &digest).await.unwrap();
    assert!(lab.blob_file(&digest).exists());
    collector.trigger().await.unwrap();
    assert!(!lab.blob_file(&digest).exists());
}

#[tokio::test]
async fn a_blob_that_is_about_to_be_shared_stays() {
    let lab = Lab::new();
    let digest = lab.put(&ctx(), b"data").await;
    let writer = lab.expecting(&in_namespace("other"), "r", 4, &digest).await.unwrap();
    lab.store.delete(&ctx(), &digest).await.unwrap();
    lab.store.sweep().await.unwrap();
    assert!(lab.blob_file(&digest).exists());
    writer.commit(4, Some(&digest), Labels::new()).await.unwrap();
    lab.store.sweep().await.unwrap();
    assert_eq!(lab.store.read(&in_namespace("other"), &digest, 10).unwrap(), b"data");
}

#[tokio::test]
async fn ingests_go_with_their_lease_and_stay_without_one() {
    let lab = Lab::new();
    lab.leases.create(&ctx(), "l", Labels::new()).await.unwrap();
    for (ctx, reference) in [(ctx().with_lease("l"), "leased"), (ctx(), "free")] {
        let mut writer = lab.open(&ctx, reference, 0).await.unwrap();
        writer.write(b"data").unwrap();
    }
    let collector = lab.collector();
    collector.trigger().await.unwrap();
    assert_eq!(lab.store.statuses(&ctx(), &[]).unwrap().len(), 2);
    lab.leases.delete(&ctx(), "l").await.unwrap();
    collector.trigger().await.unwrap();
    let left = lab.store.statuses(&ctx(), &[]).unwrap();
    assert_eq!(left.iter().map(|status| status.reference.as_str()).collect::<Vec<_>>(), ["free"]);
    assert!(!lab.ingest_folder("lab/1/leased").exists() && lab.ingest_folder("lab/2/free").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_sweep_takes_what_is_being_committed() {
    let lab = Arc::new(Lab::new());
    let done = Arc::new(AtomicBool::new(false));
    let sweeper = {
        let (store, done) = (lab.store.clone(), Arc::clone(&done));
        tokio::spawn(async move {
            while !done.load(Ordering::SeqCst) {
                store.sweep().await.unwrap();
            }
        })
    };
    let mut writers = tokio::task::JoinSet::new();
    for n in 0..4 {
        let lab = Arc::clone(&lab);
        writers.spawn(async move {
            let ctx = in_namespace(&format!("n{n}"));
            for round in 0..60 {
                // All write the same blobs, and forget them again.
                let data = format!("blob {}", round % 3);
                let digest = Digest::sha256(data.as_bytes());
                let mut writer = lab.expecting(&ctx, "r", data.len() as u64, &digest).await.unwrap();
                if writer.offset() == 0 {
                    writer.write(data.as_bytes()).unwrap();
                }
                writer.commit(0, Some(&digest), Labels::new()).await.unwrap();
                assert_eq!(lab.store.read(&ctx, &digest, 100).unwrap(), data.as_bytes());
                lab.store.delete(&ctx, &digest).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    done.store(true, Ordering::SeqCst);
    sweeper.await.unwrap();
}
