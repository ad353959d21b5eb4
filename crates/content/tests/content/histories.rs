//! Random histories of all that the collector looks at, beside a model: after each collection exactly the
//! reachable objects remain, as records and on disk, and what went is told.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use corten_content::Policy;
use corten_metadata::{
    Collector, CollectorOptions, Container, Containers, Image, Images, Resource, Runtime, Sweeper,
};
use corten_snapshots::{Commit, Overlay, OverlayOptions, Snapshots};
use corten_types::{Context, Descriptor, Digest, Labels, Namespace};
use proptest::prelude::*;

use crate::Lab;

const NAMES: usize = 4;
const SNAPSHOTTER: &str = "overlayfs";
const SPACES: [&str; 2] = ["one", "two"];

/// An object, by kind and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    Blob(usize),
    Image(usize),
    Snapshot(usize),
    Container(usize),
    Lease(usize),
    Ingest(usize),
}

/// What an object says of itself and others, by labels.
#[derive(Clone, Debug, Default)]
struct Marks {
    root: bool,
    expired: bool,
    flat: bool,
    to: Vec<Name>,
    back: Vec<Name>,
}

#[derive(Clone, Debug)]
enum Step {
    Make(Name, Option<usize>, Marks),
    Delete(Name),
    Hold(usize, Name),
    Release(usize, Name),
    Share(bool),
    Restart,
    Collect,
}

/// An object of the model: its labels, what it stands on, what it holds.
#[derive(Clone, Debug, Default)]
struct Object {
    marks: Marks,
    of: Option<Name>,
    holds: BTreeSet<Name>,
    /// An ingest of a lease has no end of its own.
    is_leased: bool,
}

type Space = BTreeMap<Name, Object>;

fn name() -> impl Strategy<Value = Name> {
    let n = 0..NAMES;
    prop_oneof![
        4 => n.clone().prop_map(Name::Blob),
        3 => n.clone().prop_map(Name::Image),
        4 => n.clone().prop_map(Name::Snapshot),
        1 => n.clone().prop_map(Name::Container),
        2 => n.clone().prop_map(Name::Lease),
        2 => n.prop_map(Name::Ingest),
    ]
}

fn marks() -> impl Strategy<Value = Marks> {
    let to = prop::collection::vec(name(), 0..3);
    let back = prop::collection::vec(name(), 0..2);
    (prop::bool::weighted(0.1), prop::bool::weighted(0.3), any::<bool>(), to, back).prop_map(
        |(root, expired, flat, to, back)| {
            let fits = |name: &Name| matches!(name, Name::Blob(_) | Name::Image(_) | Name::Snapshot(_));
            let to = to.into_iter().filter(fits).collect();
            let back = back.into_iter().filter(|name| fits(name) || matches!(name, Name::Container(_)));
            Marks { root, expired, flat, to, back: back.collect() }
        },
    )
}

fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
    let step = prop_oneof![
        12 => (name(), prop::option::weighted(0.7, 0..NAMES), marks())
            .prop_map(|(name, of, marks)| Step::Make(name, of, marks)),
        3 => name().prop_map(Step::Delete),
        3 => (0..NAMES, name()).prop_map(|(lease, name)| Step::Hold(lease, name)),
        1 => (0..NAMES, name()).prop_map(|(lease, name)| Step::Release(lease, name)),
        1 => any::<bool>().prop_map(Step::Share),
        1 => Just(Step::Restart),
        3 => Just(Step::Collect),
    ];
    prop::collection::vec((0..SPACES.len(), step), 10..50)
}

/// Label and value that name an object.
fn label(name: Name, counter: usize) -> (String, String) {
    match name {
        Name::Blob(n) => (format!("content.{counter}"), data(n).0.to_string()),
        Name::Image(n) => (format!("image/{counter}"), format!("i{n}")),
        Name::Snapshot(n) => (format!("snapshot.{SNAPSHOTTER}/{counter}"), format!("s{n}")),
        Name::Container(n) => (format!("container.{counter}"), format!("c{n}")),
        Name::Lease(n) | Name::Ingest(n) => (format!("other.{counter}"), n.to_string()),
    }
}

fn data(n: usize) -> (Digest, Vec<u8>) {
    let data = format!("blob {n}").repeat(n + 1).into_bytes();
    (Digest::sha256(&data), data)
}

fn labels(marks: &Marks) -> Labels {
    let mut labels = Labels::new();
    if marks.root {
        labels.insert("containerd.io/gc.root".into(), "x".into());
    }
    if marks.expired {
        labels.insert("containerd.io/gc.expire".into(), "2001-01-01T00:00:00Z".into());
    }
    if marks.flat {
        labels.insert("containerd.io/gc.flat".into(), "x".into());
    }
    for (direction, names) in [("ref", &marks.to), ("bref", &marks.back)] {
        for (counter, name) in names.iter().enumerate() {
            let (key, value) = label(*name, counter);
            labels.insert(format!("containerd.io/gc.{direction}.{key}"), value);
        }
    }
    labels
}

/// What stays, by the rules one after the other.
fn kept(space: &Space) -> BTreeSet<Name> {
    let (mut full, mut flat): (BTreeSet<Name>, BTreeSet<Name>) = Default::default();
    for (name, object) in space {
        let root = match name {
            Name::Container(_) => true,
            Name::Image(_) | Name::Lease(_) => !object.marks.expired,
            Name::Blob(_) | Name::Snapshot(_) => object.marks.root,
            Name::Ingest(_) => !object.is_leased,
        };
        if root {
            full.insert(*name);
            if object.marks.flat { flat.extend(&object.holds) } else { full.extend(&object.holds) }
        }
    }
    loop {
        let before = (full.len(), flat.len());
        for (name, object) in space {
            // Neither leases nor ingests have references in their labels.
            let speaks = !matches!(name, Name::Lease(_) | Name::Ingest(_));
            if full.contains(name) {
                full.extend(object.of);
                full.extend(object.marks.to.iter().filter(|_| speaks));
            } else if flat.contains(name) {
                flat.extend(object.of);
            }
            let parent =
                object.marks.back.iter().find(|parent| full.contains(parent) && space.contains_key(parent));
            if speaks && parent.is_some() {
                full.insert(*name);
            }
        }
        if before == (full.len(), flat.len()) {
            return space.keys().filter(|name| full.contains(name) || flat.contains(name)).copied().collect();
        }
    }
}

/// The real thing and the model of it.
struct World {
    lab: Lab,
    snapshots: Snapshots,
    images: Images,
    containers: Containers,
    collector: Collector,
    spaces: [Space; 2],
    /// Blobs whose files are there.
    files: BTreeSet<usize>,
    shares: bool,
}

impl World {
    fn over(lab: Lab, spaces: [Space; 2], files: BTreeSet<usize>, shares: bool) -> Self {
        let overlay = Overlay::open(&lab.folder.path().join(SNAPSHOTTER), OverlayOptions::default()).unwrap();
        let snapshots = Snapshots::new(&lab.database, &lab.exchange, vec![Arc::new(overlay)]).unwrap();
        let sweepers: Vec<Arc<dyn Sweeper>> = vec![Arc::new(snapshots.clone()), Arc::new(lab.store.clone())];
        let options =
            CollectorOptions { startup_delay: std::time::Duration::from_secs(3600), ..Default::default() };
        let collector = Collector::start(lab.database.clone(), lab.exchange.clone(), sweepers, options);
        let images = Images::new(lab.database.clone(), lab.exchange.clone());
        let containers = Containers::new(lab.database.clone(), lab.exchange.clone());
        Self { lab, snapshots, images, containers, collector, spaces, files, shares }
    }

    fn ctx(space: usize) -> Context {
        Context::new(Namespace::new(SPACES[space]).unwrap())
    }

    async fn step(mut self, space: usize, step: Step) -> Self {
        let exists = |name: &Name| self.spaces[space].contains_key(name);
        match step {
            Step::Make(name, of, marks) if !exists(&name) => self.make(space, name, of, marks).await,
            Step::Delete(name) if exists(&name) => self.delete(space, name).await,
            Step::Hold(lease, name) if exists(&Name::Lease(lease)) => {
                if let Some(resource) = resource(name) {
                    let id = format!("l{lease}");
                    self.lab.leases.add_resource(&Self::ctx(space), &id, resource).await.unwrap();
                    self.object(space, Name::Lease(lease)).holds.insert(name);
                }
            }
            Step::Release(lease, name) if exists(&Name::Lease(lease)) => {
                if let Some(resource) = resource(name) {
                    let id = format!("l{lease}");
                    self.lab.leases.remove_resource(&Self::ctx(space), &id, resource).await.unwrap();
                    self.object(space, Name::Lease(lease)).holds.remove(&name);
                }
            }
            Step::Share(shares) => {
                let value = if shares { "true" } else { "false" };
                let labels = Labels::from([("containerd.io/namespace.shareable".into(), value.into())]);
                self.lab.namespaces.update(Self::ctx(0).namespace, labels, vec![]).await.unwrap();
                self.shares = shares;
            }
            Step::Restart => {
                let Self { lab, snapshots, images, containers, collector, spaces, files, shares } = self;
                drop((snapshots, images, containers, collector));
                // What is held until the tasks of the collector have ended.
                lab.database.close();
                return Self::over(lab.restarted(), spaces, files, shares);
            }
            Step::Collect => self.collect().await,
            _ => {}
        }
        self
    }

    fn object(&mut self, space: usize, name: Name) -> &mut Object {
        self.spaces[space].entry(name).or_default()
    }

    async fn make(&mut self, space: usize, name: Name, of: Option<usize>, marks: Marks) {
        let (ctx, labels) = (Self::ctx(space), labels(&marks));
        let mut new = Object { marks, ..Default::default() };
        match name {
            Name::Blob(n) => self.write(space, n, labels).await,
            Name::Image(n) => {
                let target = of.unwrap_or(0);
                let descriptor =
                    Descriptor::new("application/vnd.oci.image.manifest.v1+json", data(target).0, 1);
                let image = Image::new(format!("i{n}"), descriptor, labels);
                self.images.create(&ctx, image, None).await.unwrap();
                new.of = Some(Name::Blob(target));
            }
            Name::Snapshot(n) => {
                let parent = of.filter(|of| self.spaces[space].contains_key(&Name::Snapshot(*of)));
                let above = parent.map(|parent| format!("s{parent}")).unwrap_or_default();
                let key = format!("k{n}");
                self.snapshots.prepare(&ctx, SNAPSHOTTER, &key, &above, Labels::new()).await.unwrap();
                let name = &format!("s{n}");
                let commit =
                    Commit { snapshotter: SNAPSHOTTER, name, key: &key, labels, ..Commit::default() };
                self.snapshots.commit(&ctx, commit).await.unwrap();
                new.of = parent.map(Name::Snapshot);
            }
            Name::Container(n) => {
                let container = Container {
                    id: format!("c{n}"),
                    labels,
                    runtime: Runtime { name: "r".into(), options: None },
                    spec: Some(corten_types::Any { type_url: "spec".into(), value: vec![] }),
                    snapshotter: of.map(|_| SNAPSHOTTER.to_owned()).unwrap_or_default(),
                    snapshot_key: of.map(|of| format!("s{of}")).unwrap_or_default(),
                    ..Default::default()
                };
                self.containers.create(&ctx, container).await.unwrap();
                new.of = of.map(Name::Snapshot);
            }
            Name::Lease(n) => drop(self.lab.leases.create(&ctx, &format!("l{n}"), labels).await.unwrap()),
            Name::Ingest(n) => {
                let lease = of.filter(|of| self.spaces[space].contains_key(&Name::Lease(*of)));
                let leased = lease.map_or(ctx.clone(), |lease| ctx.clone().with_lease(format!("l{lease}")));
                let mut writer = self.lab.open(&leased, &format!("g{n}"), 100).await.unwrap();
                writer.write(b"some").unwrap();
                new.is_leased = lease.is_some();
                if let Some(lease) = lease {
                    self.object(space, Name::Lease(lease)).holds.insert(name);
                }
            }
        }
        self.spaces[space].insert(name, new);
    }

    /// Writes a blob; where the policy lets it, without its bytes.
    async fn write(&mut self, space: usize, n: usize, labels: Labels) {
        let (digest, bytes) = data(n);
        let mut writer =
            self.lab.expecting(&Self::ctx(space), &format!("put-{n}"), 0, &digest).await.unwrap();
        let has = |space: &Space| space.contains_key(&Name::Blob(n));
        let is_shared = match self.lab.policy {
            Policy::Shared => self.files.contains(&n),
            Policy::Isolated => self.shares && has(&self.spaces[0]),
        };
        assert_eq!(writer.offset(), if is_shared { bytes.len() as u64 } else { 0 });
        if !is_shared {
            writer.write(&bytes).unwrap();
        }
        writer.commit(bytes.len() as u64, Some(&digest), labels).await.unwrap();
        self.files.insert(n);
    }

    async fn delete(&mut self, space: usize, name: Name) {
        let ctx = Self::ctx(space);
        match name {
            Name::Blob(n) => self.lab.store.delete(&ctx, &data(n).0).await.unwrap(),
            Name::Image(n) => self.images.delete(&ctx, &format!("i{n}"), None).await.unwrap(),
            Name::Snapshot(n) => {
                let removed = self.snapshots.remove(&ctx, SNAPSHOTTER, &format!("s{n}")).await;
                let is_child = |(child, object): (&Name, &Object)| {
                    matches!(child, Name::Snapshot(_)) && object.of == Some(name)
                };
                let is_parent = self.spaces[space].iter().any(is_child);
                assert_eq!(removed.is_err(), is_parent, "{removed:?}");
                if is_parent {
                    return;
                }
            }
            Name::Container(n) => self.containers.delete(&ctx, &format!("c{n}")).await.unwrap(),
            Name::Lease(n) => self.lab.leases.delete(&ctx, &format!("l{n}")).await.unwrap(),
            Name::Ingest(n) => self.lab.store.abort(&ctx, &format!("g{n}")).await.unwrap(),
        }
        self.spaces[space].remove(&name);
    }

    async fn collect(&mut self) {
        let mut events = self.lab.exchange.subscribe::<&str>(&[]).unwrap();
        self.collector.trigger().await.unwrap();
        let mut told = Vec::new();
        for space in &mut self.spaces {
            let kept = kept(space);
            let gone = space.keys().filter(|name| !kept.contains(name));
            told.extend(gone.filter_map(|name| match name {
                Name::Image(_) => Some("/images/delete"),
                Name::Snapshot(_) => Some("/snapshot/remove"),
                _ => None,
            }));
            space.retain(|name, _| kept.contains(name));
        }
        let mut heard = Vec::new();
        while heard.len() < told.len() {
            heard.push(events.recv().await.unwrap().topic.clone());
        }
        told.sort_unstable();
        heard.sort_unstable();
        assert_eq!(heard, told);
        self.compare();
    }

    fn compare(&mut self) {
        for (n, space) in self.spaces.iter().enumerate() {
            assert_eq!(self.seen(n), space.keys().copied().collect(), "{}", SPACES[n]);
        }
        let all = || self.spaces.iter().flat_map(BTreeMap::keys);
        self.files =
            all().filter_map(|name| if let Name::Blob(n) = name { Some(*n) } else { None }).collect();
        let root = self.lab.folder.path();
        let wanted: BTreeSet<String> = self.files.iter().map(|n| data(*n).0.hex().to_owned()).collect();
        assert_eq!(entries(&root.join("content/blobs/sha256")), wanted, "files of blobs");
        let count = |fits: fn(&&Name) -> bool| all().filter(fits).count();
        let ingests = entries(&root.join("content/ingest")).len();
        assert_eq!(ingests, count(|name| matches!(name, Name::Ingest(_))), "folders of ingests");
        let folders = entries(&root.join(SNAPSHOTTER).join("snapshots")).len();
        assert_eq!(folders, count(|name| matches!(name, Name::Snapshot(_))), "folders of snapshots");
    }

    /// The objects that the stores show.
    fn seen(&self, space: usize) -> BTreeSet<Name> {
        let ctx = Self::ctx(space);
        let number = |text: &str| text[1..].parse::<usize>().unwrap();
        let blobs = self.lab.store.list(&ctx, &[]).unwrap();
        let digests: BTreeMap<Digest, usize> = (0..NAMES).map(|n| (data(n).0, n)).collect();
        let mut seen: BTreeSet<Name> = blobs.iter().map(|blob| Name::Blob(digests[&blob.digest])).collect();
        seen.extend(self.images.list(&ctx, &[]).unwrap().iter().map(|i| Name::Image(number(&i.name))));
        let snapshots =
            corten_metadata::SnapshotRecords::new(self.lab.database.clone(), self.lab.exchange.clone());
        let snapshots = snapshots.list(&ctx, SNAPSHOTTER, &[]).unwrap();
        seen.extend(snapshots.iter().map(|s| Name::Snapshot(number(&s.name))));
        seen.extend(self.containers.list(&ctx, &[]).unwrap().iter().map(|c| Name::Container(number(&c.id))));
        seen.extend(self.lab.leases.list(&ctx, &[]).unwrap().iter().map(|l| Name::Lease(number(&l.id))));
        let ingests = self.lab.store.statuses(&ctx, &[]).unwrap();
        seen.extend(ingests.iter().map(|ingest| Name::Ingest(number(&ingest.reference))));
        seen
    }
}

fn resource(name: Name) -> Option<Resource> {
    let (kind, id) = match name {
        Name::Blob(n) => ("content".to_owned(), data(n).0.to_string()),
        Name::Image(n) => ("images".to_owned(), format!("i{n}")),
        Name::Snapshot(n) => (format!("snapshots/{SNAPSHOTTER}"), format!("s{n}")),
        Name::Ingest(n) => ("ingests".to_owned(), format!("g{n}")),
        Name::Container(_) | Name::Lease(_) => return None,
    };
    Some(Resource { kind, id })
}

fn entries(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// A folder in memory, where syncs cost nothing, if there is one.
fn folder() -> Arc<tempfile::TempDir> {
    let memory = tempfile::tempdir_in("/dev/shm");
    Arc::new(memory.or_else(|_| tempfile::tempdir()).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn exactly_what_is_reachable_remains_after_any_history(steps in steps(), is_isolated in any::<bool>()) {
        let policy = if is_isolated { Policy::Isolated } else { Policy::Shared };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let lab = Lab::at(folder(), policy);
            for space in SPACES {
                lab.namespaces.create(Namespace::new(space).unwrap(), Labels::new()).await.unwrap();
            }
            let mut world = World::over(lab, Default::default(), BTreeSet::new(), false);
            for (space, step) in steps.into_iter().chain([(0, Step::Collect)]) {
                world = world.step(space, step).await;
            }
        });
    }
}
