//! Random objects that refer to each other, and a plain account of which of them are to be kept.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use corten_metadata::Resource;
use corten_types::{Context, Digest, Labels, Namespace, timestamp};
use proptest::prelude::*;

use crate::{Lab, container, digest, image};

const BLOBS: usize = 6;
const IMAGES: usize = 4;
const SNAPSHOTS: usize = 6;
const CONTAINERS: usize = 2;
const LEASES: usize = 3;
const INGESTS: usize = 3;
const PAST: &str = "2001-01-01T00:00:00Z";
const FUTURE: &str = "2999-01-01T00:00:00Z";

/// A label that refers to something, which need not exist.
#[derive(Clone, Debug)]
pub enum Reference {
    Content(usize, &'static str),
    Snapshot(usize, &'static str),
    Image(usize, &'static str),
    BackContent(usize),
    BackSnapshot(usize),
    BackImage(usize),
    BackContainer(usize),
    Misspelt(usize),
    /// Kept by a snapshot if that was used within two hours.
    Recent(usize),
    /// Kept by a snapshot if that was used more than two hours ago.
    Stale(usize),
}

#[derive(Clone, Debug)]
pub struct Object {
    pub exists: bool,
    /// Has the label `gc.root`.
    pub root: bool,
    pub expire: Option<&'static str>,
    /// Index of a parent, a target or a snapshot.
    pub of: Option<usize>,
    pub references: Vec<Reference>,
    /// Kind and index of what a lease holds.
    pub holds: Vec<(usize, usize)>,
    pub flat: bool,
    /// Hours since the last use that a snapshot tells.
    pub used: Option<u64>,
}

/// The objects of one namespace.
#[derive(Clone, Debug)]
pub struct Space {
    pub blobs: Vec<Object>,
    pub images: Vec<Object>,
    pub snapshots: Vec<Object>,
    pub containers: Vec<Object>,
    pub leases: Vec<Object>,
    pub ingests: Vec<Object>,
}

fn reference() -> impl Strategy<Value = Reference> {
    let suffix = prop::sample::select(vec!["", ".x", "/y.z"]);
    let slash = prop::sample::select(vec!["", "/x"]);
    prop_oneof![
        4 => (0..BLOBS, suffix.clone()).prop_map(|(n, s)| Reference::Content(n, s)),
        2 => (0..SNAPSHOTS, slash).prop_map(|(n, s)| Reference::Snapshot(n, s)),
        1 => (0..IMAGES, suffix).prop_map(|(n, s)| Reference::Image(n, s)),
        1 => (0..BLOBS).prop_map(Reference::BackContent),
        1 => (0..SNAPSHOTS).prop_map(Reference::BackSnapshot),
        1 => (0..IMAGES).prop_map(Reference::BackImage),
        1 => (0..CONTAINERS).prop_map(Reference::BackContainer),
        1 => (0..BLOBS).prop_map(Reference::Misspelt),
        1 => (0..SNAPSHOTS).prop_map(Reference::Recent),
        1 => (0..SNAPSHOTS).prop_map(Reference::Stale),
    ]
}

fn object() -> impl Strategy<Value = Object> {
    (
        prop::bool::weighted(0.8),
        prop::bool::weighted(0.1),
        prop::option::weighted(0.4, prop::sample::select(vec![PAST, FUTURE, "nonsense"])),
        prop::option::weighted(0.6, 0usize..6),
        prop::collection::vec(reference(), 0..3).prop_map(|references| {
            // One value for a key.
            let by_key: BTreeMap<String, Reference> =
                references.into_iter().map(|reference| (label(&reference).0, reference)).collect();
            by_key.into_values().collect()
        }),
        prop::collection::vec((0usize..4, 0usize..6), 0..3),
        any::<bool>(),
        prop::option::weighted(0.7, prop::sample::select(vec![1, 3])),
    )
        .prop_map(|(exists, root, expire, of, references, holds, flat, used)| Object {
            exists,
            root,
            expire,
            of,
            references,
            holds,
            flat,
            used,
        })
}

pub fn space() -> impl Strategy<Value = Space> {
    let some = |count| prop::collection::vec(object(), count);
    (some(BLOBS), some(IMAGES), some(SNAPSHOTS), some(CONTAINERS), some(LEASES), some(INGESTS)).prop_map(
        |(blobs, images, mut snapshots, containers, mut leases, mut ingests)| {
            // Their labels, if they have any, are no references.
            leases.iter_mut().chain(&mut ingests).for_each(|object| object.references.clear());
            for n in 0..snapshots.len() {
                // Parents are made before their children, and exist.
                let parent = snapshots[n].of.filter(|parent| *parent < n && snapshots[*parent].exists);
                snapshots[n].of = parent;
            }
            Space { blobs, images, snapshots, containers, leases, ingests }
        },
    )
}

/// A digest that tells its index.
pub fn blob(n: usize) -> Digest {
    digest(&n.to_string())
}

/// Key and value of a reference.
fn label(reference: &Reference) -> (String, String) {
    match reference {
        Reference::Content(n, suffix) => (format!("ref.content{suffix}"), blob(*n).to_string()),
        Reference::Snapshot(n, suffix) => (format!("ref.snapshot.overlayfs{suffix}"), format!("s{n}")),
        Reference::Image(n, suffix) => (format!("ref.image{suffix}"), format!("i{n}")),
        Reference::BackContent(n) => ("bref.content.x".to_owned(), blob(*n).to_string()),
        Reference::BackSnapshot(n) => ("bref.snapshot.overlayfs".to_owned(), format!("s{n}")),
        Reference::BackImage(n) => ("bref.image".to_owned(), format!("i{n}")),
        Reference::BackContainer(n) => ("bref.container/x".to_owned(), format!("c{n}")),
        Reference::Misspelt(n) => ("ref.contentfoo".to_owned(), blob(*n).to_string()),
        Reference::Recent(n) => ("cond.snapshot.overlayfs".to_owned(), format!("usedat<2h|s{n}")),
        Reference::Stale(n) => {
            ("cond.snapshot.overlayfs/x".to_owned(), format!("nonsense,usedat>1h60m|s{n}"))
        }
    }
}

fn labels(object: &Object) -> Labels {
    let mut labels = Labels::new();
    if object.root {
        labels.insert("containerd.io/gc.root".into(), "yes".into());
    }
    if let Some(end) = object.expire {
        labels.insert("containerd.io/gc.expire".into(), end.into());
    }
    if object.flat {
        labels.insert("containerd.io/gc.flat".into(), "any".into());
    }
    for reference in &object.references {
        let (key, value) = label(reference);
        labels.insert(format!("containerd.io/gc.{key}"), value);
    }
    if let Some(hours) = object.used {
        let at = SystemTime::now() - Duration::from_secs(hours * 3600);
        labels.insert("containerd.io/gc.cond.value-usedat".into(), timestamp::rfc3339(at));
    }
    labels
}

/// Makes the objects.
pub async fn build(lab: &Lab, namespace: &Namespace, space: &Space, first_id: u64) {
    let ctx = Context::new(namespace.clone());
    let existing = |objects: &[Object]| -> Vec<(usize, Object)> {
        objects.iter().cloned().enumerate().filter(|(_, object)| object.exists).collect()
    };
    for (n, object) in existing(&space.blobs) {
        lab.blob(&ctx, &blob(n), labels(&object)).await.unwrap();
    }
    for (n, object) in existing(&space.images) {
        let mut new = image(&format!("i{n}"), &blob(object.of.unwrap_or(99)));
        new.labels = labels(&object);
        lab.images.create(&ctx, new, None).await.unwrap();
    }
    for (n, object) in existing(&space.snapshots) {
        let parent = object.of.map(|parent| format!("s{parent}")).unwrap_or_default();
        lab.active(&ctx, &format!("key{n}"), &parent, first_id + n as u64).await.unwrap();
        lab.commit(&ctx, &format!("s{n}"), &format!("key{n}"), labels(&object)).await.unwrap();
    }
    for (n, object) in existing(&space.containers) {
        let mut new = container(&format!("c{n}"));
        new.labels = labels(&object);
        if let Some(snapshot) = object.of {
            (new.snapshotter, new.snapshot_key) = ("overlayfs".into(), format!("s{snapshot}"));
        }
        lab.containers.create(&ctx, new).await.unwrap();
    }
    for (n, object) in existing(&space.leases) {
        let id = format!("l{n}");
        lab.leases.create(&ctx, &id, labels(&object)).await.unwrap();
        for (kind, index) in &object.holds {
            let (kind, name) = match kind {
                0 => ("content", blob(*index).to_string()),
                1 => ("images", format!("i{index}")),
                2 => ("snapshots/overlayfs", format!("s{index}")),
                _ => ("ingests", format!("g{index}")),
            };
            let resource = Resource { kind: kind.to_owned(), id: name };
            lab.leases.add_resource(&ctx, &id, resource).await.unwrap();
        }
    }
    for (n, object) in existing(&space.ingests) {
        let lease = object.of.filter(|lease| space.leases.get(*lease).is_some_and(|lease| lease.exists));
        let ctx = lease.map_or(ctx.clone(), |lease| ctx.clone().with_lease(format!("l{lease}")));
        let expected = object.root.then(|| blob(n));
        lab.ingests.open(&ctx, &format!("g{n}"), expected.as_ref()).await.unwrap();
    }
}

/// What is there, by kind and index.
pub fn survivors(lab: &Lab, namespace: &Namespace) -> BTreeSet<String> {
    let ctx = Context::new(namespace.clone());
    let mut found = BTreeSet::new();
    let index: BTreeMap<Digest, usize> = (0..BLOBS).map(|n| (blob(n), n)).collect();
    found.extend(lab.blobs.list(&ctx, &[]).unwrap().iter().map(|blob| format!("b{}", index[&blob.digest])));
    found.extend(lab.images.list(&ctx, &[]).unwrap().into_iter().map(|image| image.name));
    let snapshots = lab.snapshots.list(&ctx, "overlayfs", &[]).unwrap();
    found.extend(snapshots.into_iter().map(|snapshot| snapshot.name));
    found.extend(lab.containers.list(&ctx, &[]).unwrap().into_iter().map(|container| container.id));
    found.extend(lab.leases.list(&ctx, &[]).unwrap().into_iter().map(|lease| lease.id));
    found.extend(lab.ingests.list(&ctx).unwrap().into_iter().map(|ingest| ingest.reference));
    found
}

/// What is to be kept: whatever can be reached by steps that are written down one by one.
pub fn kept(space: &Space) -> BTreeSet<String> {
    let mut all: BTreeMap<String, &Object> = BTreeMap::new();
    for (letter, objects) in [
        ("b", &space.blobs),
        ("i", &space.images),
        ("s", &space.snapshots),
        ("c", &space.containers),
        ("l", &space.leases),
        ("g", &space.ingests),
    ] {
        let named = objects.iter().enumerate().filter(|(_, object)| object.exists);
        all.extend(named.map(|(n, object)| (format!("{letter}{n}"), object)));
    }
    let lives = |object: &Object| object.expire != Some(PAST);
    let (mut full, mut flat): (BTreeSet<String>, BTreeSet<String>) = Default::default();
    for (name, object) in &all {
        let root = match name.as_bytes()[0] {
            b'c' => true,
            b'i' | b'l' => lives(object),
            b'b' | b's' => object.root,
            _ => !object.of.is_some_and(|lease| all.contains_key(&format!("l{lease}"))),
        };
        if root {
            full.insert(name.clone());
        }
        if name.starts_with('l') && root {
            let held = object.holds.iter().map(|(kind, n)| format!("{}{n}", ["b", "i", "s", "g"][*kind]));
            let ingests = space.ingests.iter().enumerate();
            let ingests =
                ingests.filter(|(_, ingest)| ingest.of.map(|n| format!("l{n}")).as_ref() == Some(name));
            let held = held.chain(ingests.map(|(n, _)| format!("g{n}")));
            if object.flat { flat.extend(held) } else { full.extend(held) }
        }
    }
    loop {
        let before = (full.len(), flat.len());
        for (name, object) in &all {
            let needed = needs(name, object);
            if full.contains(name) {
                full.extend(needed);
                full.extend(object.references.iter().filter_map(forward));
            } else if flat.contains(name) {
                flat.extend(needed);
            }
            // Only blobs and images know conditions, and only snapshots say when they were used.
            let conditional = object.references.iter().filter_map(|reference| match reference {
                Reference::Recent(n) => (space.snapshots[*n].used? < 2).then(|| format!("s{n}")),
                Reference::Stale(n) => (space.snapshots[*n].used? > 2).then(|| format!("s{n}")),
                _ => None,
            });
            let conditional = conditional.filter(|_| name.starts_with(['b', 'i']));
            let kept_by = object.references.iter().filter_map(backward).chain(conditional);
            if kept_by.into_iter().any(|parent| full.contains(&parent) && all.contains_key(&parent)) {
                full.insert(name.clone());
            }
        }
        if before == (full.len(), flat.len()) {
            return all.into_keys().filter(|name| full.contains(name) || flat.contains(name)).collect();
        }
    }
}

/// What an object cannot be without.
fn needs(name: &str, object: &Object) -> Option<String> {
    match name.as_bytes()[0] {
        b'i' => Some(format!("b{}", object.of.unwrap_or(99))),
        b's' | b'c' => object.of.map(|snapshot| format!("s{snapshot}")),
        b'g' => object.root.then(|| name.replace('g', "b")),
        _ => None,
    }
}

fn forward(reference: &Reference) -> Option<String> {
    match reference {
        Reference::Content(n, _) => Some(format!("b{n}")),
        Reference::Snapshot(n, _) => Some(format!("s{n}")),
        Reference::Image(n, _) => Some(format!("i{n}")),
        _ => None,
    }
}

fn backward(reference: &Reference) -> Option<String> {
    match reference {
        Reference::BackContent(n) => Some(format!("b{n}")),
        Reference::BackSnapshot(n) => Some(format!("s{n}")),
        Reference::BackImage(n) => Some(format!("i{n}")),
        Reference::BackContainer(n) => Some(format!("c{n}")),
        _ => None,
    }
}
