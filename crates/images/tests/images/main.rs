//! Images brought into real stores, from registries that misbehave on cue and from archives.

#![allow(clippy::unwrap_used, reason = "a test may fail this way")]

mod build;
mod import;
mod pull;
mod unpack;

use std::sync::Arc;
use std::time::Duration;

use corten_content::{Policy, Store};
use corten_diff::{Differs, Walking};
use corten_events::Exchange;
use corten_images::{Destination, Image, ImageService, Options, ProgressSender, PullRequest, Unpack};
use corten_metadata::{Database, Images, Leases};
use corten_registry::testing::ScriptedRegistry;
use corten_registry::{Resolver, ResolverOptions, Scheme};
use corten_snapshots::{Native, Overlay, OverlayOptions, Snapshots};
use corten_types::{Context, Labels, Namespace, Platform, Result};

/// The stores of a daemon in a folder of their own.
struct Daemon {
    service: ImageService,
    content: Store,
    snapshots: Snapshots,
    images: Images,
    leases: Leases,
    database: Database,
    dir: tempfile::TempDir,
}

impl Daemon {
    fn start() -> Self {
        Self::with(Options::default())
    }

    fn with(options: Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (database, _) = Database::open(&dir.path().join("meta.db")).unwrap();
        let exchange = Exchange::default();
        let content = Store::open(&dir.path().join("content"), &database, &exchange, Policy::Shared).unwrap();
        let overlayfs = Overlay::open(&dir.path().join("overlayfs"), OverlayOptions::default()).unwrap();
        let native = Native::open(&dir.path().join("native")).unwrap();
        let snapshots =
            Snapshots::new(&database, &exchange, vec![Arc::new(overlayfs), Arc::new(native)]).unwrap();
        let images = Images::new(database.clone(), exchange.clone());
        let leases = Leases::new(database.clone());
        let walking = Walking::new(content.clone(), dir.path().join("tmpmounts"));
        let service = ImageService::new(
            content.clone(),
            snapshots.clone(),
            images.clone(),
            leases.clone(),
            Differs::new(vec![Arc::new(walking)]),
            options,
        );
        Self { service, content, snapshots, images, leases, database, dir }
    }

    async fn pull(
        &self,
        registry: &ScriptedRegistry,
        tag: &str,
        destination: Destination,
    ) -> Result<Vec<Image>> {
        self.pull_telling(registry, tag, destination, &ProgressSender::none()).await
    }

    async fn pull_telling(
        &self,
        registry: &ScriptedRegistry,
        tag: &str,
        destination: Destination,
        progress: &ProgressSender,
    ) -> Result<Vec<Image>> {
        let request = PullRequest { reference: reference(registry, tag), destination, verifier: None };
        self.service.pull(&ctx(), &resolver(), &request, progress).await
    }

    fn names(&self) -> Vec<String> {
        self.images.list(&ctx(), &[]).unwrap().into_iter().map(|image| image.name).collect()
    }

    /// All labels of a blob.
    fn labels(&self, digest: &corten_types::Digest) -> Labels {
        self.content.info(&ctx(), digest).unwrap().labels
    }
}

fn ctx() -> Context {
    Context::new(Namespace::new("lab").unwrap())
}

fn reference(registry: &ScriptedRegistry, tag: &str) -> String {
    format!("{}/lab/img:{tag}", registry.host())
}

fn resolver() -> Resolver {
    Resolver::new(ResolverOptions {
        default_scheme: Some(Scheme::Http),
        stall_timeout: Duration::from_millis(300),
        ..ResolverOptions::default()
    })
}

/// Recorded under its own name, not unpacked.
fn packed(registry: &ScriptedRegistry, tag: &str) -> Destination {
    Destination { name: reference(registry, tag), ..Destination::default() }
}

/// Recorded under its own name and unpacked for this machine.
fn unpacked(registry: &ScriptedRegistry, tag: &str, snapshotter: &str) -> Destination {
    let unpack =
        Unpack { platform: Platform::host(), snapshotter: snapshotter.to_owned(), labels: Labels::new() };
    Destination { platforms: vec![Platform::host()], unpacks: vec![unpack], ..packed(registry, tag) }
}
