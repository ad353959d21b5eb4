//! The daemon's parts as data: what there is, what came of it, and so what `ctr plugins ls` shows and which
//! services answer. A part that fails or is disabled takes those that need it with it; the rest serves.

pub mod parts;

use std::collections::BTreeMap;
use std::fmt;

use corten_api::rpc::Status;
use corten_api::services::introspection::Plugin;
use corten_config::Config;
use corten_types::{Error, Platform, Result};

use parts::{CONTENT, DIFFER, Need, PARTS, SANDBOX_CONTROLLER, SNAPSHOTTER};

/// What the message of a part that is not wanted here ends with.
pub const SKIP: &str = "skip plugin";

/// What became of a part.
#[derive(Clone, Debug)]
enum Outcome {
    Waiting,
    Ok,
    Failed(Error),
}

/// A part and what there is to say of it.
#[derive(Debug)]
pub struct Entry {
    kind: String,
    id: String,
    needs: Vec<Need>,
    outcome: Outcome,
    /// Facts by name, for those who ask.
    pub exports: BTreeMap<String, String>,
    pub capabilities: Vec<String>,
    pub platforms: Vec<Platform>,
}

/// The parts that are not disabled, in the order of their listing.
#[derive(Debug)]
pub struct Plugins {
    entries: Vec<Entry>,
    required: Vec<String>,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.kind, self.id)
    }
}

impl Entry {
    fn new(kind: &str, id: &str, needs: &[Need], platforms: Vec<Platform>) -> Self {
        Self {
            kind: kind.into(),
            id: id.into(),
            needs: needs.to_vec(),
            outcome: Outcome::Waiting,
            exports: BTreeMap::new(),
            capabilities: Vec::new(),
            platforms,
        }
    }

    /// Adds a fact.
    pub fn export(&mut self, name: &str, value: impl fmt::Display) {
        self.exports.insert(name.into(), value.to_string());
    }
}

impl Plugins {
    /// The parts that a configuration leaves.
    ///
    /// # Errors
    /// A required part that does not exist or is disabled; a proxy of an unknown type.
    pub fn new(config: &Config) -> Result<Self> {
        let host = Platform::host();
        let mut entries: Vec<Entry> = PARTS
            .iter()
            .map(|part| {
                let platforms = if part.platform { vec![host.clone()] } else { Vec::new() };
                Entry::new(part.kind, part.id, part.needs, platforms)
            })
            .collect();
        for (id, proxy) in &config.proxy_plugins {
            let kind = proxy_type(&proxy.kind)?;
            let platform = if proxy.platform.is_empty() { host.clone() } else { proxy.platform.parse()? };
            let mut entry = Entry::new(kind, id, &[], vec![platform]);
            entry.exports.clone_from(&proxy.exports);
            entry.export("address", &proxy.address);
            entry.capabilities.clone_from(&proxy.capabilities);
            let user = |entry: &Entry| entry.needs.iter().any(|need| need.kind() == kind);
            let at = entries.iter().position(user).unwrap_or(entries.len());
            entries.insert(at, entry);
        }
        entries.retain(|entry| !config.disabled_plugins.contains(&entry.to_string()));
        let uris: Vec<String> = entries.iter().map(ToString::to_string).collect();
        let missing: Vec<&str> =
            config.required_plugins.iter().filter(|uri| !uris.contains(uri)).map(String::as_str).collect();
        if !missing.is_empty() {
            return Err(Error::unknown(format!("required plugin [{}] not included", missing.join(" "))));
        }
        Ok(Self { entries, required: config.required_plugins.clone() })
    }

    /// Starts a part, unless it is disabled or lacks what it needs. Nothing if it did not come to be; why is
    /// logged and kept.
    ///
    /// # Errors
    /// A failure of a part that is required.
    pub fn load<T>(
        &mut self,
        kind: &str,
        id: &str,
        start: impl FnOnce(&mut Entry) -> Result<T>,
    ) -> Result<Option<T>> {
        let Some(at) = self.find(kind, id) else { return Ok(None) };
        let ready = self.needs_of(at);
        let Some(entry) = self.entries.get_mut(at) else { return Ok(None) };
        tracing::info!(id = %entry, r#type = entry.kind, "loading plugin");
        let started = ready.and_then(|()| start(entry));
        let (outcome, started) = match started {
            Ok(started) => (Outcome::Ok, Some(started)),
            Err(error) => (Outcome::Failed(error), None),
        };
        self.settle(at, outcome)?;
        Ok(started)
    }

    /// Settles all parts that nothing was said of: they work if they have what they need.
    ///
    /// # Errors
    /// A failure of a part that is required.
    pub fn finish(&mut self) -> Result<()> {
        (0..self.entries.len()).try_for_each(|at| self.simple(at))
    }

    /// Whether a part works.
    pub fn works(&self, kind: &str, id: &str) -> bool {
        let entry = self.find(kind, id).and_then(|at| self.entries.get(at));
        entry.is_some_and(|entry| matches!(entry.outcome, Outcome::Ok))
    }

    /// Why a part does not work, if it was tried.
    pub fn failure(&self, kind: &str, id: &str) -> Option<Error> {
        match self.entries.get(self.find(kind, id)?)?.outcome {
            Outcome::Failed(ref error) => Some(error.clone()),
            _ => None,
        }
    }

    /// As clients are shown them.
    pub fn table(&self) -> Vec<Plugin> {
        self.entries.iter().map(describe).collect()
    }

    fn find(&self, kind: &str, id: &str) -> Option<usize> {
        self.entries.iter().position(|entry| entry.kind == kind && entry.id == id)
    }

    /// Settles a part without a start of its own.
    fn simple(&mut self, at: usize) -> Result<()> {
        let waiting = |entry: &Entry| matches!(entry.outcome, Outcome::Waiting);
        if !self.entries.get(at).is_some_and(waiting) {
            return Ok(());
        }
        let outcome = self.needs_of(at).map_or_else(Outcome::Failed, |()| Outcome::Ok);
        if let Some(entry) = self.entries.get(at) {
            tracing::info!(id = %entry, r#type = entry.kind, "loading plugin");
        }
        self.settle(at, outcome)
    }

    /// Whether a part has what it needs. Those are before it in the list.
    fn needs_of(&mut self, at: usize) -> Result<()> {
        let needs = self.entries.get(at).map(|entry| entry.needs.clone()).unwrap_or_default();
        for need in needs {
            let of: Vec<usize> =
                (0..at).filter(|other| self.entries.get(*other).is_some_and(|e| need.is(e))).collect();
            let mut found = false;
            for other in of {
                self.simple(other)?;
                let Some(entry) = self.entries.get(other) else { continue };
                match (&entry.outcome, need) {
                    (Outcome::Failed(_), Need::Any(_)) | (Outcome::Ok, _) => found = true,
                    (Outcome::Failed(error), _) if !is_skip(error) => return Err(error.clone()),
                    _ => {}
                }
            }
            if !found {
                return Err(need.missing());
            }
        }
        Ok(())
    }

    fn settle(&mut self, at: usize, outcome: Outcome) -> Result<()> {
        let Some(entry) = self.entries.get_mut(at) else { return Ok(()) };
        let uri = entry.to_string();
        entry.outcome = outcome;
        let Outcome::Failed(error) = &entry.outcome else { return Ok(()) };
        if is_skip(error) {
            tracing::info!(%error, id = uri, r#type = entry.kind, "skip loading plugin");
        } else {
            tracing::warn!(%error, id = uri, r#type = entry.kind, "failed to load plugin");
        }
        if self.required.contains(&uri) {
            return Err(error.clone().context(format!("load required plugin {uri}")));
        }
        Ok(())
    }
}

impl Need {
    fn kind(self) -> &'static str {
        match self {
            Self::One(kind) | Self::Any(kind) | Self::Exactly(kind, _) => kind,
        }
    }

    fn is(self, entry: &Entry) -> bool {
        match self {
            Self::Exactly(kind, id) => entry.kind == kind && entry.id == id,
            Self::One(kind) | Self::Any(kind) => entry.kind == kind,
        }
    }

    fn missing(self) -> Error {
        Error::unknown(match self {
            Self::One(kind) | Self::Any(kind) => {
                format!("no plugins registered for {kind}: plugin: not found")
            }
            Self::Exactly(kind, id) => format!("no plugins registered for {kind}.{id}: plugin: not found"),
        })
    }
}

/// Whether an error says that a part is not wanted here.
fn is_skip(error: &Error) -> bool {
    error.to_string().contains(SKIP)
}

/// The type of a proxy: a short name or a URI.
fn proxy_type(name: &str) -> Result<&'static str> {
    Ok(match name {
        "snapshot" | SNAPSHOTTER => SNAPSHOTTER,
        "content" | CONTENT => CONTENT,
        "diff" | DIFFER => DIFFER,
        "sandbox" | SANDBOX_CONTROLLER => SANDBOX_CONTROLLER,
        other => return Err(Error::unknown(format!("unknown proxy plugin type: {other:?}"))),
    })
}

fn describe(entry: &Entry) -> Plugin {
    let mut requires: Vec<String> = Vec::new();
    for need in &entry.needs {
        if !requires.iter().any(|one| one == need.kind()) {
            requires.push(need.kind().into());
        }
    }
    let failure = match &entry.outcome {
        Outcome::Failed(error) => {
            let status = corten_api::to_status(error.clone());
            Some(Status { code: status.code().into(), message: status.message().into(), details: Vec::new() })
        }
        _ => None,
    };
    Plugin {
        r#type: entry.kind.clone(),
        id: entry.id.clone(),
        requires,
        platforms: entry.platforms.iter().cloned().map(Into::into).collect(),
        exports: entry.exports.clone().into_iter().collect(),
        capabilities: entry.capabilities.clone(),
        init_err: failure,
    }
}
