//! Layers onto mounts.

use std::io::Read;

use corten_api::services::diff::{self as api, diff_server};
use corten_content::BlobReader;
use corten_diff::ApplyOptions;
use corten_types::{Descriptor, Error, Mount, ResultExt, media_type};
use tonic::{Request, Response, Status};

use super::{Services, context, required, status};

/// A blob read from its start.
struct Sequential {
    blob: BlobReader,
    position: u64,
}

impl Read for Sequential {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.blob.read_at(buffer, self.position).map_err(std::io::Error::other)?;
        self.position += count as u64;
        Ok(count)
    }
}

#[tonic::async_trait]
impl diff_server::Diff for Services {
    async fn apply(
        &self,
        request: Request<api::ApplyRequest>,
    ) -> Result<Response<api::ApplyResponse>, Status> {
        let ctx = context(&request)?;
        let request = request.into_inner();
        let layer = Descriptor::try_from(required(request.diff, "diff")?).map_err(status)?;
        if !media_type::is_layer(&layer.media_type) {
            let text = format!("no processor for media-type {}", layer.media_type);
            return Err(status(Error::not_implemented(text)));
        }
        let blob = self.content.reader(&ctx, &layer.digest);
        let blob = blob.context("failed to get reader from content store").map_err(status)?;
        let mounts: Vec<Mount> = request.mounts.into_iter().map(Mount::from).collect();
        let options = ApplyOptions {
            sync: request.sync_fs,
            mount_folder: self.mount_folder.clone(),
            ..ApplyOptions::default()
        };
        let applied = tokio::task::spawn_blocking(move || {
            corten_diff::apply(&mut Sequential { blob, position: 0 }, &mounts, &options)
        });
        let applied = applied.await.map_err(|error| status(Error::internal(format!("apply: {error}"))))?;
        let applied =
            applied.with_context(|| format!("failed to extract layer {}", layer.digest)).map_err(status)?;
        let size = i64::try_from(applied.size).unwrap_or(i64::MAX);
        let descriptor = Descriptor::new(media_type::OCI_LAYER, applied.digest, size);
        Ok(Response::new(api::ApplyResponse { applied: Some(descriptor.into()) }))
    }

    async fn diff(&self, _: Request<api::DiffRequest>) -> Result<Response<api::DiffResponse>, Status> {
        Err(status(Error::not_implemented("method Diff not implemented")))
    }
}
