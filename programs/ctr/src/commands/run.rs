//! `run`.

use std::path::PathBuf;

use clap::Args;
use corten_api::services::containers as records;
use corten_api::services::tasks as api;
use corten_network::cni::Networks;
use corten_types::{Error, Result};

use crate::client::{Daemon, error};
use crate::commands::{containers, tasks};
use crate::container::{ContainerFlags, Created, RunFlags, network};
use crate::detach::{self, Keys};
use crate::stdio::Streams;

/// Run a container.
#[derive(Debug, Args)]
pub struct Run {
    /// Remove the container when it has ended.
    #[arg(long)]
    rm: bool,
    /// Throw output away.
    #[arg(long)]
    null_io: bool,
    /// Where output goes: file:///path, binary:///program?key=value.
    #[arg(long)]
    log_uri: Option<String>,
    /// Do not wait for its end.
    #[arg(short, long)]
    detach: bool,
    /// Keys that leave it alone, on a terminal; nothing for none.
    #[arg(long, value_parser = Keys::read, default_value = detach::DEFAULT)]
    detach_keys: Keys,
    /// Folder for FIFOs.
    #[arg(long)]
    fifo_dir: Option<PathBuf>,
    #[command(flatten)]
    pub limits: RunFlags,
    #[command(flatten)]
    pub container: ContainerFlags,
    #[arg(value_name = "IMAGE|ROOTFS ID [COMMAND] [ARG...]")]
    pub rest: Vec<String>,
}

impl Run {
    pub async fn run(self, daemon: &Daemon) -> Result<i32> {
        if self.rm && self.detach {
            return Err(Error::unknown("flags --detach and --rm cannot be specified together"));
        }
        let created = self.container.create(daemon, &self.rest, Some(&self.limits)).await?;
        let result = self.task(daemon, &created).await;
        // What was left alone goes on.
        let is_over = !matches!(result, Ok(None));
        if is_over && (result.is_err() || self.rm) {
            self.remove(daemon, &created, result.is_err()).await?;
        }
        result.map(|code| code.unwrap_or(0))
    }

    /// A container that could not be started goes with its snapshot; so does one with `--rm`.
    async fn remove(&self, daemon: &Daemon, created: &Created, failed: bool) -> Result<()> {
        if failed && !self.rm {
            return Ok(());
        }
        let has_snapshot = !created.mounts.is_empty();
        let container = records::Container {
            id: created.id.clone(),
            snapshotter: if has_snapshot { created.snapshotter.clone() } else { String::new() },
            snapshot_key: if has_snapshot { created.id.clone() } else { String::new() },
            ..Default::default()
        };
        containers::remove(daemon, &container, false).await
    }

    /// Runs it, joined to CNI's network if asked to. In the foreground it is removed from it at the end, whatever
    /// happened; in the background `tasks kill` does that (spec 06 §4).
    async fn task(&self, daemon: &Daemon, created: &Created) -> Result<Option<i32>> {
        if !self.limits.cni {
            return self.follow(daemon, created, None).await;
        }
        let networks = network::cni()?;
        let full = network::full_id(&daemon.namespace, &created.id);
        let done = self.follow(daemon, created, Some(&networks)).await;
        if !matches!(done, Ok(None))
            && let Err(failed) = network::cni_detach(&networks, &full)
        {
            crate::log::error("network review", &failed);
        }
        done
    }

    async fn follow(
        &self,
        daemon: &Daemon,
        created: &Created,
        networks: Option<&Networks>,
    ) -> Result<Option<i32>> {
        let tty = self.container.tty;
        let streams = match &self.log_uri {
            Some(uri) => Streams::logged(uri),
            None if self.null_io => Streams::null(),
            None => Streams::fifos(self.fifo_dir.as_deref(), &created.id, tty)?.with_keys(&self.detach_keys),
        };
        let request = api::CreateTaskRequest {
            container_id: created.id.clone(),
            rootfs: created.mounts.clone(),
            stdin: streams.paths.stdin.clone(),
            stdout: streams.paths.stdout.clone(),
            stderr: streams.paths.stderr.clone(),
            terminal: tty,
            options: created.options.clone(),
            ..Default::default()
        };
        let pid = daemon.tasks().create(request).await.map_err(error)?.into_inner().pid;
        if let Some(file) = &self.container.pid_file {
            tasks::write_pid(file, pid)?;
        }
        if let Some(networks) = networks {
            let full = network::full_id(&daemon.namespace, &created.id);
            if let Err(failed) = network::cni_attach(networks, &full, pid) {
                tasks::end(daemon, &created.id, 9, true).await.ok();
                let request = api::DeleteTaskRequest { container_id: created.id.clone() };
                daemon.tasks().delete(request).await.ok();
                return Err(failed);
            }
        }
        if self.detach {
            return tasks::start(daemon, &created.id, "").await.map(|()| {
                streams.leave();
                None
            });
        }
        let Some(code) = tasks::follow(daemon, &created.id, "", streams, true).await? else {
            return Ok(None);
        };
        let request = api::DeleteTaskRequest { container_id: created.id.clone() };
        daemon.tasks().delete(request).await.map_err(error)?;
        Ok(Some(code))
    }
}
