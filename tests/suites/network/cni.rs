//! `ctr run --cni` (spec 06 §4), by our `ctr` and Debian's, with Debian's plugins and with those that are built in.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use corten_network::{Netlink, NetworkNamespace};
use corten_tests::{Finished, Peers, eventually};
use serde_json::json;

use crate::{IMAGE, Lab};

/// Puts folders of the test's in the place of the machine's, for one command: `/etc/cni`, `/opt/cni/bin`, `/var/lib/cni`.
const AROUND: &str = r#"set -e
s=$1; plugins=$2; shift 2
mount -t tmpfs none "$s/t"
for d in etc opt var/lib; do
    u=$s/t/$(basename $d); mkdir "$u" "$u.w"
    mount -t overlay none -o "lowerdir=/$d,upperdir=$u,workdir=$u.w" "/$d"
done
mkdir -p /etc/cni/net.d /opt/cni/bin /var/lib/cni
mount --bind "$s/net.d" /etc/cni/net.d
mount --bind "$plugins" /opt/cni/bin
mount --bind "$s/state" /var/lib/cni
exec "$@"
"#;

struct Site {
    lab: Lab,
    plugins: PathBuf,
}

impl Site {
    /// With Debian's plugins, or none.
    fn new(debian: bool) -> Self {
        let lab = Lab::start();
        for folder in ["t", "net.d", "state", "none"] {
            std::fs::create_dir(lab.scratch.join(folder)).unwrap();
        }
        let plugins = if debian { Peers::find().cni() } else { lab.scratch.join("none") };
        Self { lab, plugins }
    }

    fn configure(&self) {
        let list = json!({"cniVersion": "1.0.0", "name": "lab", "plugins": [
            {"type": "bridge", "bridge": "br-lab", "isGateway": true, "ipMasq": false,
                "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.90.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
            {"type": "portmap", "capabilities": {"portMappings": true}}]});
        std::fs::write(self.lab.scratch.join("net.d/10-lab.conflist"), list.to_string()).unwrap();
    }

    /// Runs a `ctr` among these folders.
    fn ctr(&self, program: &Path, args: &[&str]) -> Finished {
        let inner = self.lab.node().foreign_ctr_command(program, args);
        let mut command = Command::new("unshare");
        command.args(["-m", "--propagation", "private", "sh", "-c", AROUND, "sh"]);
        command
            .arg(self.lab.scratch.path())
            .arg(&self.plugins)
            .arg(inner.get_program())
            .args(inner.get_args());
        command.env("CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS", "1");
        self.lab.run(command)
    }

    /// Names of leases and records.
    fn kept(&self) -> Vec<String> {
        let mut found = Vec::new();
        for folder in ["state/networks/lab", "state/results"] {
            let entries = std::fs::read_dir(self.lab.scratch.join(folder)).into_iter().flatten().flatten();
            let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
            found.extend(names.filter(|name| name != "lock" && !name.starts_with("last_reserved_ip")));
        }
        found.sort();
        found
    }
}

fn ours() -> PathBuf {
    corten_tests::peers::programs().join("ctr")
}

fn theirs() -> PathBuf {
    Peers::find().containerd_2_1().join("ctr")
}

#[test]
fn containers_join_the_network_of_the_first_file() {
    for debian in [true, false] {
        let site = Site::new(debian);
        site.configure();
        let id = format!("{}-one", site.lab.node().namespace());
        for ctr in [ours(), theirs()] {
            if ctr == theirs() && !debian {
                continue;
            }
            let look = "busybox ip -o addr show eth0; busybox ip route; busybox ip link show lo";
            let said = site.ctr(&ctr, &["run", "--rm", "--cni", IMAGE, "one", "sh", "-c", look]).ok();
            assert!(said.contains("inet 10.90.0.") && said.contains("default via 10.90.0.1"), "{said}");
            assert!(site.kept().is_empty(), "the end of one in the foreground removes it: {:?}", site.kept());

            site.ctr(&ctr, &["run", "-d", "--cni", IMAGE, "one", "sleep", "1000"]).ok();
            let kept = site.kept();
            assert!(kept.len() == 2 && kept.contains(&format!("lab-{id}-eth0")), "{kept:?}");
            let info = site.lab.ctr(["containers", "info", "one"]).ok();
            assert!(info.contains("ctr.cni-containerd.metadata"), "{info}");
            // Whoever kills it removes it from the network, also the other program.
            let other = if ctr == ours() && debian { theirs() } else { ours() };
            site.ctr(&other, &["tasks", "kill", "-s", "9", "one"]).ok();
            assert!(site.kept().is_empty(), "{:?}", site.kept());
            eventually("the task ends", Duration::from_secs(60), || {
                let (_, status) = site.lab.node().task("one")?;
                Some(()).filter(|()| status == "STOPPED")
            });
            site.lab.ctr(["tasks", "rm", "one"]).ok();
            site.lab.ctr(["containers", "rm", "one"]).ok();
        }
        let links = Netlink::open_in(&site.lab.host).unwrap().links().unwrap();
        assert_eq!(links.len(), 2, "loopback and bridge: {links:?}");
        site.lab.finish();
    }
}

#[test]
fn what_does_not_work_is_told_as_the_original_tells_it() {
    let site = Site::new(true);
    let mut different = Vec::new();
    let mut both = |what: &str| {
        let said = [ours(), theirs()].map(|ctr| {
            let finished = site.ctr(&ctr, &["run", "--rm", "--cni", IMAGE, "bad", "true"]);
            let line = finished.stderr.lines().last().unwrap_or_default().to_owned();
            (finished.code, line)
        });
        if said[0] != said[1] || said[0].0 != Some(1) {
            different.push(format!("{what}: {said:?}"));
        }
    };
    both("no configuration");
    let file = site.lab.scratch.join("net.d/10-lab.conflist");
    std::fs::write(&file, r#"{"name":"lab","cniVersion":"1.0.0"}"#).unwrap();
    both("no plugins");
    std::fs::write(&file, r#"{"name":"lab","cniVersion":"1.0.0","plugins":[]}"#).unwrap();
    both("an empty list");
    std::fs::write(&file, r#"{"cniVersion":"1.0.0","plugins":[{"type":"bridge"}]}"#).unwrap();
    both("no name");
    std::fs::write(&file, r#"{"name":"lab","cniVersion":"1.0.0","plugins":[{"type":"nowhere"}]}"#).unwrap();
    both("a plugin that is missing");
    std::fs::remove_file(&file).unwrap();
    std::fs::write(site.lab.scratch.join("net.d/10-lab.conf"), r#"{"name":"lab"}"#).unwrap();
    both("no type");
    assert!(different.is_empty(), "ours, theirs:\n{}", different.join("\n"));
    assert!(site.kept().is_empty(), "{:?}", site.kept());
    assert!(site.lab.node().tasks().is_empty());
    site.lab.finish();
}

#[test]
fn a_namespace_that_others_made_is_joined() {
    let lab = Lab::start();
    let path = lab.scratch.join("netns");
    let made = NetworkNamespace::new().unwrap();
    made.pin(&path).unwrap();
    let inside = lab
        .ctr([
            "run",
            "--rm",
            "--with-ns",
            &format!("network:{}", path.display()),
            IMAGE,
            "in",
            "readlink",
            "/proc/self/ns/net",
        ])
        .ok();
    assert_eq!(inside.trim(), format!("net:[{}]", made.id().unwrap().1));
    corten_network::unpin(&path).unwrap();
    lab.finish();
}
