//! The tasks that the daemon knows: a cache of what the bundles say and the shims answer. It also
//! keeps two operations from making or burying the same task at once.

use std::collections::HashMap;
use std::sync::Arc;

use corten_types::{Error, Namespace, Result};

use crate::task::Task;
use crate::watched::Watched;

/// Namespace and id of a task.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub namespace: Namespace,
    pub id: String,
}

/// Where a task is in its life.
#[derive(Clone, Debug)]
enum State {
    /// Being created: not there yet for anyone else.
    Starting(Reservation),
    /// Found at start, its shim not yet asked.
    Loading,
    /// Its shim answers.
    Ready(Arc<Task>),
    /// Its shim is gone or going; what it left is being cleared away. Without a task: it never became ready.
    Leaving(Option<Arc<Task>>),
}

/// Tells one creation of a name from another.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reservation(Arc<()>);

#[derive(Debug, Default)]
pub(crate) struct Table {
    states: Watched<HashMap<Key, State>>,
}

impl Table {
    /// Takes the name for a task that is to be created. One that is being cleared away is waited
    /// for, so that a name is free as soon as its deletion has been answered.
    pub async fn reserve(&self, key: &Key) -> Result<Reservation> {
        self.states
            .wait_for(|states| match states.get(key) {
                None => {
                    let reservation = Reservation::default();
                    states.insert(key.clone(), State::Starting(reservation.clone()));
                    Some(Ok(reservation))
                }
                Some(State::Leaving(_)) => None,
                Some(_) => Some(Err(Error::already_exists(format!("task {}", key.id)))),
            })
            .await
    }

    /// Enters a task whose bundle was found. False if the name is taken.
    pub fn found(&self, key: &Key) -> bool {
        let mut states = self.states.lock();
        let vacant = !states.contains_key(key);
        if vacant {
            states.insert(key.clone(), State::Loading);
        }
        vacant
    }

    /// The task is there from now on.
    pub fn ready(&self, task: Arc<Task>) {
        self.states.lock().insert(task.key.clone(), State::Ready(task));
        self.states.tell();
    }

    /// The task is going from now on. False if it is another task's turn or somebody else is about
    /// it: exactly one caller gets to clear a task away.
    pub fn leave(&self, task: &Arc<Task>) -> bool {
        let mut states = self.states.lock();
        let there = matches!(states.get(&task.key), Some(State::Ready(there)) if Arc::ptr_eq(there, task));
        if there {
            states.insert(task.key.clone(), State::Leaving(Some(task.clone())));
        }
        there
    }

    /// Nobody waits for this creation any more: it will be undone.
    pub fn forsake(&self, key: &Key, reservation: &Reservation) {
        let mut states = self.states.lock();
        if matches!(states.get(key), Some(State::Starting(there)) if Arc::ptr_eq(&there.0, &reservation.0)) {
            states.insert(key.clone(), State::Leaving(None));
            self.states.tell();
        }
    }

    /// A task that never became ready is going from now on.
    pub fn abandon(&self, key: &Key) {
        self.states.lock().insert(key.clone(), State::Leaving(None));
        self.states.tell();
    }

    /// The name is free.
    pub fn remove(&self, key: &Key) {
        self.states.lock().remove(key);
        self.states.tell();
    }

    /// A task by name; one that was found at start is waited for until its shim has been asked.
    pub async fn get(&self, key: &Key) -> Result<Arc<Task>> {
        self.states
            .wait_for(|states| match states.get(key) {
                Some(State::Ready(task)) => Some(Ok(task.clone())),
                Some(State::Loading) => None,
                _ => Some(Err(not_found(&key.id))),
            })
            .await
    }

    /// A task by name if its shim answers now.
    pub fn get_ready(&self, key: &Key) -> Option<Arc<Task>> {
        match self.states.lock().get(key) {
            Some(State::Ready(task)) => Some(task.clone()),
            _ => None,
        }
    }

    /// A task by name while its shim may still tell something of it.
    pub fn get_telling(&self, key: &Key) -> Option<Arc<Task>> {
        match self.states.lock().get(key) {
            Some(State::Ready(task) | State::Leaving(Some(task))) => Some(task.clone()),
            _ => None,
        }
    }

    /// Whether the name is taken.
    pub fn contains(&self, key: &Key) -> bool {
        self.states.lock().contains_key(key)
    }

    /// The tasks of a namespace, by id.
    pub async fn list(&self, namespace: &Namespace) -> Vec<Arc<Task>> {
        let mut tasks: Vec<Arc<Task>> = self
            .states
            .wait_for(|states| {
                let states = || states.iter().filter(|(key, _)| key.namespace == *namespace);
                if states().any(|(_, state)| matches!(state, State::Loading)) {
                    return None;
                }
                let ready = states().filter_map(|(_, state)| match state {
                    State::Ready(task) => Some(task.clone()),
                    _ => None,
                });
                Some(ready.collect())
            })
            .await;
        tasks.sort_unstable_by(|a, b| a.key.id.cmp(&b.key.id));
        tasks
    }
}

/// There is a container but no task, in the words of the original: without the class text.
pub(crate) fn not_found(id: &str) -> Error {
    Error::bare(corten_types::ErrorClass::NotFound, format!("task {id} not found"))
}
