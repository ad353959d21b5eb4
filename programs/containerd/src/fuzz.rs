//! The services for fuzz targets: all of them in a folder of their own, called without sockets.

use std::path::Path;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use corten_api::keys::NAMESPACE;
use corten_config::Config;
use corten_metadata::Database;
use http_body_util::{BodyExt, Full};
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service;

use crate::assemble::{self, Assembled};
use crate::calls::{Kind, SERVICES, Watch, kind};
use crate::plugins::Plugins;
use crate::services::{MessageLimits, routes};

/// How long an answer may take that ends by itself.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one is watched that does not.
const GLANCE: Duration = Duration::from_millis(1);

/// What would reach out of the folder: mounts, programs and registries that a request names.
const LEFT_OUT: [&str; 6] = [
    "containerd.services.diff.v1.Diff/Apply",
    "containerd.services.diff.v1.Diff/Diff",
    "containerd.services.introspection.v1.Introspection/PluginInfo",
    "containerd.services.mounts.v1.Mounts/Activate",
    "containerd.services.sandbox.v1.Controller/Create",
    "containerd.services.transfer.v1.Transfer/Transfer",
];

/// Answers that go on until the client leaves.
const OPEN: [&str; 3] = [
    "containerd.services.events.v1.Events/Subscribe",
    "containerd.services.streaming.v1.Streaming/Stream",
    "grpc.health.v1.Health/Watch",
];

/// The services over stores in a folder.
pub struct Daemon {
    runtime: tokio::runtime::Runtime,
    routes: Routes,
    database: Option<Database>,
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemon").finish_non_exhaustive()
    }
}

/// The paths of the methods that can be called.
pub fn methods() -> Vec<String> {
    let all = SERVICES
        .iter()
        .flat_map(|(service, methods)| methods.iter().map(move |method| format!("{service}/{method}")));
    all.filter(|path| !LEFT_OUT.contains(&path.as_str())).collect()
}

impl Daemon {
    /// Opens stores in a folder.
    ///
    /// # Panics
    /// When that fails.
    #[allow(clippy::expect_used, reason = "a fuzz target that cannot start fails")]
    pub fn start(folder: &Path) -> Self {
        let mut config = Config::default();
        config.apply_flags(None, None, Some(folder.join("root")), Some(folder.join("state")));
        // One snapshotter is enough, and the others mount to find out what the kernel can do.
        let without = ["blockfile", "btrfs", "erofs", "overlayfs"];
        config.disabled_plugins = without.map(|id| format!("io.containerd.snapshotter.v1.{id}")).into();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let entered = runtime.enter();
        let plugins = Plugins::new(&config).expect("plugins");
        let Assembled { base, services, database, .. } =
            assemble::services(&config, plugins).expect("services");
        let (routes, _) = routes(base, services, MessageLimits::new(0, 0), &Watch::default());
        drop(entered);
        Self { runtime, routes, database }
    }

    /// Sends messages to a method, and the end of them. Whether the answer was good.
    ///
    /// # Panics
    /// When an answer does not end.
    #[allow(clippy::expect_used, reason = "it is what is looked for")]
    pub fn call(&self, path: &str, messages: &[&[u8]]) -> bool {
        // Nobody makes a container there, so no task and no program.
        let namespace = if path.contains(".Tasks/") { "none" } else { "lab" };
        let mut body = BytesMut::new();
        for message in messages {
            body.put_u8(0);
            body.put_u32(u32::try_from(message.len()).unwrap_or(0));
            body.put_slice(message);
        }
        let request = http::Request::post(format!("http://localhost/{path}"))
            .header("content-type", "application/grpc")
            .header(NAMESPACE, namespace)
            .body(Body::new(Full::new(Bytes::from(body))))
            .expect("a request");
        let mut routes = self.routes.clone();
        self.runtime.block_on(async move {
            let answer = tokio::time::timeout(PATIENCE, routes.call(request)).await.expect("an answer");
            let Ok(answer) = answer;
            let good =
                |headers: &http::HeaderMap| headers.get("grpc-status").is_none_or(|status| status == "0");
            let begun = good(answer.headers());
            let open = OPEN.contains(&path);
            let rest =
                tokio::time::timeout(if open { GLANCE } else { PATIENCE }, answer.into_body().collect());
            match rest.await {
                Ok(Ok(body)) => begun && body.trailers().is_none_or(good),
                Ok(Err(_)) => false,
                Err(_) => {
                    assert!(open, "{path}: the answer does not end");
                    begun
                }
            }
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(database) = self.database.take() {
            database.close();
        }
    }
}

/// Whether only one message is looked at.
pub fn takes_one(path: &str) -> bool {
    let (service, method) = path.split_once('/').unwrap_or_default();
    kind(service, method) != Kind::BidiStream
}

/// Reads what a transfer is about, and does nothing.
pub fn transfer(request: &[u8]) {
    crate::services::read_transfer(request);
}
