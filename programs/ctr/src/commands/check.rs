//! `check`: whether this machine has what containers need, and what to do where it has not.

use std::path::Path;

use clap::Args;
use corten_types::Result;

use crate::client::Client;
use crate::output::{Format, Table};

/// Whether this machine has what containers need.
#[derive(Debug, Args)]
pub struct Check {
    /// How to show it.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// How something is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Ok,
    /// Some features are missing without it.
    Optional,
    /// Containers do not run without it.
    Missing,
}

const CONFIGURATION: &str = "/etc/containerd/config.toml";

struct Finding {
    what: &'static str,
    state: State,
    detail: String,
}

impl Check {
    /// Exit code 1 when something is missing that containers need.
    pub async fn run(self, client: &Client) -> Result<i32> {
        let mut findings = vec![kernel()];
        findings.extend(file_systems());
        findings.extend(namespaces());
        findings.push(cgroups());
        findings.extend(controllers());
        findings.extend(security());
        findings.extend(tools());
        findings.push(configuration());
        findings.extend(daemon(client).await);
        let mut table = Table::wide(&["WHAT", "STATE", "DETAIL"]);
        let missing = findings.iter().any(|one| one.state == State::Missing);
        for one in findings {
            let word = match one.state {
                State::Ok => "ok",
                State::Optional => "absent",
                State::Missing => "missing",
            };
            table.row([one.what.into(), word.into(), one.detail]);
        }
        table.show(self.format)?;
        Ok(i32::from(missing))
    }
}

fn finding(what: &'static str, present: bool, absent: State, detail: &str, advice: &str) -> Finding {
    match present {
        true => Finding { what, state: State::Ok, detail: detail.into() },
        false => Finding { what, state: absent, detail: advice.into() },
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn kernel() -> Finding {
    let release = read("/proc/sys/kernel/osrelease").trim().to_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let new = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (5, 12);
    finding(
        "kernel",
        new,
        State::Missing,
        &release,
        "older than 5.12, which the built-in OCI runtime needs: update the kernel",
    )
}

fn file_systems() -> Vec<Finding> {
    let known = read("/proc/filesystems");
    let has = |name: &str| known.lines().any(|line| line.split_whitespace().last() == Some(name));
    let one =
        |what: &'static str, absent, advice: &str| finding(what, has(what), absent, "file system", advice);
    vec![
        one("overlay", State::Missing, "modprobe overlay; or use --snapshotter native"),
        one("erofs", State::Optional, "modprobe erofs, for the snapshotter of this name"),
        one("fuse", State::Optional, "modprobe fuse, for fuse-overlayfs and remote snapshotters"),
        one("mqueue", State::Missing, "a kernel with CONFIG_POSIX_MQUEUE"),
    ]
}

fn namespaces() -> Vec<Finding> {
    let has = |name: &str| Path::new("/proc/self/ns").join(name).exists();
    let all = ["mnt", "pid", "uts", "ipc", "net"];
    let missing: Vec<&str> = all.into_iter().filter(|name| !has(name)).collect();
    let advice = format!("a kernel with namespaces: {}", missing.join(", "));
    let users = read("/proc/sys/user/max_user_namespaces").trim().parse().unwrap_or(0_u64) > 0;
    vec![
        finding("namespaces", missing.is_empty(), State::Missing, &all.join(", "), &advice),
        finding(
            "user namespaces",
            has("user") && users,
            State::Optional,
            "--uidmap and --gidmap",
            "sysctl user.max_user_namespaces, for --uidmap",
        ),
    ]
}

fn cgroups() -> Finding {
    let mounts = read("/proc/self/mountinfo");
    let v1 = mounts.contains(" - cgroup ");
    let v2 = mounts.contains(" - cgroup2 ");
    let (state, detail) = match (v1, v2) {
        (true, true) => (State::Ok, "hybrid: v1 controllers beside a v2 hierarchy"),
        (true, false) => (State::Ok, "v1"),
        (false, true) => (State::Ok, "v2"),
        (false, false) => (State::Missing, "mount -t cgroup2 none /sys/fs/cgroup"),
    };
    Finding { what: "cgroups", state, detail: detail.into() }
}

fn controllers() -> Vec<Finding> {
    let v2 = read("/sys/fs/cgroup/cgroup.controllers");
    let v1 = read("/proc/cgroups");
    let enabled = |name: &str| {
        v2.split_whitespace().any(|known| known == name)
            || v1
                .lines()
                .any(|line| line.split_whitespace().next() == Some(name) && line.trim_end().ends_with('1'))
    };
    let one = |what: &'static str, name: &str, advice: &str| {
        finding(what, enabled(name), State::Optional, "controller", advice)
    };
    vec![
        one("cgroup memory", "memory", "boot with cgroup_enable=memory, for --memory-limit"),
        one("cgroup cpu", "cpu", "for --cpus"),
        one("cgroup pids", "pids", "for limits of processes"),
    ]
}

fn security() -> Vec<Finding> {
    let seccomp = read("/proc/self/status").lines().any(|line| line.starts_with("Seccomp:"));
    let apparmor = Path::new("/sys/kernel/security/apparmor/profiles").exists();
    let forward = read("/proc/sys/net/ipv4/ip_forward").trim() == "1";
    let root = rustix::process::geteuid().is_root();
    vec![
        finding(
            "root",
            root,
            State::Optional,
            "you may use the daemon's socket",
            "sudo, or join the socket's group",
        ),
        finding("seccomp", seccomp, State::Optional, "--seccomp", "a kernel with CONFIG_SECCOMP_FILTER"),
        finding("apparmor", apparmor, State::Optional, "--apparmor-profile", "not enabled in this kernel"),
        finding(
            "ip forwarding",
            forward,
            State::Optional,
            "containers reach other machines",
            "sysctl -w net.ipv4.ip_forward=1, for containers that reach other machines",
        ),
    ]
}

fn tools() -> Vec<Finding> {
    let find = |name: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
    };
    let one = |what: &'static str, absent, advice: &str| {
        let found = find(what);
        let detail = found.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        finding(what, found.is_some(), absent, &detail, advice)
    };
    vec![
        one(
            "containerd-shim-runc-v2",
            State::Missing,
            "not on the PATH: `make install` places it beside containerd",
        ),
        one("runc", State::Optional, "not needed: an OCI runtime is built in; --runc-binary names another"),
        one("criu", State::Optional, "for checkpoints"),
        one("nft", State::Optional, "apt install nftables, for --publish and networks that reach others"),
        one("mkfs.erofs", State::Optional, "apt install erofs-utils, for layers that are erofs images"),
    ]
}

/// The daemon's own reading of its configuration.
fn configuration() -> Finding {
    let what = "configuration";
    if !Path::new(CONFIGURATION).exists() {
        return Finding { what, state: State::Ok, detail: "the defaults: there is no config.toml".into() };
    }
    let told =
        std::process::Command::new("containerd").args(["--config", CONFIGURATION, "config", "dump"]).output();
    match told {
        Ok(output) if output.status.success() => {
            Finding { what, state: State::Ok, detail: CONFIGURATION.into() }
        }
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            let why = text.lines().find(|line| !line.is_empty()).unwrap_or("it cannot be read");
            Finding { what, state: State::Missing, detail: why.to_owned() }
        }
        Err(_) => Finding {
            what,
            state: State::Optional,
            detail: "containerd is not on the PATH to read it".into(),
        },
    }
}

/// Parts of the daemon that could not be started; those that are not for this machine are no trouble.
fn parts(plugins: Vec<corten_api::services::introspection::Plugin>) -> Finding {
    let failed = plugins.into_iter().filter_map(|plugin| {
        let why = plugin.init_err.filter(|why| !why.message.contains("skip plugin"))?;
        Some(format!("{}.{}: {}", plugin.r#type, plugin.id, why.message))
    });
    let failed: Vec<String> = failed.collect();
    finding("plugins", failed.is_empty(), State::Missing, "all parts of the daemon work", &failed.join("; "))
}

async fn daemon(client: &Client) -> Vec<Finding> {
    let answer = async {
        let daemon = client.connect().await?;
        let version = daemon.version().version(()).await.map_err(crate::client::error)?;
        let request = corten_api::services::introspection::PluginsRequest::default();
        let plugins = daemon.introspection().plugins(request).await.map_err(crate::client::error)?;
        corten_types::Result::Ok((version, plugins.into_inner().plugins))
    };
    match answer.await {
        Ok((version, plugins)) => {
            let detail = format!("{} answers: {}", client.address.display(), version.into_inner().version);
            vec![Finding { what: "daemon", state: State::Ok, detail }, parts(plugins)]
        }
        Err(failed) => {
            let hint = crate::hints::about(&failed).map(|hint| format!(": {hint}")).unwrap_or_default();
            let detail = format!("{}{hint}", failed.message());
            vec![Finding { what: "daemon", state: State::Missing, detail }]
        }
    }
}
