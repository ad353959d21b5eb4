//! The images that are measured.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use corten_tests::image::host_architecture;
use corten_tests::{Blob, Digest, Image, Layer};
use corten_types::media_type;
use serde_json::json;

use super::MEGABYTE;

/// An image, and its layers as they are extracted.
pub struct Sample {
    pub name: &'static str,
    pub image: Image,
    pub plain: Vec<Vec<u8>>,
}

/// Layers of the image of Debian.
const LAYERS: usize = 10;
/// Debian with compilers: about 300 MB compressed.
const PACKAGES: &str = "build-essential,clang,gfortran";

/// A Debian with compilers, made by debootstrap, as ten layers of about the same size.
pub fn debian(cache: &Path) -> Sample {
    let tree = cache.join("debian");
    if !tree.exists() {
        debootstrap(&tree);
    }
    let layers = split(&tree).iter().map(|paths| archive(&tree, paths)).collect();
    Sample::new("Debian with compilers", layers)
}

/// A file that compresses to half, as models and databases do.
pub fn huge(_cache: &Path) -> Sample {
    let mut data = vec![0_u8; 600_000_000];
    let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
    for block in data.chunks_exact_mut(16) {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        block[..8].copy_from_slice(&seed.to_le_bytes());
    }
    Sample::new("one huge layer", vec![Layer::new().file("model", 0o644, &data).finish()])
}

/// A hundred layers of ten small files each.
pub fn small(_cache: &Path) -> Sample {
    let layer = |n: usize| {
        let files = (0..10).map(|file| (format!("file-{n}-{file}"), format!("{n} {file}\n").repeat(2000)));
        files.fold(Layer::new(), |layer, (name, text)| layer.file(&name, 0o644, text.as_bytes())).finish()
    };
    Sample::new("100 small layers", (0..100).map(layer).collect())
}

impl Sample {
    fn new(name: &'static str, plain: Vec<Vec<u8>>) -> Self {
        let packed = at_once(&plain, |tar| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
            encoder.write_all(tar).unwrap();
            encoder.finish().unwrap()
        });
        let diff_ids: Vec<_> = plain.iter().map(|tar| Digest::sha256(tar)).collect();
        let config = json!({
            "architecture": host_architecture(), "os": "linux", "config": {"Cmd": ["true"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = Blob::new(media_type::OCI_CONFIG, config.to_string().into_bytes());
        let layers = packed.into_iter().map(|data| Blob::new(media_type::OCI_LAYER_GZIP, data)).collect();
        Self { name, image: Image::new(config, layers), plain }
    }

    /// The layers as they are downloaded.
    pub fn packed(&self) -> impl Iterator<Item = &[u8]> {
        self.image.blobs.iter().skip(1).map(|blob| blob.data.as_slice())
    }

    /// The name as part of a file's or a repository's.
    pub fn slug(&self) -> String {
        self.name.to_lowercase().replace(' ', "-")
    }

    /// Numbers and sizes.
    pub fn describe(&self) -> String {
        let (packed, plain): (usize, usize) =
            (self.packed().map(<[u8]>::len).sum(), self.plain.iter().map(Vec::len).sum());
        let layers =
            if self.plain.len() == 1 { "1 layer".into() } else { format!("{} layers", self.plain.len()) };
        format!(
            "{layers}, {:.0} MB compressed, {:.0} MB extracted",
            packed as f64 / MEGABYTE,
            plain as f64 / MEGABYTE
        )
    }
}

/// Works on all parts with all processors; the results in order.
fn at_once<P: Sync, T: Send>(parts: &[P], work: impl Fn(&P) -> T + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let groups = parts.chunks(parts.len().div_ceil(threads).max(1));
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            groups.map(|group| scope.spawn(|| group.iter().map(&work).collect::<Vec<T>>())).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}

fn debootstrap(tree: &Path) {
    let targets = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI) $(LABEL)"])
        .stderr(Stdio::null())
        .output()
        .unwrap();
    let targets = String::from_utf8_lossy(&targets.stdout).into_owned();
    let mirror = targets.lines().find_map(|line| line.strip_suffix(" Debian"));
    let mirror = mirror.expect("apt knows no Debian archive: apt-get update");
    let (new, log) = (tree.with_extension("new"), tree.with_extension("log"));
    println!("a Debian with compilers is made by debootstrap, once");
    fs::create_dir_all(tree.parent().unwrap()).unwrap();
    let status = Command::new("debootstrap")
        .args(["--variant=minbase", &format!("--include={PACKAGES}"), "bookworm"])
        .args([new.as_os_str(), OsStr::new(mirror)])
        .stdin(Stdio::null())
        .stdout(fs::File::create(&log).unwrap())
        .status()
        .expect("debootstrap is missing: scripts/setup demo");
    assert!(status.success(), "debootstrap: {status}, {} tells more", log.display());
    for entry in fs::read_dir(new.join("var/cache/apt/archives")).unwrap().flatten() {
        fs::remove_file(entry.path()).ok();
    }
    fs::rename(new, tree).unwrap();
}

/// The paths of each layer, with the folders above them, as builders of images list them.
fn split(tree: &Path) -> Vec<BTreeSet<PathBuf>> {
    let mut all = Vec::new();
    walk(tree, tree, &mut all);
    let size: u64 = all.iter().map(|(_, size)| size).sum();
    let mut layers = vec![BTreeSet::new(); LAYERS];
    let mut done = 0;
    for (path, length) in all {
        let at = usize::try_from(done * LAYERS as u64 / (size + 1)).unwrap();
        layers[at].extend(path.ancestors().filter(|part| !part.as_os_str().is_empty()).map(Path::to_owned));
        done += length;
    }
    layers
}

/// Everything below a folder, in order, with its size.
fn walk(tree: &Path, folder: &Path, all: &mut Vec<(PathBuf, u64)>) {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let metadata = path.symlink_metadata().unwrap();
        let size = if metadata.is_file() { metadata.len() } else { 0 };
        all.push((path.strip_prefix(tree).unwrap().to_owned(), size));
        if metadata.is_dir() {
            walk(tree, &path, all);
        }
    }
}

/// Paths of a tree as an archive, by the system's tar: owners, links and devices as they are.
fn archive(tree: &Path, paths: &BTreeSet<PathBuf>) -> Vec<u8> {
    let mut child = Command::new("tar")
        .args(["--numeric-owner", "--no-recursion", "--null", "-C"])
        .arg(tree)
        .args(["-T", "-", "-cf", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for path in paths {
                stdin.write_all(path.as_os_str().as_bytes()).unwrap();
                stdin.write_all(b"\0").unwrap();
            }
        });
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "tar: {}", output.status);
        output.stdout
    })
}
