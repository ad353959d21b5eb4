//! `install`: programs and libraries of an image, placed on the host.

use std::io::{Read, Seek, Write};
use std::path::{Component, Path, PathBuf};

use clap::Args;
use corten_api::services::{content, introspection};
use corten_types::{Error, Platform, Result, ResultExt};

use crate::client::{Daemon, error};
use crate::container::image;

/// Place the programs of an image on the host.
#[derive(Debug, Args)]
pub struct Install {
    /// Libraries too.
    #[arg(short, long)]
    libs: bool,
    /// Replace what is there.
    #[arg(short, long)]
    replace: bool,
    /// Folder, instead of the daemon's own for this.
    #[arg(long)]
    path: Option<PathBuf>,
    #[arg(default_value = "", value_name = "REF")]
    reference: String,
}

impl Install {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        let image = image::find(daemon, &self.reference, &Platform::host()).await.map_err(|failed| {
            // No name is no question of form here.
            if self.reference.is_empty() { Error::not_found("image \"\"") } else { failed }
        })?;
        let folder = match &self.path {
            Some(path) => path.clone(),
            None => opt(daemon).await?,
        };
        for layer in image.layers() {
            let file = fetch(daemon, &layer.digest).await?;
            let (folder, libs, replace) = (folder.clone(), self.libs, self.replace);
            let extracted = tokio::task::spawn_blocking(move || extract(file, &folder, libs, replace)).await;
            extracted.map_err(|failed| Error::internal(failed.to_string()))??;
        }
        Ok(())
    }
}

/// The daemon's folder for installed programs.
async fn opt(daemon: &Daemon) -> Result<PathBuf> {
    let request = introspection::PluginsRequest { filters: vec!["id==opt".into()] };
    let found = daemon.introspection().plugins(request).await.map_err(error)?.into_inner().plugins;
    let path = found.first().and_then(|plugin| plugin.exports.get("path")).cloned();
    path.map(PathBuf::from).ok_or_else(|| {
        Error::unknown("opt internal plugin is required").with_hint("--path says where to install to")
    })
}

/// Copies a blob into a file without a name.
async fn fetch(daemon: &Daemon, digest: &str) -> Result<std::fs::File> {
    use rustix::fs::{CWD, Mode, OFlags, openat};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let folder = std::env::temp_dir();
    let file = openat(CWD, &folder, flags, Mode::RUSR | Mode::WUSR).map_err(std::io::Error::from);
    let mut file = std::fs::File::from(file.with_context(|| folder.display().to_string())?);
    let request = content::ReadContentRequest { digest: digest.into(), offset: 0, size: 0 };
    let mut stream = daemon.content().read(request).await.map_err(error)?.into_inner();
    while let Some(message) = stream.message().await.map_err(error)? {
        file.write_all(&message.data)?;
    }
    file.rewind()?;
    Ok(file)
}

/// Reads a layer in whatever way it is compressed.
fn decompressed(mut file: std::fs::File) -> Result<Box<dyn Read>> {
    let mut magic = [0; 4];
    let length = file.read(&mut magic)?;
    file.rewind()?;
    Ok(match magic.get(..length).unwrap_or_default() {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(file)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::stream::read::Decoder::new(file)?),
        _ => Box::new(std::io::BufReader::new(file)),
    })
}

/// Places the files of a layer that lie in `bin` (and `lib`); their names are taken, never their paths.
fn extract(file: std::fs::File, folder: &Path, libs: bool, replace: bool) -> Result<()> {
    let mut archive = tar::Archive::new(decompressed(file)?);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let names: Vec<_> = path
            .components()
            .filter(|part| !matches!(part, Component::CurDir | Component::RootDir))
            .collect();
        let [Component::Normal(kind), Component::Normal(name)] = names.as_slice() else { continue };
        if !(*kind == "bin" || (libs && *kind == "lib")) {
            continue;
        }
        let target = folder.join(kind).join(name);
        let exists = std::fs::symlink_metadata(&target).is_ok();
        if exists && !replace {
            let text =
                format!("cannot replace {} in {}", Path::new(kind).join(name).display(), folder.display());
            return Err(Error::unknown(text).with_hint("--replace replaces what is there"));
        }
        place(&mut entry, folder, &folder.join(kind), &target)
            .with_context(|| target.display().to_string())?;
    }
    Ok(())
}

/// Writes one file under a name of its own first, so that a program that runs is not written over.
fn place(
    entry: &mut tar::Entry<'_, impl Read>,
    root: &Path,
    folder: &Path,
    target: &Path,
) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::create_dir_all(folder)?;
    let temporary = folder.join(format!(
        ".{}-{}",
        std::process::id(),
        target.file_name().unwrap_or_default().to_string_lossy()
    ));
    let kind = entry.header().entry_type();
    std::fs::remove_file(&temporary).ok();
    if kind.is_file() {
        let mode = entry.header().mode().unwrap_or(0o755) & 0o777;
        let mut options = std::fs::File::options();
        let mut file = options.write(true).create_new(true).mode(mode).open(&temporary)?;
        std::io::copy(entry, &mut file)?;
    } else if let Some(link) = entry.link_name()? {
        if kind.is_hard_link() {
            let name = link.file_name().unwrap_or_default();
            let parent = link.parent().and_then(Path::file_name).unwrap_or_default();
            std::fs::hard_link(root.join(parent).join(name), &temporary)?;
        } else {
            std::os::unix::fs::symlink(link, &temporary)?;
        }
    } else {
        return Ok(());
    }
    std::fs::rename(&temporary, target)
}
