//! `diff`: what a container has changed of its image's files, as docker tells it.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args;
use corten_api::services::content;
use corten_tree::Root;
use corten_types::{Error, Result};
use rustix::fs::OFlags;

use crate::client::{Daemon, error};
use crate::commands::snapshot_diff::Views;
use crate::commands::{containers, snapshots};
use crate::files::mounted;
use crate::output::{Format, Table};

/// What a container has changed of its image's files: A added, C changed, D deleted.
#[derive(Debug, Args)]
pub struct Diff {
    /// How to show it.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    #[arg(required = true, value_name = "CONTAINER")]
    id: String,
}

impl Diff {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        let container = containers::get(daemon, &self.id).await?;
        if container.snapshot_key.is_empty() {
            let text = format!("container {:?} has no snapshot: nothing is known of what it was", self.id);
            return Err(Error::failed_precondition(text));
        }
        // Views and layer are kept for as long as this takes, and no longer.
        let found = super::leases::held(daemon, async |leased| {
            let mut views = Views::new(leased, &container.snapshotter);
            let found = changes(leased, &mut views, &container.snapshotter, &container.snapshot_key).await;
            views.remove().await;
            found
        })
        .await?;
        if matches!(self.format, Format::Json | Format::Yaml) {
            let mut table = Table::wide(&["KIND", "PATH"]);
            found.into_iter().for_each(|(path, kind)| table.row([kind.into(), path.display().to_string()]));
            return table.show(self.format);
        }
        for (path, kind) in found {
            println!("{kind} {}", path.display());
        }
        Ok(())
    }
}

/// Paths and what happened to them, in order.
async fn changes(
    daemon: &Daemon,
    views: &mut Views<'_>,
    snapshotter: &str,
    key: &str,
) -> Result<BTreeMap<PathBuf, &'static str>> {
    let parent = snapshots::stat(daemon, snapshotter, key).await?.parent;
    let left = views.of(&parent).await?;
    let right = views.mounts(key).await?;
    let before = if parent.is_empty() { None } else { Some(mounted(&left)?) };
    let layer = views.layer(left, right).await?;
    let request = content::ReadContentRequest { digest: layer, offset: 0, size: 0 };
    let mut stream = daemon.content().read(request).await.map_err(error)?.into_inner();
    let (reader, mut writer) = std::io::pipe()?;
    let listing = tokio::task::spawn_blocking(move || list(reader, before.as_ref()));
    while let Some(message) = stream.message().await.map_err(error)? {
        // The other thread reads until the end, or fails and says why.
        if writer.write_all(&message.data).is_err() {
            break;
        }
    }
    drop(writer);
    listing.await.map_err(|failed| Error::internal(failed.to_string()))?
}

/// What an archive of changes says. What was there before is changed, what was not is added.
fn list(archive: impl std::io::Read, before: Option<&Root>) -> Result<BTreeMap<PathBuf, &'static str>> {
    let was_there =
        |path: &Path| before.is_some_and(|root| root.open_at(path, OFlags::PATH | OFlags::NOFOLLOW).is_ok());
    let mut found = BTreeMap::new();
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries()? {
        let entry = entry?;
        let path = corten_tree::clean(&entry.path_bytes());
        let Some(name) = path.file_name() else { continue };
        let shown = |path: &Path| Path::new("/").join(path);
        match name.as_bytes().strip_prefix(b".wh.") {
            // A folder whose contents of before are hidden; what is in it now follows.
            Some(b".wh..opq") => {}
            Some(gone) => {
                let gone = path.with_file_name(std::ffi::OsStr::from_bytes(gone));
                found.insert(shown(&gone), "D");
            }
            None => {
                found.insert(shown(&path), if was_there(&path) { "C" } else { "A" });
            }
        }
    }
    Ok(found)
}
