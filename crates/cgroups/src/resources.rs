//! Limits as the OCI runtime specification writes them (`linux.resources`).

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// All of them; what is not named is left as it is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Resources {
    /// Rules for devices, the last that fits counts.
    #[serde(deserialize_with = "or_default")]
    pub devices: Vec<DeviceRule>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Processor time and processors.
    pub cpu: Option<Cpu>,
    /// Number of processes.
    pub pids: Option<Pids>,
    /// Block devices.
    #[serde(rename = "blockIO")]
    pub block_io: Option<BlockIo>,
    /// Huge pages by size.
    #[serde(deserialize_with = "or_default")]
    pub hugepage_limits: Vec<HugePages>,
    /// Marks on packets (v1).
    pub network: Option<Network>,
    /// RDMA by device.
    #[serde(deserialize_with = "or_default")]
    pub rdma: BTreeMap<String, Rdma>,
    /// Files of v2, as they are.
    #[serde(deserialize_with = "or_default")]
    pub unified: BTreeMap<String, String>,
}

/// What processes may do with devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DeviceRule {
    /// Allowed or denied.
    pub allow: bool,
    /// `a` for all, `b`, `c`; empty is all.
    #[serde(rename = "type")]
    pub kind: String,
    /// Any when missing or negative.
    pub major: Option<i64>,
    /// Any when missing or negative.
    pub minor: Option<i64>,
    /// Of `r`, `w`, `m`; empty is all.
    pub access: String,
}

/// Bytes; -1 is no limit.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Memory {
    /// Memory.
    pub limit: Option<i64>,
    /// Memory that is given back last.
    pub reservation: Option<i64>,
    /// Memory and swap together.
    pub swap: Option<i64>,
    /// Buffers of TCP (v1).
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: Option<i64>,
    /// 0 to 100 (v1).
    pub swappiness: Option<u64>,
    /// Processes wait instead of being killed (v1).
    #[serde(rename = "disableOOMKiller")]
    pub disable_oom_killer: Option<bool>,
    /// A limit below what is used is refused.
    pub check_before_update: Option<bool>,
}

/// Times are microseconds.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Cpu {
    /// Weight as v1 has it, 2 to 262144.
    pub shares: Option<u64>,
    /// Time in each period; -1 is no limit.
    pub quota: Option<i64>,
    /// Time that may be saved up.
    pub burst: Option<u64>,
    /// Period.
    pub period: Option<u64>,
    /// Real-time budget (v1).
    pub realtime_runtime: Option<i64>,
    /// Real-time period (v1).
    pub realtime_period: Option<u64>,
    /// Processors.
    pub cpus: Option<String>,
    /// Nodes of memory.
    pub mems: Option<String>,
    /// 1 for work that only fills gaps.
    pub idle: Option<i64>,
}

/// Processes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pids {
    /// 0 is not set, negative is no limit.
    pub limit: Option<i64>,
}

/// Block devices.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct BlockIo {
    /// 10 to 1000.
    pub weight: Option<u16>,
    /// Of its own processes against those of children (v1).
    pub leaf_weight: Option<u16>,
    /// By device.
    #[serde(deserialize_with = "or_default")]
    pub weight_device: Vec<Weight>,
    /// Bytes a second.
    #[serde(deserialize_with = "or_default")]
    pub throttle_read_bps_device: Vec<Throttle>,
    /// Bytes a second.
    #[serde(deserialize_with = "or_default")]
    pub throttle_write_bps_device: Vec<Throttle>,
    /// Operations a second.
    #[serde(rename = "throttleReadIOPSDevice", deserialize_with = "or_default")]
    pub throttle_read_iops_device: Vec<Throttle>,
    /// Operations a second.
    #[serde(rename = "throttleWriteIOPSDevice", deserialize_with = "or_default")]
    pub throttle_write_iops_device: Vec<Throttle>,
}

/// The weight of a device.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Weight {
    /// Device number.
    pub major: i64,
    /// Device number.
    pub minor: i64,
    /// 10 to 1000.
    pub weight: Option<u16>,
    /// As [`BlockIo::leaf_weight`].
    pub leaf_weight: Option<u16>,
}

/// The rate of a device.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Throttle {
    /// Device number.
    pub major: i64,
    /// Device number.
    pub minor: i64,
    /// Per second.
    pub rate: u64,
}

/// Huge pages of one size.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HugePages {
    /// As in `2MB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

/// Marks on packets.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Network {
    /// Class for traffic control.
    #[serde(rename = "classID")]
    pub class_id: Option<u32>,
    /// By interface.
    #[serde(deserialize_with = "or_default")]
    pub priorities: Vec<Priority>,
}

/// The priority of traffic over an interface.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Priority {
    /// Interface.
    pub name: String,
    /// Higher goes first.
    pub priority: u32,
}

/// Of one device.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Rdma {
    /// Handles.
    pub hca_handles: Option<u32>,
    /// Objects.
    pub hca_objects: Option<u32>,
}

/// Go writes null for what is empty.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}
