//! Running containers.

use corten_api::services::tasks::{self as api, tasks_server};
use corten_runtime::{CreateTask, Exec, Exit, ShimAddress, Stdio};
use corten_types::{Error, Mount};
use tonic::{Request, Response, Status};

use super::{Services, context, status};

/// The only kind of checkpoints.
const CHECKPOINT: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";

fn exited(id: String, exit: Exit) -> api::DeleteResponse {
    api::DeleteResponse { id, pid: exit.pid, exit_status: exit.status, exited_at: exit.at }
}

#[tonic::async_trait]
impl tasks_server::Tasks for Services {
    async fn create(
        &self,
        request: Request<api::CreateTaskRequest>,
    ) -> Result<Response<api::CreateTaskResponse>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        if let Some(checkpoint) = &r.checkpoint {
            self.containers.get(&ctx, &r.container_id).map_err(status)?;
            if checkpoint.media_type != CHECKPOINT {
                let text = format!("unsupported checkpoint type {:?}", checkpoint.media_type);
                return Err(status(Error::unknown(text)));
            }
            return Err(status(Error::not_implemented("restoring a task from a checkpoint")));
        }
        let shim = (!r.task_api_address.is_empty())
            .then(|| ShimAddress { address: r.task_api_address.clone(), version: r.task_api_version });
        let create = CreateTask {
            container_id: r.container_id.clone(),
            rootfs: r.rootfs.into_iter().map(Mount::from).collect(),
            stdio: Stdio { stdin: r.stdin, stdout: r.stdout, stderr: r.stderr, terminal: r.terminal },
            checkpoint: None,
            options: r.options,
            runtime: Some(r.runtime_path).filter(|path| !path.is_empty()),
            shim,
        };
        let pid = self.tasks.create(&ctx.namespace, create).await.map_err(status)?;
        Ok(Response::new(api::CreateTaskResponse { container_id: r.container_id, pid }))
    }

    async fn start(
        &self,
        request: Request<api::StartRequest>,
    ) -> Result<Response<api::StartResponse>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        let pid = self.tasks.start(&ctx.namespace, &r.container_id, &r.exec_id).await.map_err(status)?;
        Ok(Response::new(api::StartResponse { pid }))
    }

    async fn delete(
        &self,
        request: Request<api::DeleteTaskRequest>,
    ) -> Result<Response<api::DeleteResponse>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        let exit = self.tasks.delete(&ctx.namespace, &r.container_id).await.map_err(status)?;
        Ok(Response::new(exited(String::new(), exit)))
    }

    async fn delete_process(
        &self,
        request: Request<api::DeleteProcessRequest>,
    ) -> Result<Response<api::DeleteResponse>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        let exit =
            self.tasks.delete_process(&ctx.namespace, &r.container_id, &r.exec_id).await.map_err(status)?;
        Ok(Response::new(exited(r.exec_id, exit)))
    }

    async fn get(&self, request: Request<api::GetRequest>) -> Result<Response<api::GetResponse>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        let process = self.tasks.get(&ctx.namespace, &r.container_id, &r.exec_id).await.map_err(status)?;
        Ok(Response::new(api::GetResponse { process: Some(process) }))
    }

    async fn list(
        &self,
        request: Request<api::ListTasksRequest>,
    ) -> Result<Response<api::ListTasksResponse>, Status> {
        let ctx = context(&request)?;
        Ok(Response::new(api::ListTasksResponse { tasks: self.tasks.list(&ctx.namespace).await }))
    }

    async fn kill(&self, request: Request<api::KillRequest>) -> Result<Response<()>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        let killed = self.tasks.kill(&ctx.namespace, &r.container_id, &r.exec_id, r.signal, r.all).await;
        killed.map(Response::new).map_err(status)
    }

    async fn exec(&self, request: Request<api::ExecProcessRequest>) -> Result<Response<()>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        let stdio = Stdio { stdin: r.stdin, stdout: r.stdout, stderr: r.stderr, terminal: r.terminal };
        let exec = Exec { id: r.exec_id, spec: r.spec, stdio };
        self.tasks.exec(&ctx.namespace, &r.container_id, exec).await.map(Response::new).map_err(status)
    }

    async fn resize_pty(&self, request: Request<api::ResizePtyRequest>) -> Result<Response<()>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        let resized =
            self.tasks.resize_pty(&ctx.namespace, &r.container_id, &r.exec_id, r.width, r.height).await;
        resized.map(Response::new).map_err(status)
    }

    async fn close_io(&self, request: Request<api::CloseIoRequest>) -> Result<Response<()>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        let closed = self.tasks.close_io(&ctx.namespace, &r.container_id, &r.exec_id, r.stdin).await;
        closed.map(Response::new).map_err(status)
    }

    async fn pause(&self, request: Request<api::PauseTaskRequest>) -> Result<Response<()>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        self.tasks.pause(&ctx.namespace, &r.container_id).await.map(Response::new).map_err(status)
    }

    async fn resume(&self, request: Request<api::ResumeTaskRequest>) -> Result<Response<()>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        self.tasks.resume(&ctx.namespace, &r.container_id).await.map(Response::new).map_err(status)
    }

    async fn list_pids(
        &self,
        request: Request<api::ListPidsRequest>,
    ) -> Result<Response<api::ListPidsResponse>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        let processes = self.tasks.list_pids(&ctx.namespace, &r.container_id).await.map_err(status)?;
        Ok(Response::new(api::ListPidsResponse { processes }))
    }

    async fn checkpoint(
        &self,
        request: Request<api::CheckpointTaskRequest>,
    ) -> Result<Response<api::CheckpointTaskResponse>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        self.tasks.get(&ctx.namespace, &r.container_id, "").await.map_err(status)?;
        Err(status(Error::not_implemented("method Checkpoint not implemented")))
    }

    async fn update(&self, request: Request<api::UpdateTaskRequest>) -> Result<Response<()>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        let updated = self.tasks.update(&ctx.namespace, &r.container_id, r.resources, r.annotations).await;
        updated.map(Response::new).map_err(status)
    }

    async fn metrics(
        &self,
        request: Request<api::MetricsRequest>,
    ) -> Result<Response<api::MetricsResponse>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        let metrics = self.tasks.metrics(&ctx.namespace, &r.filters).await.map_err(status)?;
        Ok(Response::new(api::MetricsResponse { metrics }))
    }

    async fn wait(&self, request: Request<api::WaitRequest>) -> Result<Response<api::WaitResponse>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        let exit = self.tasks.wait(&ctx.namespace, &r.container_id, &r.exec_id).await.map_err(status)?;
        Ok(Response::new(api::WaitResponse { exit_status: exit.status, exited_at: exit.at }))
    }
}
