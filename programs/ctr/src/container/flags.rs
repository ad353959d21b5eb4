//! The flags of `run` and `containers create`, in the order in which the original tells them.

use std::path::PathBuf;

use clap::Args;
use corten_api::runtimeoptions;
use corten_types::{Any, Error, Result};

use super::network::NetworkFlags;

/// The runtime that containers have unless another one is named.
pub const RUNC: &str = "io.containerd.runc.v2";

/// Which runtime, and how it is set up.
#[derive(Clone, Debug, Default, Args)]
pub struct RuntimeFlags {
    /// The runtime: a name or the path of a shim.
    #[arg(long, default_value = RUNC)]
    pub runtime: String,
    /// The runtime's file of settings.
    #[arg(long, default_value = "")]
    pub runtime_config_path: String,
    /// The OCI runtime's program.
    #[arg(long, default_value = "")]
    pub runc_binary: String,
    /// The OCI runtime's folder of states.
    #[arg(long, default_value = "")]
    pub runc_root: String,
    /// Cgroups through systemd; needs --cgroup.
    #[arg(long)]
    pub runc_systemd_cgroup: bool,
}

impl RuntimeFlags {
    /// The options of the runtime, those of a task too: whether to pivot, who owns its streams.
    ///
    /// # Errors
    /// For settings that the runtime does not have.
    pub fn options(&self, no_pivot: bool, (uid, gid): (u32, u32)) -> Result<Option<Any>> {
        if self.runtime == RUNC {
            return Ok(Some(corten_api::pack(&corten_api::runc::Options {
                binary_name: self.runc_binary.clone(),
                root: self.runc_root.clone(),
                systemd_cgroup: self.runc_systemd_cgroup,
                no_pivot_root: no_pivot,
                io_uid: uid,
                io_gid: gid,
                ..Default::default()
            })));
        }
        if !self.runc_binary.is_empty() || self.runc_systemd_cgroup {
            return Err(Error::unknown(format!(
                "specifying runc-binary and runc-systemd-cgroup is only supported for {RUNC:?} runtime"
            )));
        }
        if self.runtime_config_path.is_empty() {
            return Ok(None);
        }
        let config_path = self.runtime_config_path.clone();
        Ok(Some(corten_api::pack(&runtimeoptions::Options { config_path, ..Default::default() })))
    }
}

/// Flags that only `run` has and that shape the container.
#[derive(Clone, Debug, Default, Args)]
pub struct RunFlags {
    /// The cgroup's path; empty for none.
    #[arg(long)]
    pub cgroup: Option<String>,
    /// Platform of the image, os/arch.
    #[arg(long, default_value = "")]
    pub platform: String,
    /// Join the container to CNI's network.
    #[arg(long)]
    pub cni: bool,
    /// Have unpacked files on disk before the container is made.
    #[arg(long)]
    pub sync_fs: bool,
    /// Write the specification to this file.
    #[arg(long)]
    pub dump_config: Option<PathBuf>,
    /// User ids of a user namespace, container-id:host-id:length.
    #[arg(long)]
    pub uidmap: Vec<String>,
    /// Group ids of a user namespace, container-id:host-id:length.
    #[arg(long)]
    pub gidmap: Vec<String>,
    /// Let the snapshotter map the owners of files.
    #[arg(long)]
    pub remap_labels: bool,
    /// Privileged, but without the host's devices.
    #[arg(long)]
    pub privileged_without_host_devices: bool,
    /// Processors that may be used, as 0.5.
    #[arg(long, default_value = "0", allow_hyphen_values = true)]
    pub cpus: f64,
    /// Weight of processor time against others; 0 for none.
    #[arg(long, default_value = "1024")]
    pub cpu_shares: u64,
    /// Processors that may be used, as 0-2,4.
    #[arg(long, default_value = "")]
    pub cpuset_cpus: String,
    /// Memory nodes that may be used, as 0-2,4.
    #[arg(long, default_value = "")]
    pub cpuset_mems: String,
    /// Most open files, soft[:hard].
    #[arg(long, default_value = "")]
    pub rlimit_nofile: String,
    #[command(flatten)]
    pub networks: NetworkFlags,
}

/// Flags of every container.
#[derive(Clone, Debug, Default, Args)]
pub struct ContainerFlags {
    #[command(flatten)]
    pub runtime: RuntimeFlags,
    /// The snapshotter; empty for the namespace's or the daemon's default.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = "")]
    pub snapshotter: String,
    /// Labels of the snapshot, K=V.
    #[arg(long)]
    pub snapshotter_label: Vec<String>,
    /// An OCI specification to use instead of an image.
    #[arg(short, long)]
    pub config: Option<PathBuf>,
    /// Folder that the process begins in.
    #[arg(long, default_value = "")]
    pub cwd: String,
    /// Environment variables, K=V; K alone removes one.
    #[arg(long)]
    pub env: Vec<String>,
    /// File with environment variables, one a line.
    #[arg(long)]
    pub env_file: Option<PathBuf>,
    /// Labels, K=V; annotations too.
    #[arg(long)]
    pub label: Vec<String>,
    /// Annotations, K=V.
    #[arg(long)]
    pub annotation: Vec<String>,
    /// Mounts: type=bind,src=/a,dst=/b,options=rbind:ro.
    #[arg(long)]
    pub mount: Vec<String>,
    /// Share the host's network.
    #[arg(long)]
    pub net_host: bool,
    /// Allow everything that the caller may.
    #[arg(long)]
    pub privileged: bool,
    /// The root file system cannot be written.
    #[arg(long)]
    pub read_only: bool,
    /// The sandbox that the container belongs to.
    #[arg(long, default_value = "")]
    pub sandbox: String,
    /// Give the process a terminal.
    #[arg(short, long)]
    pub tty: bool,
    /// Namespaces to join, type:path; types are pid, network, uts, mount, user, ipc, cgroup.
    #[arg(long)]
    pub with_ns: Vec<String>,
    /// Write the process id to this file.
    #[arg(long)]
    pub pid_file: Option<PathBuf>,
    /// Graphics processors, by number.
    #[arg(long)]
    pub gpus: Vec<u32>,
    /// Allow to gain privileges.
    #[arg(long)]
    pub allow_new_privs: bool,
    /// Most bytes of memory; 0 for any.
    #[arg(long, default_value = "0")]
    pub memory_limit: u64,
    /// Add capabilities, CAP_X.
    #[arg(long)]
    pub cap_add: Vec<String>,
    /// Drop capabilities, CAP_X.
    #[arg(long)]
    pub cap_drop: Vec<String>,
    /// Allow the usual system calls only.
    #[arg(long)]
    pub seccomp: bool,
    /// File with a seccomp profile of one's own; needs --seccomp.
    #[arg(long, default_value = "")]
    pub seccomp_profile: String,
    /// Load the usual AppArmor profile under this name, and use it.
    #[arg(long, default_value = "")]
    pub apparmor_default_profile: String,
    /// Use an AppArmor profile that is loaded already.
    #[arg(long, default_value = "")]
    pub apparmor_profile: String,
    /// File with classes of disk bandwidth.
    #[arg(long, default_value = "")]
    pub blockio_config_file: String,
    /// Class of disk bandwidth.
    #[arg(long, default_value = "")]
    pub blockio_class: String,
    /// Class of cache and memory bandwidth (resctrl).
    #[arg(long, default_value = "")]
    pub rdt_class: String,
    /// Name of the host inside.
    #[arg(long, default_value = "")]
    pub hostname: String,
    /// User of the process, name or number, with a group behind a colon.
    #[arg(short, long, default_value = "")]
    pub user: String,
    /// The first argument is a folder with the root file system.
    #[arg(long)]
    pub rootfs: bool,
    /// Do not pivot into the root file system.
    #[arg(long)]
    pub no_pivot: bool,
    /// Microseconds of a period that may be used; -1 for all.
    #[arg(long, default_value = "-1", allow_hyphen_values = true)]
    pub cpu_quota: i64,
    /// Microseconds of a period.
    #[arg(long, default_value = "0")]
    pub cpu_period: u64,
    /// How mounts below the root file system propagate: slave, shared, private, ….
    #[arg(long, default_value = "")]
    pub rootfs_propagation: String,
    /// Devices: a path, a folder of devices, or a CDI name vendor/class=name.
    #[arg(long)]
    pub device: Vec<String>,
}
