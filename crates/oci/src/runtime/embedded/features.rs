//! What this runtime can do, as `runc features` and a shim's `-info` tell it (OCI runtime specification, features).

use serde_json::{Value, json};

use super::{config, options, process, seccomp};

/// All of it.
#[must_use]
pub fn features() -> Value {
    let capabilities: Vec<String> = process::CAPABILITIES.iter().map(|name| format!("CAP_{name}")).collect();
    let archs: Vec<String> =
        seccomp::ARCHITECTURES.iter().map(|(name, _)| format!("SCMP_ARCH_{name}")).collect();
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": config::VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": options::NAMES,
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": capabilities,
            "cgroup": {"v1": true, "v2": true, "systemd": true, "systemdUser": false, "rdma": true},
            "seccomp": {
                "enabled": true,
                "actions": seccomp::ACTIONS,
                "operators": seccomp::OPERATORS,
                "archs": archs,
                "knownFlags": seccomp::FLAGS,
                "supportedFlags": seccomp::FLAGS,
            },
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
            "intelRdt": {"enabled": true},
            "mountExtensions": {"idmap": {"enabled": true}},
            "netDevices": {"enabled": true},
        },
        "annotations": {"org.opencontainers.runc.checkpoint.enabled": "true"},
    })
}
