//! Reading a consistent state, and changes under way.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use corten_types::Result;
use redb::ReadableTable;

use crate::database::Shared;
use crate::keys::Key;

/// Called with a key and its value; false ends a scan.
pub(crate) type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<bool>;

/// Something that records can be read from.
pub(crate) trait Reader {
    /// The bytes under a key.
    fn get_bytes(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Calls `visit` with every key that begins with `prefix`, in byte order, until it says false.
    fn scan_bytes(&self, prefix: &[u8], visit: Visit<'_>) -> Result<()>;
}

/// A consistent state of the database.
pub(crate) struct View {
    table: redb::ReadOnlyTable<&'static [u8], &'static [u8]>,
    shared: Arc<Shared>,
}

impl View {
    pub(crate) fn new(table: redb::ReadOnlyTable<&'static [u8], &'static [u8]>, shared: Arc<Shared>) -> Self {
        Self { table, shared }
    }
}

impl Reader for View {
    fn get_bytes(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.table.row(key, &self.shared)
    }

    fn scan_bytes(&self, prefix: &[u8], visit: Visit<'_>) -> Result<()> {
        self.table.rows(prefix, visit, &self.shared)
    }
}

/// A table as stored.
trait Rows {
    fn row(&self, key: &[u8], shared: &Shared) -> Result<Option<Vec<u8>>>;
    fn rows(&self, prefix: &[u8], visit: Visit<'_>, shared: &Shared) -> Result<()>;
}

impl<T: ReadableTable<&'static [u8], &'static [u8]>> Rows for T {
    fn row(&self, key: &[u8], shared: &Shared) -> Result<Option<Vec<u8>>> {
        let found = self.get(key).map_err(|error| shared.failure(error))?;
        Ok(found.map(|value| value.value().to_vec()))
    }

    fn rows(&self, prefix: &[u8], visit: Visit<'_>, shared: &Shared) -> Result<()> {
        for entry in self.range(prefix..).map_err(|error| shared.failure(error))? {
            let (key, value) = entry.map_err(|error| shared.failure(error))?;
            if !key.value().starts_with(prefix) || !visit(key.value(), value.value())? {
                break;
            }
        }
        Ok(())
    }
}

/// A change under way: what it wrote so far, over the state before it.
pub(crate) struct Tx<'a> {
    rows: &'a dyn Rows,
    shared: &'a Shared,
    change: Written,
}

/// What a change wrote.
#[derive(Default)]
pub(crate) struct Written {
    /// Values; nothing for a key that is removed.
    pub rows: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// Objects that users deleted.
    pub deletions: u64,
    /// It is the collector's own.
    pub collecting: bool,
}

impl<'a> Tx<'a> {
    pub(crate) fn new<T: ReadableTable<&'static [u8], &'static [u8]>>(
        table: &'a T,
        shared: &'a Shared,
    ) -> Self {
        Self { rows: table, shared, change: Written::default() }
    }

    pub(crate) fn finish(self) -> Written {
        self.change
    }

    pub(crate) fn put(&mut self, key: &Key, value: Vec<u8>) {
        self.change.rows.insert(key.bytes().to_vec(), Some(value));
    }

    pub(crate) fn remove(&mut self, key: &Key) {
        self.change.rows.insert(key.bytes().to_vec(), None);
    }

    /// Something may be garbage from now on.
    pub(crate) fn note_deletion(&mut self) {
        self.change.deletions += 1;
    }

    /// From here on what others write is noted; see [`Tx::drain_journal`].
    pub(crate) fn open_journal(&mut self) {
        self.change.collecting = true;
        self.shared.activity.open_journal();
    }

    /// The collector removes something: what others wrote since the last time.
    pub(crate) fn drain_journal(&mut self) -> Vec<Vec<u8>> {
        self.change.collecting = true;
        self.shared.activity.drain_journal()
    }
}

impl Reader for Tx<'_> {
    fn get_bytes(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.change.rows.get(key) {
            Some(changed) => Ok(changed.clone()),
            None => self.rows.row(key, self.shared),
        }
    }

    fn scan_bytes(&self, prefix: &[u8], visit: Visit<'_>) -> Result<()> {
        let changed = self.change.rows.range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded));
        let mut changed = changed.take_while(|(key, _)| key.starts_with(prefix)).peekable();
        let mut go_on = true;
        let mut merge = |key: &[u8], value: &[u8]| {
            while go_on && let Some((new, value)) = changed.next_if(|(new, _)| new.as_slice() < key) {
                if let Some(value) = value {
                    go_on = visit(new, value)?;
                }
            }
            if go_on {
                go_on = match changed.next_if(|(new, _)| new.as_slice() == key) {
                    Some((new, Some(value))) => visit(new, value)?,
                    Some((_, None)) => true,
                    None => visit(key, value)?,
                };
            }
            Ok(go_on)
        };
        self.rows.rows(prefix, &mut merge, self.shared)?;
        for (new, value) in changed {
            let Some(value) = value else { continue };
            go_on = go_on && visit(new, value)?;
            if !go_on {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::database::Database;
    use crate::keys::Kind;

    fn key(name: u8) -> Key {
        Key::new(Kind::Image, &["ns", &name.to_string()]).unwrap()
    }

    fn all(reader: &dyn Reader, most: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut found = Vec::new();
        reader
            .scan_bytes(Key::prefix(Kind::Image, &["ns"]).bytes(), &mut |key, value| {
                found.push((key.to_vec(), value.to_vec()));
                Ok(found.len() < most)
            })
            .unwrap();
        found
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_change_reads_what_it_wrote_over_what_there_was(
            before in proptest::collection::btree_map(0u8..30, any::<u8>(), 0..20),
            writes in proptest::collection::vec((0u8..30, any::<Option<u8>>()), 0..20),
            most in 1usize..30,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let (database, _) = Database::open(&folder.path().join("meta.db")).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let mut model: BTreeMap<Vec<u8>, Vec<u8>> =
                before.iter().map(|(name, value)| (key(*name).bytes().to_vec(), vec![*value])).collect();
            let put = move |tx: &mut Tx<'_>| {
                before.iter().for_each(|(name, value)| tx.put(&key(*name), vec![*value]));
                Ok(())
            };
            runtime.block_on(database.write(put)).unwrap();
            for (name, value) in &writes {
                match value {
                    Some(value) => model.insert(key(*name).bytes().to_vec(), vec![*value]),
                    None => model.remove(key(*name).bytes()),
                };
            }
            let change = move |tx: &mut Tx<'_>| {
                for (name, value) in writes {
                    match value {
                        Some(value) => tx.put(&key(name), vec![value]),
                        None => tx.remove(&key(name)),
                    }
                }
                Ok((all(tx, most), all(tx, usize::MAX)))
            };
            let (some, seen) = runtime.block_on(database.write(change)).unwrap();
            let wanted: Vec<_> = model.into_iter().collect();
            prop_assert_eq!(&some, &wanted[..most.min(wanted.len())]);
            prop_assert_eq!(&seen, &wanted);
            prop_assert_eq!(all(&database.read().unwrap(), usize::MAX), wanted);
        }
    }
}
