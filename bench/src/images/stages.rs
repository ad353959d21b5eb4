//! What each stage of a pull takes by itself, on one core: no pull can be faster than the slowest of them, unless it
//! has layers to work on side by side. And what a registry takes for a push, whoever sends it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use corten_tests::{Digest, Scratch};
use flate2::read::MultiGzDecoder;
use ring::digest::{SHA256, digest};
use rustix::fs::{Mode, OFlags};

use super::samples::Sample;

/// Bytes that are inflated at once.
const PART: usize = 256 << 10;
/// Blobs that are sent at once, as both sides do.
const UPLOADS: usize = 10;

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

/// Seconds that a registry takes to accept an image, which is sent from memory and not looked for before.
pub fn upload(host: &str, sample: &Sample) -> f64 {
    let blobs: Vec<_> = sample.image.blobs.iter().map(|blob| (blob.digest(), blob)).collect();
    let next = AtomicUsize::new(0);
    let repository = format!("bench/alone-{}", sample.slug());
    let target = &sample.image.target;
    rustix::fs::sync();
    time(|| {
        std::thread::scope(|scope| {
            for _ in 0..UPLOADS {
                scope.spawn(|| {
                    while let Some((digest, blob)) = blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        send(host, &repository, digest, &blob.data);
                    }
                });
            }
        });
        let line = format!("PUT /v2/{repository}/manifests/1");
        let stored = exchange(host, &line, &target.media_type, &target.data);
        assert!(stored.starts_with("HTTP/1.1 201"), "{stored}");
    })
}

/// One blob, in one request after the one that opens the upload.
fn send(host: &str, repository: &str, digest: &Digest, data: &[u8]) {
    let kind = "application/octet-stream";
    let opened = exchange(host, &format!("POST /v2/{repository}/blobs/uploads/"), kind, &[]);
    let place = opened.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap();
    let target = place.trim().trim_start_matches("http://").trim_start_matches(host);
    let stored = exchange(host, &format!("PUT {target}&digest={digest}"), kind, data);
    assert!(stored.starts_with("HTTP/1.1 201"), "{stored}");
}

/// A request on a connection of its own, and what is answered.
fn exchange(host: &str, line: &str, kind: &str, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(host).unwrap();
    let length = body.len();
    let head = format!(
        "{line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
