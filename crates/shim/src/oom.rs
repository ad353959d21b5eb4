//! Tells when memory runs out in a container (spec 02 §7).

use std::sync::{Arc, Mutex, PoisonError};

use corten_api::events::TaskOom;
use corten_cgroups::{Cgroups, OomWatch};
use tokio::io::Interest;

use crate::events::Publisher;
use crate::helper::watched;

/// A watch over one container's memory; it ends with this.
#[derive(Clone, Debug)]
pub(crate) struct Oom {
    watch: Arc<Mutex<OomWatch>>,
    publisher: Publisher,
    id: String,
}

impl Oom {
    /// Begins; nothing where the kernel does not tell. Without a watch it is only not told.
    pub(crate) fn watch(id: &str, cgroups: &Cgroups, publisher: &Publisher) -> Option<Self> {
        let watch = match OomWatch::new(cgroups) {
            Ok(watch) => watch?,
            Err(error) => {
                crate::log::warning!("{id}: memory cannot be watched: {error}");
                return None;
            }
        };
        let events = rustix::io::fcntl_dupfd_cloexec(&watch, 3).ok()?;
        let events = watched(events, Interest::READABLE).ok()?;
        let this =
            Self { watch: Arc::new(Mutex::new(watch)), publisher: publisher.clone(), id: id.to_owned() };
        let (weak, oom) = (Arc::downgrade(&this.watch), (this.publisher.clone(), this.id.clone()));
        tokio::spawn(async move {
            while let Ok(mut ready) = events.readable().await {
                ready.clear_ready();
                let Some(watch) = weak.upgrade() else { return };
                let (publisher, id) = oom.clone();
                if !(Self { watch, publisher, id }).tell() {
                    return;
                }
            }
        });
        Some(this)
    }

    /// Tells what happened since the last time; false when the cgroup is gone.
    pub(crate) fn tell(&self) -> bool {
        match self.watch.lock().unwrap_or_else(PoisonError::into_inner).check() {
            Ok(Some(happened)) => {
                if happened {
                    self.publisher.publish("/tasks/oom", &TaskOom { container_id: self.id.clone() });
                }
                true
            }
            Ok(None) | Err(_) => false,
        }
    }
}
