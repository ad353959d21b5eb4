//! The sandboxes whose shims are known.

use std::collections::HashMap;
use std::sync::Arc;

use corten_types::{Error, Result};

use super::shim::Sandbox;
use crate::table::Key;
use crate::watched::Watched;

/// Where a sandbox is in its life.
#[derive(Clone, Debug)]
enum State {
    /// Being created: not there yet for anyone else.
    Starting,
    /// Found at start, its shim not yet asked.
    Loading,
    Ready(Arc<Sandbox>),
    /// What it left is being cleared away.
    Leaving,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    states: Watched<HashMap<Key, State>>,
}

impl Table {
    /// Takes the name of a sandbox that is to be created; one that is being cleared away is waited for.
    pub async fn reserve(&self, key: &Key) -> Result<()> {
        self.states
            .wait_for(|states| match states.get(key) {
                None => {
                    states.insert(key.clone(), State::Starting);
                    Some(Ok(()))
                }
                Some(State::Leaving) => None,
                Some(_) => Some(Err(Error::already_exists(format!(
                    "sandbox {} already running: already exists",
                    key.id
                )))),
            })
            .await
    }

    /// Enters a sandbox whose bundle was found.
    pub fn found(&self, key: &Key) {
        self.set(key, Some(State::Loading));
    }

    pub fn ready(&self, sandbox: Arc<Sandbox>) {
        self.set(&sandbox.key.clone(), Some(State::Ready(sandbox)));
    }

    /// One that never became ready is going.
    pub fn abandon(&self, key: &Key) {
        self.set(key, Some(State::Leaving));
    }

    pub fn remove(&self, key: &Key) {
        self.set(key, None);
    }

    /// Whether it is the caller who gets to clear it away.
    pub fn leave(&self, sandbox: &Arc<Sandbox>) -> bool {
        let mut states = self.states.lock();
        let there =
            matches!(states.get(&sandbox.key), Some(State::Ready(there)) if Arc::ptr_eq(there, sandbox));
        if there {
            states.insert(sandbox.key.clone(), State::Leaving);
        }
        there
    }

    /// A sandbox, if there is one.
    pub async fn get(&self, key: &Key) -> Option<Arc<Sandbox>> {
        self.states
            .wait_for(|states| match states.get(key) {
                Some(State::Ready(sandbox)) => Some(Some(sandbox.clone())),
                Some(State::Loading) => None,
                _ => Some(None),
            })
            .await
    }

    fn set(&self, key: &Key, state: Option<State>) {
        match state {
            Some(state) => self.states.lock().insert(key.clone(), state),
            None => self.states.lock().remove(key),
        };
        self.states.tell();
    }
}
