//! From flags to the specification of a container: edits in a fixed order, later ones win (spec 05 `run`).

use corten_oci::seccomp;
use corten_oci::spec::Spec;
use corten_types::{Error, Result, ResultExt};
use serde_json::{Value, json};

use super::flags::{ContainerFlags, RunFlags};
use super::{devices, labels};

/// A range of ids: inside, on the host, how many.
pub type Range = (u32, u32, u32);

impl ContainerFlags {
    /// What all containers with a specification of ours begin with.
    pub fn begin(&self, namespace: &str, id: &str) -> Result<Spec> {
        let mut spec = Spec::new(namespace, id);
        spec.allow_common_devices();
        if let Some(file) = &self.env_file {
            let text = std::fs::read_to_string(file).with_context(|| format!("open {}", file.display()))?;
            let lines =
                text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
            spec.add_env(&lines.collect::<Vec<_>>());
        }
        spec.add_env(&self.env);
        for mount in &self.mount {
            spec.add_mount(parse_mount(mount)?);
        }
        Ok(spec)
    }

    /// The edits behind those that an image or a folder asks for; users come later, from its files.
    pub fn finish(&self, spec: &mut Spec, args: &[String], run: Option<&RunFlags>) -> Result<()> {
        if self.read_only {
            spec.value_mut()["root"]["readonly"] = json!(true);
        }
        if !args.is_empty() {
            spec.set_args(args);
        }
        if !self.cwd.is_empty() {
            spec.set_cwd(&self.cwd);
        }
        if self.tty {
            spec.set_terminal();
        }
        self.privileges(spec, run)?;
        if self.net_host {
            let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            spec.share_host_network(hostname.trim());
        }
        self.annotate(spec)?;
        self.capabilities(spec)?;
        self.security(spec)?;
        self.processors(spec, run)?;
        for namespace in &self.with_ns {
            join(spec, namespace)?;
        }
        if self.allow_new_privs
            && let Some(process) = spec.value_mut()["process"].as_object_mut()
        {
            process.remove("noNewPrivileges");
        }
        self.cgroup(spec, run)?;
        if self.memory_limit > 0 {
            spec.set_resource("memory", "limit", json!(self.memory_limit));
        }
        self.devices(spec)?;
        if !self.rootfs_propagation.is_empty() {
            spec.value_mut()["linux"]["rootfsPropagation"] = json!(self.rootfs_propagation);
        }
        self.classes(spec)?;
        if !self.hostname.is_empty() {
            spec.value_mut()["hostname"] = json!(self.hostname);
        }
        if let Some(run) = run {
            run.limits(spec)?;
        }
        Ok(())
    }

    fn privileges(&self, spec: &mut Spec, run: Option<&RunFlags>) -> Result<()> {
        let without_devices = run.is_some_and(|run| run.privileged_without_host_devices);
        if without_devices && !self.privileged {
            return Err(Error::unknown(
                "can't use 'privileged-without-host-devices' without 'privileged' specified",
            ));
        }
        if self.privileged {
            spec.set_privileged();
            if !without_devices {
                spec.allow_all_devices();
                devices::add_all(spec);
            }
        }
        Ok(())
    }

    /// Annotations; labels are some too, for those who only see the specification.
    pub fn annotate(&self, spec: &mut Spec) -> Result<()> {
        for annotation in &self.annotation {
            let bad = || Error::unknown(format!("invalid key=value format annotation: {annotation}"));
            let (key, value) = annotation.split_once('=').ok_or_else(bad)?;
            spec.annotate(key, value);
        }
        labels(&self.label).iter().for_each(|(key, value)| spec.annotate(key, value));
        Ok(())
    }

    fn capabilities(&self, spec: &mut Spec) -> Result<()> {
        if self.cap_add.iter().chain(&self.cap_drop).any(|name| !name.starts_with("CAP_")) {
            return Err(Error::unknown("capabilities must be specified with 'CAP_' prefix"));
        }
        spec.change_capabilities(&self.cap_add, &self.cap_drop);
        Ok(())
    }

    fn security(&self, spec: &mut Spec) -> Result<()> {
        match (self.seccomp, self.seccomp_profile.is_empty()) {
            (false, false) => {
                return Err(Error::unknown("seccomp must be set to true, if using a custom seccomp-profile"));
            }
            (true, true) => {
                let profile = seccomp::default_profile(&spec.capabilities("bounding"));
                spec.value_mut()["linux"]["seccomp"] = profile;
            }
            (true, false) => {
                let path = &self.seccomp_profile;
                let failed =
                    |why: &str| Error::unknown(format!("cannot load seccomp profile {path:?}: {why}"));
                let data = std::fs::read(path)
                    .map_err(|error| failed(&format!("open {path}: {}", Error::from(error).message())))?;
                let profile: Value = serde_json::from_slice(&data).map_err(|_| {
                    Error::unknown(format!("decoding seccomp profile failed {path:?}: not JSON"))
                })?;
                spec.value_mut()["linux"]["seccomp"] = profile;
            }
            (false, true) => {}
        }
        let profile = match (self.apparmor_profile.as_str(), self.apparmor_default_profile.as_str()) {
            ("", "") => return Ok(()),
            ("", name) => {
                super::apparmor::load(name)?;
                name
            }
            (name, "") => name,
            _ => return Err(Error::unknown("apparmor-profile conflicts with apparmor-default-profile")),
        };
        spec.value_mut()["process"]["apparmorProfile"] = json!(profile);
        Ok(())
    }

    fn processors(&self, spec: &mut Spec, run: Option<&RunFlags>) -> Result<()> {
        let cpus = run.map_or(0.0, |run| run.cpus);
        if cpus > 0.0 {
            #[expect(clippy::cast_possible_truncation, reason = "microseconds of a tenth of a second")]
            let quota = (cpus * 100_000.0) as i64;
            spec.set_resource("cpu", "quota", json!(quota));
            spec.set_resource("cpu", "period", json!(100_000));
        }
        if let Some(run) = run {
            if run.cpu_shares > 0 {
                spec.set_resource("cpu", "shares", json!(run.cpu_shares));
            }
            for (key, set) in [("cpus", &run.cpuset_cpus), ("mems", &run.cpuset_mems)] {
                if !set.is_empty() {
                    spec.set_resource("cpu", key, json!(set));
                }
            }
        }
        if self.cpu_quota > -1 || self.cpu_period > 0 {
            if cpus > 0.0 {
                return Err(Error::unknown("cpus and quota/period should be used separately"));
            }
            spec.set_resource("cpu", "quota", json!(self.cpu_quota));
            spec.set_resource("cpu", "period", json!(self.cpu_period));
        }
        Ok(())
    }

    fn cgroup(&self, spec: &mut Spec, run: Option<&RunFlags>) -> Result<()> {
        let path = run.and_then(|run| run.cgroup.as_deref());
        if self.runtime.runc_systemd_cgroup && path.is_none_or(str::is_empty) {
            return Err(Error::unknown(
                "option --runc-systemd-cgroup requires --cgroup to be set, e.g. \"machine.slice:foo:deadbeef\"",
            ));
        }
        match (path, spec.value_mut()["linux"].as_object_mut()) {
            (Some(""), Some(linux)) => drop(linux.remove("cgroupsPath")),
            (Some(path), Some(linux)) => drop(linux.insert("cgroupsPath".into(), json!(path))),
            _ => {}
        }
        Ok(())
    }

    fn devices(&self, spec: &mut Spec) -> Result<()> {
        let named = |name: &&String| !name.starts_with('/') && name.contains('=');
        let mut names: Vec<String> = self.device.iter().filter(named).cloned().collect();
        names.extend(super::cdi::gpus(&self.gpus)?);
        super::cdi::inject(spec, &names)?;
        self.device.iter().filter(|name| !named(name)).try_for_each(|path| devices::add(spec, path))
    }

    fn classes(&self, spec: &mut Spec) -> Result<()> {
        if !self.blockio_config_file.is_empty() {
            let path = &self.blockio_config_file;
            let why = match std::fs::File::open(path) {
                Err(error) => {
                    format!(
                        "failed to read config file {path:?}: open {path}: {}",
                        Error::from(error).message()
                    )
                }
                Ok(_) => {
                    "classes of disk bandwidth are not supported: set limits in a specification (--config)"
                        .into()
                }
            };
            return Err(Error::unknown(format!("blockio-config-file error: {why}")));
        }
        if !self.blockio_class.is_empty() {
            let class = &self.blockio_class;
            return Err(Error::unknown(format!(
                "blockio-class error: no OCI BlockIO parameters for class {class:?}"
            )));
        }
        if !self.rdt_class.is_empty() {
            spec.value_mut()["linux"]["intelRdt"] = json!({"closID": self.rdt_class});
        }
        Ok(())
    }
}

impl RunFlags {
    fn limits(&self, spec: &mut Spec) -> Result<()> {
        if !self.rlimit_nofile.is_empty() {
            let text = &self.rlimit_nofile;
            let (soft, hard) = text.split_once(':').unwrap_or((text, text));
            let number = |one: &str| {
                one.parse::<u64>().map_err(|_| Error::unknown(format!("invalid rlimit {text:?}")))
            };
            let limit = json!([{"type": "RLIMIT_NOFILE", "soft": number(soft)?, "hard": number(hard)?}]);
            spec.value_mut()["process"]["rlimits"] = limit;
        }
        if let Some((users, groups)) = self.maps()? {
            spec.map_users(&users, &groups);
        }
        Ok(())
    }

    /// The maps of a user namespace; none unless users and groups are mapped.
    pub fn maps(&self) -> Result<Option<(Vec<Range>, Vec<Range>)>> {
        let ranges = |list: &[String]| list.iter().map(|text| range(text)).collect::<Result<Vec<_>>>();
        let (users, groups) = (ranges(&self.uidmap)?, ranges(&self.gidmap)?);
        Ok((!users.is_empty() && !groups.is_empty()).then_some((users, groups)))
    }
}

fn range(text: &str) -> Result<Range> {
    let bad = || Error::unknown("user namespace mappings require the format `container-id:host-id:size`");
    let numbers: Option<Vec<u32>> = text.split(':').map(|part| part.parse().ok()).collect();
    match numbers.as_deref() {
        Some([inside, host, size]) => Ok((*inside, *host, *size)),
        _ => Err(bad()),
    }
}

fn join(spec: &mut Spec, text: &str) -> Result<()> {
    let bad =
        || Error::unknown("joining a Linux namespace using --with-ns requires the format 'nstype:path'");
    let (kind, path) = text.split_once(':').filter(|(_, path)| !path.is_empty()).ok_or_else(bad)?;
    if !["pid", "network", "uts", "mount", "user", "ipc", "cgroup"].contains(&kind) {
        let text = format!("the Linux namespace type specified in --with-ns is not valid: {kind}");
        return Err(Error::unknown(text));
    }
    spec.set_namespace(kind, path);
    Ok(())
}

/// `type=bind,src=/a,dst=/b,options=rbind:ro`; fields with commas are in quotes.
pub fn parse_mount(text: &str) -> Result<Value> {
    let mut mount = json!({"destination": ""});
    for field in csv(text) {
        let bad = || Error::unknown("invalid mount specification: expected key=val");
        let (key, value) = field.split_once('=').ok_or_else(bad)?;
        match key {
            "type" => mount["type"] = json!(value),
            "source" | "src" => mount["source"] = json!(value),
            "destination" | "dst" => mount["destination"] = json!(value),
            "options" => mount["options"] = json!(value.split(':').collect::<Vec<_>>()),
            other => return Err(Error::unknown(format!("mount option {other:?} not supported"))),
        }
    }
    Ok(mount)
}

/// The fields of a line; one that begins with a quote ends with a quote, two quotes are one.
fn csv(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let (mut quoted, mut letters) = (false, line.chars().peekable());
    while let Some(letter) = letters.next() {
        let field = fields.last_mut();
        match (letter, field) {
            ('"', Some(field)) if quoted && letters.peek() == Some(&'"') => {
                letters.next();
                field.push('"');
            }
            ('"', _) if quoted => quoted = false,
            ('"', Some(field)) if field.is_empty() => quoted = true,
            (',', _) if !quoted => fields.push(String::new()),
            (letter, Some(field)) => field.push(letter),
            (_, None) => {}
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_lists_of_fields() {
        let mount = parse_mount("type=bind,src=/a,dst=/b,options=rbind:ro").unwrap();
        let expected =
            json!({"type": "bind", "source": "/a", "destination": "/b", "options": ["rbind", "ro"]});
        assert_eq!(mount, expected);
        assert_eq!(parse_mount("\"src=/a,b\",dst=/c").unwrap()["source"], "/a,b");
        assert_eq!(
            parse_mount("x").unwrap_err().to_string(),
            "invalid mount specification: expected key=val"
        );
        assert!(parse_mount("foo=bar").is_err());
    }

    #[test]
    fn ranges_have_three_numbers() {
        assert_eq!(range("0:1000:10").unwrap(), (0, 1000, 10));
        assert!(range("0:1000").is_err() && range("a:b:c").is_err() && range("0:1:2:3").is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_mount_is_read_or_refused(text in "[a-z=,\":]{0,30}") {
            let _ = parse_mount(&text);
        }
    }
}
