//! Files of the database that were damaged, from real ones: what can be read is there, as it was written.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use corten_metadata::{Database, Lost, Resource};
use corten_types::Labels;
use proptest::prelude::*;

use crate::{Lab, container, ctx, digest, image, labels};

const PAGE: u64 = 4096;
/// Records on one page at most, in this database.
const PER_PAGE: usize = 48;

/// A database with a life behind it.
struct Sample {
    file: Vec<u8>,
    /// Versions of each record, in their order; nothing for a removal.
    history: BTreeMap<String, Vec<Option<String>>>,
}

/// Names and versions of what is there.
fn seen(lab: &Lab) -> BTreeMap<String, String> {
    let version = |labels: &Labels| labels.get("v").cloned().unwrap_or_default();
    let ctx = ctx();
    let mut seen = BTreeMap::new();
    for container in lab.containers.list(&ctx, &[]).unwrap() {
        seen.insert(container.id.clone(), version(&container.labels));
    }
    for image in lab.images.list(&ctx, &[]).unwrap() {
        seen.insert(image.name.clone(), version(&image.labels));
    }
    for blob in lab.blobs.list(&ctx, &[]).unwrap() {
        seen.insert(blob.digest.to_string(), version(&blob.labels));
    }
    for snapshot in lab.snapshots.list(&ctx, "overlayfs", &[]).unwrap() {
        seen.insert(snapshot.name.clone(), version(&snapshot.labels));
    }
    for lease in lab.leases.list(&ctx, &[]).unwrap() {
        seen.insert(lease.id.clone(), version(&lease.labels));
    }
    seen
}

fn sample() -> &'static Sample {
    static SAMPLE: OnceLock<Sample> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let lab = Arc::new(Lab::new());
        let mut history: BTreeMap<String, Vec<Option<String>>> = BTreeMap::new();
        runtime.block_on(async {
            for round in 0..9 {
                // Many at once, so that they share commits.
                let mut steps = tokio::task::JoinSet::new();
                for n in (0..120).filter(|n| round < 3 && n % 3 == round || round >= 3 && n % 7 == round) {
                    let lab = Arc::clone(&lab);
                    steps.spawn(async move { live(&lab, n, round).await });
                }
                for (name, version) in steps.join_all().await.into_iter().flatten() {
                    history.entry(name).or_default().push(version);
                }
            }
        });
        let path = lab.folder.path().join("meta.db");
        let now = seen(&lab);
        lab.database.close();
        for (name, versions) in &history {
            assert_eq!(versions.last().unwrap().as_ref(), now.get(name), "{name}");
        }
        Sample { file: std::fs::read(path).unwrap(), history }
    })
}

/// Makes, changes or removes a few records, by their number and the round.
async fn live(lab: &Lab, n: usize, round: usize) -> Vec<(String, Option<String>)> {
    let ctx = ctx();
    let version = format!("{round}-{}", "x".repeat(n));
    let tagged = labels(&[("v", &version), ("containerd.io/gc.root", "x")]);
    let (c, i, s, l) = (format!("c{n}"), format!("example.com/i:{n}"), format!("s{n}"), format!("l{n}"));
    let blob = digest(&n.to_string());
    let all = |version: Option<String>| {
        [c.clone(), i.clone(), blob.to_string(), s.clone(), l.clone()].map(|name| (name, version.clone()))
    };
    match round {
        0..3 => {
            let mut new = container(&c);
            new.labels = tagged.clone();
            lab.containers.create(&ctx, new).await.unwrap();
            let mut new = image(&i, &blob);
            new.labels = tagged.clone();
            lab.images.create(&ctx, new, None).await.unwrap();
            lab.blob(&ctx, &blob, tagged.clone()).await.unwrap();
            lab.active(&ctx, &format!("k{n}"), "", n as u64 + 1).await.unwrap();
            lab.commit(&ctx, &s, &format!("k{n}"), tagged.clone()).await.unwrap();
            lab.leases.create(&ctx, &l, tagged).await.unwrap();
            let resource = Resource { kind: "content".into(), id: blob.to_string() };
            lab.leases.add_resource(&ctx, &l, resource).await.unwrap();
            all(Some(version)).into()
        }
        3..5 => {
            let mut new = container(&c);
            new.labels = tagged.clone();
            lab.containers.update(&ctx, new, vec!["labels.v".into()]).await.unwrap();
            lab.blobs.update(&ctx, &blob, tagged, vec!["labels.v".into()]).await.unwrap();
            vec![(c, Some(version.clone())), (blob.to_string(), Some(version))]
        }
        5 => {
            lab.containers.delete(&ctx, &c).await.unwrap();
            lab.images.delete(&ctx, &i, None).await.unwrap();
            lab.blobs.delete(&ctx, &blob).await.unwrap();
            lab.snapshots.remove(&ctx, "overlayfs", &s).await.unwrap();
            lab.leases.delete(&ctx, &l).await.unwrap();
            all(None).into()
        }
        _ => Vec::new(),
    }
}

/// Something that happens to a file.
#[derive(Clone, Debug)]
enum Damage {
    Flip(prop::sample::Index, u8),
    Zero(prop::sample::Index),
    Cut(prop::sample::Index),
    Header,
    Slot(u64),
}

impl Damage {
    fn strategy() -> impl Strategy<Value = Self> {
        prop_oneof![
            6 => (any::<prop::sample::Index>(), 0..8u8).prop_map(|(at, bit)| Self::Flip(at, bit)),
            6 => any::<prop::sample::Index>().prop_map(Self::Zero),
            1 => any::<prop::sample::Index>().prop_map(Self::Cut),
            1 => Just(Self::Header),
            1 => (0..2u64).prop_map(Self::Slot),
        ]
    }

    fn happen(&self, path: &Path) {
        let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
        let length = file.metadata().unwrap().len();
        let zero = |at: u64, count: u64| {
            let count = count.min(length.saturating_sub(at));
            file.write_all_at(&vec![0; usize::try_from(count).unwrap()], at).unwrap();
        };
        match self {
            _ if length == 0 => {}
            Self::Flip(at, bit) => {
                let (at, mut byte) = (at.index(usize::try_from(length).unwrap()) as u64, [0]);
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
            }
            Self::Zero(page) => {
                let pages = usize::try_from(length.div_ceil(PAGE)).unwrap();
                zero(page.index(pages) as u64 * PAGE, PAGE);
            }
            Self::Cut(at) => file.set_len(at.index(usize::try_from(length).unwrap()) as u64).unwrap(),
            Self::Header => zero(0, PAGE),
            Self::Slot(slot) => zero(64 + slot * 128, 128),
        }
    }
}

/// The sample with damages, opened.
fn damaged(damages: &[Damage]) -> (Lab, Option<Lost>) {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let path = folder.path().join("meta.db");
    std::fs::write(&path, &sample().file).unwrap();
    damages.iter().for_each(|damage| damage.happen(&path));
    let (database, lost) = Database::open(&path).unwrap();
    database.close();
    (Lab::at(folder), lost)
}

/// What was there when the file was whole.
fn last() -> BTreeMap<String, String> {
    let last = sample().history.iter().filter_map(|(name, all)| Some((name.clone(), all.last()?.clone()?)));
    last.collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn what_is_on_undamaged_pages_is_recovered_and_nothing_is_made_up(
        damages in prop::collection::vec(Damage::strategy(), 1..6),
    ) {
        let (lab, lost) = damaged(&damages);
        let (found, last) = (seen(&lab), last());
        let Some(lost) = lost else {
            prop_assert_eq!(found, last);
            return Ok(());
        };
        prop_assert!(lost.set_aside.exists());
        for (name, version) in &found {
            let versions = sample().history.get(name);
            prop_assert!(versions.is_some_and(|all| all.contains(&Some(version.clone()))), "{name} {version}");
        }
        if !damages.iter().any(|damage| matches!(damage, Damage::Cut(_))) {
            let gone = last.keys().filter(|name| !found.contains_key(*name)).count();
            prop_assert!(gone <= damages.len() * PER_PAGE, "{gone} of {} are gone: {lost:?}", last.len());
        }
        // References that lead nowhere hurt nobody.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            lab.collector().trigger().await.unwrap();
            for name in found.keys().filter(|name| name.starts_with('s') && !name.contains(':')) {
                lab.snapshots.remove(&ctx(), "overlayfs", name).await.ok();
            }
            lab.containers.create(&ctx(), container("new")).await.unwrap();
            lab.active(&ctx(), "new", "", 1_000_000).await.unwrap();
        });
    }
}

#[test]
fn without_its_header_a_database_is_whole() {
    let (lab, lost) = damaged(&[Damage::Header]);
    let lost = lost.unwrap();
    assert_eq!((lost.missing, lost.among.len()), (Some(0), 0), "{lost:?}");
    assert_eq!(
        lost.recovered.get("containers"),
        Some(&seen(&lab).keys().filter(|name| name.starts_with('c')).count().try_into().unwrap())
    );
    let (mut found, last) = (seen(&lab), last());
    // Nothing in the file tells what was removed after the last record was written.
    found.retain(|name, _| last.contains_key(name));
    assert_eq!(found, last);
}

#[test]
fn an_empty_file_and_one_of_nothing_but_zeroes_are_new_databases() {
    for length in [0, 10_000, 5 << 20] {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let path = folder.path().join("meta.db");
        std::fs::write(&path, vec![0; length]).unwrap();
        let (database, lost) = Database::open(&path).unwrap();
        database.close();
        assert_eq!(lost.is_some(), length > 0);
        assert!(seen(&Lab::at(folder)).is_empty());
    }
}
