//! The differ that everybody has: tar archives, by walking.

use std::path::PathBuf;

use async_trait::async_trait;
use corten_content::Store;
use corten_types::{Context, Descriptor, Error, Result, ResultExt, media_type};

use crate::apply::{ApplyOptions, apply};
use crate::differ::{Applied, ApplyRequest, DiffRequest, Differ};

/// Applies and makes layers that are tar archives, compressed by gzip, Zstandard or not at all.
#[derive(Clone, Debug)]
pub struct Walking {
    content: Store,
    mount_folder: PathBuf,
}

impl Walking {
    /// One over a content store; trees that cannot be reached otherwise are mounted below `mount_folder`.
    #[must_use]
    pub fn new(content: Store, mount_folder: PathBuf) -> Self {
        Self { content, mount_folder }
    }
}

#[async_trait]
impl Differ for Walking {
    fn id(&self) -> &str {
        "walking"
    }

    fn is_streaming(&self) -> bool {
        true
    }

    async fn apply(&self, ctx: &Context, request: &ApplyRequest) -> Result<Applied> {
        let layer = &request.layer;
        if !media_type::is_layer(&layer.media_type) || layer.media_type.ends_with("+encrypted") {
            return Err(Error::not_implemented(format!("no processor for media-type {}", layer.media_type)));
        }
        let mut input = match &request.source {
            Some(source) => source.open()?,
            None => {
                let blob = self.content.reader(ctx, &layer.digest);
                Box::new(blob.context("failed to get reader from content store")?.stream())
            }
        };
        let (mounts, mount_folder) = (request.mounts.clone(), self.mount_folder.clone());
        let options = ApplyOptions { sync: request.sync, limit: request.limit, mount_folder };
        blocking(move || apply(&mut input, &mounts, &options)).await
    }

    async fn diff(&self, _: &Context, _: &DiffRequest) -> Result<Descriptor> {
        Err(Error::not_implemented("method Diff not implemented"))
    }
}

/// Runs what waits for the disk where it may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::internal(format!("differ: {error}")))?
}
