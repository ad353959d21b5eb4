//! Calls that only look.

use corten_api::runc::ProcessDetails;
use corten_api::task_types::{ProcessInfo, Status};
use corten_api::task_v3 as task;
use corten_types::{Error, ErrorClass, Result, timestamp};

use super::{TaskService, not_created, process};
use crate::process::State;

impl TaskService {
    pub(crate) fn state(&self, request: &task::StateRequest) -> Result<task::StateResponse> {
        let mut containers = self.lock();
        let container = containers.get(&request.id).ok_or_else(not_created)?;
        let (bundle, paused) =
            (container.bundle.display().to_string(), matches!(container.init.state, State::Paused { .. }));
        let process = process(&mut containers, &request.id, &request.exec_id)?;
        let status = match process.state {
            State::Added | State::Created { .. } => Status::Created,
            State::Running { .. } if paused => Status::Paused,
            State::Running { .. } => Status::Running,
            State::Paused { .. } => Status::Paused,
            State::Stopped { .. } => Status::Stopped,
        };
        let exit = process.exit();
        Ok(task::StateResponse {
            id: if request.exec_id.is_empty() { request.id.clone() } else { request.exec_id.clone() },
            bundle,
            pid: process.pid().unsigned_abs(),
            status: status.into(),
            stdin: process.paths.stdin.clone(),
            stdout: process.paths.stdout.clone(),
            stderr: process.paths.stderr.clone(),
            terminal: process.paths.terminal,
            exit_status: exit.map_or(0, |(status, _)| status),
            exited_at: exit.map(|(_, at)| timestamp::from_system(at)),
            exec_id: String::new(),
        })
    }

    pub(crate) async fn wait(
        &self,
        request: task::WaitRequest,
        gone: impl Future<Output = ()>,
    ) -> Result<task::WaitResponse> {
        let mut gone = std::pin::pin!(gone);
        let mut changed = process(&mut self.lock(), &request.id, &request.exec_id)?.changed.subscribe();
        loop {
            let exit = process(&mut self.lock(), &request.id, &request.exec_id)?.exit();
            if let Some((exit_status, at)) = exit {
                return Ok(task::WaitResponse { exit_status, exited_at: Some(timestamp::from_system(at)) });
            }
            tokio::select! {
                changed = changed.changed() => if changed.is_err() { return Err(not_created()) },
                () = &mut gone => return Err(Error::new(ErrorClass::Canceled, "the caller is gone")),
            }
        }
    }

    pub(crate) fn pids(&self, request: &task::PidsRequest) -> Result<task::PidsResponse> {
        let containers = self.lock();
        let container = containers.get(&request.id).ok_or_else(not_created)?;
        let cgroups = container.cgroups.as_ref().ok_or_else(|| Error::not_found("cgroup does not exist"))?;
        let mut pids = cgroups.processes().unwrap_or_default();
        pids.sort_unstable();
        let info = |pid: i32| {
            let exec = container.execs.iter().find(|(_, exec)| exec.pid() == pid);
            let info = exec.map(|(id, _)| corten_api::pack(&ProcessDetails { exec_id: id.clone() }));
            ProcessInfo { pid: pid.unsigned_abs(), info }
        };
        Ok(task::PidsResponse { processes: pids.into_iter().map(info).collect() })
    }

    pub(crate) fn stats(&self, request: &task::StatsRequest) -> Result<task::StatsResponse> {
        let containers = self.lock();
        let container = containers.get(&request.id).ok_or_else(not_created)?;
        let cgroups = container.cgroups.as_ref().ok_or_else(|| Error::not_found("cgroup does not exist"))?;
        Ok(task::StatsResponse { stats: Some(corten_cgroups::metrics(cgroups)?) })
    }

    pub(crate) fn connect(&self, request: &task::ConnectRequest) -> task::ConnectResponse {
        let pid = self.lock().get(&request.id).map_or(0, |container| container.init.pid().unsigned_abs());
        task::ConnectResponse { shim_pid: std::process::id(), task_pid: pid, version: String::new() }
    }
}
