//! The differ for layers of the erofs snapshotter.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use corten_content::Store;
use corten_types::{
    Context, Descriptor, Digest, Digester, Error, ErrorClass, Mount, Result, ResultExt, media_type,
};

use crate::differ::{Applied, ApplyRequest, DiffRequest, Differ};
use crate::make::blocking;
use crate::walking::Walking;

/// What the snapshotter marks its folders with.
const MARK: &str = ".erofslayer";
const LAYER: &str = "layer.erofs";
/// Where the superblock of an image begins, and with what.
const SUPERBLOCK: (u64, [u8; 4]) = (1024, 0xe0f5_e1e2u32.to_le_bytes());
const PART: usize = 256 << 10;

/// Puts layers that are erofs images into place as they are. Those that are archives are extracted as
/// everywhere, and the snapshotter makes the image when it commits.
#[derive(Clone, Debug)]
pub struct Erofs {
    content: Store,
    walking: Walking,
}

impl Erofs {
    /// One over a content store, beside the differ for archives.
    ///
    /// # Errors
    /// FailedPrecondition with `skip plugin` without the program `mkfs.erofs`.
    pub fn open(content: Store, walking: Walking) -> Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&path).any(|folder| folder.join("mkfs.erofs").is_file()) {
            let text = "could not find mkfs.erofs: exec: \"mkfs.erofs\": executable file not found in $PATH: \
                        skip plugin";
            return Err(Error::bare(ErrorClass::FailedPrecondition, text));
        }
        Ok(Self { content, walking })
    }
}

#[async_trait]
impl Differ for Erofs {
    fn id(&self) -> &str {
        "erofs"
    }

    fn is_streaming(&self) -> bool {
        true
    }

    async fn apply(&self, ctx: &Context, request: &ApplyRequest) -> Result<Applied> {
        let layer = &request.layer;
        let folder = layer_folder(&request.mounts)?;
        if !media_type::is_erofs_layer(&layer.media_type) {
            return self.walking.apply(ctx, request).await;
        }
        let mut input: Box<dyn Read + Send> = match &request.source {
            Some(source) => source.open()?,
            None => {
                let blob = self.content.reader(ctx, &layer.digest);
                Box::new(blob.context("failed to get reader from content store")?.stream())
            }
        };
        let (limit, sync) = (request.limit, request.sync);
        let (digest, size) = blocking(move || place(&mut input, &folder, limit, sync)).await?;
        Ok(Applied { media_type: layer.media_type.clone(), digest, size, implied: Vec::new() })
    }

    async fn diff(&self, _: &Context, _: &DiffRequest) -> Result<Descriptor> {
        Err(Error::not_implemented("erofs differ does not compare"))
    }
}

/// The folder of the snapshot that mounts write to.
fn layer_folder(mounts: &[Mount]) -> Result<PathBuf> {
    let upper = |mount: &Mount| match mount.kind.as_str() {
        "bind" => Some(mount.source.clone()),
        "overlay" => {
            mount.options.iter().find_map(|option| option.strip_prefix("upperdir=")).map(str::to_owned)
        }
        _ => None,
    };
    let upper = mounts.last().and_then(upper).map(PathBuf::from);
    let folder = upper.as_deref().filter(|upper| upper.ends_with("fs")).and_then(Path::parent);
    let folder = folder.filter(|folder| folder.join(MARK).exists());
    folder
        .map(Path::to_owned)
        .ok_or_else(|| Error::not_implemented("mounts are not of the erofs snapshotter"))
}

/// Writes an image into the folder; nothing of it is there after a failure.
fn place(input: &mut dyn Read, folder: &Path, limit: u64, sync: bool) -> Result<(Digest, u64)> {
    let new = folder.join("new.erofs");
    let placed = write(input, &new, limit, sync).and_then(|totals| {
        std::fs::rename(&new, folder.join(LAYER))?;
        Ok(totals)
    });
    if placed.is_err() {
        std::fs::remove_file(&new).ok();
    }
    placed.context("failed to write the erofs layer")
}

fn write(input: &mut dyn Read, path: &Path, limit: u64, sync: bool) -> Result<(Digest, u64)> {
    let mut file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    let (mut digester, mut size) = (Digester::default(), 0u64);
    let mut buffer = vec![0; PART];
    loop {
        let part = match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => buffer.get(..count).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        size += part.len() as u64;
        if size > limit {
            let text = format!("the layer is larger than {limit} bytes");
            return Err(Error::new(ErrorClass::ResourceExhausted, text));
        }
        digester.update(part);
        file.write_all(part)?;
    }
    let mut magic = [0; 4];
    if file.read_exact_at(&mut magic, SUPERBLOCK.0).is_err() || magic != SUPERBLOCK.1 {
        return Err(Error::invalid_argument("the layer is no erofs image"));
    }
    if sync {
        file.sync_all()?;
    }
    Ok((digester.finish(), size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        let options = options.iter().map(ToString::to_string).collect();
        Mount { kind: kind.into(), source: source.into(), target: String::new(), options }
    }

    #[test]
    fn only_folders_of_the_snapshotter_are_written_to() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name).display().to_string();
        for folder in ["1/fs", "2/fs"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        std::fs::write(at("1/.erofslayer"), "").unwrap();
        let upper = format!("upperdir={}", at("1/fs"));
        assert_eq!(layer_folder(&[mount("bind", &at("1/fs"), &["rw"])]).unwrap(), scratch.path().join("1"));
        let overlay = mount("overlay", "overlay", &["workdir=/w", &upper, "lowerdir=/a"]);
        assert_eq!(layer_folder(&[overlay]).unwrap(), scratch.path().join("1"));
        for other in [mount("bind", &at("2/fs"), &[]), mount("bind", &at("1"), &[]), mount("ext4", "/x", &[])]
        {
            assert_eq!(layer_folder(&[other]).unwrap_err().class(), ErrorClass::NotImplemented);
        }
    }

    #[test]
    fn what_is_no_image_leaves_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let mut image = vec![0; 4096];
        image[1024..1028].copy_from_slice(&SUPERBLOCK.1);
        for (bytes, limit) in [(&vec![0; 4096], u64::MAX), (&image, 4095), (&vec![1; 9], u64::MAX)] {
            assert!(place(&mut bytes.as_slice(), scratch.path(), limit, false).is_err());
            assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
        }
        let (digest, size) = place(&mut image.as_slice(), scratch.path(), 4096, true).unwrap();
        assert_eq!((digest, size), (Digest::sha256(&image), 4096));
        assert_eq!(std::fs::read(scratch.path().join(LAYER)).unwrap(), image);
    }
}
