//! The one writer. It takes every change that waits into one transaction, each change buffered so that one
//! that fails leaves nothing, commits once, and only then answers all of them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use corten_types::{Error, Result};
use tokio::sync::{mpsc, oneshot};

use crate::database::{RECORDS, Shared};
use crate::transaction::Tx;

/// Changes that share one transaction at most.
const BATCH: usize = 256;

/// A change on its way through the writer.
pub(crate) trait Job: Send {
    /// Makes the change; it is kept when this says so.
    fn run(&mut self, tx: &mut Tx<'_>) -> bool;
    /// Tells how it ended; `failure` is that of the commit.
    fn answer(self: Box<Self>, failure: Option<Error>);
}

pub(crate) type Change = Box<dyn Job>;

/// A closure, its result, and who waits for it.
pub(crate) struct Closure<T, F> {
    change: Option<F>,
    result: Option<Result<T>>,
    answer: oneshot::Sender<Result<T>>,
}

impl<T, F> Closure<T, F> {
    pub(crate) fn new(change: F, answer: oneshot::Sender<Result<T>>) -> Self {
        Self { change: Some(change), result: None, answer }
    }
}

impl<T: Send, F: FnOnce(&mut Tx<'_>) -> Result<T> + Send> Job for Closure<T, F> {
    fn run(&mut self, tx: &mut Tx<'_>) -> bool {
        let Some(change) = self.change.take() else { return false };
        // A change that panics must not take the writer along.
        let result = catch_unwind(AssertUnwindSafe(|| change(tx)))
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

/// The writer's life: until nobody can hand it anything more.
pub(crate) fn run(shared: &Shared, mut changes: mpsc::Receiver<Change>) {
    while let Some(first) = changes.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(next) = changes.try_recv()
        {
            batch.push(next);
        }
        let written = catch_unwind(AssertUnwindSafe(|| write_batch(shared, &mut batch)));
        let failure = match written {
            Ok(result) => result.err(),
            Err(_) => {
                shared.broken.store(true, Ordering::SeqCst);
                Some(Error::internal("database: the writer met something that it cannot handle"))
            }
        };
        for job in batch {
            job.answer(failure.clone());
        }
    }
    shared.close();
}

fn write_batch(shared: &Shared, batch: &mut [Change]) -> Result<()> {
    shared.mend()?;
    let file = shared.file.read().unwrap_or_else(PoisonError::into_inner);
    let file = file.as_ref().ok_or_else(|| Error::unavailable("the database is closed"))?;
    let transaction = file.begin_write().map_err(|error| shared.failure(error))?;
    let mut dirty = false;
    {
        let mut table = transaction.open_table(RECORDS).map_err(|error| shared.failure(error))?;
        for job in batch {
            let mut tx = Tx::new(&table, shared);
            if !job.run(&mut tx) {
                continue;
            }
            let change = tx.finish();
            for (key, value) in change.rows {
                dirty = true;
                let key = key.as_slice();
                let stored = match value {
                    Some(value) => table.insert(key, value.as_slice()).map(drop),
                    None => table.remove(key).map(drop),
                };
                stored.map_err(|error| shared.failure(error))?;
                if !change.collecting {
                    shared.activity.note(key);
                }
            }
            if !change.collecting {
                shared.activity.add(change.deletions);
            }
        }
    }
    if !dirty {
        return transaction.abort().map_err(|error| shared.failure(error));
    }
    transaction.commit().map_err(|error| shared.failure(error))?;
    shared.activity.tell();
    Ok(())
}
