//! Containers that are written down, and those that are made from that.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use corten_api::events as told;
use corten_api::runc::{CheckpointOptions, Options};
use corten_api::task_v3 as task;
use corten_cgroups::Cgroups;
use corten_oci::runtime::Checkpoint;
use corten_types::{Error, Result};

use super::{Container, TaskService, create_event, not_created, shares_pids};
use crate::oom::Oom;
use crate::process::{Process, State};
use crate::runtime::Runtime;

impl TaskService {
    /// A container that is to be restored: there is no process before its start.
    pub(super) fn create_from(
        &self,
        request: &task::CreateTaskRequest,
        options: &Options,
        runtime: Runtime,
        init: Process,
        rootfs_mounted: bool,
    ) -> task::CreateTaskResponse {
        let bundle = PathBuf::from(&request.bundle);
        let or_else = |path: &str, default: PathBuf| if path.is_empty() { default } else { path.into() };
        let checkpoint = Checkpoint {
            images: request.checkpoint.clone().into(),
            work: or_else(&options.criu_work_path, bundle.join("work")),
            ..Checkpoint::default()
        };
        let container = Container {
            shares_pids: shares_pids(&bundle),
            bundle,
            runtime,
            cgroups: None,
            oom: None,
            init,
            checkpoint: Some(checkpoint),
            execs: BTreeMap::new(),
            ending: None,
            rootfs_mounted,
        };
        self.lock().insert(request.id.clone(), container);
        self.publisher.publish("/tasks/create", &create_event(request, 0));
        task::CreateTaskResponse { pid: 0 }
    }

    pub(super) async fn restore(&self, id: &str, from: Checkpoint) -> Result<i32> {
        let (runtime, paths, stdio) = {
            let mut containers = self.lock();
            let container = containers.get_mut(id).ok_or_else(not_created)?;
            container.init.begin();
            (container.runtime.clone(), container.init.paths.clone(), Arc::clone(&container.init.stdio))
        };
        let starting = self.reaper.starting();
        let work = |streams| runtime.restore(&self.reaper, &from, streams);
        let restored = self.with_streams(id, &paths, &stdio, "failed to create init process I/O", work).await;
        let mut containers = self.lock();
        let container = containers.get_mut(id).ok_or_else(not_created)?;
        let pid = match restored {
            Ok(pid) => pid,
            Err(error) => {
                // It can be tried again.
                container.init.end_begin(None);
                container.checkpoint = Some(from);
                return Err(error);
            }
        };
        container.cgroups = container.runtime.cgroups(pid);
        let watch = |cgroups: &Cgroups| Oom::watch(id, cgroups, &self.publisher);
        container.oom = container.cgroups.as_ref().and_then(watch);
        self.publisher
            .publish("/tasks/start", &told::TaskStart { container_id: id.into(), pid: pid.unsigned_abs() });
        container.init.end_begin(Some(State::Running { pid }));
        drop(containers);
        self.follow(id, "", pid);
        drop(starting);
        Ok(pid)
    }

    pub(crate) async fn checkpoint(&self, request: task::CheckpointTaskRequest) -> Result<()> {
        let (runtime, bundle) = {
            let containers = self.lock();
            let container = containers.get(&request.id).ok_or_else(not_created)?;
            match container.init.state {
                State::Running { .. } | State::Paused { .. } => {}
                State::Stopped { .. } => return Err(Error::unknown("cannot checkpoint a stopped container")),
                _ => return Err(Error::unknown("cannot checkpoint a task in created state")),
            }
            (container.runtime.clone(), container.bundle.clone())
        };
        let options = match &request.options {
            Some(any) if !any.value.is_empty() => corten_api::unpack::<CheckpointOptions>(any)
                .map_err(|error| Error::unknown(format!("invalid options: {error}")))?,
            _ => CheckpointOptions::default(),
        };
        let given = |path: String| (!path.is_empty()).then(|| PathBuf::from(path));
        let (images, own_work) = (PathBuf::from(&request.path), bundle.join("criu-work"));
        let work = given(options.work_path);
        let wanted = Checkpoint {
            images,
            work: work.clone().unwrap_or_else(|| own_work.clone()),
            parent: given(options.parent_path),
            leave_running: !options.exit,
            open_tcp: options.open_tcp,
            external_unix_sockets: options.external_unix_sockets,
            terminal: options.terminal,
            file_locks: options.file_locks,
            empty_namespaces: options.empty_namespaces,
            cgroups_mode: options.cgroups_mode,
        };
        let result = runtime.checkpoint(&self.reaper, &wanted).await;
        if work.is_none() {
            std::fs::remove_dir_all(own_work).ok();
        }
        result
    }
}
