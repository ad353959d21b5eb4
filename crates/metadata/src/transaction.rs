//! Reading a consistent state, and changes under way.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use corten_types::Result;
use redb::ReadableTable;

use crate::database::{Database, Shared};
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
        self.table.rows(Bound::Included(prefix), prefix, visit, &self.shared)
    }
}

/// How long a passing view is used.
const PASSING: Duration = Duration::from_millis(5);
/// Rows that are visited between looks at the clock.
const ROWS: u32 = 32;

/// The state as it becomes, for who reads for long and bears that it changes meanwhile.
///
/// While a view is open, nothing that it may read is used again; a writer has to free all of it once the view is gone,
/// and those who write wait for that. So views here are short.
pub(crate) struct Passing {
    database: Database,
    /// With the moment from which another one is wanted.
    view: RefCell<Option<(View, Instant)>>,
}

impl Passing {
    pub(crate) fn new(database: Database) -> Self {
        Self { database, view: RefCell::new(None) }
    }
}

impl Reader for Passing {
    fn get_bytes(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut known = self.view.borrow_mut();
        let now = Instant::now();
        let (view, _) = match known.take().filter(|(_, until)| now < *until) {
            Some(fresh) => known.insert(fresh),
            None => known.insert((self.database.read()?, now + PASSING)),
        };
        view.get_bytes(key)
    }

    fn scan_bytes(&self, prefix: &[u8], visit: Visit<'_>) -> Result<()> {
        self.view.take();
        let mut last: Option<Vec<u8>> = None;
        loop {
            let (view, until) = (self.database.read()?, Instant::now() + PASSING);
            let (mut stopped, mut count) = (None, 0_u32);
            let from = last.as_deref().map_or(Bound::Included(prefix), Bound::Excluded);
            let mut visit_some = |key: &[u8], value: &[u8]| {
                let go_on = visit(key, value)?;
                count = count.wrapping_add(1);
                if go_on && count % ROWS == 0 && Instant::now() >= until {
                    stopped = Some(key.to_vec());
                }
                Ok(go_on && stopped.is_none())
            };
            view.table.rows(from, prefix, &mut visit_some, &view.shared)?;
            if stopped.is_none() {
                return Ok(());
            }
            last = stopped;
        }
    }
}

/// A table as stored.
trait Rows {
    fn row(&self, key: &[u8], shared: &Shared) -> Result<Option<Vec<u8>>>;
    /// Those from a key on that begin with a prefix.
    fn rows(&self, from: Bound<&[u8]>, prefix: &[u8], visit: Visit<'_>, shared: &Shared) -> Result<()>;
}

impl<T: ReadableTable<&'static [u8], &'static [u8]>> Rows for T {
    fn row(&self, key: &[u8], shared: &Shared) -> Result<Option<Vec<u8>>> {
        let found = self.get(key).map_err(|error| shared.failure(error))?;
        Ok(found.map(|value| value.value().to_vec()))
    }

    fn rows(&self, from: Bound<&[u8]>, prefix: &[u8], visit: Visit<'_>, shared: &Shared) -> Result<()> {
        let range = self.range::<&[u8]>((from, Bound::Unbounded));
        for entry in range.map_err(|error| shared.failure(error))? {
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

    /// The collector looks: so many at most of the keys that others wrote since the last time, and whether there are
    /// more.
    pub(crate) fn drain_journal(&mut self, most: usize) -> (Vec<Vec<u8>>, bool) {
        self.change.collecting = true;
        self.shared.activity.drain_journal(most)
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
        self.rows.rows(Bound::Included(prefix), prefix, &mut merge, self.shared)?;
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

    #[test]
    fn who_reads_for_long_sees_each_row_once_and_what_came_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        let (database, _) = Database::open(&folder.path().join("meta.db")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let put = |tx: &mut Tx<'_>| {
            (0..200).for_each(|name| tx.put(&key(name), vec![name]));
            Ok(())
        };
        runtime.block_on(database.write(put)).unwrap();
        let passing = Passing::new(database.clone());
        let mut seen = Vec::new();
        let mut visit = |_: &[u8], value: &[u8]| {
            if seen.is_empty() {
                // In byte order, 0 is the first and 99 the last.
                let change = |tx: &mut Tx<'_>| {
                    tx.remove(&key(98));
                    tx.put(&key(99), vec![250]);
                    Ok(())
                };
                runtime.block_on(database.write(change)).unwrap();
                std::thread::sleep(PASSING);
            }
            seen.extend_from_slice(value);
            Ok(true)
        };
        passing.scan_bytes(Key::prefix(Kind::Image, &["ns"]).bytes(), &mut visit).unwrap();
        let mut names: Vec<(String, u8)> = (0..200).map(|name: u8| (name.to_string(), name)).collect();
        names.sort();
        let expected = names.into_iter().filter(|(_, name)| *name != 98);
        let expected: Vec<u8> = expected.map(|(_, name)| if name == 99 { 250 } else { name }).collect();
        assert_eq!(seen, expected);
        assert_eq!(passing.get_bytes(key(99).bytes()).unwrap(), Some(vec![250]));
        assert_eq!(passing.get_bytes(key(98).bytes()).unwrap(), None);
    }
}
