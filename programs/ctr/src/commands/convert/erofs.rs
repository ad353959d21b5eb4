//! A layer as an image of erofs: the daemon extracts it into a folder of ours, with what it removes marked as an
//! overlay marks it, and mkfs.erofs makes the image of that.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use bytes::Bytes;
use corten_api::services::diff;
use corten_api::types::Mount;
use corten_types::{Descriptor, Digest, Error, Labels, Result, ResultExt};
use tokio::sync::mpsc;

use super::{Made, PIECE};
use crate::client::{Daemon, error};
use crate::commands::blobs;
use crate::commands::images::unique;

/// A folder for the time of one layer.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// Makes the image and stores it; answers its digest and size.
pub async fn layer(daemon: &Daemon, old: &Descriptor) -> Result<(Digest, i64, Made)> {
    use std::os::unix::fs::DirBuilderExt;
    let folder = Folder(std::env::temp_dir().join(unique("ctr-erofs")));
    let created = std::fs::DirBuilder::new().mode(0o700).create(&folder.0);
    created.with_context(|| folder.0.display().to_string())?;
    let (files, image) = (folder.0.join("files"), folder.0.join("layer.erofs"));
    std::fs::create_dir(&files)?;
    let mounts = vec![Mount {
        r#type: "overlay".into(),
        source: "overlay".into(),
        target: String::new(),
        options: vec![format!("upperdir={}", files.display())],
    }];
    let request = diff::ApplyRequest { diff: Some(old.clone().into()), mounts, ..Default::default() };
    daemon.diff().apply(request).await.map_err(error)?;
    make(&files, &image, &old.digest).await?;
    let (sender, receiver) = mpsc::channel(4);
    let source = tokio::task::spawn_blocking(move || send(&image, &sender));
    let wanted = blobs::Wanted {
        reference: format!("convert-erofs-from-{}", old.digest),
        labels: Labels::new(),
        size: 0,
        expected: None,
    };
    let (digest, size) = blobs::write_checked(daemon, wanted, receiver, source).await?;
    Ok((digest.clone(), size, Made { diff_id: digest, annotations: BTreeMap::new() }))
}

async fn make(files: &Path, image: &Path, layer: &Digest) -> Result<()> {
    // The same layer gets the same name of its file system.
    let hex = layer.hex();
    let part = |range: std::ops::Range<usize>| hex.get(range).unwrap_or_default().to_owned();
    let uuid = [part(0..8), part(8..12), part(12..16), part(16..20), part(20..32)].join("-");
    let output = tokio::process::Command::new("mkfs.erofs")
        .args(["--quiet", "-Enoinline_data", "-U", &uuid])
        .arg(image)
        .arg(files)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let output = output.context("mkfs.erofs").map_err(|missing| match missing.is_not_found() {
        true => missing.with_hint("it is in the package erofs-utils"),
        false => missing,
    })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(Error::unknown(format!("mkfs.erofs: {}", text.trim())));
    }
    Ok(())
}

fn send(image: &Path, sender: &mpsc::Sender<Bytes>) -> Result<()> {
    let mut file = std::fs::File::open(image)?;
    loop {
        let mut piece = vec![0; PIECE];
        let count = file.read(&mut piece)?;
        piece.truncate(count);
        if count == 0 || sender.blocking_send(piece.into()).is_err() {
            return Ok(());
        }
    }
}
