//! Update masks (spec 01 §0.4).

use std::collections::BTreeMap;

/// Applies one path to a map field: `name` replaces it, `name.key` sets one key. False for another path.
pub(crate) fn apply_map<V: Clone>(
    name: &str,
    path: &str,
    old: &mut BTreeMap<String, V>,
    new: &BTreeMap<String, V>,
) -> bool {
    if path == name {
        old.clone_from(new);
        return true;
    }
    let Some(key) = path.strip_prefix(name).and_then(|rest| rest.strip_prefix('.')) else { return false };
    match new.get(key) {
        Some(value) => old.insert(key.to_owned(), value.clone()),
        None => old.remove(key),
    };
    true
}
