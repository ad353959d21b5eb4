//! How one document is laid over another (spec 00 §5.2): plugins deeply and whatever the value; sections by
//! entry; of the rest what is not empty, lists as unions.

use toml::{Table, Value};

/// Sections whose entries are replaced as wholes.
const BY_ENTRY: [&str; 3] = ["proxy_plugins", "stream_processors", "timeouts"];

/// Lays `from` over `to`.
pub fn document(to: &mut Table, from: Table) {
    for (key, value) in from {
        match (to.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) if key == "plugins" => plugins(old, new),
            (Some(Value::Table(old)), Value::Table(new)) if BY_ENTRY.contains(&key.as_str()) => {
                old.extend(new);
            }
            (Some(Value::Table(old)), Value::Table(new)) => document(old, new),
            (Some(Value::Array(old)), Value::Array(new)) => {
                for item in new {
                    if !old.contains(&item) {
                        old.push(item);
                    }
                }
            }
            (Some(_), new) if is_empty(&new) => {}
            (_, new) => drop(to.insert(key, new)),
        }
    }
}

/// Lays the tables of plugins over others: lists and empty values replace too.
pub fn plugins(to: &mut Table, from: Table) {
    for (key, value) in from {
        match (to.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => plugins(old, new),
            (_, new) => drop(to.insert(key, new)),
        }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Integer(number) => *number == 0,
        Value::Boolean(flag) => !flag,
        _ => false,
    }
}

/// A table within tables, made where it is not there. Nothing if something else is in its place.
pub fn table<'a>(within: &'a mut Table, path: &[&str]) -> Option<&'a mut Table> {
    path.iter().try_fold(within, |table, key| {
        table.entry(*key).or_insert_with(|| Value::Table(Table::new())).as_table_mut()
    })
}
