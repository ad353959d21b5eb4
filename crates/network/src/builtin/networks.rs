//! Networks and attachments of a machine, in a folder: `<network>.conflist` defines one, `leases/`, `results/` and
//! `containers/<id>/` hold what is attached.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use corten_types::{Error, Result, ResultExt};
use rustix::fs::{FlockOperation, flock};
use serde_json::{Map, Value, json};

use super::{DEFAULT, Definition, Files, NewNetwork};
use crate::cni::{Attachment, Cni, NetworkConfig, NetworkResult, Record, Runner};
use crate::nft::Filter;
use crate::plugins::{self, Owner, Pool, host_link};
use crate::{Cidr, Netlink};

/// Who is to be attached.
#[derive(Clone, Debug, Default)]
pub struct Member {
    /// Its id, of all of the machine's.
    pub id: String,
    /// Path of its network namespace.
    pub netns: String,
    /// Names by which others of the network reach it.
    pub names: Vec<String>,
    /// Ports of the host that lead to it: a list as of the capability `portMappings`.
    pub ports: Value,
    /// Addresses that it wants.
    pub addresses: Vec<IpAddr>,
}

/// A network, and who is attached to it.
#[derive(Clone, Debug)]
pub struct Network {
    /// What it is.
    pub definition: Definition,
    /// Ids and interfaces of those who are attached, with their addresses.
    pub members: Vec<(Owner, Vec<Cidr>)>,
}

/// The networks and attachments of a machine.
#[derive(Clone, Debug)]
pub struct Attachments {
    root: PathBuf,
    cni: Cni,
}

impl Attachments {
    /// Those in a folder, which need not exist.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        let runner = Runner { builtin: Some(plugins::run), builtin_first: true, ..Runner::new(Vec::new()) };
        Self { cni: Cni { runner, cache: root.join("results"), durable: false }, root: root.to_owned() }
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes a network.
    ///
    /// # Errors
    /// AlreadyExists; InvalidArgument.
    pub fn create(&self, new: &NewNetwork) -> Result<Definition> {
        let _alone = self.lock(FlockOperation::LockExclusive)?;
        let path = self.definition_of(&new.name);
        if path.exists() {
            return Err(Error::already_exists(format!("network {:?}", new.name)));
        }
        let known = self.definitions()?;
        let mut taken: Vec<(String, Cidr)> = Vec::new();
        for one in &known {
            taken.extend(one.subnets.iter().map(|subnet| (format!("network {:?}", one.name), *subnet)));
        }
        taken.extend(foreign(&taken)?);
        let list = new.list(&self.root.join("leases"), &taken)?;
        let data = format!("{list:#}\n");
        let definition = Definition::read(data.as_bytes())?;
        if let Some(other) = known.iter().find(|one| one.bridge == definition.bridge) {
            return Err(Error::already_exists(format!(
                "bridge {} of network {:?}",
                other.bridge, other.name
            )));
        }
        corten_durable::write_file(&path, data.as_bytes(), 0o644)
            .with_context(|| format!("write {}", path.display()))?;
        Ok(definition)
    }

    /// A network's definition; the default one is made.
    ///
    /// # Errors
    /// NotFound.
    pub fn definition(&self, name: &str) -> Result<Definition> {
        let path = self.definition_of(name);
        match std::fs::read(&path) {
            Ok(data) => Definition::read(&data).with_context(|| path.display().to_string()),
            Err(missing) if missing.kind() == std::io::ErrorKind::NotFound && name == DEFAULT => {
                match self.create(&NewNetwork {
                    name: name.into(),
                    bridge: Some("corten0".into()),
                    ..NewNetwork::default()
                }) {
                    Err(failed) if failed.is_already_exists() && path.exists() => self.definition(name),
                    other => other,
                }
            }
            Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => {
                Err(Error::not_found(format!("network {name:?}")).with_hint("`ctr network ls` lists them"))
            }
            Err(error) => Err(error).context(format!("read {}", path.display())),
        }
    }

    fn definition_of(&self, name: &str) -> PathBuf {
        // A name that is none leads nowhere else.
        let safe = crate::cni::is_name(name);
        self.root.join(if safe { format!("{name}.conflist") } else { "-".to_owned() })
    }

    fn definitions(&self) -> Result<Vec<Definition>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.root).into_iter().flatten() {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "conflist") {
                // One that cannot be read does not hide the others.
                found.extend(std::fs::read(&path).ok().and_then(|data| Definition::read(&data).ok()));
            }
        }
        found.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(found)
    }

    /// All networks.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn list(&self) -> Result<Vec<Network>> {
        let mut found = Vec::new();
        for definition in self.definitions()? {
            let members = self.members(&definition.name)?.into_iter().map(|(record, result)| {
                let owner = Owner { id: record.container_id, ifname: record.if_name };
                (owner, result.ips.into_iter().map(|ip| ip.address).collect())
            });
            found.push(Network { members: members.collect(), definition });
        }
        Ok(found)
    }

    /// A network with its members.
    ///
    /// # Errors
    /// NotFound.
    pub fn get(&self, name: &str) -> Result<Network> {
        let found = self.list()?.into_iter().find(|one| one.definition.name == name);
        found.ok_or_else(|| Error::not_found(format!("network {name:?}")))
    }

    fn members(&self, network: &str) -> Result<Vec<(Record, NetworkResult)>> {
        let records = Record::all(&self.cni.cache, network)?.into_iter();
        let finished = records.filter_map(|record| {
            let result = NetworkResult::read(record.result.as_ref()?).ok()?;
            Some((record, result))
        });
        Ok(finished.collect())
    }

    /// Removes a network with its bridge and what applies to it.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition while containers are attached.
    pub fn remove(&self, name: &str) -> Result<()> {
        let alone = self.lock(FlockOperation::LockExclusive)?;
        let path = self.definition_of(name);
        let Ok(data) = std::fs::read(&path) else {
            return Err(Error::not_found(format!("network {name:?}")));
        };
        self.sweep_network(name)?;
        let members = Record::all(&self.cni.cache, name)?;
        if let Some(member) = members.first() {
            let text = format!("network {name:?} has {} attached, as {}", members.len(), member.container_id);
            return Err(Error::failed_precondition(text));
        }
        if let Ok(definition) = Definition::read(&data) {
            Filter::open()?.remove_network(&definition.bridge)?;
            Netlink::open()?.delete_link_named(&definition.bridge)?;
        }
        std::fs::remove_dir_all(self.root.join("leases").join(name)).ok();
        std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        if self.definitions()?.is_empty() {
            Filter::open()?.remove()?;
        }
        drop(alone);
        Ok(())
    }

    /// Attaches to a network, by the next free interface `eth<n>`. What stands in the way and is nobody's is swept.
    ///
    /// # Errors
    /// NotFound; AlreadyExists for one that is attached to it, and for ports; ResourceExhausted without addresses. Then
    /// nothing is left.
    pub fn attach(&self, network: &str, member: &Member) -> Result<NetworkResult> {
        let definition = self.definition(network)?;
        self.sweep_after_boot()?;
        // Perhaps somebody who is dead stands in the way.
        let first = self.try_attach(&definition.config, member);
        let done = first.or_else(|_| self.sweep().and_then(|_| self.try_attach(&definition.config, member)));
        let result = done.with_context(|| format!("attach {} to network {network:?}", member.id))?;
        self.tell_names()?;
        Ok(result)
    }

    fn try_attach(&self, config: &NetworkConfig, member: &Member) -> Result<NetworkResult> {
        // Others attach meanwhile, nobody sweeps.
        let _shared = self.lock(FlockOperation::LockShared)?;
        let mine: Vec<Record> = self.records_of(&member.id)?;
        if mine.iter().any(|record| record.network_name == config.name) {
            return Err(Error::already_exists(format!(
                "{} is attached to network {:?}",
                member.id, config.name
            )));
        }
        let used = |name: &String| mine.iter().any(|record| record.if_name == *name);
        let ifname = (0..).map(|number| format!("eth{number}")).find(|name| !used(name)).unwrap_or_default();
        let mut capabilities = Map::new();
        capabilities.insert("aliases".into(), json!({ config.name.as_str(): member.names }));
        if member.ports.as_array().is_some_and(|ports| !ports.is_empty()) {
            capabilities.insert("portMappings".into(), member.ports.clone());
        }
        let ips: Vec<(String, String)> =
            member.addresses.iter().map(|it| ("IP".to_owned(), it.to_string())).collect();
        let attachment = Attachment {
            container_id: &member.id,
            netns: &member.netns,
            ifname: &ifname,
            args: &ips,
            capabilities: &capabilities,
        };
        self.cni.add(config, &attachment).inspect_err(|_| drop(self.cni.delete(config, &attachment)))
    }

    fn records_of(&self, id: &str) -> Result<Vec<Record>> {
        let mut found = Vec::new();
        for definition in self.definitions()? {
            found.extend(
                Record::all(&self.cni.cache, &definition.name)?
                    .into_iter()
                    .filter(|it| it.container_id == id),
            );
        }
        Ok(found)
    }

    /// Detaches from a network, or from all. What is not attached is no failure; the namespace may be gone.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn detach(&self, id: &str, network: Option<&str>) -> Result<()> {
        {
            let _shared = self.lock(FlockOperation::LockShared)?;
            for record in self.records_of(id)? {
                if network.is_none_or(|network| network == record.network_name) {
                    self.delete(&record)?;
                }
            }
        }
        self.tell_names()
    }

    fn delete(&self, record: &Record) -> Result<()> {
        let attachment = Attachment {
            container_id: &record.container_id,
            netns: "",
            ifname: &record.if_name,
            args: &record.cni_args,
            capabilities: &record.capability_args,
        };
        let config =
            record.config().or_else(|_| self.definition(&record.network_name).map(|it| it.config))?;
        self.cni.delete(&config, &attachment)
    }

    /// Removes what is nobody's: attachments whose cable is gone with the container's namespace, leases and ports without
    /// an attachment. Answers how many.
    ///
    /// # Errors
    /// Those of the kernel and of the file system.
    pub fn sweep(&self) -> Result<usize> {
        let swept = {
            let _alone = self.lock(FlockOperation::LockExclusive)?;
            // What a loss of power, or the end of its writer, has left.
            Record::remove_unreadable(&self.cni.cache);
            let mut swept = 0;
            for definition in self.definitions()? {
                swept += self.sweep_network(&definition.name)?;
            }
            swept
        };
        self.tell_names()?;
        Ok(swept)
    }

    /// Nobody attaches meanwhile, so an attachment without a cable is a dead one.
    fn sweep_network(&self, name: &str) -> Result<usize> {
        let links = Netlink::open()?.links()?;
        let lives = |owner: &Owner| {
            let cable = host_link(owner);
            links.iter().any(|link| link.name == cable)
        };
        let owner =
            |record: &Record| Owner { id: record.container_id.clone(), ifname: record.if_name.clone() };
        let mut swept = 0;
        let mut known = Vec::new();
        for record in Record::all(&self.cni.cache, name)? {
            // One without a result was not finished: its maker has died, since it held the lock.
            if record.result.is_some() && lives(&owner(&record)) {
                known.push(owner(&record));
                continue;
            }
            self.delete(&record)?;
            swept += 1;
        }
        let gone =
            Pool::existing(&self.root.join("leases"), name).release_all(|owner| !known.contains(owner))?;
        let mut netlink = Netlink::open()?;
        for owner in &gone {
            netlink.delete_link_named(&host_link(owner))?;
        }
        let marks: Vec<String> = known.iter().map(|owner| owner.mark(name)).collect();
        let begin = format!("{name}/");
        let ports = Filter::open()?
            .withdraw(|mark| mark.starts_with(&begin) && !marks.iter().any(|it| it == mark))?;
        Ok(swept + gone.len() + usize::from(ports > 0))
    }

    /// After a boot nothing that was attached is: the first who comes sweeps.
    fn sweep_after_boot(&self) -> Result<()> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let path = self.root.join("boot");
        if std::fs::read_to_string(&path).is_ok_and(|swept| swept == boot) {
            return Ok(());
        }
        self.sweep()?;
        std::fs::write(&path, boot).with_context(|| format!("write {}", path.display()))
    }

    /// The files of names of a container.
    ///
    /// # Errors
    /// InvalidArgument for what cannot be an id.
    pub fn files(&self, id: &str) -> Result<Files> {
        if !crate::cni::is_name(id) {
            return Err(Error::invalid_argument(format!("invalid characters in containerID; {id}")));
        }
        Ok(Files::new(self.root.join("containers").join(id)))
    }

    /// Makes the files of names of a container, which are bound into it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn make_files(
        &self,
        id: &str,
        hostname: &str,
        servers: &[IpAddr],
        search: &[String],
    ) -> Result<Files> {
        let files = self.files(id)?;
        files.create(hostname, servers, search)?;
        Ok(files)
    }

    /// A container is removed: nothing of it stays.
    ///
    /// # Errors
    /// Those of the kernel and of the file system.
    pub fn forget(&self, id: &str) -> Result<()> {
        let files = self.files(id)?;
        if !self.root.is_dir() {
            return Ok(());
        }
        self.detach(id, None)?;
        files.remove()
    }

    /// The ids that have files of names.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn known_containers(&self) -> Result<Vec<String>> {
        let entries = std::fs::read_dir(self.root.join("containers")).into_iter().flatten();
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// Tells everybody who is on its networks.
    fn tell_names(&self) -> Result<()> {
        let _one = self.lock_file("names", FlockOperation::LockExclusive)?;
        let mut of_network: BTreeMap<String, Vec<(IpAddr, Vec<String>)>> = BTreeMap::new();
        let mut of_container: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for definition in self.definitions()? {
            for (record, result) in self.members(&definition.name)? {
                let aliases = record.capability_args.get("aliases").and_then(|all| all.get(&definition.name));
                let aliases = aliases.and_then(Value::as_array).into_iter().flatten();
                let names: Vec<String> = aliases.filter_map(Value::as_str).map(str::to_owned).collect();
                of_container.entry(record.container_id).or_default().push(definition.name.clone());
                let of_network = of_network.entry(definition.name.clone()).or_default();
                of_network.extend(result.ips.iter().map(|ip| (ip.address.address, names.clone())));
            }
        }
        for (id, networks) in of_container {
            let files = self.files(&id)?;
            if !files.exist() {
                continue;
            }
            let known = networks.iter().filter_map(|network| of_network.get(network)).flatten().cloned();
            let mut known: Vec<_> = known.filter(|(_, names)| !names.is_empty()).collect();
            known.sort();
            files.tell(&known)?;
        }
        Ok(())
    }

    fn lock(&self, how: FlockOperation) -> Result<File> {
        self.lock_file("lock", how)
    }

    fn lock_file(&self, name: &str, how: FlockOperation) -> Result<File> {
        let lock = || -> Result<File> {
            std::fs::create_dir_all(&self.root)?;
            let file = File::options().create(true).write(true).truncate(false).open(self.root.join(name))?;
            flock(&file, how).map_err(std::io::Error::from)?;
            Ok(file)
        };
        lock().with_context(|| format!("lock {}", self.root.join(name).display()))
    }
}

/// Subnets that the machine reaches otherwise. Those of our bridges are told better by their networks.
fn foreign(known: &[(String, Cidr)]) -> Result<Vec<(String, Cidr)>> {
    let of_link = |to: &Cidr| matches!(to.address, IpAddr::V6(address) if address.is_unicast_link_local());
    let routes = Netlink::open()?.routes()?.into_iter().map(|route| route.destination);
    let subnets = routes.filter(|to| to.length > 0 && !of_link(to));
    let foreign = subnets.filter(|to| !known.iter().any(|(_, subnet)| subnet == to));
    Ok(foreign.map(|to| ("the host".to_owned(), to)).collect())
}
