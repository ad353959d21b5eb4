//! The collector: exactly what is reachable stays, whoever writes meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use corten_metadata::{Collector, CollectorOptions, Sweeper};
use corten_types::{Context, Labels, Result, timestamp};
use proptest::prelude::*;

use crate::model::{build, kept, space, survivors};
use crate::{Lab, container, ctx, digest, image, labels, namespace, topics};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn exactly_what_is_reachable_remains(one in space(), two in space()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let lab = Lab::new();
            build(&lab, &namespace("one"), &one, 1).await;
            build(&lab, &namespace("two"), &two, 100).await;
            let collector = lab.collector();
            collector.trigger().await.unwrap();
            prop_assert_eq!(survivors(&lab, &namespace("one")), kept(&one));
            prop_assert_eq!(survivors(&lab, &namespace("two")), kept(&two));
            // What is left holds together: nothing more goes.
            collector.trigger().await.unwrap();
            prop_assert_eq!(survivors(&lab, &namespace("one")), kept(&one));
            Ok(())
        })?;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_becomes_referenced_while_it_collects_is_not_lost() {
    let lab = Arc::new(Lab::new());
    let collector = lab.collector();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let lab = Arc::clone(&lab);
        writers.spawn(async move {
            let ctx = Context::new(namespace(&format!("n{}", writer % 2)));
            let mut kept = 0;
            for round in 0..60 {
                let name = format!("{writer}-{round}");
                let (manifest, layer) = (digest(&format!("m{name}")), digest(&format!("l{name}")));
                let reference = labels(&[("containerd.io/gc.ref.content.l.0", layer.as_str())]);
                // Nothing refers to them at first: the collector may take them at any moment.
                lab.blob(&ctx, &layer, Labels::new()).await.unwrap();
                lab.blob(&ctx, &manifest, reference).await.unwrap();
                lab.images.create(&ctx, image(&name, &manifest), None).await.unwrap();
                let before = lab.blobs.get(&ctx, &manifest).is_ok() && lab.blobs.get(&ctx, &layer).is_ok();
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                    // From here on something refers to both.
                    let after = lab.blobs.get(&ctx, &manifest).is_ok() && lab.blobs.get(&ctx, &layer).is_ok();
                    assert_eq!(before, after, "{name}");
                }
                kept += usize::from(before);
                if round % 3 == 0 {
                    lab.images.delete(&ctx, &name, None).await.unwrap();
                }
            }
            kept
        });
    }
    let (mut runs, mut kept) = (0, 0);
    while !writers.is_empty() {
        collector.trigger().await.unwrap();
        runs += 1;
        while let Some(done) = writers.try_join_next() {
            kept += done.unwrap();
        }
    }
    assert!(runs > 1 && kept > 0);
    collector.trigger().await.unwrap();
    for n in 0..2 {
        let ctx = Context::new(namespace(&format!("n{n}")));
        let targets = lab.images.list(&ctx, &[]).unwrap().len();
        assert!(lab.blobs.list(&ctx, &[]).unwrap().len() <= 2 * targets);
    }
}

#[tokio::test]
async fn snapshots_go_with_all_their_parents_at_once_and_are_told_of() {
    let lab = Lab::new();
    let ctx = ctx();
    let mut parent = String::new();
    for n in 0..250 {
        let (key, name) = (format!("k{n}"), format!("{:03}", (n * 7) % 250));
        lab.active(&ctx, &key, &parent, n).await.unwrap();
        lab.commit(&ctx, &name, &key, Labels::new()).await.unwrap();
        parent = name;
    }
    let mut events = lab.events();
    lab.collector().trigger().await.unwrap();
    assert!(lab.snapshots.list(&ctx, "overlayfs", &[]).unwrap().is_empty());
    let topics = topics(&mut events).await;
    assert_eq!(topics.iter().filter(|topic| *topic == "/snapshot/remove").count(), 250);
}

#[tokio::test]
async fn an_image_that_runs_out_goes_and_is_told_of() {
    let lab = Lab::new();
    let soon = timestamp::rfc3339(SystemTime::now() + Duration::from_millis(300));
    let mut expiring = image("i", &digest("1"));
    expiring.labels = labels(&[("containerd.io/gc.expire", &soon)]);
    lab.images.create(&ctx(), expiring, None).await.unwrap();
    lab.blob(&ctx(), &digest("1"), Labels::new()).await.unwrap();
    let mut events = lab.exchange.subscribe(&["topic==\"/images/delete\""]).unwrap();
    // It is found by the clock: nobody deletes anything, and nobody asks.
    let options = CollectorOptions { startup_delay: Duration::ZERO, ..CollectorOptions::default() };
    let _collector = Collector::start(lab.database.clone(), lab.exchange.clone(), Vec::new(), options);
    events.recv().await.unwrap();
    while lab.blobs.get(&ctx(), &digest("1")).is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

struct Count(Arc<AtomicUsize>);

#[async_trait::async_trait]
impl Sweeper for Count {
    async fn sweep(&self) -> Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

#[tokio::test]
async fn it_works_after_the_start_and_after_deletions_by_itself() {
    let lab = Lab::new();
    lab.containers.create(&ctx(), container("c")).await.unwrap();
    let sweeps = Arc::new(AtomicUsize::new(0));
    let options = CollectorOptions { startup_delay: Duration::ZERO, ..CollectorOptions::default() };
    let sweepers: Vec<Arc<dyn Sweeper>> = vec![Arc::new(Count(Arc::clone(&sweeps)))];
    let _collector = Collector::start(lab.database.clone(), lab.exchange.clone(), sweepers, options);
    let swept = async |times: usize| {
        while sweeps.load(Ordering::SeqCst) < times {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    swept(1).await;
    lab.containers.delete(&ctx(), "c").await.unwrap();
    swept(2).await;
}

#[tokio::test]
async fn nothing_is_removed_from_disk_beside_a_damaged_database() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let path = folder.path().join("meta.db");
    std::fs::write(&path, "damaged".repeat(1000)).unwrap();
    let (database, lost) = corten_metadata::Database::open(&path).unwrap();
    let set_aside = lost.unwrap().set_aside;
    drop(database);
    let lab = Lab::at(folder);
    let sweeps = Arc::new(AtomicUsize::new(0));
    let collector = lab.collector_with(vec![Arc::new(Count(Arc::clone(&sweeps)))]);
    collector.trigger().await.unwrap();
    assert_eq!(sweeps.load(Ordering::SeqCst), 0);
    std::fs::remove_file(set_aside).unwrap();
    collector.trigger().await.unwrap();
    assert_eq!(sweeps.load(Ordering::SeqCst), 1);
}
