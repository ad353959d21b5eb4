//! The database file: opening it, reading it, and handing changes to its writer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use corten_types::{Error, ErrorClass, Result, ResultExt};
use redb::{ReadableDatabase, TableDefinition};
use tokio::sync::{mpsc, oneshot};

use crate::activity::Activity;
use crate::backend::Backend;
use crate::recover::{Lost, recover, set_aside_files};
use crate::transaction::{Tx, View};
use crate::writer::{self, Change, Closure};

pub(crate) const RECORDS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("records");
/// Changes that may wait for the writer.
const QUEUE: usize = 1024;

/// How the database is held.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes of pages that are kept in memory.
    pub cache: usize,
    /// Whether a change is on the disk when it is answered. Without that a crash of the machine, not of the daemon,
    /// loses the last ones.
    pub sync: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { cache: 16 << 20, sync: true }
    }
}

/// The database. Clones are the same one; it is closed with the last of them.
#[derive(Clone, Debug)]
pub struct Database {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    changes: Mutex<Option<mpsc::Sender<Change>>>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// What readers and the writer share.
pub(crate) struct Shared {
    path: PathBuf,
    options: Options,
    /// Nothing while it could not be opened again, and once it is closed.
    pub file: RwLock<Option<redb::Database>>,
    /// The library refuses everything after a failure of the disk until the file is opened anew.
    pub broken: AtomicBool,
    closed: AtomicBool,
    pub activity: Activity,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Shared").field(&self.path).finish()
    }
}

impl Database {
    /// Opens or makes the database, and checks all of it. One that is damaged is renamed; what can be read of
    /// it goes into a new one, and what was lost is told.
    ///
    /// # Errors
    /// Unavailable when another process has it open; FailedPrecondition when a later version wrote it;
    /// those of the file system.
    pub fn open(path: &Path) -> Result<(Self, Option<Lost>)> {
        Self::open_with(path, Options::default())
    }

    /// As [`Database::open`], with options.
    ///
    /// # Errors
    /// Those of [`Database::open`].
    pub fn open_with(path: &Path, options: Options) -> Result<(Self, Option<Lost>)> {
        let (file, lost) = match open_file(path, options) {
            Err(OpenError::Damaged(reason)) => {
                let lost = recover(path, options, reason)?;
                (open_file(path, options).map_err(|error| error.at(path))?, Some(lost))
            }
            other => (other.map_err(|error| error.at(path))?, None),
        };
        let (sender, receiver) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            options,
            file: RwLock::new(Some(file)),
            broken: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            activity: Activity::default(),
        });
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("metadata".into()).stack_size(512 << 10);
        let thread = thread.spawn(move || writer::run(&own, receiver)).context("starting the writer")?;
        let (changes, writer) = (Mutex::new(Some(sender)), Mutex::new(Some(thread)));
        Ok((Self { handle: Arc::new(Handle { shared, changes, writer }) }, lost))
    }

    /// The state as of now.
    pub(crate) fn read(&self) -> Result<View> {
        let shared = &self.handle.shared;
        shared.mend()?;
        let file = shared.file.read().unwrap_or_else(PoisonError::into_inner);
        let file = file.as_ref().ok_or_else(closed)?;
        let transaction = file.begin_read().map_err(|error| shared.failure(error))?;
        let table = transaction.open_table(RECORDS).map_err(|error| shared.failure(error))?;
        Ok(View::new(table, Arc::clone(shared)))
    }

    /// Makes a change; when this answers, it is durable. One that fails leaves nothing.
    pub(crate) async fn write<T, F>(&self, change: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
    {
        let (answer, result) = oneshot::channel();
        let job: Change = Box::new(Closure::new(change, answer));
        let sender = lock(&self.handle.changes).clone();
        sender.ok_or_else(closed)?.send(job).await.map_err(|_| closed())?;
        result.await.map_err(|_| closed())?
    }

    /// Waits until all changes are written, and lets go of the file.
    pub fn close(&self) {
        self.handle.close();
    }

    /// What was written of late.
    pub(crate) fn activity(&self) -> &Activity {
        &self.handle.shared.activity
    }

    /// Damaged databases that lie beside this one.
    pub(crate) fn set_aside(&self) -> Vec<PathBuf> {
        set_aside_files(&self.handle.shared.path)
    }
}

impl Handle {
    fn close(&self) {
        lock(&self.changes).take();
        let writer = lock(&self.writer).take();
        // A change may hold the last handle: then the writer is ending anyway.
        if let Some(writer) = writer.filter(|writer| writer.thread().id() != std::thread::current().id()) {
            writer.join().ok();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    /// Opens the file anew if it failed before.
    pub(crate) fn mend(&self) -> Result<()> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(closed());
        }
        if !self.broken.load(Ordering::SeqCst) {
            return Ok(());
        }
        let mut file = self.file.write().unwrap_or_else(PoisonError::into_inner);
        if !self.broken.load(Ordering::SeqCst) || self.closed.load(Ordering::SeqCst) {
            return Ok(());
        }
        // The old one holds the lock.
        drop(file.take());
        match open_file(&self.path, self.options) {
            Ok(new) => {
                *file = Some(new);
                self.broken.store(false, Ordering::SeqCst);
                tracing::warn!(path = %self.path.display(), "the database was opened anew after a failure");
                Ok(())
            }
            Err(error) => Err(error.at(&self.path)),
        }
    }

    /// Lets go of the file.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        drop(self.file.write().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// What a failure of the library means.
    pub(crate) fn failure(&self, error: impl Into<redb::Error>) -> Error {
        let error = error.into();
        if matches!(error, redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::LockPoisoned(_)) {
            self.broken.store(true, Ordering::SeqCst);
        }
        match error {
            redb::Error::Io(error) if error.kind() == std::io::ErrorKind::StorageFull => full(),
            redb::Error::PreviousIo | redb::Error::DatabaseClosed => {
                Error::unavailable("database: the disk failed, the file is opened anew")
            }
            other => Error::internal(format!("database: {other}")),
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn closed() -> Error {
    Error::unavailable("the database is closed")
}

fn full() -> Error {
    Error::new(ErrorClass::ResourceExhausted, "database: no space left on device")
        .with_hint("free some space below the daemon's root")
}

#[derive(Debug)]
enum OpenError {
    InUse,
    Newer(String),
    Io(std::io::Error),
    Damaged(String),
}

impl OpenError {
    fn at(self, path: &Path) -> Error {
        let path = path.display();
        match self {
            Self::InUse => Error::unavailable(format!("database {path} is in use by another process"))
                .with_hint("stop the other daemon, or give this one a root of its own"),
            Self::Newer(reason) => {
                Error::failed_precondition(format!("database {path} is of another version: {reason}"))
            }
            Self::Io(error) if error.kind() == std::io::ErrorKind::StorageFull => full(),
            Self::Io(error) => Error::from(error).context(format!("database {path}")),
            Self::Damaged(reason) => {
                Error::new(ErrorClass::DataLoss, format!("database {path} is damaged: {reason}"))
            }
        }
    }
}

impl<E: Into<redb::Error>> From<E> for OpenError {
    fn from(error: E) -> Self {
        match error.into() {
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => Self::InUse,
            error @ redb::Error::UpgradeRequired(_) => Self::Newer(error.to_string()),
            // What the library finds wrong with the bytes is an error of reading too, but not the system's.
            redb::Error::Io(error) if error.raw_os_error().is_some() => Self::Io(error),
            other => Self::Damaged(other.to_string()),
        }
    }
}

fn open_file(path: &Path, options: Options) -> Result<redb::Database, OpenError> {
    let open = || -> Result<redb::Database, OpenError> {
        let mut builder = redb::Builder::new();
        builder.set_cache_size(options.cache).set_check_integrity_on_open(true);
        let file = builder.create_with_backend(Backend::open(path, options.sync)?)?;
        let known = file.begin_read()?.open_table(RECORDS).is_ok();
        if !known {
            corten_durable::sync_folder(path.parent().unwrap_or(Path::new("/"))).map_err(OpenError::Io)?;
            let transaction = file.begin_write()?;
            transaction.open_table(RECORDS)?;
            transaction.commit()?;
        }
        Ok(file)
    };
    // Damage can surface as a panic deep inside; it is damage all the same.
    std::panic::catch_unwind(open).unwrap_or_else(|_| Err(OpenError::Damaged("it cannot be read".into())))
}

/// Makes a database with these records, durable.
pub(crate) fn fill(path: &Path, options: Options, rows: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<()> {
    let fill = || -> Result<(), OpenError> {
        let file = open_file(path, options)?;
        let transaction = file.begin_write()?;
        {
            let mut table = transaction.open_table(RECORDS)?;
            for (key, record) in rows {
                table.insert(key.as_slice(), record.as_slice())?;
            }
        }
        Ok(transaction.commit()?)
    };
    fill().map_err(|error| error.at(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Key, Kind};
    use crate::transaction::Reader;

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

    async fn put(database: &Database, name: &str, value: Vec<u8>) -> Result<()> {
        let key = key(name);
        let change = move |tx: &mut Tx<'_>| {
            tx.put(&key, value);
            Ok(())
        };
        database.write(change).await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn changes_are_whole_durable_and_seen_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("meta.db");
        let (database, lost) = Database::open(&path).unwrap();
        assert!(lost.is_none());
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..32 {
            let database = database.clone();
            tasks.spawn(async move {
                let change = move |tx: &mut Tx<'_>| {
                    tx.put(&key(&format!("{n:02}")), vec![n]);
                    if n % 2 == 1 { Err(Error::unknown("odd")) } else { Ok(()) }
                };
                database.write(change).await
            });
        }
        let answers = tasks.join_all().await;
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 16);
        let change = |tx: &mut Tx<'_>| {
            tx.put(&key("01"), vec![1]);
            tx.remove(&key("02"));
            assert_eq!(names(tx)[..3], ["00", "01", "04"]);
            Ok(())
        };
        database.write(change).await.unwrap();
        drop(database);
        let (database, _) = Database::open(&path).unwrap();
        assert_eq!(names(&database.read().unwrap()).len(), 16);
    }

    #[tokio::test]
    async fn a_change_that_panics_leaves_nothing_and_the_writer_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let (database, _) = Database::open(&folder.path().join("meta.db")).unwrap();
        let change = |tx: &mut Tx<'_>| -> Result<()> {
            tx.put(&key("a"), vec![]);
            panic!("a change panics, on purpose")
        };
        assert!(database.write(change).await.unwrap_err().to_string().contains("panicked"));
        put(&database, "b", vec![]).await.unwrap();
        assert_eq!(names(&database.read().unwrap()), ["b"]);
    }

    #[tokio::test]
    async fn only_one_may_open_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("meta.db");
        let (database, _) = Database::open(&path).unwrap();
        let error = Database::open(&path).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Unavailable);
        assert!(error.to_string().contains("in use by another process"), "{error}");
        database.close();
        assert!(put(&database, "a", vec![]).await.unwrap_err().to_string().contains("closed"));
        assert!(database.read().err().unwrap().to_string().contains("closed"));
        assert!(Database::open(&path).unwrap().1.is_none());
    }

    #[tokio::test]
    async fn a_damaged_file_is_set_aside_and_none_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("meta.db");
        for number in 1..=2 {
            std::fs::write(&path, b"this is no database, but it is long enough to look at").unwrap();
            let (database, lost) = Database::open(&path).unwrap();
            assert!(lost.unwrap().set_aside.exists());
            assert_eq!(database.set_aside().len(), number);
            assert!(names(&database.read().unwrap()).is_empty());
            put(&database, "a", vec![]).await.unwrap();
        }
        let (database, lost) = Database::open(&path).unwrap();
        assert!(lost.is_none());
        assert_eq!(names(&database.read().unwrap()), ["a"]);
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_opened_is_not_taken_for_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("meta.db");
        std::fs::create_dir(&path).unwrap();
        assert!(Database::open(&path).unwrap_err().to_string().contains("directory"));
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_full_disk_fails_changes_and_nothing_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let disk = TinyDisk::mount(folder.path(), 8 << 20);
        let path = disk.0.join("meta.db");
        let (database, _) = Database::open(&path).unwrap();
        put(&database, "before", vec![0; 1000]).await.unwrap();
        let rest = disk.fill();
        let mut failed = false;
        for n in 0..200 {
            match put(&database, &format!("more {n:03}"), vec![0; 100_000]).await {
                Ok(()) => {}
                Err(error) => {
                    assert_eq!(error.class(), ErrorClass::ResourceExhausted, "{error}");
                    failed = true;
                    break;
                }
            }
        }
        assert!(failed, "the disk should have been full");
        std::fs::remove_file(rest).unwrap();
        put(&database, "z after", vec![0; 1000]).await.unwrap();
        let known = names(&database.read().unwrap());
        assert_eq!(known.first().map(String::as_str), Some("before"));
        assert_eq!(known.last().map(String::as_str), Some("z after"));
        drop(database);
    }

    /// A file system in memory that is soon full.
    struct TinyDisk(PathBuf);

    impl TinyDisk {
        fn mount(folder: &Path, size: u64) -> Self {
            let options = format!("size={size}");
            let arguments = ["-t", "tmpfs", "-o", &options, "tiny"];
            let mounted = std::process::Command::new("mount").args(arguments).arg(folder).status().unwrap();
            assert!(mounted.success());
            Self(folder.to_owned())
        }

        fn fill(&self) -> PathBuf {
            use std::io::Write;
            let path = self.0.join("rest");
            let mut file = std::fs::File::create(&path).unwrap();
            while file.write_all(&[0; 4096]).is_ok() {}
            path
        }
    }

    impl Drop for TinyDisk {
        fn drop(&mut self) {
            std::process::Command::new("umount").arg("-l").arg(&self.0).status().ok();
        }
    }
}
