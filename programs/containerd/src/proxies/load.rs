//! The proxies of a configuration, entered in the table of plugins.

use std::collections::BTreeMap;
use std::sync::Arc;

use corten_config::Config;
use corten_content::RemoteBlobs;
use corten_diff::Differ;
use corten_runtime::SandboxController;
use corten_snapshots::Proxy;
use corten_types::{Error, Result};

use super::Connection;
use super::content::ProxyBlobs;
use super::diff::ProxyDiffer;
use super::sandbox::ProxyController;
use super::snapshots::ProxySnapshotter;
use crate::plugins::parts::{CONTENT, DIFFER, SANDBOX_CONTROLLER, SNAPSHOTTER};
use crate::plugins::{Entry, Plugins};

/// Those of one type that are not disabled. Nobody is spoken to yet.
fn all<T>(
    config: &Config,
    plugins: &mut Plugins,
    kind: &str,
    start: impl Fn(&str, &Entry, Connection) -> T,
) -> Result<BTreeMap<String, T>> {
    let mut started = BTreeMap::new();
    for (id, proxy) in &config.proxy_plugins {
        let one = plugins.load(kind, id, |entry| Ok(start(id, entry, Connection::new(&proxy.address))))?;
        started.extend(one.map(|one| (id.clone(), one)));
    }
    Ok(started)
}

/// The snapshotters.
///
/// # Errors
/// That of one which is required.
pub fn snapshotters(config: &Config, plugins: &mut Plugins) -> Result<Vec<Proxy>> {
    let proxies = all(config, plugins, SNAPSHOTTER, |id, entry, connection| Proxy {
        name: id.to_owned(),
        capabilities: entry.capabilities.clone(),
        snapshotter: Arc::new(ProxySnapshotter::new(id, connection)),
    })?;
    Ok(proxies.into_values().collect())
}

/// The differs, by their names.
///
/// # Errors
/// That of one which is required.
pub fn differs(config: &Config, plugins: &mut Plugins) -> Result<BTreeMap<String, Arc<dyn Differ>>> {
    let start = |id: &str, _: &Entry, connection| Arc::new(ProxyDiffer::new(id, connection)) as _;
    all(config, plugins, DIFFER, start)
}

/// The sandbox controllers, by their names.
///
/// # Errors
/// That of one which is required.
pub fn controllers(
    config: &Config,
    plugins: &mut Plugins,
) -> Result<BTreeMap<String, Arc<dyn SandboxController>>> {
    let start = |_: &str, _: &Entry, connection| Arc::new(ProxyController::new(connection)) as _;
    all(config, plugins, SANDBOX_CONTROLLER, start)
}

/// The store of blobs in the place of the daemon's own, which has to be disabled for it.
///
/// # Errors
/// When there is more than one.
pub fn blobs(config: &Config, plugins: &mut Plugins) -> Result<Option<Arc<dyn RemoteBlobs>>> {
    let start = |_: &str, _: &Entry, connection| Arc::new(ProxyBlobs::new(connection)) as _;
    let found = all(config, plugins, CONTENT, start)?;
    let own = plugins.works(CONTENT, "content");
    if found.len() + usize::from(own) > 1 {
        let text = format!(
            "multiple plugins registered for {CONTENT}: plugin: multiple instances (a proxy takes the place of \
             {CONTENT}.content, which has to be in disabled_plugins)"
        );
        return Err(Error::unknown(text));
    }
    Ok(found.into_values().next())
}
