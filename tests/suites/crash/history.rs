//! What was asked of a daemon, what it acknowledged, and so what must be there after a crash.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// What kind of object, and its name.
pub type Key = (Kind, String);

/// Kinds of objects whose life the histories follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Image,
    Container,
    Lease,
    Blob,
    Snapshot,
    /// An image with all that it is made of, unpacked.
    Pull,
}

/// What is known of an object: nothing where it does not exist, else what tells its versions apart.
pub type State = Option<String>;

/// One change that was asked for.
#[derive(Clone, Debug)]
struct Change {
    begun: Instant,
    acknowledged: Option<Instant>,
    state: State,
}

/// All changes, by object, in the order in which each object saw them.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// States at the beginning.
    known: BTreeMap<Key, State>,
    changes: BTreeMap<Key, Vec<Change>>,
}

impl History {
    /// A history that goes on from what was seen.
    pub fn after(seen: BTreeMap<Key, String>) -> Self {
        let known = seen.into_iter().map(|(key, state)| (key, Some(state))).collect();
        Self { known, changes: BTreeMap::new() }
    }

    /// What is known of objects whose names begin so.
    pub fn of(&self, prefix: &str) -> Self {
        let known = self.known.iter().filter(|(key, _)| key.1.starts_with(prefix));
        Self {
            known: known.map(|(key, state)| (key.clone(), state.clone())).collect(),
            changes: BTreeMap::new(),
        }
    }

    /// The kinds of which there are objects.
    pub fn kinds(&self) -> BTreeSet<Kind> {
        self.known.keys().map(|(kind, _)| *kind).collect()
    }

    /// The state that the last change asked for.
    pub fn state(&self, key: &Key) -> State {
        let last = self.changes.get(key).and_then(|changes| changes.last());
        last.map_or_else(|| self.known.get(key).cloned().flatten(), |change| change.state.clone())
    }

    /// A change is asked for now.
    pub fn begin(&mut self, key: &Key, state: State) {
        self.changes.entry(key.clone()).or_default().push(Change {
            begun: Instant::now(),
            acknowledged: None,
            state,
        });
    }

    /// The last change of this object was acknowledged.
    pub fn acknowledge(&mut self, key: &Key) {
        let change = self.changes.get_mut(key).and_then(|changes| changes.last_mut());
        change.expect("a change was begun").acknowledged = Some(Instant::now());
    }

    /// Takes in what another worker, with other objects, did.
    pub fn join(&mut self, other: Self) {
        self.known.extend(other.known);
        self.changes.extend(other.changes);
    }

    /// How many changes were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.changes.values().flatten().filter(|change| change.acknowledged.is_some()).count()
    }

    /// States in which an object may be found when the machine was lost between the two moments: what was
    /// acknowledged before is there; what was asked for before the end may be.
    fn allowed(&self, key: &Key, from: Instant, to: Instant) -> BTreeSet<State> {
        let mut allowed = BTreeSet::from([self.known.get(key).cloned().flatten()]);
        for change in self.changes.get(key).into_iter().flatten().filter(|change| change.begun <= to) {
            if change.acknowledged.is_some_and(|moment| moment <= from) {
                allowed.clear();
            }
            allowed.insert(change.state.clone());
        }
        allowed
    }

    /// Compares with what a daemon shows after a crash between the two moments; answers what is wrong.
    pub fn compare(&self, seen: &BTreeMap<Key, String>, from: Instant, to: Instant) -> Vec<String> {
        let keys: BTreeSet<&Key> = self.known.keys().chain(self.changes.keys()).chain(seen.keys()).collect();
        keys.into_iter()
            .filter_map(|key| {
                let found = seen.get(key).cloned();
                let allowed = self.allowed(key, from, to);
                (!allowed.contains(&found)).then(|| format!("{key:?} is {found:?}, and may be {allowed:?}"))
            })
            .collect()
    }
}

#[test]
fn a_history_knows_what_may_be_found() {
    let key = (Kind::Lease, "l".to_owned());
    let mut history = History::default();
    let before = Instant::now();
    history.begin(&key, Some("1".into()));
    history.acknowledge(&key);
    let between = Instant::now();
    history.begin(&key, Some("2".into()));
    let seen = |state: &str| BTreeMap::from([(key.clone(), state.to_owned())]);
    let wrong =
        |found: &BTreeMap<Key, String>, at: Instant| !history.compare(found, at, Instant::now()).is_empty();
    assert!(!wrong(&seen("1"), between) && !wrong(&seen("2"), between));
    assert!(wrong(&BTreeMap::new(), between), "what was acknowledged is lost");
    assert!(!wrong(&BTreeMap::new(), before), "nothing was acknowledged then");
    assert!(wrong(&seen("3"), between), "nobody asked for it");
}
