//! Calls that act on what runs.

use corten_api::events as told;
use corten_api::task_v3 as task;
use corten_types::{Error, Result};

use super::{TaskService, not_created, process};
use crate::process::{State, send_signal};

impl TaskService {
    pub(crate) fn kill(&self, request: &task::KillRequest) -> Result<()> {
        let mut containers = self.lock();
        let container = containers.get(&request.id).ok_or_else(not_created)?;
        if request.all && request.exec_id.is_empty() && !container.init.is_stopped() {
            let cgroups = container.cgroups.as_ref().ok_or_else(|| Error::not_found("no such container"))?;
            for pid in cgroups.processes()? {
                match send_signal(pid, request.signal) {
                    Err(error) if !error.is_not_found() => return Err(error),
                    _ => {}
                }
            }
            return Ok(());
        }
        let ended = request.exec_id.is_empty() && container.ending.is_some();
        if ended {
            return Err(Error::not_found("process already finished"));
        }
        process(&mut containers, &request.id, &request.exec_id)?.signal(request.signal)
    }

    pub(crate) async fn freeze(&self, id: &str, pause: bool) -> Result<()> {
        let (runtime, pid) = {
            let mut containers = self.lock();
            let container = containers.get_mut(id).ok_or_else(not_created)?;
            let refused = |text: &str| Err(Error::unknown(text));
            let pid = match (container.init.state, pause) {
                (State::Running { pid }, true) | (State::Paused { pid }, false) => pid,
                (State::Paused { .. }, true) => return refused("cannot pause a paused container"),
                (State::Running { .. }, false) => return refused("cannot resume a running process"),
                (State::Stopped { .. }, true) => return refused("cannot pause a stopped container"),
                (State::Stopped { .. }, false) => return refused("cannot resume a stopped container"),
                (_, true) => return refused("cannot pause task in created state"),
                (_, false) => return refused("cannot resume task in created state"),
            };
            (container.runtime.clone(), pid)
        };
        runtime.freeze(&self.reaper, pause).await?;
        let mut containers = self.lock();
        let init = process(&mut containers, id, "")?;
        if init.is_stopped() {
            // One that was killed while it was paused ends as soon as it goes on.
            return Ok(());
        }
        if pause {
            init.set(State::Paused { pid });
            self.publisher.publish("/tasks/paused", &told::TaskPaused { container_id: id.into() });
        } else {
            init.set(State::Running { pid });
            self.publisher.publish("/tasks/resumed", &told::TaskResumed { container_id: id.into() });
        }
        Ok(())
    }

    pub(crate) async fn update(&self, request: task::UpdateTaskRequest) -> Result<()> {
        let runtime = {
            let containers = self.lock();
            let container = containers.get(&request.id).ok_or_else(not_created)?;
            if container.init.is_stopped() {
                return Err(Error::unknown("cannot update a stopped container"));
            }
            container.runtime.clone()
        };
        runtime.update(&self.reaper, &request.resources.unwrap_or_default().value).await
    }

    pub(crate) fn resize(&self, request: &task::ResizePtyRequest) -> Result<()> {
        let mut containers = self.lock();
        process(&mut containers, &request.id, &request.exec_id)?.stdio.resize(request.width, request.height)
    }

    pub(crate) fn close_io(&self, request: &task::CloseIoRequest) -> Result<()> {
        let mut containers = self.lock();
        let process = process(&mut containers, &request.id, &request.exec_id)?;
        if request.stdin {
            process.stdio.close_stdin();
        }
        Ok(())
    }
}
