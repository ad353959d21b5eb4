//! Operations on a network: its plugins one after the other (spec 06 §2.4).

use std::path::PathBuf;

use corten_types::{Error, Result, ResultExt};
use serde_json::{Map, Value, json};

use super::cache::Record;
use super::config::is_name;
use super::{Command, Invocation, NetworkConfig, NetworkResult, PluginConfig, Runner, Version};
use crate::validate_link_name;

/// Who is attached, where.
#[derive(Clone, Copy, Debug)]
pub struct Attachment<'a> {
    /// Id of the container.
    pub container_id: &'a str,
    /// Path of its network namespace; empty for DEL when it is gone.
    pub netns: &'a str,
    /// Its interface.
    pub ifname: &'a str,
    /// Arguments for plugins: neither contains `;`, names no `=`.
    pub args: &'a [(String, String)],
    /// Values by the name of their capability, for the plugins that have it.
    pub capabilities: &'a Map<String, Value>,
}

impl Attachment<'_> {
    fn validate(&self) -> Result<()> {
        if self.container_id.is_empty() {
            return Err(Error::invalid_argument("missing containerID"));
        }
        if !is_name(self.container_id) {
            return Err(Error::invalid_argument(format!(
                "invalid characters in containerID; {}",
                self.container_id
            )));
        }
        if self.args.iter().any(|(key, value)| key.contains([';', '=']) || value.contains(';')) {
            return Err(Error::invalid_argument(
                "arguments of plugins cannot contain ; and their names no =",
            ));
        }
        validate_link_name(self.ifname)
    }

    fn joined_args(&self) -> String {
        self.args.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(";")
    }
}

/// Operations on networks.
#[derive(Clone, Debug)]
pub struct Cni {
    /// How plugins are executed.
    pub runner: Runner,
    /// Where results are kept.
    pub cache: PathBuf,
    /// Whether they have to be there after a loss of power: not where everything that is attached ends with it.
    pub durable: bool,
}

impl Cni {
    /// Attaches. Before the first plugin runs it is recorded that this is tried, so that DEL is owed.
    ///
    /// # Errors
    /// `plugin type="…" failed (add): …`; [`Cni::delete`] must follow (spec 06 §7.4).
    pub fn add(&self, network: &NetworkConfig, attachment: &Attachment<'_>) -> Result<NetworkResult> {
        attachment.validate()?;
        network.parsed_version()?;
        // Where one is missing none begins, and nothing is owed.
        for plugin in &network.plugins {
            let failed = || format!("plugin {} failed (add)", plugin.describe());
            self.runner.check(&plugin.kind).with_context(failed)?;
        }
        Record::new(network, attachment, None).write(&self.cache, self.durable)?;
        let mut result: Option<Value> = None;
        for plugin in &network.plugins {
            let answer = self.call(Command::Add, network, plugin, attachment, result.take());
            let answer = answer.and_then(|answer| with_version(answer, network));
            result = Some(answer.with_context(|| format!("plugin {} failed (add)", plugin.describe()))?);
        }
        let result = result.unwrap_or_default();
        Record::new(network, attachment, Some(result.clone()))
            .write(&self.cache, self.durable)
            .with_context(|| format!("failed to set network {:?} cached result", network.name))?;
        NetworkResult::read(&result)
    }

    /// Detaches; what is not attached is no failure of ours, and plugins should not find it one.
    ///
    /// # Errors
    /// `plugin type="…" failed (delete): …`
    pub fn delete(&self, network: &NetworkConfig, attachment: &Attachment<'_>) -> Result<()> {
        attachment.validate()?;
        let version = network.parsed_version()?;
        let record = Record::read(&self.cache, &network.name, attachment.container_id, attachment.ifname);
        let mut attachment = *attachment;
        if let Some(record) = &record {
            // Who detaches may not know what was asked for.
            if attachment.args.is_empty() {
                attachment.args = &record.cni_args;
            }
            if attachment.capabilities.is_empty() {
                attachment.capabilities = &record.capability_args;
            }
        }
        let previous =
            previous(record.as_ref(), network).ok().flatten().filter(|_| version >= Version::CHECK);
        for plugin in network.plugins.iter().rev() {
            self.call(Command::Del, network, plugin, &attachment, previous.clone())
                .with_context(|| format!("plugin {} failed (delete)", plugin.describe()))?;
        }
        Record::remove(&self.cache, &network.name, attachment.container_id, attachment.ifname)
    }

    /// Asks whether an attachment is as it was made.
    ///
    /// # Errors
    /// `plugin type="…" failed (check): …`; for versions below 0.4.0, which have no CHECK.
    pub fn check(&self, network: &NetworkConfig, attachment: &Attachment<'_>) -> Result<()> {
        attachment.validate()?;
        if network.parsed_version()? < Version::CHECK {
            let version = &network.version;
            return Err(Error::unknown(format!(
                "configuration version {version:?} does not support the CHECK command"
            )));
        }
        if network.disable_check {
            return Ok(());
        }
        let record = Record::read(&self.cache, &network.name, attachment.container_id, attachment.ifname);
        let failed = || format!("failed to get network {:?} cached result", network.name);
        let previous = previous(record.as_ref(), network).with_context(failed)?;
        for plugin in &network.plugins {
            self.call(Command::Check, network, plugin, attachment, previous.clone())
                .with_context(|| format!("plugin {} failed (check)", plugin.describe()))?;
        }
        Ok(())
    }

    /// Asks whether a network can attach. Before 1.1.0 nobody can say no.
    ///
    /// # Errors
    /// `plugin type="…" failed (status): …`
    pub fn status(&self, network: &NetworkConfig) -> Result<()> {
        if network.parsed_version()? < Version::STATUS {
            return Ok(());
        }
        for plugin in &network.plugins {
            let config = configured(network, plugin, &Map::new());
            self.invoke(Command::Status, &plugin.kind, &config)
                .with_context(|| format!("plugin {} failed (status)", plugin.describe()))?;
        }
        Ok(())
    }

    /// Removes what is attached and not one of `valid` (container id and interface). All are tried.
    ///
    /// # Errors
    /// All of them, joined by line ends.
    pub fn collect(&self, network: &NetworkConfig, valid: &[(&str, &str)]) -> Result<()> {
        let mut failures: Vec<String> = Vec::new();
        let mut note =
            |done: Result<()>| failures.extend(done.err().map(|failed| failed.message().to_owned()));
        for record in Record::all(&self.cache, &network.name)? {
            let (id, ifname) = (record.container_id.as_str(), record.if_name.as_str());
            if valid.contains(&(id, ifname)) {
                continue;
            }
            // With the configuration that it was attached by, the file may say other things now.
            let then = record.config().unwrap_or_else(|_| network.clone());
            let (args, capabilities) = (&record.cni_args, &record.capability_args);
            let stale = Attachment { container_id: id, netns: "", ifname, args, capabilities };
            note(self.delete(&then, &stale));
        }
        if network.parsed_version()? >= Version::STATUS && !network.disable_gc {
            let valid: Vec<Value> =
                valid.iter().map(|(id, ifname)| json!({"containerID": id, "ifname": ifname})).collect();
            let added = Map::from_iter([("cni.dev/valid-attachments".to_owned(), json!(valid))]);
            for plugin in &network.plugins {
                let done = self.invoke(Command::Gc, &plugin.kind, &configured(network, plugin, &added));
                note(done.map(drop).with_context(|| format!("plugin {} failed (gc)", plugin.describe())));
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(Error::unknown(failures.join("\n"))) }
    }

    /// The container ids and interfaces that are attached to a network, or were tried to be.
    ///
    /// # Errors
    /// When the records cannot be listed.
    pub fn attached(&self, network: &str) -> Result<Vec<(String, String)>> {
        let records = Record::all(&self.cache, network)?;
        Ok(records.into_iter().map(|it| (it.container_id, it.if_name)).collect())
    }

    /// The versions that a plugin speaks; those that are older than the question speak the first.
    ///
    /// # Errors
    /// When it cannot be executed or answers nonsense.
    pub fn versions(&self, kind: &str) -> Result<Vec<String>> {
        let config = json!({"cniVersion": Version::NEWEST.to_string()});
        let answer = match self.invoke(Command::Version, kind, &config) {
            Err(old) if old.message().contains("unknown CNI_COMMAND: VERSION") => {
                return Ok(vec!["0.1.0".into()]);
            }
            other => other?.unwrap_or_default(),
        };
        let list = answer["supportedVersions"].as_array().ok_or_else(|| {
            Error::unknown(format!("plugin {kind:?}: decoding version info: missing field supportedVersions"))
        })?;
        Ok(list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    }

    /// Checks that the plugins of a network are there and speak its version.
    ///
    /// # Errors
    /// The first that does not.
    pub fn validate(&self, network: &NetworkConfig) -> Result<()> {
        let version = network.parsed_version()?.to_string();
        for plugin in &network.plugins {
            let spoken = self.versions(&plugin.kind)?;
            if !spoken.contains(&version) {
                let kind = &plugin.kind;
                return Err(Error::unknown(format!(
                    "plugin {kind} does not support config version {version:?}"
                )));
            }
        }
        Ok(())
    }

    fn call(
        &self,
        command: Command,
        network: &NetworkConfig,
        plugin: &PluginConfig,
        attachment: &Attachment<'_>,
        previous: Option<Value>,
    ) -> Result<Option<Value>> {
        let mut added = Map::new();
        let wanted = attachment.capabilities.iter().filter(|(name, _)| plugin.has_capability(name));
        let runtime: Map<String, Value> = wanted.map(|(name, value)| (name.clone(), value.clone())).collect();
        if !runtime.is_empty() {
            added.insert("runtimeConfig".into(), runtime.into());
        }
        if let Some(previous) = previous {
            added.insert("prevResult".into(), previous);
        }
        let config = configured(network, plugin, &added);
        let args = attachment.joined_args();
        let invocation = Invocation {
            command,
            container_id: attachment.container_id,
            netns: attachment.netns,
            args: &args,
            ifname: attachment.ifname,
            path: &self.runner.path(),
            config: &config,
        };
        self.runner.run(&plugin.kind, &invocation)
    }

    /// Commands that concern no attachment.
    fn invoke(&self, command: Command, kind: &str, config: &Value) -> Result<Option<Value>> {
        // Old plugins want to see something.
        let dummy = if command == Command::Version { "dummy" } else { "" };
        let path = self.runner.path();
        let invocation = Invocation {
            command,
            container_id: "",
            netns: dummy,
            args: "",
            ifname: dummy,
            path: &path,
            config,
        };
        self.runner.run(kind, &invocation)
    }
}

/// A plugin's configuration as it is told.
fn configured(network: &NetworkConfig, plugin: &PluginConfig, added: &Map<String, Value>) -> Value {
    let mut config = plugin.value.clone();
    config.insert("name".into(), json!(network.name));
    config.insert("cniVersion".into(), json!(network.version));
    config.extend(added.clone());
    config.into()
}

/// A result says its version; if not, it is the network's.
fn with_version(answer: Option<Value>, network: &NetworkConfig) -> Result<Value> {
    let mut answer = match answer {
        Some(Value::Null) => Value::Object(Map::new()),
        Some(object @ Value::Object(_)) => object,
        Some(_) => return Err(Error::unknown("failed to unmarshal raw result: not an object")),
        None => return Err(Error::unknown("failed to unmarshal raw result: unexpected end of JSON input")),
    };
    if answer["cniVersion"].as_str().is_none_or(str::is_empty) {
        answer["cniVersion"] = json!(network.version);
    }
    // Nonsense is refused here, where it is known whose it is.
    NetworkResult::read(&answer)?;
    Ok(answer)
}

/// A recorded result in the network's version.
fn previous(record: Option<&Record>, network: &NetworkConfig) -> Result<Option<Value>> {
    let Some(result) = record.and_then(|record| record.result.as_ref()) else { return Ok(None) };
    NetworkResult::read(result)?.to_version(&network.version).map(Some)
}
