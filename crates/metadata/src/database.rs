//! The database file and its single writer.
//!
//! One thread writes. It takes every change that waits into one transaction, each change buffered so that
//! one that fails leaves nothing, commits once, and only then answers all of them.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use corten_types::{Error, ErrorClass, Result, ResultExt};
use redb::{ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::{mpsc, oneshot};

use crate::keys::Key;

const RECORDS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("records");
/// Bytes of pages that are kept in memory.
const CACHE: usize = 4 << 20;
/// Changes that may wait for the writer.
const QUEUE: usize = 1024;
/// Changes that share one transaction at most.
const BATCH: usize = 256;

/// The database. Clones are the same one.
#[derive(Clone)]
pub struct Database {
    shared: Arc<Shared>,
}

struct Shared {
    file: redb::Database,
    changes: Mutex<Option<mpsc::Sender<Change>>>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
    barrier: Barrier,
}

/// What could not be read and was set aside.
#[derive(Clone, Debug)]
pub struct Lost {
    /// Where the damaged file lies now.
    pub set_aside: PathBuf,
    /// Why it could not be opened.
    pub reason: String,
}

/// Keys that were written while the collector decides: it must look at them again.
#[derive(Default)]
struct Barrier {
    active: AtomicBool,
    written: Mutex<Vec<Vec<u8>>>,
}

trait Job: Send {
    /// Makes the change; it is kept when this says so.
    fn run(&mut self, tx: &mut Tx<'_>) -> bool;
    /// Tells how it ended; `failure` is that of the commit.
    fn answer(self: Box<Self>, failure: Option<Error>);
}

type Change = Box<dyn Job>;

struct Closure<T, F> {
    change: Option<F>,
    result: Option<Result<T>>,
    answer: oneshot::Sender<Result<T>>,
}

impl<T: Send, F: FnOnce(&mut Tx<'_>) -> Result<T> + Send> Job for Closure<T, F> {
    fn run(&mut self, tx: &mut Tx<'_>) -> bool {
        let Some(change) = self.change.take() else { return false };
        // A change that panics must not take the writer along.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| change(tx)))
            .unwrap_or_else(|_| Err(Error::internal("a change to the database panicked")));
        let keep = result.is_ok();
        self.result = Some(result);
        keep
    }

    fn answer(self: Box<Self>, failure: Option<Error>) {
        let result = match (failure, self.result) {
            (Some(error), Some(Ok(_)) | None) => Err(error),
            (_, Some(result)) => result,
            (None, None) => Err(Error::internal("a change was not made")),
        };
        // The caller may have gone; the change stands.
        let _ = self.answer.send(result);
    }
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Database")
    }
}

impl Database {
    /// Opens or makes the database. One that cannot be read is renamed and a new one begun, and what was
    /// lost is told.
    ///
    /// # Errors
    /// Unavailable when another process has it open; those of the file system.
    pub fn open(path: &Path) -> Result<(Self, Option<Lost>)> {
        let (file, lost) = match open_file(path) {
            Ok(file) => (file, None),
            Err(OpenError::InUse) => {
                return Err(Error::unavailable(format!("{} is in use by another process", path.display())));
            }
            Err(OpenError::Io(error)) => return Err(Error::from(error).context(path.display())),
            Err(OpenError::Damaged(reason)) => {
                let set_aside = set_aside(path)?;
                let file = open_file(path)
                    .map_err(|error| Error::internal(format!("{}: {error:?}", path.display())))?;
                (file, Some(Lost { set_aside, reason }))
            }
        };
        let (sender, receiver) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared {
            file,
            changes: Mutex::new(Some(sender)),
            writer: Mutex::default(),
            barrier: Barrier::default(),
        });
        let writer = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("metadata".into()).stack_size(512 << 10);
        let thread = thread.spawn(move || write_all(&writer, receiver)).context("starting the writer")?;
        *lock(&shared.writer) = Some(thread);
        Ok((Self { shared }, lost))
    }

    /// The state as of now.
    ///
    /// # Errors
    /// Internal when the file cannot be read.
    pub fn read(&self) -> Result<View> {
        let transaction = self.shared.file.begin_read().map_err(broken)?;
        let table = transaction.open_table(RECORDS).map_err(broken)?;
        Ok(View { table })
    }

    /// Makes a change; when this answers, it is durable.
    ///
    /// # Errors
    /// Those of the change, which then left nothing; ResourceExhausted or Internal when it could not be
    /// written.
    pub async fn write<T, F>(&self, change: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
    {
        let (answer, result) = oneshot::channel();
        let job: Change = Box::new(Closure { change: Some(change), result: None, answer });
        let sender = lock(&self.shared.changes).clone();
        let closed = || Error::unavailable("the database is closed");
        sender.ok_or_else(closed)?.send(job).await.map_err(|_| closed())?;
        result.await.map_err(|_| closed())?
    }

    /// Waits until all changes are written and takes no more.
    pub fn close(&self) {
        lock(&self.shared.changes).take();
        if let Some(thread) = lock(&self.shared.writer).take() {
            thread.join().ok();
        }
    }

    /// From here on [`Tx::written`] tells what was changed, until [`Database::lower_barrier`].
    pub(crate) fn raise_barrier(&self) {
        lock(&self.shared.barrier.written).clear();
        self.shared.barrier.active.store(true, Ordering::SeqCst);
    }

    pub(crate) fn lower_barrier(&self) {
        self.shared.barrier.active.store(false, Ordering::SeqCst);
        lock(&self.shared.barrier.written).clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn broken(error: impl std::fmt::Display) -> Error {
    Error::internal(format!("database: {error}"))
}

#[derive(Debug)]
enum OpenError {
    InUse,
    Io(std::io::Error),
    Damaged(String),
}

fn open_file(path: &Path) -> Result<redb::Database, OpenError> {
    let open = || -> Result<redb::Database, OpenError> {
        let file = redb::Builder::new().set_cache_size(CACHE).create(path).map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => OpenError::InUse,
            redb::DatabaseError::Storage(redb::StorageError::Io(error)) if error.raw_os_error().is_some() => {
                OpenError::Io(error)
            }
            other => OpenError::Damaged(other.to_string()),
        })?;
        let damaged = |error: String| OpenError::Damaged(error);
        let transaction = file.begin_write().map_err(|error| damaged(error.to_string()))?;
        transaction.open_table(RECORDS).map_err(|error| damaged(error.to_string()))?;
        transaction.commit().map_err(|error| damaged(error.to_string()))?;
        Ok(file)
    };
    // Damage can surface as a panic deep inside; it is damage all the same.
    std::panic::catch_unwind(open).unwrap_or_else(|_| Err(OpenError::Damaged("the file is damaged".into())))
}

fn set_aside(path: &Path) -> Result<PathBuf> {
    for n in 0..1000 {
        let target = path.with_extension(format!("damaged-{n}"));
        if !target.exists() {
            std::fs::rename(path, &target).context(path.display())?;
            return Ok(target);
        }
    }
    Err(Error::internal(format!("{}: too many damaged databases beside it", path.display())))
}

/// The writer's life.
fn write_all(shared: &Shared, mut changes: mpsc::Receiver<Change>) {
    while let Some(first) = changes.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(next) = changes.try_recv()
        {
            batch.push(next);
        }
        let failure = write_batch(shared, &mut batch).err();
        for job in batch {
            job.answer(failure.clone());
        }
    }
}

fn write_batch(shared: &Shared, batch: &mut [Change]) -> Result<()> {
    let transaction = shared.file.begin_write().map_err(storage)?;
    let mut dirty = false;
    {
        let mut table = transaction.open_table(RECORDS).map_err(broken)?;
        for job in batch {
            let mut tx = Tx { rows: &table, changes: BTreeMap::new(), barrier: &shared.barrier };
            let keep = job.run(&mut tx);
            let changes = std::mem::take(&mut tx.changes);
            if !keep {
                continue;
            }
            for (key, value) in changes {
                dirty = true;
                if shared.barrier.active.load(Ordering::SeqCst) {
                    lock(&shared.barrier.written).push(key.clone());
                }
                match value {
                    Some(value) => {
                        table.insert(key.as_slice(), value.as_slice()).map(drop).map_err(broken)?
                    }
                    None => table.remove(key.as_slice()).map(drop).map_err(broken)?,
                }
            }
        }
    }
    if dirty { transaction.commit().map_err(storage) } else { transaction.abort().map_err(broken) }
}

fn storage(error: impl Into<redb::Error>) -> Error {
    match error.into() {
        redb::Error::Io(error) if error.kind() == std::io::ErrorKind::StorageFull => {
            Error::new(ErrorClass::ResourceExhausted, "database: no space left on device")
                .with_hint("free some space below the daemon's root")
        }
        other => broken(other),
    }
}

/// Something that records can be read from.
pub trait Reader {
    /// The bytes under a key.
    ///
    /// # Errors
    /// Internal when the file cannot be read.
    fn get_bytes(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Calls `visit` with every key that begins with `prefix`, in byte order, until it says false.
    ///
    /// # Errors
    /// Internal when the file cannot be read; those of `visit`.
    fn scan_bytes(&self, prefix: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<bool>) -> Result<()>;
}

/// A consistent state of the database.
pub struct View {
    table: redb::ReadOnlyTable<&'static [u8], &'static [u8]>,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("View")
    }
}

impl Reader for View {
    fn get_bytes(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.table.row(key)
    }

    fn scan_bytes(&self, prefix: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<bool>) -> Result<()> {
        self.table.rows(prefix, visit)
    }
}

/// A table as stored.
trait Rows {
    fn row(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;
    fn rows(&self, prefix: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<bool>) -> Result<()>;
}

impl<T: ReadableTable<&'static [u8], &'static [u8]>> Rows for T {
    fn row(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.get(key).map_err(broken)?.map(|value| value.value().to_vec()))
    }

    fn rows(&self, prefix: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<bool>) -> Result<()> {
        for entry in self.range(prefix..).map_err(broken)? {
            let (key, value) = entry.map_err(broken)?;
            if !key.value().starts_with(prefix) || !visit(key.value(), value.value())? {
                break;
            }
        }
        Ok(())
    }
}

/// A change under way: what it wrote so far, over the state before it.
pub struct Tx<'a> {
    rows: &'a dyn Rows,
    changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    barrier: &'a Barrier,
}

impl std::fmt::Debug for Tx<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tx")
    }
}

impl Tx<'_> {
    pub(crate) fn put(&mut self, key: &Key, value: Vec<u8>) {
        self.changes.insert(key.bytes().to_vec(), Some(value));
    }

    pub(crate) fn remove(&mut self, key: &Key) {
        self.changes.insert(key.bytes().to_vec(), None);
    }

    /// Keys written since the barrier was raised.
    pub(crate) fn written(&self) -> Vec<Vec<u8>> {
        lock(&self.barrier.written).clone()
    }
}

impl Reader for Tx<'_> {
    fn get_bytes(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.changes.get(key) {
            Some(changed) => Ok(changed.clone()),
            None => self.rows.row(key),
        }
    }

    fn scan_bytes(&self, prefix: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<bool>) -> Result<()> {
        let changed = self.changes.range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded));
        let mut changed = changed.take_while(|(key, _)| key.starts_with(prefix)).peekable();
        let mut go_on = true;
        self.rows.rows(prefix, &mut |key, value| {
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
        })?;
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
    use super::*;
    use crate::keys::Kind;

    fn key(name: &str) -> Key {
        Key::new(Kind::Image, &["ns", name]).unwrap()
    }

    fn names(reader: &dyn Reader) -> Vec<String> {
        let mut found = Vec::new();
        reader
            .scan_bytes(Key::prefix(Kind::Image, &["ns"]).bytes(), &mut |key, _| {
                found.push(Key::parts(key).last().unwrap().clone());
                Ok(true)
            })
            .unwrap();
        found
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn changes_are_whole_durable_and_seen_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("meta.db");
        let (database, lost) = Database::open(&path).unwrap();
        assert!(lost.is_none());
        assert!(Database::open(&path).unwrap_err().to_string().contains("in use"));
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..32 {
            let database = database.clone();
            tasks.spawn(async move {
                database
                    .write(move |tx| {
                        tx.put(&key(&format!("{n:02}")), vec![n]);
                        if n % 2 == 1 { Err(Error::unknown("odd")) } else { Ok(()) }
                    })
                    .await
            });
        }
        let answers = tasks.join_all().await;
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 16);
        let panicked = database.write(|_| -> Result<()> { panic!("a change panics, on purpose") }).await;
        assert!(panicked.unwrap_err().to_string().contains("panicked"));
        database
            .write(|tx| {
                tx.put(&key("01"), vec![1]);
                tx.remove(&key("02"));
                assert_eq!(names(tx)[..3], ["00", "01", "04"]);
                Ok(())
            })
            .await
            .unwrap();
        database.close();
        drop(database);
        let (database, _) = Database::open(&path).unwrap();
        assert_eq!(names(&database.read().unwrap()).len(), 16);
    }

    #[test]
    fn a_damaged_file_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("meta.db");
        std::fs::write(&path, b"this is no database, but it is long enough to look at").unwrap();
        let (database, lost) = Database::open(&path).unwrap();
        assert!(lost.unwrap().set_aside.exists());
        assert!(names(&database.read().unwrap()).is_empty());
    }
}
