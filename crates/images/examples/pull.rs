//! Pulls an image into an empty folder and tells how long it took: `pull REFERENCE FOLDER [SNAPSHOTTER]`.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use corten_content::{Policy, Store};
use corten_diff::{Differs, Walking};
use corten_events::Exchange;
use corten_images::{Destination, ImageService, Options, PullRequest, Unpack};
use corten_metadata::{Database, Images, Leases};
use corten_registry::{Resolver, ResolverOptions, Scheme};
use corten_snapshots::{Native, Overlay, OverlayOptions, Snapshots};
use corten_types::{Context, Error, Labels, Namespace, Platform, Result};

/// The defaults, or as many layers at once as `AT_ONCE` says.
fn options() -> Options {
    let mut options = Options::default();
    if let Some(count) = std::env::var("AT_ONCE").ok().and_then(|count| count.parse().ok()) {
        options.max_concurrent_unpacks = count;
    }
    options
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [reference, folder, rest @ ..] = arguments.as_slice() else {
        return Err(Error::invalid_argument("pull REFERENCE FOLDER [SNAPSHOTTER]"));
    };
    let folder = Path::new(folder);
    std::fs::create_dir_all(folder)?;
    let (database, _) = Database::open(&folder.join("meta.db"))?;
    let exchange = Exchange::default();
    let content = Store::open(&folder.join("content"), &database, &exchange, Policy::Shared)?;
    let overlay = Overlay::open(&folder.join("overlayfs"), OverlayOptions::default())?;
    let native = Native::open(&folder.join("native"))?;
    let snapshots = Snapshots::new(&database, &exchange, vec![Arc::new(overlay), Arc::new(native)])?;
    let images = Images::new(database.clone(), exchange);
    let walking = Walking::new(content.clone(), folder.join("tmpmounts"));
    let differs = Differs::new(vec![Arc::new(walking)]);
    let service = ImageService::new(content, snapshots, images, Leases::new(database), differs, options());
    let snapshotter = rest.first().cloned().unwrap_or_default();
    let unpack = Unpack { platform: Platform::host(), snapshotter, labels: Labels::new() };
    let destination = Destination {
        name: reference.clone(),
        platforms: vec![Platform::host()],
        unpacks: if rest.first().is_some_and(|name| name == "none") { Vec::new() } else { vec![unpack] },
        ..Destination::default()
    };
    let resolver =
        Resolver::new(ResolverOptions { default_scheme: Some(Scheme::Http), ..ResolverOptions::default() });
    let request = PullRequest { reference: reference.clone(), destination, verifier: None };
    let start = Instant::now();
    let (sender, mut receiver) = corten_images::progress::channel();
    let told = tokio::spawn(async move {
        while let Some(message) = receiver.recv().await {
            if message.event != "downloading" && std::env::var_os("TELL").is_some() {
                println!("{:8.3?} {} {}", start.elapsed(), message.event, message.name);
            }
        }
    });
    service.pull(&Context::new(Namespace::new("default")?), &resolver, &request, &sender).await?;
    drop(sender);
    let _ = told.await;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    println!("{:?} {peak}", start.elapsed());
    Ok(())
}
