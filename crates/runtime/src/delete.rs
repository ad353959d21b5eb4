//! The end of a task: deleted by a client, discarded because its creator has gone, or buried
//! because its shim died (spec 02 §8).

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use corten_api::events::{TaskDelete, TaskExit};
use corten_sys::FolderLock;
use corten_ttrpc::Client;
use corten_types::{Error, ErrorClass, Namespace, Result, ResultExt};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use crate::bootstrap::Endpoint;
use crate::bundle::Bundle;
use crate::config::Config;
use crate::shim::Shim;
use crate::table::{Key, not_found};
use crate::task::{Exit, Task};
use crate::tasks::{Inner, Tasks, blocking};
use crate::{binary, table};

/// How long a deletion that nobody waits for any more may take in the shim.
const FORSAKEN: Duration = Duration::from_secs(60);
/// How long an event may be on its way after its sender has ended.
const IN_FLIGHT: Duration = Duration::from_millis(200);
/// How long a shim that dies may still be reached, and how often that is tried.
const DYING: Duration = Duration::from_secs(1);
const GLANCE: Duration = Duration::from_millis(1);
/// How often a dead shim's binary is asked to clean up.
const CLEANUPS: usize = 3;
/// How long others may take who hold the lock of the sockets' folder.
const IN_TURN: Duration = Duration::from_secs(5);
const SIGKILL: u32 = 9;

impl Tasks {
    /// Deletes a task that does not run, and its bundle. If the future is dropped, the deletion goes
    /// on in the background.
    ///
    /// # Errors
    /// NotFound `task ID not found`; what the shim says, as `cannot delete a running process`.
    pub async fn delete(&self, namespace: &Namespace, id: &str) -> Result<Exit> {
        let task = self.task(namespace, id).await?;
        let (answer, answered) = oneshot::channel();
        tokio::spawn(delete(self.inner.clone(), task, answer));
        answered.await.unwrap_or_else(|_| Err(Error::internal("task deletion ended without an answer")))
    }
}

async fn delete(inner: Arc<Inner>, task: Arc<Task>, mut answer: oneshot::Sender<Result<Exit>>) {
    let deleted = tokio::select! {
        deleted = task.shim.delete("", None) => deleted,
        () = async { answer.closed().await; tokio::time::sleep(FORSAKEN).await } => {
            Err(Error::new(ErrorClass::DeadlineExceeded, ""))
        }
    };
    let result = match deleted {
        Ok(response) => inner.clear_away(&task, response.into()).await,
        // The watch of the shim's connection buries the task and tells how it ended.
        Err(error) if Client::is_closed(&error) => Ok(task.ended().await),
        // The shim has already forgotten it, so an earlier deletion was cut short here.
        Err(error) if error.is_not_found() => {
            let pid = task.pid();
            inner.clear_away(&task, Exit { pid, status: 0, at: None }).await.and(Err(error))
        }
        Err(error) => Err(error),
    };
    let _ = answer.send(result);
}

impl Inner {
    /// Removes what is left of a task that its shim has deleted. NotFound if somebody else does.
    async fn clear_away(&self, task: &Arc<Task>, exit: Exit) -> Result<Exit> {
        if !self.table.leave(task) {
            return Err(not_found(&task.key.id));
        }
        if !task.sandboxed {
            self.end(&task.shim).await;
            self.complete_events(task, exit).await;
        }
        task.shim.client.close();
        // By the bundle a shim is found that is not told of its end, so it goes last.
        let removed = self.remove_bundle(&task.bundle).await;
        task.end(exit);
        self.table.remove(&task.key);
        removed.context("failed to delete bundle")?;
        Ok(exit)
    }

    /// Tells of the end of a task what its shim has not: those of containerd may end before their last
    /// events are sent, which happens when the machine is busy.
    async fn complete_events(&self, task: &Task, exit: Exit) {
        let last_words = async {
            task.shim.client.closed().await;
            // What it sent on its other connection is read within this time.
            tokio::time::sleep(IN_FLIGHT).await;
        };
        tokio::select! {
            () = task.deletion_told() => return,
            () = last_words => {}
            () = tokio::time::sleep(self.config.timeouts.shutdown) => {}
        }
        self.publish_end(task, exit);
    }

    /// Removes a task that was created for a client who has gone.
    pub async fn discard(&self, task: &Arc<Task>) {
        if !self.table.leave(task) {
            return;
        }
        let binary = task.bundle.shim_binary();
        self.empty_shim(&task.shim, &task.bundle, binary.as_deref()).await;
        if !task.sandboxed {
            self.end(&task.shim).await;
        }
        task.shim.client.close();
        self.forget(task, Exit::lost(task.pid())).await;
    }

    /// Ends a shim if no other task is left in it.
    pub async fn end(&self, shim: &Shim) {
        // The socket of one that answers is gone by then.
        if shim.shutdown(self.config.timeouts.shutdown).await.is_err() {
            remove_stale(&self.config, &shim.endpoint).await;
        }
    }

    /// Makes a shim delete its task, by force if need be.
    pub async fn empty_shim(&self, shim: &Shim, bundle: &Bundle, binary: Option<&Path>) {
        let limit = self.config.timeouts.cleanup;
        // A process that waits to be started would be deleted too, but slowly by some runtimes.
        if shim.kill("", SIGKILL, true, Some(limit)).await.is_ok() {
            let _ = tokio::time::timeout(limit, shim.wait("")).await;
        }
        match shim.delete("", Some(limit)).await {
            Ok(_) => return,
            Err(error) if error.is_not_found() => return,
            Err(_) => {}
        }
        let Some(binary) = binary else { return };
        if let Err(error) = binary::delete(&self.config, binary, bundle).await {
            tracing::warn!(namespace = %bundle.namespace, id = bundle.id, %error, "failed to clean up task");
        }
    }

    /// Clears away after a shim whose connection was lost, and tells of the end of its task.
    pub async fn bury(&self, task: &Arc<Task>) {
        if !self.table.leave(task) {
            return;
        }
        let Key { namespace, id } = &task.key;
        tracing::warn!(%namespace, id, "shim disconnected, cleaning up");
        let binary = task.bundle.shim_binary();
        let exit = self.clean_up(&task.bundle, binary.as_deref(), task.pid()).await;
        for (exec, pid) in task.running_execs() {
            self.publish_exit(&task.key, &exec, Exit { pid, ..exit });
        }
        self.publish_end(task, exit);
        if !task.sandboxed {
            dismiss(&self.config, &task.shim.endpoint, &task.bundle).await;
        }
        self.forget(task, exit).await;
    }

    /// Runs the `delete` of a dead shim's binary: how its task ended.
    pub async fn clean_up(&self, bundle: &Bundle, binary: Option<&Path>, pid: u32) -> Exit {
        let Some(binary) = binary else { return Exit::lost(pid) };
        let mut deleted = binary::delete(&self.config, binary, bundle).await;
        // What ended the shim may have ended this, too.
        for _ in 1..CLEANUPS {
            if deleted.is_ok() {
                break;
            }
            deleted = binary::delete(&self.config, binary, bundle).await;
        }
        match deleted {
            Ok(response) => {
                let exit = Exit::from(response);
                let at = exit.at.or_else(|| Some(corten_types::timestamp::now()));
                Exit { pid: if exit.pid == 0 { pid } else { exit.pid }, at, ..exit }
            }
            Err(error) => {
                tracing::warn!(namespace = %bundle.namespace, id = bundle.id, %error, "failed to clean up after shim");
                Exit::lost(pid)
            }
        }
    }

    async fn forget(&self, task: &Task, exit: Exit) {
        if let Err(error) = self.remove_bundle(&task.bundle).await {
            let Key { namespace, id } = &task.key;
            tracing::warn!(%namespace, id, %error, "failed to remove bundle");
        }
        task.end(exit);
        self.table.remove(&task.key);
    }

    /// Tells of the end of a task, in place of its shim, what has not been told.
    pub fn publish_end(&self, task: &Task, exit: Exit) {
        if task.tell_exit() {
            self.publish_exit(&task.key, &task.key.id, exit);
        }
        if task.tell_deletion() {
            self.publish_deletion(&task.key, exit);
        }
    }

    /// Tells of the deletion of a task.
    pub fn publish_deletion(&self, key: &Key, exit: Exit) {
        let deleted = TaskDelete {
            container_id: key.id.clone(),
            pid: exit.pid,
            exit_status: exit.status,
            exited_at: exit.at,
            id: String::new(),
        };
        self.exchange.publish(&key.namespace, "/tasks/delete", &deleted);
    }

    /// Tells of the end of a process; that of the init process has the task's id.
    pub fn publish_exit(&self, key: &Key, process: &str, exit: Exit) {
        let exited = TaskExit {
            container_id: key.id.clone(),
            id: process.to_owned(),
            pid: exit.pid,
            exit_status: exit.status,
            exited_at: exit.at,
        };
        self.exchange.publish(&key.namespace, "/tasks/exit", &exited);
    }
}

/// Ends a shim that may still live although it is not connected: it would serve nobody. Whether
/// other tasks are left in it, it knows itself.
pub(crate) async fn dismiss(config: &Config, endpoint: &Endpoint, bundle: &Bundle) {
    let limit = config.timeouts.shutdown;
    if endpoint.is_of_another_boot() {
        return;
    }
    if let Ok(shim) = Shim::connect(config, endpoint.clone(), &bundle.namespace, &bundle.id, limit).await {
        let _ = shim.delete("", Some(limit)).await;
        let _ = shim.shutdown(limit).await;
        shim.client.close();
    }
    remove_stale(config, endpoint).await;
}

/// Removes the socket that a dead shim left. One that dies is waited for: the kernel closes its connections before
/// its socket, so whoever has just lost it may still reach it.
pub(crate) async fn remove_stale(config: &Config, endpoint: &Endpoint) {
    let Some(path) = endpoint.address.strip_prefix("unix://").map(Path::new) else { return };
    if path.parent() != Some(&config.socket_dir) || !is_dead(path).await {
        return;
    }
    // Another shim may be about to listen there: they take the same lock.
    let folder = config.socket_dir.clone();
    let lock = blocking(move || Ok(FolderLock::alone(&folder, IN_TURN)?)).await;
    if lock.is_ok() && is_dead(path).await {
        let _ = std::fs::remove_file(path);
    }
}

/// Whether there is a socket that nobody listens on. One that keeps a connection for [`DYING`] lives.
async fn is_dead(path: &Path) -> bool {
    let late = tokio::time::Instant::now() + DYING;
    loop {
        match UnixStream::connect(path).await {
            // Nobody is told anything on it, so it can be read when it is closed.
            Ok(stream) => match tokio::time::timeout_at(late, stream.readable()).await {
                Ok(_) => tokio::time::sleep(GLANCE).await,
                Err(_) => return false,
            },
            // The connections that wait to be accepted are as many as can be.
            Err(error) if error.kind() == ErrorKind::WouldBlock && tokio::time::Instant::now() < late => {
                tokio::time::sleep(GLANCE).await;
            }
            Err(error) => return error.kind() == ErrorKind::ConnectionRefused,
        }
    }
}

impl Tasks {
    /// Deletes an exec process that does not run.
    ///
    /// # Errors
    /// NotFound; what the shim says.
    pub async fn delete_process(&self, namespace: &Namespace, id: &str, exec: &str) -> Result<Exit> {
        let task = self.task(namespace, id).await?;
        let deleted = task
            .shim
            .delete(exec, None)
            .await
            .map_err(|error| if Client::is_closed(&error) { table::not_found(id) } else { error })?;
        task.exec_ended(exec);
        Ok(deleted.into())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn the_socket_of_a_shim_goes_when_it_dies_and_not_while_it_lives() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::new(folder.path(), folder.path(), "/a", "/b");
        config.socket_dir = folder.path().to_owned();
        let path = folder.path().join("socket");
        let endpoint = Endpoint::given(&format!("unix://{}", path.display()), 3).unwrap();
        remove_stale(&config, &endpoint).await;

        let listener = UnixListener::bind(&path).unwrap();
        remove_stale(&config, &endpoint).await;
        assert!(path.exists(), "somebody listens");
        // Dead as far as its connections tell, but the kernel has not closed its socket yet.
        let dying = std::thread::spawn(move || {
            listener.accept().unwrap();
            listener.accept().unwrap();
        });
        remove_stale(&config, &endpoint).await;
        dying.join().unwrap();
        assert!(!path.exists());
    }
}
