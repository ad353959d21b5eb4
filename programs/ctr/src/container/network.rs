//! What a container is attached to: networks of the machine, those of others, or CNI's (spec 06 §4, §5).

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use corten_api::services::containers::{Container, GetContainerRequest};
use corten_network::builtin::{Attachments, FOLDER, Plan};
use corten_network::cni::{Networks, Options, PLUGIN_FOLDER, Runner};
use corten_network::plugins;
use corten_oci::spec::Spec;
use corten_types::{Any, Error, Result, ResultExt};
use serde_json::{Map, Value, json};

use super::flags::RunFlags;
use crate::client::{Daemon, error};

/// Extension of containers that are joined to CNI's network.
const CNI: &str = "ctr.cni-containerd.metadata";
/// What is in it.
const CNI_TYPE: &str = "github.com/containerd/containerd/v2/cmd/ctr/commands/NetworkMetaData";

/// Flags of `run` about networks.
#[derive(Clone, Debug, Default, Args)]
pub struct NetworkFlags {
    /// Attach to networks by name (`bridge` is made when it is missing); or none, host, container:ID, ns:PATH.
    #[arg(long, value_name = "NETWORK")]
    pub network: Vec<String>,
    /// Ports of the host that lead to the container: [IP:]HOST:CONTAINER[/tcp|udp|sctp].
    #[arg(long, value_name = "PORTS")]
    pub publish: Vec<String>,
    /// More names by which others of its networks reach it.
    #[arg(long, value_name = "NAME")]
    pub network_alias: Vec<String>,
    /// Its address on the first network; one of each family.
    #[arg(long)]
    pub ip: Vec<IpAddr>,
    /// Servers of names, in the place of the host's.
    #[arg(long, value_name = "IP")]
    pub dns: Vec<IpAddr>,
    /// Domains that names are looked for in.
    #[arg(long, value_name = "DOMAIN")]
    pub dns_search: Vec<String>,
}

/// Where networks are.
pub fn root() -> PathBuf {
    std::env::var_os("CORTEN_NETWORK_ROOT").map_or_else(|| FOLDER.into(), PathBuf::from)
}

/// The id of a container among all of the machine's.
pub fn full_id(namespace: &str, id: &str) -> String {
    format!("{namespace}-{id}")
}

impl NetworkFlags {
    /// Changes a specification so that its container will be attached.
    ///
    /// # Errors
    /// For what does not go together, networks that are not there, containers that do not run.
    pub async fn apply(&self, daemon: &Daemon, id: &str, spec: &mut Spec) -> Result<()> {
        let ports = self.publish.iter().map(|text| ports(text)).collect::<Result<Vec<_>>>()?.concat();
        let special = |name: &str| {
            ["none", "host"].contains(&name) || name.starts_with("container:") || name.starts_with("ns:")
        };
        let wants_own = !ports.is_empty() || !self.ip.is_empty() || !self.network_alias.is_empty();
        match self.network.as_slice() {
            [] if !wants_own => Ok(()),
            [] => self.attach(daemon, id, &[corten_network::builtin::DEFAULT.to_owned()], ports, spec).await,
            [one] if special(one) => {
                if wants_own {
                    let text = format!("--publish, --ip and --network-alias need a network, {one} is none");
                    return Err(Error::invalid_argument(text));
                }
                join(daemon, one, spec).await
            }
            several if several.iter().any(|name| special(name)) => {
                Err(Error::invalid_argument("none, host, container:ID and ns:PATH stand alone"))
            }
            several => self.attach(daemon, id, several, ports, spec).await,
        }
    }

    async fn attach(
        &self,
        daemon: &Daemon,
        id: &str,
        names: &[String],
        ports: Vec<Value>,
        spec: &mut Spec,
    ) -> Result<()> {
        // Its files would be another's.
        let request = GetContainerRequest { id: id.into() };
        if daemon.containers().get(request).await.is_ok() {
            return Err(Error::already_exists(format!("container {id:?}")));
        }
        let networks = Attachments::new(&root());
        names.iter().try_for_each(|name| networks.definition(name).map(drop))?;
        let full = full_id(&daemon.namespace, id);
        let hostname =
            spec.value()["hostname"].as_str().filter(|name| !name.is_empty()).unwrap_or(id).to_owned();
        let mut own = vec![id.to_owned()];
        own.extend(
            Some(&hostname).into_iter().chain(&self.network_alias).filter(|name| *name != id).cloned(),
        );
        let plan = Plan {
            root: networks.root().to_owned(),
            id: full.clone(),
            networks: names.to_vec(),
            names: own,
            ports: ports.into(),
            addresses: self.ip.clone(),
        };
        let program = hook_program()?;
        let files = networks.make_files(&full, &hostname, &self.dns, &self.dns_search)?;
        spec.annotate(Plan::ANNOTATION, &plan.text()?);
        spec.value_mut()["hostname"] = json!(hostname);
        for (to, from) in files.mounts() {
            bind(spec, to, &from);
        }
        let hook = |what: &str| json!({"path": program, "args": ["corten-cni", what]});
        for (when, what) in [("createRuntime", "attach"), ("poststop", "detach")] {
            let hooks = &mut spec.value_mut()["hooks"][when];
            match hooks.as_array_mut() {
                Some(hooks) => hooks.push(hook(what)),
                None => *hooks = json!([hook(what)]),
            }
        }
        Ok(())
    }
}

/// A file of the host in a container, unless something is mounted there already.
fn bind(spec: &mut Spec, to: &str, from: &Path) {
    let mounts = spec.value()["mounts"].as_array().into_iter().flatten();
    if !mounts.into_iter().any(|mount| mount["destination"] == to) {
        spec.add_mount(
            json!({"destination": to, "type": "bind", "source": from, "options": ["rbind", "rw"]}),
        );
    }
}

/// Networks that are not ours to make.
async fn join(daemon: &Daemon, name: &str, spec: &mut Spec) -> Result<()> {
    if name == "none" {
        return Ok(());
    }
    if name == "host" {
        let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        spec.share_host_network(hostname.trim());
        return Ok(());
    }
    if let Some(path) = name.strip_prefix("ns:") {
        corten_network::NetworkNamespace::open(Path::new(path))?;
        spec.set_namespace("network", path);
        return Ok(());
    }
    let id = name.strip_prefix("container:").unwrap_or_default();
    let pid = process_of(daemon, id).await?;
    spec.set_namespace("network", &format!("/proc/{pid}/ns/net"));
    let files = Attachments::new(&root()).files(&full_id(&daemon.namespace, id))?;
    if files.folder().is_dir() {
        // All but the name of the host, which is the container's own.
        for (to, from) in files.mounts().into_iter().take(2) {
            bind(spec, to, &from);
        }
    }
    Ok(())
}

/// The process of a running container.
///
/// # Errors
/// NotFound; FailedPrecondition when it does not run.
pub async fn process_of(daemon: &Daemon, id: &str) -> Result<u32> {
    use corten_api::services::tasks;
    let request = tasks::GetRequest { container_id: id.into(), exec_id: String::new() };
    let found = daemon.tasks().get(request).await.map_err(error).map_err(|failed| {
        if failed.is_not_found() { failed.context("no running task found") } else { failed }
    });
    let found = found?.into_inner();
    match found.process.filter(|process| process.pid > 0 && process.exited_at.is_none()) {
        Some(process) => Ok(process.pid),
        None => Err(Error::failed_precondition(format!("container {id:?} does not run"))),
    }
}

/// The hooks are another program, beside this one or in a folder of `PATH`.
fn hook_program() -> Result<PathBuf> {
    let own = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.to_owned()));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = own.into_iter().chain(std::env::split_paths(&path));
    let found =
        folders.find_map(|folder| Some(folder.join("corten-cni")).filter(|program| program.is_file()));
    found.ok_or_else(|| Error::not_found("program corten-cni").with_hint("it is installed beside ctr"))
}

/// `[IP:]HOST:CONTAINER[/PROTOCOL]`, with ranges of ports of the same length on both sides.
fn ports(text: &str) -> Result<Vec<Value>> {
    let bad = || {
        Error::invalid_argument(format!("invalid port {text:?}: expected [IP:]HOST:CONTAINER[/tcp|udp|sctp]"))
    };
    let (rest, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if !["tcp", "udp", "sctp"].contains(&protocol) {
        return Err(bad());
    }
    let (rest, inside) = rest.rsplit_once(':').ok_or_else(bad)?;
    let (address, outside) = match rest.rsplit_once(':') {
        Some((address, outside)) => {
            let address = address.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(address);
            (address.parse::<IpAddr>().map_err(|_| bad())?.to_string(), outside)
        }
        None => (String::new(), rest),
    };
    let range = |text: &str| -> Result<(u16, u16)> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| text.parse::<u16>().ok().filter(|number| *number > 0).ok_or_else(bad);
        let (first, last) = (number(first)?, number(last)?);
        if first <= last { Ok((first, last)) } else { Err(bad()) }
    };
    let (outside, inside) = (range(outside)?, range(inside)?);
    if outside.1 - outside.0 != inside.1 - inside.0 {
        return Err(bad());
    }
    let pairs = (outside.0..=outside.1).zip(inside.0..=inside.1);
    let one = |(host, container)| json!({"hostPort": host, "containerPort": container, "protocol": protocol, "hostIP": address});
    Ok(pairs.map(one).collect())
}

/// A container is removed: what it has of networks goes, whoever attached it.
pub fn forget(namespace: &str, id: &str) {
    let networks = Attachments::new(&root());
    let full = full_id(namespace, id);
    if networks.files(&full).is_ok_and(|files| files.folder().is_dir())
        && let Err(failed) = networks.forget(&full)
    {
        crate::log::warning(&format!("network of {id}: {}", failed.message()));
    }
}

/// A container was not made after all: what was made for it on networks goes. Without networks there is nothing of its
/// own, perhaps something of another with this id.
pub fn give_up(daemon: &Daemon, id: &str, run: Option<&RunFlags>) {
    if run.is_some_and(|run| !run.networks.network.is_empty() || !run.networks.publish.is_empty()) {
        forget(&daemon.namespace, id);
    }
}

/// The extension of containers that are to be joined to CNI's network.
pub fn cni_extension() -> (String, Any) {
    (CNI.into(), Any { type_url: CNI_TYPE.into(), value: br#"{"EnableCni":true}"#.to_vec() })
}

/// Whether a container is joined to CNI's network.
pub fn has_cni(container: &Container) -> bool {
    let metadata = container.extensions.get(CNI);
    let metadata = metadata.and_then(|any| serde_json::from_slice::<Value>(&any.value).ok());
    metadata.is_some_and(|metadata| metadata["EnableCni"] == true)
}

/// CNI's network, that is the first file of the usual folder. Plugins that are not installed are built in.
///
/// # Errors
/// When there is none, or it cannot be read.
pub fn cni() -> Result<Networks> {
    let runner = Runner { builtin: Some(plugins::run), ..Runner::new(vec![PLUGIN_FOLDER.into()]) };
    let options = Options { runner, ..Options::default() };
    corten_network::cni::load(&options.config_folder, options.most)?;
    Ok(Networks::new(options))
}

/// Joins a process to CNI's network.
///
/// # Errors
/// Those of plugins.
pub fn cni_attach(networks: &Networks, full: &str, pid: u32) -> Result<()> {
    networks.attach(full, &format!("/proc/{pid}/ns/net"), &[], &Map::new()).map(drop)
}

/// Removes a container from CNI's network; its namespace may be gone.
///
/// # Errors
/// Those of plugins.
pub fn cni_detach(networks: &Networks, full: &str) -> Result<()> {
    networks.detach(full, "", &[], &Map::new())
}

/// Networks of a running container that are attached or detached later.
///
/// # Errors
/// As [`process_of`].
pub async fn connect(
    daemon: &Daemon,
    network: &str,
    id: &str,
    aliases: &[String],
    ips: &[IpAddr],
) -> Result<String> {
    let request = GetContainerRequest { id: id.into() };
    daemon.containers().get(request).await.map_err(error)?;
    let pid = process_of(daemon, id).await?;
    let mut names = vec![id.to_owned()];
    names.extend(aliases.iter().cloned());
    let member = corten_network::builtin::Member {
        id: full_id(&daemon.namespace, id),
        netns: format!("/proc/{pid}/ns/net"),
        names,
        ports: Value::Null,
        addresses: ips.to_vec(),
    };
    let result = Attachments::new(&root()).attach(network, &member).context("connect")?;
    let ips: Vec<String> = result.ips.iter().map(|ip| ip.address.to_string()).collect();
    Ok(ips.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_with_addresses_protocols_and_ranges() {
        let one = |text: &str| ports(text).unwrap()[0].clone();
        assert_eq!(
            one("80:8080"),
            json!({"hostPort": 80, "containerPort": 8080, "protocol": "tcp", "hostIP": ""})
        );
        assert_eq!(one("127.0.0.1:53:5353/udp")["hostIP"], "127.0.0.1");
        assert_eq!(one("[::1]:53:5353/udp")["hostIP"], "::1");
        let range = ports("8000-8002:9000-9002").unwrap();
        assert_eq!(
            (range.len(), &range[2]["hostPort"], &range[2]["containerPort"]),
            (3, &json!(8002), &json!(9002))
        );
        for bad in
            ["", "80", "0:80", "80:0", "70000:80", "80:80/icmp", "x:80:80", "80-81:80", "82-80:80-82", "a:b"]
        {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_port_is_read_or_refused(text in "[0-9:./\\[\\]a-z-]{0,24}") {
            let _ = ports(&text);
        }
    }
}
