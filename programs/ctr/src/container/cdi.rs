//! Devices by name (CDI): what vendors say in JSON files that a device needs inside of a container.

use std::path::Path;

use corten_oci::spec::Spec;
use corten_types::{Error, Result};
use serde_json::{Value, json};

use super::devices;

/// Where vendors put their files; the later folder wins.
const FOLDERS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// A class of devices: `vendor/class`, its devices and what all of them need.
struct Class {
    kind: String,
    devices: Vec<Value>,
    common: Value,
}

fn classes() -> Vec<Class> {
    let files = |folder: &&str| std::fs::read_dir(Path::new(folder)).into_iter().flatten().flatten();
    let files = FOLDERS.iter().rev().flat_map(files).map(|entry| entry.path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    let read = |path: std::path::PathBuf| -> Option<Class> {
        let mut file: Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        let kind = file["kind"].as_str()?.to_owned();
        let devices = file["devices"].as_array().cloned().unwrap_or_default();
        Some(Class { kind, devices, common: file["containerEdits"].take() })
    };
    files.filter_map(read).collect()
}

/// The names of graphics processors, by the vendors that are there.
pub fn gpus(numbers: &[u32]) -> Result<Vec<String>> {
    if numbers.is_empty() {
        return Ok(Vec::new());
    }
    let known = classes();
    let vendor =
        ["nvidia.com/gpu", "amd.com/gpu"].into_iter().find(|kind| known.iter().any(|one| one.kind == *kind));
    let none = || {
        let folders = FOLDERS.join(" and ");
        Error::unknown(format!("no vendor of graphics processors has told its devices in {folders}"))
            .with_hint("for NVIDIA: nvidia-ctk cdi generate --format=json --output=/etc/cdi/nvidia.json")
    };
    let vendor = vendor.ok_or_else(none)?;
    Ok(numbers.iter().map(|number| format!("{vendor}={number}")).collect())
}

/// Gives a container devices by their names, `vendor/class=name`.
pub fn inject(spec: &mut Spec, names: &[String]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let known = classes();
    let find = |name: &String| {
        let (kind, device) = name.split_once('=')?;
        let class = known
            .iter()
            .find(|class| class.kind == kind && class.devices.iter().any(|one| one["name"] == device))?;
        let found = class.devices.iter().find(|one| one["name"] == device)?;
        Some((class, found["containerEdits"].clone()))
    };
    let missing: Vec<&str> = names.iter().filter(|name| find(name).is_none()).map(String::as_str).collect();
    if !missing.is_empty() {
        let text = format!("CDI device injection failed: unresolvable CDI devices {}", missing.join(", "));
        return Err(Error::unknown(text));
    }
    let mut done: Vec<&str> = Vec::new();
    for (class, edits) in names.iter().filter_map(find) {
        edit(spec, &edits)?;
        if !done.contains(&class.kind.as_str()) {
            edit(spec, &class.common)?;
            done.push(&class.kind);
        }
    }
    Ok(())
}

/// Makes the edits of one device, or those common to a class.
fn edit(spec: &mut Spec, edits: &Value) -> Result<()> {
    let list = |name: &str| edits[name].as_array().cloned().unwrap_or_default();
    let env: Vec<String> = list("env").iter().filter_map(|one| one.as_str().map(str::to_owned)).collect();
    spec.add_env(&env);
    for node in list("deviceNodes") {
        let path = node["path"].as_str().unwrap_or_default();
        devices::add(spec, node["hostPath"].as_str().unwrap_or(path))?;
    }
    for mount in list("mounts") {
        spec.add_mount(json!({
            "destination": mount["containerPath"], "source": mount["hostPath"],
            "type": mount["type"].as_str().unwrap_or("bind"),
            "options": mount["options"].as_array().cloned().unwrap_or_else(|| vec![json!("rbind")]),
        }));
    }
    for hook in list("hooks") {
        let name = hook["hookName"].as_str().unwrap_or_default();
        let mut entry = json!({"path": hook["path"]});
        for field in ["args", "env", "timeout"] {
            if !hook[field].is_null() {
                entry[field] = hook[field].clone();
            }
        }
        let mut hooks = spec.value()["hooks"][name].as_array().cloned().unwrap_or_default();
        hooks.push(entry);
        spec.value_mut()["hooks"][name] = json!(hooks);
    }
    Ok(())
}
