//! What each stage of a pull takes by itself, on one core: no pull can be faster than the slowest of them, unless it
//! has layers to work on side by side.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;

use corten_tests::Scratch;
use flate2::read::MultiGzDecoder;
use ring::digest::{SHA256, digest};
use rustix::fs::{Mode, OFlags};

use super::samples::Sample;

/// Bytes that are inflated at once.
const PART: usize = 256 << 10;

/// Name and seconds of each stage.
pub fn measure(sample: &Sample) -> [(&'static str, f64); 3] {
    let hash = time(|| {
        for data in sample.packed().chain(sample.plain.iter().map(Vec::as_slice)) {
            std::hint::black_box(digest(&SHA256, data));
        }
    });
    let inflate = time(|| {
        for data in sample.packed() {
            let (mut decoder, mut buffer) = (MultiGzDecoder::new(data), vec![0; PART]);
            while decoder.read(&mut buffer).unwrap() > 0 {}
        }
    });
    let scratch = Scratch::new();
    rustix::fs::sync();
    let write = time(|| write(sample, scratch.path()));
    [("hash", hash), ("inflate", inflate), ("write", write)]
}

/// Seconds that something takes.
fn time(work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64()
}

/// The blobs and the trees, and all of it on the disk: with no more calls than files need.
fn write(sample: &Sample, folder: &Path) {
    for (n, data) in sample.packed().enumerate() {
        let mut file = File::create(folder.join(format!("blob-{n}"))).unwrap();
        file.write_all(data).unwrap();
        file.sync_data().unwrap();
    }
    for (n, tar) in sample.plain.iter().enumerate() {
        let layer = folder.join(n.to_string());
        fs::create_dir(&layer).unwrap();
        let layer = File::open(layer).unwrap();
        let mut archive = tar::Archive::new(tar.as_slice());
        for entry in archive.entries().unwrap() {
            place(&layer, &entry.unwrap(), tar);
        }
    }
    rustix::fs::syncfs(File::open(folder).unwrap()).unwrap();
}

/// One entry, as far as it is a file, a folder or a link.
fn place(layer: &File, entry: &tar::Entry<'_, &[u8]>, tar: &[u8]) {
    let (path, mode) = (entry.path().unwrap(), Mode::from_raw_mode(entry.header().mode().unwrap() & 0o777));
    match entry.header().entry_type() {
        tar::EntryType::Directory => {
            rustix::fs::mkdirat(layer, path.as_ref(), mode | Mode::RWXU).unwrap();
        }
        tar::EntryType::Symlink => {
            let target = entry.link_name().unwrap().unwrap();
            rustix::fs::symlinkat(target.as_ref(), layer, path.as_ref()).unwrap();
        }
        tar::EntryType::Regular => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let file = rustix::fs::openat(layer, path.as_ref(), flags, mode).unwrap();
            let from = usize::try_from(entry.raw_file_position()).unwrap();
            let length = usize::try_from(entry.size()).unwrap();
            File::from(file).write_all(&tar[from..from + length]).unwrap();
        }
        _ => {}
    }
}
