//! The daemon about itself.

use std::borrow::Cow;
use std::os::unix::fs::MetadataExt;

use corten_api::services::introspection::{self as api, introspection_server};
use corten_api::types::RuntimeRequest;
use corten_types::filter::{Fields, text};
use corten_types::{Error, Filter, Result as Outcome, ResultExt};
use tonic::{Request, Response, Status};

use super::{Base, status, timestamp};

const CGROUP_V1: &str = "The support for cgroup v1 is deprecated since containerd v2.2 and will be removed by no later \
     than May 2029. Upgrade the host to use cgroup v2.";

fn cgroups_v1() -> bool {
    !std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// What was tried when options cannot be read.
const OPTIONS: &str = "failed to unmarshal plugin info Options";

struct PluginFields<'a>(&'a api::Plugin);

impl Fields for PluginFields<'_> {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["type", ..] => text(&self.0.r#type),
            ["id", ..] => text(&self.0.id),
            _ => None,
        }
    }
}

impl Base {
    /// What this host has that will no longer be supported.
    fn deprecations(&self) -> Vec<api::DeprecationWarning> {
        if !self.plugins.works("io.containerd.warning.v1", "deprecations") || !cgroups_v1() {
            return Vec::new();
        }
        vec![api::DeprecationWarning {
            id: "io.containerd.deprecation/cgroup-v1".into(),
            message: CGROUP_V1.into(),
            last_occurrence: timestamp(self.started),
        }]
    }

    /// Made with the first question, and kept.
    fn uuid(&self) -> Outcome<String> {
        if let Ok(known) = std::fs::read_to_string(&self.uuid_file) {
            return Ok(known.trim().to_owned());
        }
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|error| Error::internal(format!("uuid: {error}")))?;
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
        let uuid =
            format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32));
        if let Some(folder) = self.uuid_file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        corten_durable::write_file(&self.uuid_file, uuid.as_bytes(), 0o666)?;
        Ok(uuid)
    }
}

#[tonic::async_trait]
impl introspection_server::Introspection for Base {
    async fn plugins(
        &self,
        request: Request<api::PluginsRequest>,
    ) -> Result<Response<api::PluginsResponse>, Status> {
        let filter = Filter::parse(&request.into_inner().filters);
        let filter = filter.context("invalid argument").map_err(status)?;
        let plugins =
            self.plugins.table().into_iter().filter(|plugin| filter.matches(&PluginFields(plugin))).collect();
        Ok(Response::new(api::PluginsResponse { plugins }))
    }

    async fn server(&self, _: Request<()>) -> Result<Response<api::ServerResponse>, Status> {
        let uuid = self.uuid().map_err(status)?;
        let pidns = std::fs::metadata("/proc/self/ns/pid").map_or(0, |metadata| metadata.ino());
        let pid = u64::from(std::process::id());
        Ok(Response::new(api::ServerResponse { uuid, pid, pidns, deprecations: self.deprecations() }))
    }

    async fn plugin_info(
        &self,
        request: Request<api::PluginInfoRequest>,
    ) -> Result<Response<api::PluginInfoResponse>, Status> {
        let request = request.into_inner();
        let mut table = self.plugins.table().into_iter();
        let found = table.find(|plugin| plugin.r#type == request.r#type && plugin.id == request.id);
        let missing =
            || status(Error::not_found(format!("plugin {}.{} not found", request.r#type, request.id)));
        let plugin = found.ok_or_else(missing)?;
        let extra = match &request.options {
            None => None,
            Some(options) if !corten_api::is_registered(&options.type_url) => {
                let text = format!("type with url {}: not found", options.type_url);
                return Err(status(Error::unknown(text).context(OPTIONS)));
            }
            Some(options) if plugin.r#type == "io.containerd.runtime.v2" => {
                let asked: RuntimeRequest = corten_api::unpack(options).context(OPTIONS).map_err(status)?;
                let tasks = self.tasks.as_ref().ok_or_else(|| status(Error::unavailable("no runtime")))?;
                let info = tasks.runtime_info(&asked.runtime_path, asked.options.as_ref()).await;
                Some(corten_api::pack(&info.map_err(status)?))
            }
            Some(_) => {
                let text = "plugin does not provided extra information";
                return Err(status(Error::not_implemented(text)));
            }
        };
        Ok(Response::new(api::PluginInfoResponse { plugin: Some(plugin), extra }))
    }
}
