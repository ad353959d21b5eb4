//! From a registry into the stores (spec 03 §5): resolve, then everything else at once, then the record.

use std::sync::Arc;

use corten_metadata::Image;
use corten_registry::Resolver;
use corten_types::{Context, Descriptor, Error, Reference, Result, ResultExt};

use crate::ImageService;
use crate::blob::Origin;
use crate::destination::Destination;
use crate::progress::ProgressSender;
use crate::walk::Walk;

/// Decides whether an image may be brought in, before any of it is (spec 03 §11).
#[async_trait::async_trait]
pub trait Verifier: Send + Sync {
    /// # Errors
    /// Why the image is refused, or why that could not be found out.
    async fn verify(&self, name: &str, target: &Descriptor) -> Result<()>;
}

/// What to pull.
#[derive(Clone)]
pub struct PullRequest {
    /// `host/path:tag`, `host/path@digest`.
    pub reference: String,
    /// What becomes of it.
    pub destination: Destination,
    /// Who is asked before.
    pub verifier: Option<Arc<dyn Verifier>>,
}

impl std::fmt::Debug for PullRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PullRequest")
            .field("reference", &self.reference)
            .field("destination", &self.destination)
            .finish_non_exhaustive()
    }
}

impl ImageService {
    /// Pulls an image: afterwards its content is stored and verified, it is unpacked where it should be, and
    /// recorded. A failure leaves no record and no snapshot; what was downloaded is not downloaded again by
    /// the next try. Dropping the future gives the pull up in the same way.
    ///
    /// # Errors
    /// `failed to resolve image: …`, `failed to copy: …`, `failed commit on ref …`, `failed to extract
    /// layer …` and what they name.
    pub async fn pull(
        &self,
        ctx: &Context,
        resolver: &Resolver,
        request: &PullRequest,
        progress: &ProgressSender,
    ) -> Result<Vec<Image>> {
        let reference: Reference = request.reference.parse()?;
        progress.event(format!("Resolving from OCI Registry ({})", request.reference));
        let target = resolver.resolve(&reference).await.context("failed to resolve image")?;
        if target.media_type.starts_with("application/vnd.docker.distribution.manifest.v1") {
            return Err(Error::invalid_argument("schema 1 image manifests are no longer supported"));
        }
        if let Some(verifier) = &request.verifier {
            verifier.verify(&request.reference, &target).await?;
        }
        progress.event(format!("Pulling from OCI Registry ({})", request.reference));
        let lease = self.lease(ctx, &request.reference).await?;
        let fetched = self.fetch_image(&lease.ctx, resolver, &reference, request, &target, progress).await;
        match fetched {
            Ok(images) => {
                lease.succeed().await;
                progress.event(format!("Completed pull from OCI Registry ({})", request.reference));
                Ok(images)
            }
            Err(error) => {
                lease.fail().await;
                Err(error)
            }
        }
    }

    async fn fetch_image(
        &self,
        ctx: &Context,
        resolver: &Resolver,
        reference: &Reference,
        request: &PullRequest,
        target: &Descriptor,
        progress: &ProgressSender,
    ) -> Result<Vec<Image>> {
        progress.image("fetching image content", &request.reference, target);
        let origin = Origin {
            fetcher: resolver.fetcher(reference)?,
            registry: reference.host().to_owned(),
            repository: reference.path().to_owned(),
            downloads: self.downloads(),
        };
        let walk = Walk::new(self, ctx, &request.destination, Some(&origin), &request.reference, progress)?;
        let target = walk.target(target).await?;
        self.record_pulled(ctx, &request.destination, &target, progress).await
    }
}
