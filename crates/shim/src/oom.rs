//! Tells when memory runs out in a container (spec 02 §7).

use std::sync::{Arc, Mutex, PoisonError};

use corten_api::events::TaskOom;
use corten_cgroups::{Cgroups, OomWatch};
use tokio::io::Interest;
use tokio::task::AbortHandle;

use crate::events::Publisher;
use crate::helper::watched;

/// A watch over one container's memory; it ends with this. The kernel does not say of every cgroup that it is gone.
#[derive(Debug)]
pub(crate) struct Oom {
    watched: Watched,
    listening: AbortHandle,
}

impl Drop for Oom {
    fn drop(&mut self) {
        self.listening.abort();
    }
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
        let watched =
            Watched { watch: Arc::new(Mutex::new(watch)), publisher: publisher.clone(), id: id.to_owned() };
        let teller = watched.clone();
        let listening = tokio::spawn(async move {
            while let Ok(mut ready) = events.readable().await {
                ready.clear_ready();
                if !teller.tell() {
                    return;
                }
            }
        });
        Some(Self { watched, listening: listening.abort_handle() })
    }

    /// Tells what happened since the last time.
    pub(crate) fn tell(&self) {
        self.watched.tell();
    }
}

#[derive(Clone, Debug)]
struct Watched {
    watch: Arc<Mutex<OomWatch>>,
    publisher: Publisher,
    id: String,
}

impl Watched {
    /// False when the cgroup is gone.
    fn tell(&self) -> bool {
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
