//! What can be done with a task that exists. Every call goes straight to the shim: nothing is
//! serialised here and no lock is held, so that one slow call never delays another.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use corten_api::task_types::{Process, ProcessInfo, Status};
use corten_api::task_v3::{CheckpointTaskRequest, ExecProcessRequest, StateResponse, UpdateTaskRequest};
use corten_api::types::Metric;
use corten_ttrpc::Client;
use corten_types::filter::Fields;
use corten_types::{Any, Error, ErrorClass, Filter, Namespace, Result, ResultExt, identifier, timestamp};
use futures_util::future::join_all;

use crate::create::Stdio;
use crate::table::not_found;
use crate::task::{Exit, Task};
use crate::tasks::Tasks;

/// A process to be added to a task.
#[derive(Clone, Debug, Default)]
pub struct Exec {
    /// Its id, unique within the task.
    pub id: String,
    /// The OCI process, as JSON (`types.containerd.io/opencontainers/runtime-spec/1/Process`).
    pub spec: Option<Any>,
    /// Its standard streams.
    pub stdio: Stdio,
}

impl Tasks {
    /// Starts the init process (`exec` empty) or an exec process; answers its process id.
    ///
    /// # Errors
    /// NotFound; what the shim says, as `OCI runtime start failed: …`.
    pub async fn start(&self, namespace: &Namespace, id: &str, exec: &str) -> Result<u32> {
        let task = self.task(namespace, id).await?;
        if exec.is_empty() {
            let pid = task.shim.start(exec).await.map_err(|error| gone(&task, error))?.pid;
            task.set_pid(pid);
            return Ok(pid);
        }
        task.exec_starts(exec);
        match task.shim.start(exec).await {
            Ok(response) => {
                task.exec_started(exec, response.pid);
                Ok(response.pid)
            }
            Err(error) => {
                task.exec_failed(exec);
                Err(gone(&task, error))
            }
        }
    }

    /// The state of the init process (`exec` empty) or of an exec process. A shim that does not
    /// answer in time makes it Unknown. `container_id` is left empty, as the original leaves it.
    ///
    /// # Errors
    /// NotFound.
    pub async fn get(&self, namespace: &Namespace, id: &str, exec: &str) -> Result<Process> {
        let task = self.task(namespace, id).await?;
        match self.state(&task, exec).await {
            Ok(process) => Ok(process),
            Err(error) if matches!(error.class(), ErrorClass::NotFound | ErrorClass::Unavailable) => {
                Err(error)
            }
            Err(error) => {
                tracing::error!(%namespace, id, exec, %error, "get state");
                let (id, pid) = if exec.is_empty() { (id, task.pid()) } else { (exec, 0) };
                Ok(Process { id: id.to_owned(), pid, ..Process::default() })
            }
        }
    }

    /// The init processes of all tasks in a namespace; those whose shims do not answer are left out.
    pub async fn list(&self, namespace: &Namespace) -> Vec<Process> {
        let tasks = self.inner.table.list(namespace).await;
        let states = join_all(tasks.iter().map(|task| self.state(task, ""))).await;
        states.into_iter().flatten().collect()
    }

    async fn state(&self, task: &Task, exec: &str) -> Result<Process> {
        let state = task.shim.state(exec, self.inner.config.timeouts.state).await;
        state.map(process).map_err(|error| gone(task, error))
    }

    /// Sends a signal to the init process, to all processes of the task, or to an exec process.
    ///
    /// # Errors
    /// NotFound `process already finished`; what the shim says.
    pub async fn kill(
        &self,
        namespace: &Namespace,
        id: &str,
        exec: &str,
        signal: u32,
        all: bool,
    ) -> Result<()> {
        let task = self.task(namespace, id).await?;
        task.shim.kill(exec, signal, all, None).await.map_err(|error| gone(&task, error))
    }

    /// Adds a process, which [`Tasks::start`] starts.
    ///
    /// # Errors
    /// InvalidArgument for its id; AlreadyExists `id X: already exists`.
    pub async fn exec(&self, namespace: &Namespace, id: &str, exec: Exec) -> Result<()> {
        if exec.id.is_empty() {
            return Err(Error::bare(ErrorClass::InvalidArgument, "exec id cannot be empty"));
        }
        let task = self.task(namespace, id).await?;
        identifier::validate(&exec.id).with_context(|| format!("invalid exec id {}", exec.id))?;
        let request = ExecProcessRequest {
            exec_id: exec.id,
            terminal: exec.stdio.terminal,
            stdin: exec.stdio.stdin,
            stdout: exec.stdio.stdout,
            stderr: exec.stdio.stderr,
            spec: exec.spec,
            ..ExecProcessRequest::default()
        };
        task.shim.exec(request).await.map_err(|error| gone(&task, error))
    }

    /// Sets the size of a process's terminal, in characters.
    ///
    /// # Errors
    /// NotFound; what the shim says.
    pub async fn resize_pty(
        &self,
        namespace: &Namespace,
        id: &str,
        exec: &str,
        width: u32,
        height: u32,
    ) -> Result<()> {
        let task = self.task(namespace, id).await?;
        task.shim.resize(exec, width, height).await.map_err(|error| gone(&task, error))
    }

    /// Ends a process's standard input once what has been written is read. Nothing happens unless
    /// `stdin` is set.
    ///
    /// # Errors
    /// NotFound; what the shim says.
    pub async fn close_io(&self, namespace: &Namespace, id: &str, exec: &str, stdin: bool) -> Result<()> {
        let task = self.task(namespace, id).await?;
        if !stdin {
            return Ok(());
        }
        task.shim.close_stdin(exec).await.map_err(|error| gone(&task, error))
    }

    /// Freezes the task.
    ///
    /// # Errors
    /// NotFound; Unknown in the wrong state.
    pub async fn pause(&self, namespace: &Namespace, id: &str) -> Result<()> {
        let task = self.task(namespace, id).await?;
        task.shim.pause().await.map_err(|error| gone(&task, error))
    }

    /// Thaws the task.
    ///
    /// # Errors
    /// NotFound; Unknown in the wrong state.
    pub async fn resume(&self, namespace: &Namespace, id: &str) -> Result<()> {
        let task = self.task(namespace, id).await?;
        task.shim.resume().await.map_err(|error| gone(&task, error))
    }

    /// The processes of a task.
    ///
    /// # Errors
    /// NotFound; what the shim says.
    pub async fn list_pids(&self, namespace: &Namespace, id: &str) -> Result<Vec<ProcessInfo>> {
        let task = self.task(namespace, id).await?;
        task.shim.pids().await.map(|response| response.processes).map_err(|error| gone(&task, error))
    }

    /// Has the shim write a checkpoint of the task into a folder. `options` are
    /// `containerd.runc.v1.CheckpointOptions`.
    ///
    /// # Errors
    /// NotFound; what the shim says.
    pub async fn checkpoint(
        &self,
        namespace: &Namespace,
        id: &str,
        folder: &Path,
        options: Option<Any>,
    ) -> Result<()> {
        let task = self.task(namespace, id).await?;
        let path = folder.to_string_lossy().into_owned();
        let request = CheckpointTaskRequest { path, options, ..CheckpointTaskRequest::default() };
        task.shim.checkpoint(request).await.map_err(|error| gone(&task, error))
    }

    /// Changes the limits of a running task
    /// (`types.containerd.io/opencontainers/runtime-spec/1/LinuxResources`, as JSON).
    ///
    /// # Errors
    /// NotFound; what the shim says.
    pub async fn update(
        &self,
        namespace: &Namespace,
        id: &str,
        resources: Option<Any>,
        annotations: BTreeMap<String, String>,
    ) -> Result<()> {
        let task = self.task(namespace, id).await?;
        let annotations = annotations.into_iter().collect();
        let request = UpdateTaskRequest { resources, annotations, ..UpdateTaskRequest::default() };
        task.shim.update(request).await.map_err(|error| gone(&task, error))
    }

    /// Resource figures of the tasks that pass the filters on `id` and `namespace`; tasks whose
    /// shims do not answer are left out.
    ///
    /// # Errors
    /// InvalidArgument for filters that cannot be read.
    pub async fn metrics(&self, namespace: &Namespace, filters: &[String]) -> Result<Vec<Metric>> {
        let filter = Filter::parse(filters)?;
        let mut tasks = self.inner.table.list(namespace).await;
        tasks.retain(|task| filter.matches(&**task));
        let timeout = self.inner.config.timeouts.stats;
        let figures = tasks.iter().map(async |task| {
            let stats = task.shim.stats(timeout).await.inspect_err(|error| {
                tracing::debug!(%namespace, id = task.key.id, %error, "collecting metrics");
            });
            let data = stats.ok()?.stats;
            Some(Metric { timestamp: Some(timestamp::now()), id: task.key.id.clone(), data })
        });
        Ok(join_all(figures).await.into_iter().flatten().collect())
    }

    /// Waits for the end of the init process (`exec` empty) or of an exec process; at once if it has
    /// ended. Holds nothing but its place, and learns of the end even if the shim dies.
    ///
    /// # Errors
    /// NotFound.
    pub async fn wait(&self, namespace: &Namespace, id: &str, exec: &str) -> Result<Exit> {
        let task = self.task(namespace, id).await?;
        match task.shim.wait(exec).await {
            Ok(response) => {
                Ok(Exit { pid: task.pid(), status: response.exit_status, at: response.exited_at })
            }
            Err(error) if Client::is_closed(&error) => Ok(task.ended().await),
            Err(error) => Err(error),
        }
    }
}

impl Fields for Task {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["id", ..] => Some(Cow::Borrowed(&self.key.id)),
            ["namespace", ..] => Some(Cow::Borrowed(self.key.namespace.as_str())),
            _ => None,
        }
    }
}

/// A call that failed because the shim has gone: the task is as good as gone.
fn gone(task: &Task, error: Error) -> Error {
    if Client::is_closed(&error) { not_found(&task.key.id) } else { error }
}

fn process(state: StateResponse) -> Process {
    let known = Status::try_from(state.status).unwrap_or_default();
    Process {
        container_id: String::new(),
        id: state.id,
        pid: state.pid,
        status: known.into(),
        stdin: state.stdin,
        stdout: state.stdout,
        stderr: state.stderr,
        terminal: state.terminal,
        exit_status: state.exit_status,
        exited_at: state.exited_at,
    }
}
