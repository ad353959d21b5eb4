//! Namespaces that are there already, by their paths.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use corten_tests::eventually;
use serde_json::{Value, json};

use super::{Lab, open_to_others};

/// A process in namespaces of its own.
struct Target(Child, u32);

impl Target {
    fn start(namespaces: &[&str]) -> Self {
        let mut command = Command::new("unshare");
        command.args(namespaces).args(["--fork", "--kill-child", "sleep", "1000"]);
        let outer = command.stdin(Stdio::null()).spawn().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", outer.id());
        let child = || std::fs::read_to_string(&children).ok()?.trim().parse().ok();
        let inner = eventually("there is a process", Duration::from_secs(60), child);
        Self(outer, inner)
    }

    fn namespace(&self, name: &str) -> String {
        format!("/proc/{}/ns/{name}", self.1)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Runs a script in a container that joins namespaces instead of making them.
fn joined(lab: &Lab, target: &Target, names: &[(&str, &str)], patch: &Value, script: &str) -> String {
    open_to_others(lab.scratch.path());
    lab.configure(patch, script);
    let file = lab.scratch.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|one| names.iter().all(|(kind, _)| one["type"] != *kind));
    namespaces.extend(names.iter().map(|(kind, file)| json!({"type": kind, "path": target.namespace(file)})));
    // The name of the host is that of who made the namespace.
    config.as_object_mut().unwrap().remove("hostname");
    std::fs::write(file, config.to_string()).unwrap();
    lab.call(&["run", &lab.id()]).ok()
}

#[test]
fn namespaces_are_joined_by_their_paths() {
    let target = Target::start(&["--net", "--ipc", "--uts", "--pid", "--cgroup"]);
    let names = [("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid"), ("cgroup", "cgroup")];
    let links =
        names.map(|(_, file)| std::fs::read_link(target.namespace(file)).unwrap().display().to_string());
    let script = "for one in net ipc uts pid cgroup; do readlink /proc/self/ns/$one; done";
    for lab in [Lab::ours(), Lab::runc(), Lab::crun()] {
        let seen = joined(&lab, &target, &names, &json!({}), script);
        assert_eq!(seen.lines().collect::<Vec<_>>(), links, "{}", lab.runtime.display());
    }
}

#[test]
fn a_namespace_of_users_is_joined_by_its_path() {
    let target = Target::start(&["--user", "--net"]);
    for file in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{}/{file}", target.1), "0 100000 65536").unwrap();
    }
    let maps = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    let patch = json!({"linux": {"uidMappings": maps, "gidMappings": maps}});
    let link = std::fs::read_link(target.namespace("user")).unwrap().display().to_string();
    let names = [("user", "user"), ("network", "net")];
    for lab in [Lab::ours(), Lab::runc()] {
        let seen = joined(&lab, &target, &names, &patch, "readlink /proc/self/ns/user; id -u");
        assert_eq!(seen, format!("{link}\n0\n"), "{}", lab.runtime.display());
    }
}
