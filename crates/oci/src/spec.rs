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

/// The version of the OCI's specification that ours are made for.
const VERSION: &str = "1.2.1";

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
            "ociVersion": VERSION,
            "process": {
                "user": {"uid": 0, "gid": 0},
                "cwd": "/",
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
                "resources": {"devices": [{"allow": false, "access": "rwm"}]},
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

    /// What clients start from for Windows.
    #[must_use]
    pub fn windows() -> Self {
        Self(json!({
            "ociVersion": VERSION,
            "process": {"user": {"uid": 0, "gid": 0}, "cwd": "C:\\"},
            "root": {"path": ""},
            "windows": {"layerFolders": null},
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
        if variables.is_empty() {
            return;
        }
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

    /// Adds a mount; one on the same destination goes.
    pub fn add_mount(&mut self, mount: Value) {
        let list = array(&mut self.0["mounts"]);
        list.retain(|known| known["destination"] != mount["destination"]);
        list.push(mount);
    }

    /// Allows the devices that every process needs.
    pub fn allow_common_devices(&mut self) {
        for (major, minor) in COMMON_DEVICES {
            let mut rule = json!({"allow": true, "type": "c", "major": major, "access": "rwm"});
            if let Some(minor) = minor {
                rule["minor"] = json!(minor);
            }
            array(&mut self.0["linux"]["resources"]["devices"]).push(rule);
        }
    }

    /// Gives the process a device, as its node (`path`, `type`, `major`, `minor`, `fileMode`, `uid`, `gid`).
    pub fn add_device(&mut self, node: Value) {
        array(&mut self.0["linux"]["devices"]).push(node);
    }

    /// Allows what `access` says on a device.
    pub fn allow_device(&mut self, kind: &str, major: u32, minor: u32, access: &str) {
        let rule = json!({"allow": true, "type": kind, "major": major, "minor": minor, "access": access});
        array(&mut self.0["linux"]["resources"]["devices"]).push(rule);
    }

    /// Every device is allowed.
    pub fn allow_all_devices(&mut self) {
        self.0["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    }

    /// A user namespace with these maps: container id, host id, length.
    pub fn map_users(&mut self, users: &[(u32, u32, u32)], groups: &[(u32, u32, u32)]) {
        self.set_namespace("user", "");
        let map = |ranges: &[(u32, u32, u32)]| {
            let entry = |(inside, host, size): &(u32, u32, u32)| json!({"containerID": inside, "hostID": host, "size": size});
            json!(ranges.iter().map(entry).collect::<Vec<_>>())
        };
        self.0["linux"]["uidMappings"] = map(users);
        self.0["linux"]["gidMappings"] = map(groups);
    }

    /// The capabilities of a set, as the bounding one.
    #[must_use]
    pub fn capabilities(&self, set: &str) -> Vec<String> {
        serde_json::from_value(self.0["process"]["capabilities"][set].clone()).unwrap_or_default()
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
        let mut entry = json!({"type": kind});
        if !path.is_empty() {
            entry["path"] = json!(path);
        }
        let same = |known: &Value| known["type"] == kind;
        replace(array(&mut self.0["linux"]["namespaces"]), same, entry);
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

    /// Everything is allowed that the caller may: its capabilities, nothing masked, `/sys` and cgroups to be written.
    pub fn set_privileged(&mut self) {
        let all = own_capabilities();
        self.0["process"]["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
        if let Some(process) = self.0["process"].as_object_mut() {
            process.remove("selinuxLabel");
            process.remove("apparmorProfile");
        }
        if let Some(linux) = self.0["linux"].as_object_mut() {
            for field in ["maskedPaths", "readonlyPaths", "seccomp"] {
                linux.remove(field);
            }
        }
        for mount in array(&mut self.0["mounts"]) {
            if mount["type"] == "sysfs" || mount["type"] == "cgroup" {
                for option in array(&mut mount["options"]) {
                    if *option == "ro" {
                        *option = json!("rw");
                    }
                }
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
        self.0["process"]["user"]["additionalGids"] = json!([0]);
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

/// Puts an entry in the place of its like, or at the end.
fn replace(list: &mut Vec<Value>, same: impl Fn(&Value) -> bool, entry: Value) {
    match list.iter_mut().find(|known| same(known)) {
        Some(known) => *known = entry,
        None => list.push(entry),
    }
}

/// Character devices that every process needs: null, zero, full, tty, random, urandom, console, pts, ptmx.
const COMMON_DEVICES: [(u32, Option<u32>); 9] = [
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

/// Capabilities in the order of their numbers.
const ALL_CAPABILITIES: &str = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP \
    LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO \
    SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE \
    AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF \
    CHECKPOINT_RESTORE";

/// The capabilities that this process has.
fn own_capabilities() -> Vec<String> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let names = ALL_CAPABILITIES.split_whitespace().enumerate();
    names.filter(|(bit, _)| effective & (1 << bit) != 0).map(|(_, name)| format!("CAP_{name}")).collect()
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
        assert!(spec.value()["linux"]["maskedPaths"].is_null());
        let sys = spec.value()["mounts"]
            .as_array()
            .unwrap()
            .iter()
            .find(|one| one["destination"] == "/sys")
            .unwrap();
        assert_eq!(sys["options"][3], "rw");
    }
}
