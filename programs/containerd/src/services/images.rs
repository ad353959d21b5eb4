//! Image records.

use std::time::SystemTime;

use corten_api::services::images::{self as api, images_server};
use corten_metadata::Image;
use corten_types::{Descriptor, Digest, Error, ErrorClass, timestamp::to_system};
use tonic::{Request, Response, Status};

use super::{Services, at_length, context, paths, required, status, timestamp};

fn from_api(image: api::Image, label_only: bool) -> Result<Image, Status> {
    if image.name.is_empty() {
        return Err(status(Error::bare(ErrorClass::InvalidArgument, "Image.Name required")));
    }
    let target = image.target.unwrap_or_default();
    let text = target.digest.clone();
    let target = if label_only && text.is_empty() {
        let mut kept = Descriptor::new("", Digest::sha256(b""), 0);
        kept.annotations = target.annotations;
        kept
    } else {
        let invalid =
            |error: Error| Error::invalid_argument(format!("target.Digest {text:?} invalid: {error}"));
        Descriptor::try_from(target).map_err(|error| status(invalid(error)))?
    };
    Ok(Image::new(image.name, target, image.labels))
}

fn to_api(image: Image) -> api::Image {
    api::Image {
        name: image.name,
        labels: image.labels,
        target: Some(image.target.into()),
        created_at: timestamp(image.created_at),
        updated_at: timestamp(image.updated_at),
    }
}

fn clock(time: Option<prost_types::Timestamp>) -> Option<SystemTime> {
    time.as_ref().map(to_system)
}

#[tonic::async_trait]
impl images_server::Images for Services {
    async fn get(
        &self,
        request: Request<api::GetImageRequest>,
    ) -> Result<Response<api::GetImageResponse>, Status> {
        let ctx = context(&request)?;
        let image = self.images.get(&ctx, &request.into_inner().name).map_err(status)?;
        Ok(Response::new(api::GetImageResponse { image: Some(to_api(image)) }))
    }

    async fn list(
        &self,
        request: Request<api::ListImagesRequest>,
    ) -> Result<Response<api::ListImagesResponse>, Status> {
        let ctx = context(&request)?;
        let filters = request.into_inner().filters;
        let images = at_length(|| self.images.list(&ctx, &filters)).map_err(status)?;
        Ok(Response::new(api::ListImagesResponse { images: images.into_iter().map(to_api).collect() }))
    }

    async fn create(
        &self,
        request: Request<api::CreateImageRequest>,
    ) -> Result<Response<api::CreateImageResponse>, Status> {
        let ctx = context(&request)?;
        let request = request.into_inner();
        let image = from_api(required(request.image, "image")?, false)?;
        let image =
            self.images.create(&ctx, image, clock(request.source_date_epoch)).await.map_err(status)?;
        Ok(Response::new(api::CreateImageResponse { image: Some(to_api(image)) }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateImageRequest>,
    ) -> Result<Response<api::UpdateImageResponse>, Status> {
        let ctx = context(&request)?;
        let request = request.into_inner();
        let paths = paths(request.update_mask);
        let label_only = !paths.is_empty() && !paths.iter().any(|path| path == "target");
        let image = from_api(required(request.image, "image")?, label_only)?;
        let image =
            self.images.update(&ctx, image, paths, clock(request.source_date_epoch)).await.map_err(status)?;
        Ok(Response::new(api::UpdateImageResponse { image: Some(to_api(image)) }))
    }

    async fn delete(&self, request: Request<api::DeleteImageRequest>) -> Result<Response<()>, Status> {
        let ctx = context(&request)?;
        let request = request.into_inner();
        let target = request.target.map(|target| target.digest).filter(|digest| !digest.is_empty());
        self.images.delete(&ctx, &request.name, target).await.map_err(status)?;
        if request.sync {
            self.collector.trigger().await.map_err(status)?;
        }
        Ok(Response::new(()))
    }
}
