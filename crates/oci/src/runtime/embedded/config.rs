//! `config.json` as far as it is acted upon (OCI runtime specification 1.2). What is unknown is skipped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use corten_cgroups::Resources;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Failure;

/// The newest specification that is known.
pub(super) const VERSION: &str = "1.2.0";

/// A container.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Config {
    pub oci_version: String,
    pub process: Option<Process>,
    pub root: Root,
    pub hostname: String,
    pub domainname: String,
    pub mounts: Vec<Mount>,
    pub hooks: Hooks,
    pub annotations: BTreeMap<String, String>,
    pub linux: Linux,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Root {
    pub path: PathBuf,
    pub readonly: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Mount {
    pub destination: PathBuf,
    #[serde(rename = "type")]
    pub kind: String,
    pub source: String,
    pub options: Vec<String>,
    pub uid_mappings: Vec<IdMapping>,
    pub gid_mappings: Vec<IdMapping>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct IdMapping {
    #[serde(rename = "containerID")]
    pub container: u32,
    #[serde(rename = "hostID")]
    pub host: u32,
    pub size: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Hooks {
    pub prestart: Vec<Hook>,
    pub create_runtime: Vec<Hook>,
    pub create_container: Vec<Hook>,
    pub start_container: Vec<Hook>,
    pub poststart: Vec<Hook>,
    pub poststop: Vec<Hook>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Hook {
    pub path: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<String>,
    /// Seconds.
    pub timeout: Option<u64>,
}

/// A process, of a container or one that is added.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Process {
    pub terminal: bool,
    pub console_size: Option<Size>,
    pub user: User,
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: PathBuf,
    pub capabilities: Option<Capabilities>,
    pub rlimits: Vec<Rlimit>,
    pub no_new_privileges: bool,
    pub apparmor_profile: String,
    pub oom_score_adj: Option<i32>,
    pub selinux_label: String,
    pub io_priority: Option<IoPriority>,
    pub scheduler: Option<Scheduler>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Size {
    pub height: u16,
    pub width: u16,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct User {
    pub uid: u32,
    pub gid: u32,
    pub umask: Option<u32>,
    pub additional_gids: Vec<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Capabilities {
    pub bounding: Vec<String>,
    pub effective: Vec<String>,
    pub inheritable: Vec<String>,
    pub permitted: Vec<String>,
    pub ambient: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Rlimit {
    #[serde(rename = "type")]
    pub kind: String,
    pub hard: u64,
    pub soft: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct IoPriority {
    pub class: String,
    pub priority: i32,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Scheduler {
    pub policy: String,
    pub nice: i32,
    pub priority: u32,
    pub flags: Vec<String>,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Linux {
    pub uid_mappings: Vec<IdMapping>,
    pub gid_mappings: Vec<IdMapping>,
    pub sysctl: BTreeMap<String, String>,
    pub resources: Resources,
    pub cgroups_path: PathBuf,
    pub namespaces: Vec<Namespace>,
    pub devices: Vec<Device>,
    pub seccomp: Option<Seccomp>,
    pub rootfs_propagation: String,
    pub masked_paths: Vec<PathBuf>,
    pub readonly_paths: Vec<PathBuf>,
    pub personality: Option<Personality>,
    pub time_offsets: BTreeMap<String, TimeOffset>,
    pub net_devices: BTreeMap<String, NetDevice>,
    pub intel_rdt: Option<IntelRdt>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Namespace {
    #[serde(rename = "type")]
    pub kind: String,
    pub path: PathBuf,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Device {
    #[serde(rename = "type")]
    pub kind: String,
    pub path: PathBuf,
    pub major: i64,
    pub minor: i64,
    pub file_mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// Shares of the processor's caches and of memory bandwidth.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct IntelRdt {
    #[serde(rename = "closID")]
    pub clos_id: String,
    pub l3_cache_schema: String,
    pub mem_bw_schema: String,
    pub schemata: Vec<String>,
    pub enable_monitoring: bool,
}

/// An interface of the host that moves into the container.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct NetDevice {
    /// Its name there; as it is, when empty.
    pub name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Personality {
    pub domain: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TimeOffset {
    pub secs: i64,
    pub nanosecs: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Seccomp {
    pub default_action: String,
    pub default_errno_ret: Option<u32>,
    pub architectures: Vec<String>,
    pub flags: Vec<String>,
    pub listener_path: String,
    pub listener_metadata: String,
    pub syscalls: Vec<Syscall>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Syscall {
    pub names: Vec<String>,
    pub action: String,
    pub errno_ret: Option<u32>,
    pub args: Vec<Argument>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Argument {
    pub index: u32,
    pub value: u64,
    pub value_two: u64,
    pub op: String,
}

impl Config {
    /// Reads a bundle's.
    pub(super) fn read(bundle: &Path) -> Result<Self, Failure> {
        let path = bundle.join("config.json");
        let text = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let config: Self = parse(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        config.check()?;
        Ok(config)
    }

    /// The namespace of a kind, if the configuration names one.
    pub(super) fn namespace(&self, kind: &str) -> Option<&Namespace> {
        self.linux.namespaces.iter().find(|one| one.kind == kind)
    }

    /// Whether it gets a new namespace of a kind.
    pub(super) fn unshares(&self, kind: &str) -> bool {
        self.namespace(kind).is_some_and(|one| one.path.as_os_str().is_empty())
    }

    fn check(&self) -> Result<(), Failure> {
        if self.root.path.as_os_str().is_empty() {
            return Err("root.path must be set".into());
        }
        let mut kinds: Vec<&str> = self.linux.namespaces.iter().map(|one| one.kind.as_str()).collect();
        kinds.sort_unstable();
        if let Some([twice, _]) = kinds.windows(2).find(|pair| matches!(pair, [a, b] if a == b)) {
            return Err(format!("malformed spec file: duplicated ns {{\"{twice}\" \"\"}}"));
        }
        if self.namespace("mount").is_none() {
            return Err("a mount namespace is needed".into());
        }
        if self.namespace("uts").is_none() && !self.hostname.is_empty() {
            return Err("unable to set hostname without a private UTS namespace".into());
        }
        if self.mounts.iter().any(|mount| mount.destination.as_os_str().is_empty()) {
            return Err("mounts need a destination".into());
        }
        if self.unshares("user") && self.linux.uid_mappings.is_empty() {
            return Err("user namespaces enabled, but no uid mappings found".into());
        }
        if self.namespace("user").is_none() && !self.linux.uid_mappings.is_empty() {
            return Err(
                "user namespace mappings specified, but user namespace isn't enabled in the config".into()
            );
        }
        if !self.linux.net_devices.is_empty() && self.namespace("network").is_none() {
            return Err("unable to move network devices without a private NET namespace".into());
        }
        self.process.as_ref().map_or(Ok(()), Process::check)
    }
}

impl Seccomp {
    /// Whether somebody else is to decide about calls.
    pub(super) fn notifies(&self) -> bool {
        let notify = |action: &str| action == "SCMP_ACT_NOTIFY";
        notify(&self.default_action) || self.syscalls.iter().any(|group| notify(&group.action))
    }
}

impl Process {
    /// Reads one that is to be added.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let process: Self = parse(&text).map_err(|error| format!("process: {error}"))?;
        process.check()?;
        Ok(process)
    }

    fn check(&self) -> Result<(), Failure> {
        if self.args.is_empty() {
            return Err("args must not be empty".into());
        }
        if self.cwd.as_os_str().is_empty() {
            return Err("Cwd property must not be empty".into());
        }
        if !self.cwd.is_absolute() {
            return Err("Cwd must be an absolute path".into());
        }
        let nul = |text: &String| text.contains('\0');
        if self.args.iter().any(nul) || self.env.iter().any(nul) {
            return Err("args and env must not contain NUL".into());
        }
        Ok(())
    }
}

/// Parses JSON in which Go may have written null for what is empty.
fn parse<T: for<'a> Deserialize<'a>>(text: &[u8]) -> Result<T, serde_json::Error> {
    let mut value: Value = serde_json::from_slice(text)?;
    drop_nulls(&mut value);
    serde_json::from_value(value)
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: Value) -> Result<Config, Failure> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
        Config::read(folder.path())
    }

    #[test]
    fn nulls_are_what_is_missing_and_unknown_keys_are_skipped() {
        let config = read(serde_json::json!({
            "root": {"path": "rootfs"}, "mounts": null, "future": {"x": 1},
            "process": {"args": ["a"], "cwd": "/", "env": null, "user": {"additionalGids": null}},
            "linux": {"namespaces": [{"type": "mount"}, {"type": "network", "path": "/x"}], "resources": null},
        }))
        .unwrap();
        assert!(config.unshares("mount") && !config.unshares("network"));
        assert_eq!(config.process.unwrap().args, ["a"]);
    }

    #[test]
    fn nonsense_is_named() {
        let with = |patch: Value| {
            let mut json = serde_json::json!({
                "root": {"path": "rootfs"}, "linux": {"namespaces": [{"type": "mount"}]},
                "process": {"args": ["a"], "cwd": "/"},
            });
            for (key, value) in patch.as_object().unwrap() {
                json[key] = value.clone();
            }
            read(json).unwrap_err()
        };
        assert!(
            with(serde_json::json!({"process": {"args": [], "cwd": "/"}})).contains("args must not be empty")
        );
        assert!(with(serde_json::json!({"process": {"args": ["a"], "cwd": "x"}})).contains("absolute"));
        assert!(with(serde_json::json!({"root": {}})).contains("root.path"));
        assert!(with(serde_json::json!({"hostname": "x"})).contains("UTS"));
        assert!(with(serde_json::json!({"linux": {"namespaces": []}})).contains("mount namespace"));
        assert!(read(serde_json::json!("x")).unwrap_err().contains("config.json"));
    }
}
