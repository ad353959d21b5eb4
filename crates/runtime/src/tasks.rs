//! The service of this crate: what it holds, and how it is opened.

use std::path::PathBuf;
use std::sync::{Arc, Weak};

use corten_api::types::RuntimeInfo;
use corten_events::Exchange;
use corten_ttrpc::Service;
use corten_types::{Any, Context, Namespace, Result, ResultExt};

use crate::bundle::Bundle;
use crate::config::Config;
use crate::dialect::Dialects;
use crate::forward::Forwarder;
use crate::log::LogSink;
use crate::records::Records;
use crate::resolve::Resolver;
use crate::table::{Key, Table};
use crate::task::Task;
use crate::{binary, table};

/// All tasks of all namespaces. Cheap to clone; dropping the last clone leaves the shims alone.
#[derive(Clone, Debug)]
pub struct Tasks {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub config: Config,
    pub records: Arc<dyn Records>,
    pub exchange: Exchange,
    pub table: Table,
    pub resolver: Resolver,
    pub dialects: Dialects,
    pub log: LogSink,
}

impl Tasks {
    /// Opens the folders of the runtime. Tasks that exist are found by [`Tasks::load`]. Must be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// InvalidArgument for an unusable configuration; those of the system for the folders.
    pub fn open(mut config: Config, records: Arc<dyn Records>, exchange: Exchange) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        config.validate()?;
        for folder in [&config.state_dir, &config.root_dir] {
            let mut builder = std::fs::DirBuilder::new();
            builder.recursive(true).mode(0o711);
            builder.create(folder).with_context(|| format!("mkdir {}", folder.display()))?;
        }
        let log = LogSink::new(std::mem::replace(&mut config.log, Box::new(std::io::sink())));
        let resolver = Resolver::new(config.search_path.clone(), &config.containerd_binary);
        let inner = Inner {
            config,
            records,
            exchange,
            table: Table::default(),
            resolver,
            dialects: Dialects::default(),
            log,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What the daemon's ttrpc server serves: shims forward their events to it.
    #[must_use]
    pub fn event_service(&self) -> Arc<dyn Service> {
        Arc::new(Forwarder::new(self.inner.clone()))
    }

    /// What a runtime says about itself (`-info`).
    ///
    /// # Errors
    /// Unknown, if there is no such runtime or its shim does not know the question.
    pub async fn runtime_info(&self, runtime: &str, options: Option<&Any>) -> Result<RuntimeInfo> {
        let binary = self.inner.resolve(runtime)?;
        binary::info(&self.inner.config, &binary, options).await
    }

    /// A task. Without one, the answer tells whether there is at least a container.
    pub(crate) async fn task(&self, namespace: &Namespace, id: &str) -> Result<Arc<Task>> {
        let key = Key { namespace: namespace.clone(), id: id.to_owned() };
        match self.inner.table.get(&key).await {
            Ok(task) => Ok(task),
            Err(_) => {
                self.inner.records.container(namespace, id)?;
                Err(table::not_found(id))
            }
        }
    }
}

impl Inner {
    pub fn resolve(&self, runtime: &str) -> Result<PathBuf> {
        self.resolver.resolve(runtime).context("failed to resolve runtime path")
    }

    /// Buries the task when its shim goes away.
    pub fn watch(self: &Arc<Self>, task: &Arc<Task>) {
        let closed = task.shim.client.closed();
        let (inner, task): (Weak<Self>, Weak<Task>) = (Arc::downgrade(self), Arc::downgrade(task));
        tokio::spawn(async move {
            closed.await;
            if let (Some(inner), Some(task)) = (inner.upgrade(), task.upgrade()) {
                inner.bury(&task).await;
            }
        });
    }

    /// Removes a bundle, unmounting its root file system if that is still mounted, and what was activated
    /// for it.
    pub async fn remove_bundle(&self, bundle: &Bundle) -> Result<()> {
        let this = bundle.clone();
        let removed = blocking(move || this.delete(corten_mounts::unmount_all)).await;
        let ctx = Context::new(bundle.namespace.clone());
        if let Some(activations) = &self.config.activations
            && activations.info(&ctx, &bundle.id).is_ok()
        {
            match activations.deactivate(&ctx, &bundle.id).await {
                Err(error) if !error.is_not_found() => {
                    tracing::warn!(id = bundle.id, %error, "mounts of the root file system stay for now");
                }
                _ => {}
            }
        }
        removed
    }
}

/// Runs what may block on the disk for a moment.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(corten_types::Error::internal(error)))
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("config", &self.config).finish_non_exhaustive()
    }
}
