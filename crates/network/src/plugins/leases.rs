//! `host-local`: addresses from ranges, kept as files of their names (spec 06 §6). The format is that of the plugin of
//! this name: `<folder>/<network>/<address>` holds the owner, `last_reserved_ip.<n>` the last address of the n-th set,
//! and `lock` is held meanwhile.

use std::collections::HashSet;
use std::fs::File;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use corten_types::{Error, ErrorClass, Result, ResultExt};
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use serde::Deserialize;
use serde_json::Value;

use super::{Owner, arguments, configuration, previous, valid};
use crate::Cidr;
use crate::cidr::{number, to_address};
use crate::cni::{Command, Dns, Invocation, Ip, NetworkResult, ResultRoute};

const FOLDER: &str = "/var/lib/cni/networks";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Config {
    name: String,
    ipam: Ipam,
    runtime_config: RuntimeConfig,
    args: Args,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Ipam {
    #[serde(flatten)]
    range: RangeConfig,
    ranges: Vec<Vec<RangeConfig>>,
    routes: Vec<ResultRoute>,
    data_dir: String,
    resolv_conf: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RangeConfig {
    subnet: Option<Cidr>,
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
    gateway: Option<IpAddr>,
}

/// Keys are capitalised by containerd (spec 06 §2.5).
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RuntimeConfig {
    ips: Vec<String>,
    ip_ranges: Vec<Vec<Value>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Args {
    cni: CniArgs,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct CniArgs {
    ips: Vec<String>,
}

/// Addresses from the first to the last, without the gateway's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    subnet: Cidr,
    first: u128,
    last: u128,
    gateway: IpAddr,
}

impl Range {
    fn new(config: &RangeConfig) -> Result<Self> {
        let wrong = |why: String| Err(Error::invalid_argument(why));
        let Some(subnet) = config.subnet else { return wrong("missing field \"subnet\" in IPAM".into()) };
        if subnet.bits() - subnet.length < 2 {
            return wrong(format!("network {subnet} is too small to allocate from"));
        }
        let network = subnet.network();
        if network != subnet {
            return wrong(format!("network {subnet} has host bits set, its address is {}", network.address));
        }
        let v4 = subnet.address.is_ipv4();
        let (low, high) = (number(network.address) + 1, number(subnet.last()) - u128::from(v4));
        let within = |address: Option<IpAddr>, what: &str| match address {
            Some(address) if !subnet.contains(address) => {
                Err(Error::invalid_argument(format!("{what} {address} not in network {subnet}")))
            }
            other => Ok(other.map(number)),
        };
        let first = within(config.range_start, "RangeStart")?.unwrap_or(low).max(low);
        let last = within(config.range_end, "RangeEnd")?.unwrap_or(high).min(high);
        if first > last {
            return wrong(format!("the range in {subnet} ends before it begins"));
        }
        let gateway = config.gateway.unwrap_or_else(|| to_address(low, v4));
        Ok(Self { subnet, first, last, gateway })
    }

    fn holds(&self, address: IpAddr) -> bool {
        self.subnet.contains(address) && (self.first..=self.last).contains(&number(address))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.subnet.bits() == other.subnet.bits() && self.first <= other.last && other.first <= self.last
    }

    fn describe(&self) -> String {
        let v4 = self.subnet.address.is_ipv4();
        format!("{}-{}", to_address(self.first, v4), to_address(self.last, v4))
    }
}

/// An address that somebody has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: IpAddr,
    /// Who has it; leases of old versions have no interface.
    pub owner: Owner,
}

/// The leases of a network.
#[derive(Clone, Debug)]
pub struct Pool {
    folder: PathBuf,
    sets: Vec<Vec<Range>>,
}

impl Pool {
    /// Only to look at and to release.
    #[must_use]
    pub fn existing(data: &Path, network: &str) -> Self {
        Self { folder: data.join(network), sets: Vec::new() }
    }

    fn new(config: &Config) -> Result<Self> {
        let ipam = &config.ipam;
        let mut sets = Vec::new();
        for set in &config.runtime_config.ip_ranges {
            let set = set.iter().map(|range| RangeConfig::deserialize(&lowered(range)));
            let set = set.collect::<serde_json::Result<Vec<_>>>();
            sets.push(set.map_err(|error| Error::invalid_argument(format!("ipRanges: {error}")))?);
        }
        sets.extend(ipam.range.subnet.is_some().then(|| vec![ipam.range.clone()]));
        sets.extend(ipam.ranges.iter().filter(|set| !set.is_empty()).cloned());
        let read = |set: &Vec<RangeConfig>| set.iter().map(Range::new).collect::<Result<Vec<_>>>();
        let sets = sets.iter().map(read).collect::<Result<Vec<_>>>()?;
        if sets.is_empty() {
            return Err(Error::invalid_argument("no IP ranges specified"));
        }
        let all: Vec<&Range> = sets.iter().flatten().collect();
        for (index, range) in all.iter().enumerate() {
            if let Some(other) = all.iter().skip(index + 1).find(|other| range.overlaps(other)) {
                let text = format!("range {} overlaps with {}", range.describe(), other.describe());
                return Err(Error::invalid_argument(text));
            }
        }
        let data = if ipam.data_dir.is_empty() { FOLDER } else { &ipam.data_dir };
        Ok(Self { folder: Path::new(data).join(&config.name), sets })
    }

    /// All leases.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn leases(&self) -> Result<Vec<Lease>> {
        let entries = match std::fs::read_dir(&self.folder) {
            Err(missing) if missing.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.with_context(|| format!("open {}", self.folder.display()))?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let Some(address) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // It may have been released meanwhile.
            let Ok(text) = std::fs::read_to_string(entry.path()) else { continue };
            found.push(Lease { address, owner: read_owner(&text) });
        }
        found.sort_by_key(|lease| number(lease.address));
        Ok(found)
    }

    /// Takes an address of each set, those that are wanted where they lie in it.
    fn acquire(&self, owner: &Owner, wanted: &[IpAddr]) -> Result<Vec<Ip>> {
        let _lock = self.lock()?;
        let leases = self.leases()?;
        if leases.iter().any(|lease| lease.owner == *owner) {
            return Err(Error::already_exists(format!(
                "duplicate allocation is not allowed: {owner} has an address"
            )));
        }
        let taken: HashSet<IpAddr> = leases.into_iter().map(|lease| lease.address).collect();
        if let Some(outside) =
            wanted.iter().find(|it| !self.sets.iter().flatten().any(|range| range.holds(**it)))
        {
            return Err(Error::invalid_argument(format!("requested IP address {outside} is in no range")));
        }
        let mut given = Vec::new();
        for (index, set) in self.sets.iter().enumerate() {
            let asked = wanted.iter().find(|address| set.iter().any(|range| range.holds(**address)));
            let chosen = match asked {
                Some(address) => take(set, *address, &taken),
                None => self.next(set, index, &taken),
            };
            let kept = chosen.and_then(|ip| self.keep(ip.address.address, owner).map(|()| ip));
            match kept {
                Ok(ip) => {
                    std::fs::write(self.last(index), ip.address.address.to_string()).ok();
                    given.push(ip);
                }
                Err(failed) => {
                    self.release_files(given.iter().map(|ip: &Ip| ip.address.address))?;
                    return Err(failed);
                }
            }
        }
        Ok(given)
    }

    /// The first address that is free, behind the one that was given last: an address is not given again at once.
    fn next(&self, set: &[Range], index: usize, taken: &HashSet<IpAddr>) -> Result<Ip> {
        let last: Option<IpAddr> =
            std::fs::read_to_string(self.last(index)).ok().and_then(|text| text.trim().parse().ok());
        let at = set.iter().position(|range| last.is_some_and(|last| range.holds(last)));
        let begin = last.filter(|_| at.is_some()).map(|last| number(last) + 1);
        let order = (0..=set.len())
            .filter_map(|step| set.get((at.unwrap_or(0) + step) % set.len()).map(|it| (step, it)));
        for (step, range) in order {
            // Round once: from behind the last one, and at the end those before it.
            let first = begin.filter(|_| step == 0).unwrap_or(range.first);
            let v4 = range.subnet.address.is_ipv4();
            let mut free = (first..=range.last).map(|number| to_address(number, v4));
            if let Some(address) = free.find(|address| *address != range.gateway && !taken.contains(address))
            {
                return Ok(ip(range, address));
            }
        }
        let ranges: Vec<String> = set.iter().map(Range::describe).collect();
        let text = format!("no IP addresses available in range set: {}", ranges.join(","));
        Err(Error::bare(ErrorClass::ResourceExhausted, text))
    }

    /// The file gets its name when it says whose it is.
    fn keep(&self, address: IpAddr, owner: &Owner) -> Result<()> {
        let new = self.folder.join(format!(".{address}"));
        let write = || -> Result<()> {
            std::fs::write(&new, format!("{}\r\n{}", owner.id, owner.ifname))?;
            let to = self.folder.join(address.to_string());
            renameat_with(CWD, &new, CWD, &to, RenameFlags::NOREPLACE).map_err(std::io::Error::from)?;
            Ok(())
        };
        write().with_context(|| format!("keep the lease of {address}"))
    }

    /// Releases what an owner has; `known` are addresses that it is known to have, where to look first.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn release(&self, owner: &Owner, known: &[IpAddr]) -> Result<()> {
        if !self.folder.is_dir() {
            return Ok(());
        }
        let _lock = self.lock()?;
        let is_mine = |address: &&IpAddr| {
            let text = std::fs::read_to_string(self.folder.join(address.to_string()));
            text.is_ok_and(|text| read_owner(&text) == *owner)
        };
        let mine: Vec<IpAddr> = known.iter().filter(is_mine).copied().collect();
        if !self.sets.is_empty() && mine.len() == self.sets.len() {
            return self.release_files(mine.into_iter());
        }
        self.release_files(self.leases()?.into_iter().filter(|it| belongs(it, owner)).map(|it| it.address))
    }

    /// Releases what those have of whom `gone` says so; answers them.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn release_all(&self, gone: impl Fn(&Owner) -> bool) -> Result<Vec<Owner>> {
        if !self.folder.is_dir() {
            return Ok(Vec::new());
        }
        let _lock = self.lock()?;
        // Whoever was killed before a lease had its name has left its file.
        for entry in std::fs::read_dir(&self.folder)?.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                std::fs::remove_file(entry.path()).ok();
            }
        }
        let stale: Vec<Lease> = self.leases()?.into_iter().filter(|lease| gone(&lease.owner)).collect();
        self.release_files(stale.iter().map(|lease| lease.address))?;
        Ok(stale.into_iter().map(|lease| lease.owner).collect())
    }

    fn release_files(&self, addresses: impl Iterator<Item = IpAddr>) -> Result<()> {
        for address in addresses {
            match std::fs::remove_file(self.folder.join(address.to_string())) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).context(format!("release {address}"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn last(&self, index: usize) -> PathBuf {
        self.folder.join(format!("last_reserved_ip.{index}"))
    }

    fn lock(&self) -> Result<File> {
        let open = || -> Result<File> {
            std::fs::create_dir_all(&self.folder)?;
            let file =
                File::options().create(true).write(true).truncate(false).open(self.folder.join("lock"))?;
            flock(&file, FlockOperation::LockExclusive).map_err(std::io::Error::from)?;
            Ok(file)
        };
        open().with_context(|| format!("lock {}", self.folder.display()))
    }
}

fn take(set: &[Range], address: IpAddr, taken: &HashSet<IpAddr>) -> Result<Ip> {
    let range = set.iter().find(|range| range.holds(address));
    let Some(range) = range.filter(|_| !taken.contains(&address)) else {
        let text = format!("requested IP address {address} is not available");
        return Err(Error::bare(ErrorClass::AlreadyExists, text));
    };
    if range.gateway == address {
        return Err(Error::invalid_argument(format!("requested IP {address} is subnet's gateway")));
    }
    Ok(ip(range, address))
}

fn ip(range: &Range, address: IpAddr) -> Ip {
    let address = Cidr { address, length: range.subnet.length };
    Ip { interface: None, address, gateway: Some(range.gateway) }
}

fn read_owner(text: &str) -> Owner {
    let (id, ifname) = text.trim().split_once("\r\n").unwrap_or((text.trim(), ""));
    Owner { id: id.to_owned(), ifname: ifname.to_owned() }
}

fn belongs(lease: &Lease, owner: &Owner) -> bool {
    lease.owner == *owner || lease.owner.id == owner.id && lease.owner.ifname.is_empty()
}

/// An object whose keys begin with small letters.
fn lowered(value: &Value) -> Value {
    let Some(object) = value.as_object() else { return value.clone() };
    let lower = |key: &String| {
        let mut letters = key.chars();
        letters
            .next()
            .map(|first| first.to_lowercase().chain(letters).collect::<String>())
            .unwrap_or_default()
    };
    let filled = object.iter().filter(|(_, value)| value.as_str() != Some(""));
    Value::Object(filled.map(|(key, value)| (lower(key), value.clone())).collect())
}

pub fn run(invocation: &Invocation<'_>) -> Result<Option<NetworkResult>> {
    let config: Config = configuration(invocation)?;
    let pool = Pool::new(&config)?;
    let owner = Owner { id: invocation.container_id.into(), ifname: invocation.ifname.into() };
    match invocation.command {
        Command::Add => {
            let ips = pool.acquire(&owner, &wanted(&config, invocation)?)?;
            let dns = resolver(&config.ipam.resolv_conf)?;
            Ok(Some(NetworkResult { ips, routes: config.ipam.routes, dns, ..NetworkResult::default() }))
        }
        Command::Del => {
            let known = previous(invocation).ok().flatten().unwrap_or_default();
            let known: Vec<IpAddr> = known.ips.iter().map(|ip| ip.address.address).collect();
            pool.release(&owner, &known).map(|()| None)
        }
        Command::Check => match pool.leases()?.iter().any(|lease| belongs(lease, &owner)) {
            true => Ok(None),
            false => Err(Error::not_found(format!(
                "host-local: failed to find address added by container {owner}"
            ))),
        },
        Command::Gc => {
            let valid = valid(invocation);
            pool.release_all(|owner| !valid.contains(owner)).map(|_| None)
        }
        Command::Status | Command::Version => Ok(None),
    }
}

/// Addresses that are asked for: by a capability, in the configuration's arguments, or in those of the environment.
fn wanted(config: &Config, invocation: &Invocation<'_>) -> Result<Vec<IpAddr>> {
    let environment = arguments(invocation.args);
    let texts = config.runtime_config.ips.iter().chain(&config.args.cni.ips).cloned();
    let texts = texts.chain(environment.get("IP").and_then(Value::as_str).map(str::to_owned));
    let read = |text: String| {
        let address = text.split('/').next().unwrap_or_default().parse();
        address.map_err(|_| Error::invalid_argument(format!("invalid requested IP {text:?}")))
    };
    texts.map(read).collect()
}

/// The servers of names of a file.
fn resolver(path: &str) -> Result<Dns> {
    let mut dns = Dns::default();
    if path.is_empty() {
        return Ok(dns);
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("open {path}"))?;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words) {
            (Some("nameserver"), words) => dns.nameservers.extend(words.take(1).map(str::to_owned)),
            (Some("domain"), mut words) => dns.domain = words.next().unwrap_or_default().to_owned(),
            (Some("search"), words) => dns.search.extend(words.map(str::to_owned)),
            (Some("options"), words) => dns.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    Ok(dns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pool(folder: &Path, ranges: &Value) -> Result<Pool> {
        let config = json!({"name": "n", "ipam": {"dataDir": folder, "ranges": ranges}});
        Pool::new(&serde_json::from_value(config).unwrap())
    }

    fn owner(number: usize) -> Owner {
        Owner { id: format!("c{number}"), ifname: "eth0".into() }
    }

    #[test]
    fn every_address_is_given_once_and_again_after_its_release() {
        let folder = tempfile::tempdir().unwrap();
        let pool =
            pool(folder.path(), &json!([[{"subnet": "10.1.0.0/29"}], [{"subnet": "fd00::/64"}]])).unwrap();
        let acquire = |number| pool.acquire(&owner(number), &[]).map(|ips| ips[0].address.to_string());
        let given: Vec<_> = (0..5).map(|number| acquire(number).unwrap()).collect();
        assert_eq!(given, ["10.1.0.2/29", "10.1.0.3/29", "10.1.0.4/29", "10.1.0.5/29", "10.1.0.6/29"]);
        let text = std::fs::read_to_string(folder.path().join("n/10.1.0.2")).unwrap();
        assert_eq!(text, "c0\r\neth0");
        let failed = acquire(9).unwrap_err();
        assert_eq!(failed.message(), "no IP addresses available in range set: 10.1.0.1-10.1.0.6");
        assert_eq!(pool.leases().unwrap().len(), 10, "nothing of the other family is kept");
        assert!(acquire(1).unwrap_err().message().starts_with("duplicate allocation"));
        pool.release(&owner(3), &[]).unwrap();
        pool.release(&owner(1), &["10.1.0.3".parse().unwrap(), "fd00::3".parse().unwrap()]).unwrap();
        pool.release(&owner(1), &["10.1.0.4".parse().unwrap(), "fd00::4".parse().unwrap()]).unwrap();
        assert_eq!(pool.leases().unwrap().len(), 6);
        assert_eq!(
            (acquire(10).unwrap(), acquire(11).unwrap()),
            ("10.1.0.3/29".into(), "10.1.0.5/29".into())
        );
        let gone = pool.release_all(|owner| owner.id != "c2").unwrap();
        assert_eq!((gone.len(), pool.leases().unwrap().len()), (8, 2));
    }

    #[test]
    fn what_is_asked_for_is_given_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let range =
            json!([[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.100", "rangeEnd": "10.1.0.101"}]]);
        let pool = pool(folder.path(), &range).unwrap();
        let ask = |number, address: &str| pool.acquire(&owner(number), &[address.parse().unwrap()]);
        assert_eq!(ask(1, "10.1.0.101").unwrap()[0].address.to_string(), "10.1.0.101/24");
        assert!(ask(2, "10.1.0.101").unwrap_err().is_already_exists());
        assert!(ask(2, "10.1.0.1").is_err() && ask(2, "10.2.0.1").is_err());
        assert_eq!(pool.acquire(&owner(2), &[]).unwrap()[0].address.to_string(), "10.1.0.100/24");
    }

    #[test]
    fn ranges_that_cannot_be_used_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for (ranges, why) in [
            (json!([]), "no IP ranges specified"),
            (json!([[{"subnet": "10.1.0.0/31"}]]), "too small"),
            (json!([[{"subnet": "10.1.0.5/24"}]]), "host bits"),
            (json!([[{"subnet": "10.1.0.0/24", "rangeStart": "10.2.0.1"}]]), "not in network"),
            (
                json!([[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.3"}]]),
                "ends before",
            ),
            (json!([[{"subnet": "10.1.0.0/16"}], [{"subnet": "10.1.5.0/24"}]]), "overlaps"),
            (json!([[{}]]), "missing field"),
        ] {
            let failed = pool(folder.path(), &ranges).unwrap_err();
            assert!(failed.message().contains(why), "{ranges}: {failed}");
        }
    }

    #[test]
    fn a_whole_family_of_addresses_is_no_harder() {
        let folder = tempfile::tempdir().unwrap();
        let pool = pool(folder.path(), &json!([[{"subnet": "::/0"}], [{"subnet": "0.0.0.0/0"}]])).unwrap();
        assert_eq!(pool.acquire(&owner(1), &[]).unwrap().len(), 2);
    }

    proptest::proptest! {
        #[test]
        fn no_address_is_ever_given_twice(steps in proptest::collection::vec((0_usize..8, proptest::bool::ANY), 0..60)) {
            let folder = tempfile::tempdir().unwrap();
            let pool = pool(folder.path(), &json!([[{"subnet": "10.1.0.0/29"}, {"subnet": "10.2.0.0/30"}]])).unwrap();
            let mut held = std::collections::HashMap::new();
            for (number, take) in steps {
                if !take {
                    pool.release(&owner(number), &[]).unwrap();
                    held.remove(&number);
                } else if held.contains_key(&number) || held.len() == 6 {
                    proptest::prop_assert!(pool.acquire(&owner(number), &[]).is_err());
                } else {
                    let ip = pool.acquire(&owner(number), &[]).unwrap()[0].address.address;
                    proptest::prop_assert!(held.values().all(|other| *other != ip));
                    held.insert(number, ip);
                }
            }
            proptest::prop_assert_eq!(pool.leases().unwrap().len(), held.len());
        }
    }
}
