//! `cri load`, of the first version: archives loaded through the Kubernetes plugin.

use std::path::PathBuf;

use clap::Subcommand;
use corten_types::{Error, Result};
use tonic::codegen::http::uri::PathAndQuery;

use crate::client::{Daemon, error};

/// What the Kubernetes plugin does.
#[derive(Debug, Subcommand)]
pub enum Cri {
    /// Load images from archives.
    Load {
        #[arg(required = true, value_name = "TAR")]
        files: Vec<PathBuf>,
    },
}

#[derive(Clone, PartialEq, prost::Message)]
struct LoadImageRequest {
    #[prost(string, tag = "1")]
    file_path: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LoadImageResponse {
    #[prost(string, repeated, tag = "1")]
    images: Vec<String>,
}

impl Cri {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        let Self::Load { files } = self;
        for file in files {
            // The daemon opens it, perhaps from another folder.
            let path = std::path::absolute(&file)?;
            let request = LoadImageRequest { file_path: path.display().to_string() };
            let mut client = tonic::client::Grpc::new(daemon.service());
            client.ready().await.map_err(|failed| Error::unavailable(failed.to_string()))?;
            let method = PathAndQuery::from_static("/api.v1.CRIPluginService/LoadImage");
            let codec = tonic_prost::ProstCodec::<LoadImageRequest, LoadImageResponse>::default();
            let loaded = client.unary(tonic::Request::new(request), method, codec).await;
            let loaded = loaded.map_err(|status| {
                error(status)
                    .context("failed to load image")
                    .with_hint("`ctr -n k8s.io images import` loads archives")
            })?;
            loaded.into_inner().images.iter().for_each(|image| println!("Loaded image: {image}"));
        }
        Ok(())
    }
}
