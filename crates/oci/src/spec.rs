//! The specification of a container, as JSON: the default one and the edits that clients make (spec 04 §6.1,
//! spec 05 `run`).

use serde_json::{Map, Value, json};

/// Path for programs where an image says nothing.
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Every capability of the kernels of today.
const ALL_CAPABILITIES: &str = "AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN \
    DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE \
    MKNOD NET_ADMIN NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN \
    SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG \
    WAKE_ALARM";

/// A specification being made.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec(Value);

impl Spec {
    /// What every client starts from.
    #[must_use]
    pub fn new(namespace: &str, id: &str) -> Self {
        let mount = |destination: &str, kind: &str, source: &str, options: &str| {
            let options: Vec<&str> = options.split(',').collect();
            json!({"destination": destination, "type": kind, "source": source, "options": options})
        };
        let capabilities =
            json!({"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES});
        Self(json!({
            "ociVersion": "1.2.0",
            "process": {
                "user": {"uid": 0, "gid": 0, "additionalGids": [0]},
                "cwd": "/",
                "env": [],
                "args": [],
                "capabilities": capabilities,
                "noNewPrivileges": true,
                "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            },
            "root": {"path": "rootfs"},
            "mounts": [
                mount("/proc", "proc", "proc", "nosuid,noexec,nodev"),
                mount("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
                mount("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
                mount("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=65536k"),
                mount("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
                mount("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
                mount("/run", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
            ],
            "linux": {
                "resources": {"devices": devices()},
                "cgroupsPath": format!("/{namespace}/{id}"),
                "namespaces": [
                    {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"},
                ],
                "maskedPaths": [
                    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware",
                    "/sys/devices/virtual/powercap", "/proc/scsi",
                ],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            },
        }))
    }

    /// One that somebody else wrote.
    ///
    /// # Errors
    /// For what is not a JSON object.
    pub fn read(data: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(data).map_err(|error| error.to_string())?;
        if value.is_object() { Ok(Self(value)) } else { Err("a specification is an object".into()) }
    }

    /// The JSON.
    #[must_use]
    pub fn value(&self) -> &Value {
        &self.0
    }

    /// The JSON, to be edited.
    pub fn value_mut(&mut self) -> &mut Value {
        &mut self.0
    }

    /// The JSON's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.to_string().into_bytes()
    }

    /// Adds `K=V` variables; a later one replaces an earlier one in its place, `K` alone removes it.
    pub fn add_env<S: AsRef<str>>(&mut self, variables: &[S]) {
        let env = &mut self.0["process"]["env"];
        let mut list: Vec<String> = serde_json::from_value(env.take()).unwrap_or_default();
        for variable in variables {
            let variable = variable.as_ref();
            let key = variable.split('=').next().unwrap_or_default();
            let at = list.iter().position(|known| known.split('=').next() == Some(key));
            match (at, variable.contains('=')) {
                (Some(at), true) => variable.clone_into(&mut list[at]),
                (Some(at), false) => drop(list.remove(at)),
                (None, true) => list.push(variable.to_owned()),
                (None, false) => {}
            }
        }
        *env = json!(list);
    }

    /// Adds a mount; one on the same destination is replaced.
    pub fn add_mount(&mut self, mount: Value) {
        let list = array(&mut self.0["mounts"]);
        list.retain(|known| known["destination"] != mount["destination"]);
        list.push(mount);
    }

    /// What is executed.
    pub fn set_args<S: AsRef<str>>(&mut self, args: &[S]) {
        let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
        self.0["process"]["args"] = json!(args);
    }

    /// The folder that the process begins in.
    pub fn set_cwd(&mut self, cwd: &str) {
        self.0["process"]["cwd"] = json!(cwd);
    }

    /// The process gets a terminal.
    pub fn set_terminal(&mut self) {
        self.0["process"]["terminal"] = json!(true);
        self.add_env(&["TERM=xterm"]);
    }

    /// Joins a namespace by its path, or makes a new one.
    pub fn set_namespace(&mut self, kind: &str, path: &str) {
        let list = array(&mut self.0["linux"]["namespaces"]);
        list.retain(|known| known["type"] != kind);
        let mut entry = json!({"type": kind});
        if !path.is_empty() {
            entry["path"] = json!(path);
        }
        list.push(entry);
    }

    /// Shares the host's network, with its names.
    pub fn share_host_network(&mut self, hostname: &str) {
        array(&mut self.0["linux"]["namespaces"]).retain(|known| known["type"] != "network");
        for file in ["/etc/hosts", "/etc/resolv.conf"] {
            self.add_mount(
                json!({"destination": file, "type": "bind", "source": file, "options": ["rbind", "ro"]}),
            );
        }
        self.add_env(&[format!("HOSTNAME={hostname}")]);
    }

    /// A limit among the resources: `memory`, `limit`.
    pub fn set_resource(&mut self, controller: &str, key: &str, value: Value) {
        self.0["linux"]["resources"][controller][key] = value;
    }

    /// Everything is allowed that the host allows.
    pub fn set_privileged(&mut self) {
        let all: Vec<String> =
            ALL_CAPABILITIES.split_whitespace().map(|name| format!("CAP_{name}")).collect();
        let known = last_capability();
        let all: Vec<String> =
            all.into_iter().filter(|name| known.is_none_or(|known| number(name) <= known)).collect();
        self.0["process"]["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
        self.0["process"]["noNewPrivileges"] = json!(false);
        self.0["linux"]["maskedPaths"] = json!([]);
        self.0["linux"]["readonlyPaths"] = json!([]);
        self.0["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
        for mount in array(&mut self.0["mounts"]) {
            if mount["destination"] == "/sys" {
                array(&mut mount["options"]).retain(|option| option != "ro");
            }
        }
    }

    /// Adds or drops capabilities.
    pub fn change_capabilities(&mut self, add: &[String], drop: &[String]) {
        for set in ["bounding", "effective", "permitted"] {
            let list = array(&mut self.0["process"]["capabilities"][set]);
            list.retain(|known| !drop.iter().any(|name| known == name));
            for name in add {
                if !list.iter().any(|known| known == name) {
                    list.push(json!(name));
                }
            }
        }
    }

    /// Annotations.
    pub fn annotate(&mut self, key: &str, value: &str) {
        if !self.0["annotations"].is_object() {
            self.0["annotations"] = Value::Object(Map::new());
        }
        self.0["annotations"][key] = json!(value);
    }

    /// User, groups, environment, folder and command of an image's config, under what was set before.
    pub fn apply_image(&mut self, config: &Value, args: &[String]) {
        let strings =
            |value: &Value| -> Vec<String> { serde_json::from_value(value.clone()).unwrap_or_default() };
        let given: Vec<String> = strings(&self.0["process"]["env"]);
        let mut env = strings(&config["Env"]);
        if env.is_empty() {
            env.push(DEFAULT_PATH.to_owned());
        }
        self.0["process"]["env"] = json!(env);
        self.add_env(&given);
        if args.is_empty() {
            let mut command = strings(&config["Entrypoint"]);
            command.extend(strings(&config["Cmd"]));
            self.set_args(&command);
        }
        if let Some(cwd) = config["WorkingDir"].as_str().filter(|cwd| !cwd.is_empty()) {
            self.set_cwd(cwd);
        }
    }
}

fn array(value: &mut Value) -> &mut Vec<Value> {
    if !value.is_array() {
        *value = json!([]);
    }
    match value {
        Value::Array(list) => list,
        _ => unreachable!("it has just been made an array"),
    }
}

/// Nothing, and then what every process needs.
fn devices() -> Value {
    let mut list = vec![json!({"allow": false, "access": "rwm"})];
    let common = [
        (1, Some(3)),
        (1, Some(8)),
        (1, Some(7)),
        (5, Some(0)),
        (1, Some(5)),
        (1, Some(9)),
        (5, Some(1)),
        (136, None),
        (5, Some(2)),
    ];
    for (major, minor) in common {
        let mut device = json!({"allow": true, "type": "c", "major": major, "access": "rwm"});
        if let Some(minor) = minor {
            device["minor"] = json!(minor);
        }
        list.push(device);
    }
    json!(list)
}

/// The highest capability of this kernel.
fn last_capability() -> Option<u32> {
    std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok()?.trim().parse().ok()
}

/// Those beyond the old ones, by number; the old ones are known to every kernel.
fn number(name: &str) -> u32 {
    match name {
        "CAP_AUDIT_READ" => 37,
        "CAP_PERFMON" => 38,
        "CAP_BPF" => 39,
        "CAP_CHECKPOINT_RESTORE" => 40,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_follow_each_other() {
        let mut spec = Spec::new("ns", "id");
        spec.add_env(&["A=1", "B=2"]);
        spec.apply_image(&json!({"Env": ["PATH=/bin", "A=0"], "Cmd": ["sh"], "WorkingDir": "/tmp"}), &[]);
        spec.add_env(&["B", "C=3"]);
        assert_eq!(spec.value()["process"]["env"], json!(["PATH=/bin", "A=1", "C=3"]));
        assert_eq!(spec.value()["process"]["args"], json!(["sh"]));
        assert_eq!(spec.value()["process"]["cwd"], "/tmp");
        assert_eq!(spec.value()["linux"]["cgroupsPath"], "/ns/id");
        spec.set_namespace("network", "/run/netns/x");
        spec.set_resource("memory", "limit", json!(1024));
        assert_eq!(spec.value()["linux"]["resources"]["memory"]["limit"], 1024);
        let namespaces = spec.value()["linux"]["namespaces"].as_array().unwrap();
        assert_eq!(namespaces.iter().filter(|one| one["type"] == "network").count(), 1);
        spec.add_mount(json!({"destination": "/run", "type": "bind", "source": "/x"}));
        assert_eq!(spec.value()["mounts"].as_array().unwrap().len(), 7);
        spec.set_privileged();
        assert_eq!(spec.value()["process"]["noNewPrivileges"], false);
    }
}
