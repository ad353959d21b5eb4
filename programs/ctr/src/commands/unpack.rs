//! `snapshots unpack`: snapshots of a manifest's layers.

use clap::Args;
use corten_api::services::content;
use corten_types::{Digest, Error, Result};

use crate::client::{Daemon, error};
use crate::container::image;

/// Make snapshots of a manifest's layers.
#[derive(Debug, Args)]
pub struct Unpack {
    /// Have the files on disk before it ends.
    #[arg(long)]
    sync_fs: bool,
    /// The snapshotter; empty for the daemon's default.
    #[arg(
        long = "snapshotter",
        id = "unpack-snapshotter",
        env = "CONTAINERD_SNAPSHOTTER",
        default_value = ""
    )]
    snapshotter: String,
    #[arg(default_value = "", value_name = "DIGEST")]
    digest: String,
}

/// Says why a digest is none, as the original's library does.
fn check(text: &str) -> Result<()> {
    let Some((algorithm, hex)) = text.split_once(':') else {
        return Err(Error::unknown("invalid checksum digest format"));
    };
    if text.parse::<Digest>().is_ok() {
        return Ok(());
    }
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return Err(Error::unknown("unsupported digest algorithm")),
    };
    let why =
        if hex.len() == length { "invalid checksum digest format" } else { "invalid checksum digest length" };
    Err(Error::unknown(why))
}

impl Unpack {
    pub async fn run(self, daemon: &Daemon, group: &str) -> Result<()> {
        check(&self.digest)?;
        let request = content::InfoRequest { digest: self.digest.clone() };
        daemon.content().info(request).await.map_err(error).map_err(|failed| {
            match failed.is_not_found() {
                true => Error::unknown("manifest not found"),
                false => failed,
            }
        })?;
        let manifest = image::read_json(daemon, &self.digest).await?;
        let kind = manifest["mediaType"].as_str().unwrap_or("application/vnd.oci.image.manifest.v1+json");
        let snapshotter = if self.snapshotter.is_empty() { group } else { &self.snapshotter };
        print!("unpacking {} ({kind})...", self.digest);
        let image = image::Image::from_manifest(daemon, &self.digest, &manifest).await?;
        image::unpack(daemon, &image, snapshotter, self.sync_fs).await?;
        println!("done");
        Ok(())
    }
}
