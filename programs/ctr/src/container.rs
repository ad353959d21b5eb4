//! From flags and an image to a container's record and snapshot.

use std::path::PathBuf;

use clap::Args;
use corten_api::services::{containers, content, diff, images, snapshots};
use corten_api::types::{Descriptor, Mount};
use corten_api::{keys, runc};
use corten_oci::spec::Spec;
use corten_types::{Any, Digest, Error, Labels, Platform, Result, ResultExt, media_type};
use serde_json::{Value, json};

use crate::client::{Daemon, error};
use crate::rootfs;

/// Flags of containers.
#[derive(Clone, Debug, Default, Args)]
pub struct ContainerFlags {
    /// An OCI specification to use instead of an image.
    #[arg(short, long)]
    config: Option<PathBuf>,
    /// Folder that the process begins in.
    #[arg(long)]
    cwd: Option<String>,
    /// Environment variables, K=V.
    #[arg(long)]
    pub env: Vec<String>,
    /// File with environment variables, one a line.
    #[arg(long)]
    env_file: Option<PathBuf>,
    /// Labels, K=V.
    #[arg(long)]
    label: Vec<String>,
    /// Annotations, K=V.
    #[arg(long)]
    annotation: Vec<String>,
    /// Mounts: type=bind,src=/a,dst=/b,options=rbind:ro.
    #[arg(long)]
    mount: Vec<String>,
    /// Share the host's network.
    #[arg(long)]
    net_host: bool,
    /// Allow everything that the host allows.
    #[arg(long)]
    privileged: bool,
    /// The root file system cannot be written.
    #[arg(long)]
    read_only: bool,
    /// Give the process a terminal.
    #[arg(short, long)]
    pub tty: bool,
    /// Join namespaces, type:path.
    #[arg(long)]
    with_ns: Vec<String>,
    /// Write the process id to this file.
    #[arg(long)]
    pub pid_file: Option<PathBuf>,
    /// Allow to gain privileges.
    #[arg(long)]
    allow_new_privs: bool,
    /// Bytes of memory.
    #[arg(long)]
    memory_limit: Option<u64>,
    /// Add a capability, CAP_X.
    #[arg(long)]
    cap_add: Vec<String>,
    /// Drop a capability, CAP_X.
    #[arg(long)]
    cap_drop: Vec<String>,
    /// Name of the host inside.
    #[arg(long)]
    hostname: Option<String>,
    /// User of the process, name or number, with a group behind a colon.
    #[arg(short, long)]
    user: Option<String>,
    /// The first argument is a folder with the root file system.
    #[arg(long)]
    rootfs: bool,
    /// Do not pivot into the root file system.
    #[arg(long)]
    no_pivot: bool,
    /// Microseconds of a period that may be used; -1 for all.
    #[arg(long, default_value_t = -1, allow_hyphen_values = true)]
    cpu_quota: i64,
    /// Microseconds of a period.
    #[arg(long)]
    cpu_period: Option<u64>,
    /// The runtime: a name or the path of a shim.
    #[arg(long, default_value = "io.containerd.runc.v2")]
    runtime: String,
    /// The OCI runtime's program.
    #[arg(long)]
    runc_binary: Option<String>,
    /// The OCI runtime's folder of states.
    #[arg(long)]
    runc_root: Option<String>,
    /// Cgroups through systemd.
    #[arg(long)]
    runc_systemd_cgroup: bool,
    /// The snapshotter.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = "overlayfs")]
    snapshotter: String,
    /// Labels of the snapshot, K=V.
    #[arg(long)]
    snapshotter_label: Vec<String>,
}

/// Limits that only `run` knows.
#[derive(Clone, Debug, Default, Args)]
pub struct Limits {
    /// Processors that may be used, as 0.5.
    #[arg(long)]
    cpus: Option<f64>,
    /// Weight against others.
    #[arg(long, default_value_t = 1024)]
    cpu_shares: u64,
    /// Processors that may be used, by number.
    #[arg(long)]
    cpuset_cpus: Option<String>,
    /// Memory nodes that may be used, by number.
    #[arg(long)]
    cpuset_mems: Option<String>,
    /// The cgroup's path.
    #[arg(long)]
    cgroup: Option<String>,
    /// Open files, soft[:hard].
    #[arg(long)]
    rlimit_nofile: Option<String>,
}

/// `K=V`; a bare key is true.
pub fn labels(list: &[String]) -> Labels {
    let pair = |text: &String| match text.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        None => (text.clone(), "true".to_owned()),
    };
    list.iter().map(pair).collect()
}

/// What was made: its id, and the mounts of its root file system.
#[derive(Debug)]
pub struct Created {
    pub id: String,
    pub mounts: Vec<Mount>,
    pub snapshotter: String,
    pub options: Any,
}

/// An image as far as a container needs it.
struct Image {
    record: images::Image,
    config: Value,
    layers: Vec<Descriptor>,
    diff_ids: Vec<String>,
}

impl Image {
    /// The chain id of the topmost layer; empty for none.
    fn chain(&self) -> Vec<String> {
        let mut chain: Vec<String> = Vec::new();
        for diff_id in &self.diff_ids {
            let next = match chain.last() {
                Some(parent) => Digest::sha256(format!("{parent} {diff_id}").as_bytes()).to_string(),
                None => diff_id.clone(),
            };
            chain.push(next);
        }
        chain
    }
}

/// A whole small blob.
pub async fn read_blob(daemon: &Daemon, digest: &str) -> Result<Vec<u8>> {
    let request = content::ReadContentRequest { digest: digest.into(), offset: 0, size: 0 };
    let mut stream = daemon.content().read(request).await.map_err(error)?.into_inner();
    let mut data = Vec::new();
    while let Some(message) = stream.message().await.map_err(error)? {
        data.extend_from_slice(&message.data);
    }
    Ok(data)
}

async fn read_json(daemon: &Daemon, digest: &str) -> Result<Value> {
    let data = read_blob(daemon, digest).await?;
    serde_json::from_slice(&data).map_err(|bad| Error::invalid_argument(format!("{digest}: {bad}")))
}

/// The manifest of an image for a platform.
pub async fn manifest(daemon: &Daemon, target: &Descriptor, platform: &Platform) -> Result<Value> {
    let mut document = read_json(daemon, &target.digest).await?;
    if media_type::is_index(&target.media_type) || document["manifests"].is_array() {
        let list = document["manifests"].as_array().cloned().unwrap_or_default();
        let rank = |one: &Value| {
            serde_json::from_value(one["platform"].clone()).ok().and_then(|p| platform.rank(&p))
        };
        let best = list.iter().filter_map(|one| Some((rank(one)?, one))).min_by_key(|(rank, _)| *rank);
        let missing = || Error::not_found(format!("no match for platform in manifest {}", target.digest));
        let digest = best.and_then(|(_, one)| one["digest"].as_str()).ok_or_else(missing)?;
        document = read_json(daemon, digest).await?;
    }
    Ok(document)
}

async fn image(daemon: &Daemon, name: &str, platform: &Platform) -> Result<Image> {
    let hint = |missing: Error| match missing.is_not_found() {
        true => missing.with_hint(format!("pull it: ctr images pull {name}")),
        false => missing,
    };
    let request = images::GetImageRequest { name: name.into() };
    let record = daemon.images().get(request).await.map_err(|status| hint(error(status)))?.into_inner();
    let record = record.image.ok_or_else(|| Error::not_found(format!("image {name:?}")))?;
    let manifest = manifest(daemon, &record.target.clone().unwrap_or_default(), platform).await?;
    let config = read_json(daemon, manifest["config"]["digest"].as_str().unwrap_or_default()).await?;
    let descriptor = |layer: &Value| Descriptor {
        media_type: layer["mediaType"].as_str().unwrap_or_default().into(),
        digest: layer["digest"].as_str().unwrap_or_default().into(),
        size: layer["size"].as_i64().unwrap_or(0),
        ..Descriptor::default()
    };
    let layers = manifest["layers"].as_array().map(|layers| layers.iter().map(descriptor).collect());
    let diff_ids = serde_json::from_value(config["rootfs"]["diff_ids"].clone()).unwrap_or_default();
    Ok(Image { record, config: config["config"].clone(), layers: layers.unwrap_or_default(), diff_ids })
}

/// Unpacks what is missing of an image, layer by layer.
async fn unpack(daemon: &Daemon, image: &Image, snapshotter: &str) -> Result<()> {
    let mut parent = String::new();
    for (layer, chain_id) in image.layers.iter().zip(image.chain()) {
        let stat = snapshots::StatSnapshotRequest { snapshotter: snapshotter.into(), key: chain_id.clone() };
        if daemon.snapshots().stat(stat).await.is_err() {
            let key = format!("extract-{} {chain_id}", corten_types::timestamp::nanos());
            let request = snapshots::PrepareSnapshotRequest {
                snapshotter: snapshotter.into(),
                key: key.clone(),
                parent: parent.clone(),
                labels: Labels::from([("containerd.io/gc.root".into(), "unpack".into())]),
            };
            let mounts = daemon.snapshots().prepare(request).await.map_err(error)?.into_inner().mounts;
            let request = diff::ApplyRequest { diff: Some(layer.clone()), mounts, ..Default::default() };
            daemon.diff().apply(request).await.map_err(error).context("failed to unpack the image")?;
            let request = snapshots::CommitSnapshotRequest {
                snapshotter: snapshotter.into(),
                name: chain_id.clone(),
                key,
                ..Default::default()
            };
            daemon.snapshots().commit(request).await.map_err(error)?;
        }
        parent = chain_id;
    }
    Ok(())
}

impl ContainerFlags {
    /// How many words come before the command: image or folder, and id; with a specification only the id.
    fn words<'a>(&self, rest: &'a [String]) -> Result<(&'a str, &'a str, &'a [String])> {
        let missing = |what: &str| Error::invalid_argument(format!("{what} must be provided"));
        match (self.config.is_some(), rest) {
            (true, [id, args @ ..]) => Ok(("", id, args)),
            (false, [image, id, args @ ..]) => Ok((image, id, args)),
            (false, [_]) | (true, []) => Err(missing("container id")),
            (false, []) => Err(missing("image ref")),
        }
    }

    /// Makes the record, and the snapshot if an image stands behind it.
    pub async fn create(&self, daemon: &Daemon, rest: &[String], limits: Option<&Limits>) -> Result<Created> {
        let (source, id, args) = self.words(rest)?;
        let options = self.options()?;
        if let Some(file) = &self.config {
            let data = std::fs::read(file).with_context(|| file.display().to_string())?;
            let spec = Spec::read(&data)
                .map_err(|bad| Error::invalid_argument(format!("{}: {bad}", file.display())))?;
            return self.record(daemon, id, "", &spec, labels(&self.label), "", options).await;
        }
        let mut spec = Spec::new(&daemon.namespace, id);
        if let Some(file) = &self.env_file {
            let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
            let lines: Vec<&str> =
                text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
            spec.add_env(&lines);
        }
        spec.add_env(&self.env);
        for mount in &self.mount {
            spec.add_mount(parse_mount(mount)?);
        }
        if self.rootfs {
            let folder = std::fs::canonicalize(source).with_context(|| source.to_owned())?;
            spec.value_mut()["root"]["path"] = json!(folder);
            spec.apply_image(&json!({}), args);
            self.finish_spec(&mut spec, args, limits)?;
            if let Some(user) = &self.user {
                let mount =
                    Mount { r#type: "bind".into(), source: folder.display().to_string(), ..Mount::default() };
                set_user(&mut spec, &rootfs::user(&[mount], user)?);
            }
            return self.record(daemon, id, "", &spec, labels(&self.label), "", options).await;
        }
        let image = image(daemon, source, &Platform::host()).await?;
        spec.apply_image(&image.config, args);
        self.finish_spec(&mut spec, args, limits)?;
        let user = self.user.clone().or_else(|| image.config["User"].as_str().map(str::to_owned));
        let user = user.filter(|user| !user.is_empty());
        let mut all = image.record.labels.clone();
        let of_config: Labels = serde_json::from_value(image.config["Labels"].clone()).unwrap_or_default();
        // What an image says may not speak to the daemon.
        let reserved = |key: &str| key.starts_with("containerd.io/") || key.starts_with("io.cri-containerd");
        all.extend(
            of_config.into_iter().filter(|(key, value)| !reserved(key) && key.len() + value.len() <= 4096),
        );
        let signal =
            image.config["StopSignal"].as_str().filter(|signal| !signal.is_empty()).unwrap_or("SIGTERM");
        all.insert("io.containerd.image.config.stop-signal".into(), signal.into());
        all.extend(labels(&self.label));
        let Some(user) = user else {
            // Record and snapshot at once: the record keeps the snapshot from the collector.
            let record = self.record(daemon, id, source, &spec, all, id, options);
            let (record, mounts) = tokio::join!(record, self.prepare(daemon, id, &image));
            let mounts = match (&record, mounts) {
                (Ok(_), Ok(mounts)) => mounts,
                (Ok(_), Err(failed)) => {
                    let request = containers::DeleteContainerRequest { id: id.into() };
                    daemon.containers().delete(request).await.ok();
                    return Err(failed);
                }
                (Err(_), Ok(_)) => {
                    self.forget(daemon, id).await;
                    Vec::new()
                }
                (Err(_), Err(_)) => Vec::new(),
            };
            return record.map(|created| Created { mounts, ..created });
        };
        let mounts = self.prepare(daemon, id, &image).await?;
        set_user(&mut spec, &rootfs::user(&mounts, &user)?);
        match self.record(daemon, id, source, &spec, all, id, options).await {
            Ok(created) => Ok(Created { mounts, ..created }),
            Err(failed) => {
                self.forget(daemon, id).await;
                Err(failed)
            }
        }
    }

    /// The snapshot that a failed record leaves behind.
    async fn forget(&self, daemon: &Daemon, id: &str) {
        let request =
            snapshots::RemoveSnapshotRequest { snapshotter: self.snapshotter.clone(), key: id.into() };
        daemon.snapshots().remove(request).await.ok();
    }

    async fn prepare(&self, daemon: &Daemon, id: &str, image: &Image) -> Result<Vec<Mount>> {
        let request = snapshots::PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: id.into(),
            parent: image.chain().pop().unwrap_or_default(),
            labels: labels(&self.snapshotter_label),
        };
        let first = daemon.snapshots().prepare(request.clone()).await.map_err(error);
        let made = match first {
            Err(missing) if missing.is_not_found() => {
                unpack(daemon, image, &self.snapshotter).await?;
                daemon.snapshots().prepare(request).await.map_err(error)?
            }
            other => other?,
        };
        Ok(made.into_inner().mounts)
    }

    fn options(&self) -> Result<Any> {
        if self.runtime != "io.containerd.runc.v2" && (self.runc_binary.is_some() || self.runc_systemd_cgroup)
        {
            return Err(Error::unknown(
                "runc-binary and runc-systemd-cgroup can only be used with \"io.containerd.runc.v2\" runtime",
            ));
        }
        Ok(corten_api::pack(&runc::Options {
            binary_name: self.runc_binary.clone().unwrap_or_default(),
            root: self.runc_root.clone().unwrap_or_default(),
            systemd_cgroup: self.runc_systemd_cgroup,
            no_pivot_root: self.no_pivot,
            ..Default::default()
        }))
    }

    fn finish_spec(&self, spec: &mut Spec, args: &[String], limits: Option<&Limits>) -> Result<()> {
        if self.read_only {
            spec.value_mut()["root"]["readonly"] = json!(true);
        }
        if !args.is_empty() {
            spec.set_args(args);
        }
        if let Some(cwd) = &self.cwd {
            spec.set_cwd(cwd);
        }
        if self.tty {
            spec.set_terminal();
        }
        if self.privileged {
            spec.set_privileged();
        }
        if self.net_host {
            let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            spec.share_host_network(hostname.trim());
        }
        for (key, value) in labels(&self.label).into_iter().chain(labels(&self.annotation)) {
            spec.annotate(&key, &value);
        }
        spec.change_capabilities(&self.cap_add, &self.cap_drop);
        if let Some(limits) = limits {
            limits.apply(spec)?;
        }
        if self.cpu_quota > 0 {
            spec.set_resource("cpu", "quota", json!(self.cpu_quota));
        }
        if let Some(period) = self.cpu_period {
            spec.set_resource("cpu", "period", json!(period));
        }
        for namespace in &self.with_ns {
            let bad = || {
                Error::unknown("joining a Linux namespace using --with-ns requires the format 'nstype:path'")
            };
            let (kind, path) = namespace.split_once(':').ok_or_else(bad)?;
            spec.set_namespace(kind, path);
        }
        if self.allow_new_privs {
            spec.value_mut()["process"]["noNewPrivileges"] = json!(false);
        }
        if let Some(limit) = self.memory_limit {
            spec.set_resource("memory", "limit", json!(limit));
        }
        if let Some(hostname) = &self.hostname {
            spec.value_mut()["hostname"] = json!(hostname);
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "a record has that many parts")]
    async fn record(
        &self,
        daemon: &Daemon,
        id: &str,
        image: &str,
        spec: &Spec,
        labels: Labels,
        snapshot: &str,
        options: Any,
    ) -> Result<Created> {
        let container = containers::Container {
            id: id.into(),
            labels,
            image: image.into(),
            runtime: Some(containers::container::Runtime {
                name: self.runtime.clone(),
                options: Some(options.clone()),
            }),
            spec: Some(Any { type_url: keys::SPEC.into(), value: spec.to_bytes() }),
            snapshotter: if snapshot.is_empty() { String::new() } else { self.snapshotter.clone() },
            snapshot_key: snapshot.into(),
            ..Default::default()
        };
        let request = containers::CreateContainerRequest { container: Some(container) };
        daemon.containers().create(request).await.map_err(error)?;
        Ok(Created { id: id.into(), mounts: Vec::new(), snapshotter: self.snapshotter.clone(), options })
    }
}

impl Limits {
    fn apply(&self, spec: &mut Spec) -> Result<()> {
        spec.set_resource("cpu", "shares", json!(self.cpu_shares));
        if let Some(cpus) = self.cpus.filter(|cpus| *cpus > 0.0) {
            #[expect(clippy::cast_possible_truncation, reason = "microseconds of a tenth of a second")]
            let quota = (cpus * 100_000.0) as i64;
            spec.set_resource("cpu", "quota", json!(quota));
            spec.set_resource("cpu", "period", json!(100_000));
        }
        if let Some(cpus) = &self.cpuset_cpus {
            spec.set_resource("cpu", "cpus", json!(cpus));
        }
        if let Some(mems) = &self.cpuset_mems {
            spec.set_resource("cpu", "mems", json!(mems));
        }
        if let Some(path) = &self.cgroup {
            spec.value_mut()["linux"]["cgroupsPath"] = json!(path);
        }
        if let Some(limit) = &self.rlimit_nofile {
            let (soft, hard) = limit.split_once(':').unwrap_or((limit, limit));
            let number = |text: &str| {
                text.parse::<u64>().map_err(|_| Error::unknown(format!("invalid rlimit {limit:?}")))
            };
            let limit = json!([{"type": "RLIMIT_NOFILE", "soft": number(soft)?, "hard": number(hard)?}]);
            spec.value_mut()["process"]["rlimits"] = limit;
        }
        Ok(())
    }
}

fn set_user(spec: &mut Spec, user: &rootfs::User) {
    spec.value_mut()["process"]["user"] =
        json!({"uid": user.uid, "gid": user.gid, "additionalGids": user.additional});
}

/// `type=bind,src=/a,dst=/b,options=rbind:ro`.
fn parse_mount(text: &str) -> Result<Value> {
    let mut mount = json!({"type": "", "source": "", "destination": "", "options": []});
    for field in text.split(',') {
        let bad = || Error::unknown(format!("invalid mount specification: expected key=val: {field}"));
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
