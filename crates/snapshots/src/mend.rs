//! What a loss of power took is made again.
//!
//! A directory is not synced before its snapshot's record is durable: that would cost a second sync for each
//! container. A commit syncs all of it. So a loss of power can take the directory of an active snapshot or a
//! view, and then nothing of what was in it was ever promised: an empty one is what was acknowledged.

use corten_metadata::{Kind, SnapshotRecords};
use corten_types::{Context, Result};

use crate::backend::{Backend, Snapshot};

/// Makes the directories of active snapshots and views that have none. One that cannot be made is named, and
/// stops nothing.
///
/// # Errors
/// Those of the database.
pub(crate) fn mend(records: &SnapshotRecords, backend: &dyn Backend) -> Result<()> {
    let on_disk = backend.ids()?;
    for (namespace, record) in records.all(backend.name())? {
        let (id, key) = (record.id, record.name);
        if record.kind == Kind::Committed {
            if !on_disk.contains(&id) {
                tracing::error!(%namespace, key, id, "the directory of a committed snapshot is missing");
            }
        } else if !backend.holds(id) {
            let made = records
                .chain(&Context::new(namespace.clone()), backend.name(), &record.parent)
                .map(|parents| Snapshot::new(id, parents, record.kind, &record.labels))
                .and_then(|snapshot| backend.create(&snapshot));
            match made {
                Ok(()) => {
                    tracing::warn!(%namespace, key, id, "the directory of a snapshot was lost and is made anew");
                }
                Err(error) => {
                    tracing::error!(%namespace, key, id, %error, "the directory of a snapshot is missing");
                }
            }
        }
    }
    Ok(())
}
