//! Marking: what no root leads to (spec 01 §16). Reads only.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::SystemTime;

use corten_types::{Namespace, Result};

use crate::graph::{self, Entry, Node};
use crate::keys::{Key, Kind};
use crate::transaction::Reader;
use crate::{leases, namespaces};

/// Records that may be roots or refer to others.
const ALL: [Kind; 8] = [
    Kind::Container,
    Kind::Image,
    Kind::Blob,
    Kind::Snapshot,
    Kind::Ingest,
    Kind::Lease,
    Kind::Sandbox,
    Kind::Activation,
];
/// Those that are ever removed.
const COLLECTED: [Kind; 6] =
    [Kind::Lease, Kind::Activation, Kind::Snapshot, Kind::Ingest, Kind::Blob, Kind::Image];

/// What a collection may remove.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// By namespace, children before their parents.
    pub garbage: Vec<(Namespace, Vec<Node>)>,
    /// When the first of those that are kept runs out.
    pub next_expiry: Option<SystemTime>,
}

/// Marks everything, and lists the rest.
pub(crate) fn plan(reader: &impl Reader, now: SystemTime) -> Result<Plan> {
    let mut plan = Plan::default();
    for namespace in namespaces::names(reader)? {
        let roots = Roots::find(reader, &namespace, now)?;
        plan.next_expiry = plan.next_expiry.into_iter().chain(roots.next_expiry).min();
        let mut marks = Marks::default();
        marks.follow(reader, &namespace, roots.full, &roots.back)?;
        marks.follow_flat(reader, &namespace, roots.flat)?;
        let garbage = unmarked(reader, &namespace, &marks)?;
        if !garbage.is_empty() {
            plan.garbage.push((namespace, garbage));
        }
    }
    Ok(plan)
}

/// The streams that labels of what is kept in a namespace name.
pub(crate) fn streams(
    reader: &impl Reader,
    namespace: &Namespace,
    now: SystemTime,
) -> Result<BTreeSet<String>> {
    let roots = Roots::find(reader, namespace, now)?;
    let mut marks = Marks::default();
    marks.follow(reader, namespace, roots.full, &roots.back)?;
    let stream = |node| match node {
        Node::Stream(id) => Some(id),
        _ => None,
    };
    Ok(marks.full.into_iter().filter_map(stream).collect())
}

/// Where marking begins in a namespace.
#[derive(Default)]
struct Roots {
    full: Vec<Node>,
    flat: Vec<Node>,
    /// Nodes that are kept by others, by those others.
    back: HashMap<Node, Vec<Node>>,
    next_expiry: Option<SystemTime>,
}

impl Roots {
    fn find(reader: &impl Reader, namespace: &Namespace, now: SystemTime) -> Result<Self> {
        let mut roots = Self::default();
        let (mut flat_leases, mut conditions, mut used) = (Vec::new(), Vec::new(), HashMap::new());
        for kind in ALL {
            let prefix = Key::prefix(kind, &[namespace.as_str()]);
            reader.scan_bytes(prefix.bytes(), &mut |key, value| {
                let Some((_, node)) = graph::node(key) else { return Ok(true) };
                // A record that cannot be read is kept, and must not stop the others.
                let entry = graph::entry(&node, value, now)
                    .unwrap_or_else(|_| Entry { root: true, ..Entry::default() });
                for parent in entry.back {
                    roots.back.entry(parent).or_default().push(node.clone());
                }
                conditions.extend(entry.conditions.into_iter().map(|condition| (condition, node.clone())));
                if let Some(used_at) = entry.used_at {
                    used.insert(node.clone(), used_at);
                }
                if entry.root {
                    let known = roots.next_expiry.into_iter();
                    roots.next_expiry = known.chain(entry.expires).min();
                    if let Node::Lease(id) = &node {
                        flat_leases.push((id.clone(), entry.is_flat));
                    }
                    roots.full.push(node);
                }
                Ok(true)
            })?;
        }
        for (condition, node) in conditions {
            if used.get(&condition.snapshot).is_some_and(|used_at| condition.holds(used_at, now)) {
                roots.back.entry(condition.snapshot).or_default().push(node);
            }
        }
        for (lease, is_flat) in flat_leases {
            let held = leases::resources_of(reader, namespace, &lease)?;
            let nodes = held.iter().filter_map(|resource| graph::resource(&resource.kind, &resource.id));
            if is_flat { roots.flat.extend(nodes) } else { roots.full.extend(nodes) }
        }
        Ok(roots)
    }
}

/// Nodes of one namespace that are kept.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    full: HashSet<Node>,
    flat: HashSet<Node>,
}

impl Marks {
    /// Whether a node is kept.
    pub(crate) fn contain(&self, node: &Node) -> bool {
        self.full.contains(node) || self.flat.contains(node)
    }

    /// Forgets that a node was followed: what it refers to may have changed.
    pub(crate) fn forget(&mut self, node: &Node) {
        self.full.remove(node);
    }

    /// Marks nodes, all that they refer to, and all that goes with those.
    pub(crate) fn follow(
        &mut self,
        reader: &impl Reader,
        namespace: &Namespace,
        mut pending: Vec<Node>,
        back: &HashMap<Node, Vec<Node>>,
    ) -> Result<()> {
        while let Some(node) = pending.pop() {
            if self.full.contains(&node) {
                continue;
            }
            if let Some(entry) = read(reader, namespace, &node)? {
                pending.extend(entry.refs);
                pending.extend(entry.flat);
                pending.extend(back.get(&node).into_iter().flatten().cloned());
            }
            self.full.insert(node);
        }
        Ok(())
    }

    /// Marks nodes and what they cannot be without, whatever their labels say.
    fn follow_flat(
        &mut self,
        reader: &impl Reader,
        namespace: &Namespace,
        mut pending: Vec<Node>,
    ) -> Result<()> {
        while let Some(node) = pending.pop() {
            if self.contain(&node) {
                continue;
            }
            pending.extend(read(reader, namespace, &node)?.unwrap_or_default().flat);
            self.flat.insert(node);
        }
        Ok(())
    }
}

/// What a record refers to, if there is one. One that cannot be read refers to nothing.
fn read(reader: &impl Reader, namespace: &Namespace, node: &Node) -> Result<Option<Entry>> {
    // A label may name anything, also what can be no key.
    let Ok(key) = graph::key(namespace.as_str(), node) else { return Ok(None) };
    let bytes = reader.get_bytes(key.bytes())?;
    Ok(bytes.map(|bytes| graph::entry(node, &bytes, SystemTime::UNIX_EPOCH).unwrap_or_default()))
}

fn unmarked(reader: &impl Reader, namespace: &Namespace, marks: &Marks) -> Result<Vec<Node>> {
    let mut left = Vec::new();
    for kind in COLLECTED {
        let prefix = Key::prefix(kind, &[namespace.as_str()]);
        reader.scan_bytes(prefix.bytes(), &mut |key, _| {
            left.extend(graph::node(key).map(|(_, node)| node).filter(|node| !marks.contain(node)));
            Ok(true)
        })?;
    }
    children_first(reader, namespace, left)
}

/// Puts snapshots before their parents, since one with children is not removed.
fn children_first(reader: &impl Reader, namespace: &Namespace, mut nodes: Vec<Node>) -> Result<Vec<Node>> {
    let mut parents = HashMap::new();
    for node in nodes.iter().filter(|node| matches!(node, Node::Snapshot(..))) {
        parents.insert(node.clone(), read(reader, namespace, node)?.and_then(|mut entry| entry.flat.pop()));
    }
    let mut depths: HashMap<&Node, usize> = HashMap::new();
    for node in parents.keys() {
        let mut path = Vec::new();
        let mut next = Some(node);
        // A chain longer than there are snapshots is a circle, which only damage makes.
        while let Some(node) = next.filter(|node| !depths.contains_key(node) && path.len() <= parents.len()) {
            path.push(node);
            next = parents.get(node).and_then(Option::as_ref).filter(|parent| parents.contains_key(parent));
        }
        let mut depth = next.and_then(|known| depths.get(known)).copied().unwrap_or(0);
        for node in path.into_iter().rev() {
            depth += 1;
            depths.insert(node, depth);
        }
    }
    nodes.sort_by_key(|node| Reverse(depths.get(node).copied().unwrap_or(0)));
    Ok(nodes)
}
