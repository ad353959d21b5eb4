//! Calls by name: the task service under its two names (spec 02 §5).

use corten_api::task_v3 as task;
use corten_ttrpc::{Reply, Request, Service, reply};

use crate::service::TaskService;

impl Service for TaskService {
    fn call(&self, request: Request) -> Reply<'_> {
        Box::pin(async move {
            if !matches!(request.service.as_str(), "containerd.task.v2.Task" | "containerd.task.v3.Task") {
                return Err(request.unknown_service());
            }
            let (gone, expired) = (request.closed(), request.expired());
            let payload = request.payload.clone();
            match request.method.as_str() {
                "Create" => reply(payload, |request| self.create(request, expired)).await,
                "Start" => reply(payload, |request| self.start(request, expired)).await,
                "Delete" => reply(payload, |request| self.delete(request)).await,
                "Exec" => reply(payload, |request| async { self.exec(request) }).await,
                "State" => reply(payload, |request| async move { self.state(&request) }).await,
                "Pids" => reply(payload, |request| async move { self.pids(&request) }).await,
                "Kill" => reply(payload, |request| async move { self.kill(&request) }).await,
                "Wait" => reply(payload, |request| self.wait(request, gone)).await,
                "Stats" => reply(payload, |request| async move { self.stats(&request) }).await,
                "Connect" => reply(payload, |request| async move { Ok(self.connect(&request)) }).await,
                "ResizePty" => reply(payload, |request| async move { self.resize(&request) }).await,
                "CloseIO" => reply(payload, |request| async move { self.close_io(&request) }).await,
                "Pause" => {
                    reply(payload, |request: task::PauseRequest| async move {
                        self.freeze(&request.id, true).await
                    })
                    .await
                }
                "Resume" => {
                    reply(payload, |request: task::ResumeRequest| async move {
                        self.freeze(&request.id, false).await
                    })
                    .await
                }
                "Update" => reply(payload, |request| self.update(request)).await,
                "Checkpoint" => reply(payload, |request| self.checkpoint(request)).await,
                "Shutdown" => {
                    reply(payload, |_: task::ShutdownRequest| async {
                        self.shutdown();
                        Ok(())
                    })
                    .await
                }
                _ => Err(request.unknown()),
            }
        })
    }
}
