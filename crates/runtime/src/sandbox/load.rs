//! Finding the sandboxes again after the daemon was restarted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use corten_types::{Error, Namespace, Result, identifier};
use tokio::task::JoinSet;

use super::ShimSandboxes;
use super::shim::{Sandbox, Shared};
use crate::bundle::{self, Bundle};
use crate::log::ShimLog;
use crate::table::Key;
use crate::tasks::blocking;

impl ShimSandboxes {
    /// Finds the sandboxes that the bundles tell of; dead ones are buried. Returns when every shim has
    /// answered, or after [`crate::Timeouts::serving`]: calls about the others wait for them. To be called
    /// once, before clients are served.
    ///
    /// # Errors
    /// Those of the system.
    pub async fn load(&self) -> Result<()> {
        let shared = self.shared.clone();
        let bundles = blocking(move || Ok(shared.bundles())).await?;
        let mut loading = JoinSet::new();
        for bundle in bundles {
            let key = Key { namespace: bundle.namespace.clone(), id: bundle.id.clone() };
            self.shared.table.found(&key);
            loading.spawn(self.shared.clone().restore(key, bundle));
        }
        let all = async { while loading.join_next().await.is_some() {} };
        if tokio::time::timeout(self.shared.inner.config.timeouts.serving, all).await.is_err() {
            loading.detach_all();
        }
        Ok(())
    }
}

impl Shared {
    fn bundles(&self) -> Vec<Bundle> {
        let config = &self.inner.config;
        let mut bundles = Vec::new();
        for (namespace, id) in entries(&config.sandbox_dir) {
            let bundle = Bundle::at(&config.sandbox_dir, &namespace, &id);
            if id.starts_with('.') {
                // The rest of one that was being removed.
                let removed = bundle.delete_rest(corten_mounts::unmount_all);
                note(&bundle, removed);
            } else if bundle.is_empty() {
                note(&bundle, bundle.delete(|_| Ok(())));
            } else if identifier::validate(&id).is_ok() {
                bundles.push(bundle);
            }
        }
        for (namespace, id) in entries(&config.sandbox_root_dir) {
            let bundle = Bundle::at(&config.sandbox_dir, &namespace, &id);
            if !bundle.path.exists() {
                note(&bundle, bundle::remove(&config.sandbox_root_dir.join(namespace.as_str()).join(&id)));
            }
        }
        bundles
    }

    async fn restore(self: Arc<Self>, key: Key, bundle: Bundle) {
        match self.find(&key, &bundle).await {
            Ok(sandbox) => {
                let sandbox = Arc::new(sandbox);
                self.table.ready(sandbox.clone());
                self.watch(&sandbox);
            }
            Err(reason) => {
                self.table.abandon(&key);
                tracing::warn!(namespace = %key.namespace, id = key.id, %reason, "sandbox shim is gone, cleaning up");
                self.bury(&key, &bundle).await;
            }
        }
    }

    async fn find(&self, key: &Key, bundle: &Bundle) -> Result<Sandbox> {
        let endpoint = bundle.endpoint()?;
        let endpoint = endpoint.ok_or_else(|| Error::unknown("the bundle does not say where its shim is"))?;
        if endpoint.is_of_another_boot() {
            return Err(Error::unknown("the machine was restarted"));
        }
        let log = ShimLog::open(&bundle.file("log"), self.inner.log.clone()).ok();
        let client = endpoint.connect(&self.inner.config, self.inner.config.timeouts.load).await?;
        Ok(Sandbox {
            key: key.clone(),
            bundle: bundle.clone(),
            endpoint,
            client,
            ending: AtomicBool::new(false),
            _log: log,
        })
    }
}

/// Namespaces and ids of folders.
fn entries(folder: &Path) -> Vec<(Namespace, String)> {
    let names = |path: &Path| -> Vec<(String, PathBuf)> {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path()))).collect()
    };
    let mut found = Vec::new();
    for (name, path) in names(folder) {
        if let Ok(namespace) = Namespace::new(name) {
            found.extend(names(&path).into_iter().map(|(id, _)| (namespace.clone(), id)));
        }
    }
    found
}

fn note(bundle: &Bundle, result: Result<()>) {
    if let Err(error) = result {
        tracing::warn!(namespace = %bundle.namespace, id = bundle.id, %error, "cleaning up");
    }
}
