//! The daemon's configuration.
//!
//! A file of any version, 1 to 4, becomes one of the newest by itself ([`mod@file`], `migrate`); then it and
//! its imports are merged into one document, which is laid over the defaults. Keys that are not known are told
//! as [`Warning`]s and left out; a wrong type or version is an error. Tables of plugins that are not known here
//! are kept as they are. Nothing is read but files, nothing is made.
//!
//! The defaults are `defaults.toml`: what it has is what exists, with its type.

pub mod duration;
mod file;
mod glob;
mod merge;
mod migrate;
mod schema;
mod sections;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use corten_types::{Error, Result, ResultExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

pub use sections::{Cgroup, Debug, ProxyPlugin, StreamProcessor};

/// The file that is read where none is named.
pub const FILE: &str = "/etc/containerd/config.toml";
/// The newest version, which everything is turned into.
pub const VERSION: i64 = 4;
/// The plugin of the gRPC socket.
pub const GRPC: &str = "io.containerd.server.v1.grpc";
/// The plugin of the ttrpc socket.
pub const TTRPC: &str = "io.containerd.server.v1.ttrpc";

/// What the defaults are.
static DEFAULTS: LazyLock<Table> = LazyLock::new(|| {
    let mut defaults: Table = include_str!("defaults.toml").parse().unwrap_or_default();
    let platforms = Value::Array(vec![corten_types::Platform::host().to_string().into()]);
    if let Some(task) = merge::table(&mut defaults, &["plugins", "io.containerd.runtime.v2.task"]) {
        task.insert("platforms".into(), platforms);
    }
    defaults
});

/// What is in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Always [`VERSION`].
    pub version: i64,
    /// Where persistent data lies.
    pub root: PathBuf,
    /// Where state lies that is gone with a reboot.
    pub state: PathBuf,
    /// Folder of temporary files; empty for the system's.
    pub temp: PathBuf,
    /// URIs of plugins that are not loaded.
    pub disabled_plugins: Vec<String>,
    /// URIs of plugins without which the daemon does not start.
    pub required_plugins: Vec<String>,
    /// The daemon's own adjustment, -1000 to 1000; 0 leaves it.
    pub oom_score: i64,
    /// Patterns of files that were merged.
    pub imports: Vec<String>,
    /// The log.
    pub debug: Debug,
    /// Tables of plugins by URI, with their defaults.
    pub plugins: Table,
    /// The daemon's cgroup.
    pub cgroup: Cgroup,
    /// Plugins of other processes, by id.
    #[serde(default)]
    pub proxy_plugins: BTreeMap<String, ProxyPlugin>,
    /// Time limits by name; read them with [`Config::timeout`].
    pub timeouts: BTreeMap<String, String>,
    /// Programs that turn one media type into another, by id.
    pub stream_processors: BTreeMap<String, StreamProcessor>,
    /// What reading had to say; for the log.
    #[serde(skip)]
    pub warnings: Vec<Warning>,
}

/// Something in a file that was ignored or changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// What about it.
    pub message: String,
    /// Further facts by name, in the order of names.
    pub fields: Vec<(&'static str, String)>,
}

impl Default for Config {
    fn default() -> Self {
        Self::over_defaults(Table::new()).unwrap_or_else(|error| unreachable!("the defaults: {error}"))
    }
}

impl Config {
    /// Reads the usual file, or the defaults if it does not exist; or a file that is named.
    ///
    /// # Errors
    /// NotFound for a file that was named; what is no TOML, or has values of wrong types; a version from the
    /// future; plugins without a dot.
    pub fn load(path: Option<&Path>) -> Result<Self> {
        let named = path.unwrap_or(Path::new(FILE));
        if path.is_none() && !named.exists() {
            return Ok(Self::default());
        }
        file::load(named)
    }

    /// As [`Config::load`], except that a named file may be absent too, as the commands of `containerd
    /// config` have it.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_if_exists(path: Option<&Path>) -> Result<Self> {
        match Self::load(path) {
            Err(error) if error.is_not_found() => Ok(Self::default()),
            other => other,
        }
    }

    /// Reads a file's text; imports are not followed. `path` is for messages.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let mut warnings = Vec::new();
        let document = file::document(text, path, &mut warnings)?;
        let mut config = Self::over_defaults(document)?;
        warnings.append(&mut config.warnings);
        config.warnings = warnings;
        Ok(config)
    }

    /// Lays a document of the newest version over the defaults.
    fn over_defaults(document: Table) -> Result<Self> {
        let mut whole = DEFAULTS.clone();
        let mut warnings = Vec::new();
        // The pattern in the defaults is advice: it counts where a file has it.
        if !document.is_empty() {
            whole.insert("imports".into(), Value::Array(Vec::new()));
        }
        if let Some(Value::Table(plugins)) = document.get("plugins") {
            for (uri, table) in plugins {
                schema::check_plugin(uri, table, &DEFAULTS, &mut warnings)?;
            }
        }
        merge::document(&mut whole, document);
        schema::normalize(&mut whole, &DEFAULTS);
        let mut config: Self = whole
            .try_into()
            .map_err(|error: toml::de::Error| Error::unknown(format!("toml: {}", error.message().trim())))?;
        // The file's version is said nowhere else.
        config.version = VERSION;
        config.warnings = warnings;
        Ok(config)
    }

    /// The table of a plugin with all its options; empty for one that has none.
    #[must_use]
    pub fn plugin(&self, uri: &str) -> &Table {
        static EMPTY: LazyLock<Table> = LazyLock::new(Table::new);
        self.plugins.get(uri).and_then(Value::as_table).unwrap_or(&EMPTY)
    }

    /// The options of a plugin as a type of the caller.
    ///
    /// # Errors
    /// InvalidArgument where the type is narrower than the option.
    pub fn options<T: DeserializeOwned>(&self, uri: &str) -> Result<T> {
        let read = self.plugin(uri).clone().try_into();
        read.map_err(|error: toml::de::Error| Error::invalid_argument(error.message().trim().to_owned()))
            .with_context(|| format!("invalid plugin config of {uri}"))
    }

    /// A text among the options of a plugin; empty if there is none.
    #[must_use]
    pub fn text(&self, uri: &str, key: &str) -> &str {
        self.plugin(uri).get(key).and_then(Value::as_str).unwrap_or_default()
    }

    /// A switch among the options of a plugin.
    #[must_use]
    pub fn flag(&self, uri: &str, key: &str) -> bool {
        self.plugin(uri).get(key).and_then(Value::as_bool).unwrap_or_default()
    }

    /// A number among the options of a plugin; 0 if there is none or it is out of range.
    #[must_use]
    pub fn number<T: TryFrom<i64> + Default>(&self, uri: &str, key: &str) -> T {
        let number = self.plugin(uri).get(key).and_then(Value::as_integer).unwrap_or_default();
        T::try_from(number).unwrap_or_default()
    }

    /// A list of texts among the options of a plugin.
    #[must_use]
    pub fn texts(&self, uri: &str, key: &str) -> Vec<String> {
        let list = self.plugin(uri).get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// A time limit, as `io.containerd.timeout.shim.load`; zero for one that is not there.
    #[must_use]
    pub fn timeout(&self, name: &str) -> Duration {
        self.timeouts.get(name).and_then(|text| duration::parse(text).ok()).unwrap_or_default()
    }

    /// The gRPC socket.
    #[must_use]
    pub fn grpc_address(&self) -> PathBuf {
        socket(self.text(GRPC, "address"))
    }

    /// The ttrpc socket.
    #[must_use]
    pub fn ttrpc_address(&self) -> PathBuf {
        socket(self.text(TTRPC, "address"))
    }

    /// Flags override the file. An address moves the ttrpc socket too, unless that one was moved already.
    pub fn apply_flags(
        &mut self,
        level: Option<String>,
        address: Option<&Path>,
        root: Option<PathBuf>,
        state: Option<PathBuf>,
    ) {
        if let Some(address) = address {
            let (own, usual) = (self.text(TTRPC, "address").to_owned(), default_text(TTRPC, "address"));
            let beside = format!("{}.ttrpc", self.text(GRPC, "address"));
            if own == usual || own == beside {
                self.set(TTRPC, "address", format!("{}.ttrpc", address.display()).into());
                for key in ["uid", "gid"] {
                    let id: i64 = self.number(GRPC, key);
                    self.set(TTRPC, key, id.into());
                }
            }
            self.set(GRPC, "address", address.display().to_string().into());
        }
        self.debug.level = level.unwrap_or_else(|| self.debug.level.clone());
        self.root = root.unwrap_or_else(|| self.root.clone());
        self.state = state.unwrap_or_else(|| self.state.clone());
    }

    fn set(&mut self, uri: &str, key: &str, value: Value) {
        let table = self.plugins.entry(uri).or_insert_with(|| Value::Table(Table::new()));
        if let Value::Table(table) = table {
            table.insert(key.into(), value);
        }
    }

    /// Checks what a daemon could not start with.
    ///
    /// # Errors
    /// Folders that are missing or the same; durations that are none.
    pub fn validate(&self) -> Result<()> {
        for (path, name) in [(&self.root, "root"), (&self.state, "state")] {
            if path.as_os_str().is_empty() {
                return Err(Error::unknown(format!("{name} must be specified")));
            }
        }
        if self.root == self.state {
            return Err(Error::unknown("root and state must be different paths"));
        }
        for text in self.timeouts.values() {
            duration::parse(text)
                .map_err(|_| Error::unknown(format!("unable to parse {text} into a time duration")))?;
        }
        Ok(())
    }

    /// As a file of the newest version.
    #[must_use]
    pub fn to_toml(&self) -> String {
        write::config(self)
    }
}

/// A socket's path; the scheme in front of it is the only one there is.
fn socket(address: &str) -> PathBuf {
    address.strip_prefix("unix://").unwrap_or(address).into()
}

fn default_text(uri: &str, key: &str) -> String {
    let plugin = DEFAULTS.get("plugins").and_then(|plugins| plugins.get(uri));
    plugin.and_then(|plugin| plugin.get(key)).and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
