//! Makes images: layers from entries, folders or archives; a config; a manifest. They go to a
//! registry or into an OCI layout archive.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use corten_types::{Digest, media_type};
use serde_json::{Value, json};

use crate::{Entry, Peers};

/// A blob with its media type.
#[derive(Clone, Debug)]
pub struct Blob {
    /// What it is.
    pub media_type: String,
    /// Its bytes.
    pub data: Vec<u8>,
}

impl Blob {
    /// A blob of this type.
    pub fn new(media_type: &str, data: Vec<u8>) -> Self {
        Self { media_type: media_type.into(), data }
    }

    /// Its digest.
    pub fn digest(&self) -> Digest {
        Digest::sha256(&self.data)
    }

    /// Its descriptor.
    pub fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest(), "size": self.data.len()})
    }
}

/// A layer under construction: a tar archive.
pub struct Layer {
    tar: tar::Builder<Vec<u8>>,
}

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Layer")
    }
}

impl Layer {
    /// An empty layer.
    pub fn new() -> Self {
        Self { tar: tar::Builder::new(Vec::new()) }
    }

    /// Adds an entry with exactly this name, however hostile, which the tar crate would refuse.
    ///
    /// # Panics
    /// When the archive cannot be written.
    pub fn raw(mut self, name: &str, kind: tar::EntryType, link: &str, mode: u32, data: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(data.len() as u64);
        let old = header.as_old_mut();
        for (field, text) in [(&mut old.name, name), (&mut old.linkname, link)] {
            let length = text.len().min(field.len());
            field[..length].copy_from_slice(&text.as_bytes()[..length]);
        }
        header.set_cksum();
        self.tar.append(&header, data).unwrap();
        self
    }

    /// Adds an entry.
    pub fn entry(self, entry: &Entry) -> Self {
        self.bytes(&entry.encode())
    }

    /// Adds blocks of an archive as they are.
    pub fn bytes(mut self, blocks: &[u8]) -> Self {
        self.tar.get_mut().extend_from_slice(blocks);
        self
    }

    /// Adds a regular file.
    pub fn file(self, name: &str, mode: u32, data: &[u8]) -> Self {
        self.raw(name, tar::EntryType::Regular, "", mode, data)
    }

    /// Adds a folder.
    pub fn dir(self, name: &str, mode: u32) -> Self {
        self.raw(name, tar::EntryType::Directory, "", mode, b"")
    }

    /// Adds a symbolic link.
    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.raw(name, tar::EntryType::Symlink, target, 0o777, b"")
    }

    /// The archive.
    ///
    /// # Panics
    /// When the archive cannot be finished.
    pub fn finish(self) -> Vec<u8> {
        self.tar.into_inner().unwrap()
    }
}

impl Default for Layer {
    fn default() -> Self {
        Self::new()
    }
}

/// An image: manifest, config and layers.
#[derive(Clone, Debug)]
pub struct Image {
    /// The manifest, or an index.
    pub target: Blob,
    /// Everything it refers to.
    pub blobs: Vec<Blob>,
}

/// Collects what an image is made of.
#[derive(Clone, Debug, Default)]
pub struct ImageBuilder {
    layers: Vec<Vec<u8>>,
    config: serde_json::Map<String, Value>,
    architecture: Option<String>,
}

impl ImageBuilder {
    /// An image of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Busybox with its usual links, `/etc/passwd`, `/tmp`, and `sh` as its command.
    ///
    /// # Panics
    /// When there is no busybox: `make peers` brings it.
    pub fn busybox() -> Self {
        let busybox = std::fs::read(Peers::find().busybox()).unwrap();
        let mut layer = Layer::new()
            .dir("bin/", 0o755)
            .dir("etc/", 0o755)
            .dir("tmp/", 0o1777)
            .dir("root/", 0o700)
            .file("bin/busybox", 0o755, &busybox)
            .file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")
            .file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n");
        for applet in BUSYBOX_APPLETS.split_whitespace() {
            layer = layer.symlink(&format!("bin/{applet}"), "busybox");
        }
        Self::new().layer(layer.finish()).set("Cmd", json!(["sh"])).set("Env", json!(["PATH=/bin"]))
    }

    /// Adds a layer: an uncompressed tar archive.
    #[must_use]
    pub fn layer(mut self, tar: Vec<u8>) -> Self {
        self.layers.push(tar);
        self
    }

    /// Sets a field of the config's `config` object.
    #[must_use]
    pub fn set(mut self, key: &str, value: Value) -> Self {
        self.config.insert(key.into(), value);
        self
    }

    /// The processor, instead of this machine's.
    #[must_use]
    pub fn architecture(mut self, name: &str) -> Self {
        self.architecture = Some(name.into());
        self
    }

    /// Compresses the layers with gzip and writes config and manifest in OCI's types.
    pub fn build(self) -> Image {
        let diff_ids: Vec<Digest> = self.layers.iter().map(|tar| Digest::sha256(tar)).collect();
        let layers: Vec<Blob> =
            self.layers.iter().map(|tar| Blob::new(media_type::OCI_LAYER_GZIP, gzip(tar))).collect();
        let architecture = self.architecture.unwrap_or_else(|| host_architecture().into());
        let config = json!({
            "architecture": architecture, "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        Image::new(Blob::new(media_type::OCI_CONFIG, config.to_string().into_bytes()), layers)
    }
}

impl Image {
    /// An image from its config and layers, whatever they hold.
    pub fn new(config: Blob, layers: Vec<Blob>) -> Self {
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
            "config": config.descriptor(),
            "layers": layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
        });
        let blobs = std::iter::once(config).chain(layers).collect();
        Self { target: Blob::new(media_type::OCI_MANIFEST, manifest.to_string().into_bytes()), blobs }
    }

    /// An index over images, each with the architecture given.
    pub fn index(images: Vec<(Image, &str)>) -> Self {
        let mut blobs = Vec::new();
        let mut manifests = Vec::new();
        for (image, architecture) in images {
            let mut descriptor = image.target.descriptor();
            descriptor["platform"] = json!({"architecture": architecture, "os": "linux"});
            manifests.push(descriptor);
            blobs.extend(image.blobs);
            blobs.push(image.target);
        }
        let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests});
        Self { target: Blob::new(media_type::OCI_INDEX, index.to_string().into_bytes()), blobs }
    }

    /// Uploads everything to a registry that speaks plain HTTP.
    ///
    /// # Errors
    /// What the registry did not accept.
    pub fn push(&self, host: &str, name: &str) -> Result<()> {
        let (repository, tag) = name.rsplit_once(':').unwrap_or((name, "latest"));
        for blob in &self.blobs {
            if media_type::is_manifest(&blob.media_type) {
                let path = format!("/v2/{repository}/manifests/{}", blob.digest());
                request(host, "PUT", &path, &blob.media_type, &blob.data)?;
                continue;
            }
            let (_, location) = request(host, "POST", &format!("/v2/{repository}/blobs/uploads/"), "", b"")?;
            let path = location.trim_start_matches("http://").trim_start_matches(host).to_owned();
            let separator = if path.contains('?') { '&' } else { '?' };
            let path = format!("{path}{separator}digest={}", blob.digest());
            request(host, "PUT", &path, "application/octet-stream", &blob.data)?;
        }
        let path = format!("/v2/{repository}/manifests/{tag}");
        request(host, "PUT", &path, &self.target.media_type, &self.target.data)?;
        Ok(())
    }

    /// Writes an OCI layout archive whose image is called `name`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path, name: &str) -> Result<()> {
        let mut archive = tar::Builder::new(std::fs::File::create(path)?);
        let mut add = |name: &str, data: &[u8]| append(&mut archive, name, data);
        let mut descriptor = self.target.descriptor();
        descriptor["annotations"] = json!({"io.containerd.image.name": name});
        let index = json!({"schemaVersion": 2, "manifests": [descriptor]});
        add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        add("index.json", index.to_string().as_bytes())?;
        for blob in self.blobs.iter().chain([&self.target]) {
            add(&format!("blobs/sha256/{}", blob.digest().hex()), &blob.data)?;
        }
        archive.into_inner()?.flush()?;
        Ok(())
    }

    /// Writes an archive as `docker save` did before it knew OCI's layout, for every `docker load`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save_for_docker(&self, path: &Path, name: &str) -> Result<()> {
        let (config, layers) = self.blobs.split_first().context("an image has a config")?;
        let file = |blob: &Blob| format!("{}.tar", blob.digest().hex());
        let names: Vec<String> = layers.iter().map(file).collect();
        let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": names}]).to_string();
        let mut archive = tar::Builder::new(std::fs::File::create(path)?);
        append(&mut archive, "manifest.json", manifest.as_bytes())?;
        append(&mut archive, "config.json", &config.data)?;
        for layer in layers {
            append(&mut archive, &file(layer), &layer.data)?;
        }
        archive.into_inner()?.flush()?;
        Ok(())
    }
}

fn append(archive: &mut tar::Builder<std::fs::File>, name: &str, data: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    Ok(archive.append_data(&mut header, name, data)?)
}

/// Compresses with gzip.
///
/// # Panics
/// Never: memory does not fail to be written.
pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(3));
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// Go's name of this machine's processor.
pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// One HTTP/1.1 request; answers the status and the Location header.
fn request(host: &str, method: &str, path: &str, content_type: &str, body: &[u8]) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(host)?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    )?;
    if !content_type.is_empty() {
        write!(stream, "Content-Type: {content_type}\r\n")?;
    }
    stream.write_all(b"\r\n")?;
    stream.write_all(body)?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status: u16 = line.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status")?;
    let mut location = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((key, value)) = line.split_once(':')
            && key.eq_ignore_ascii_case("location")
        {
            location = value.trim().to_owned();
        }
    }
    if status >= 300 {
        let mut rest = String::new();
        reader.read_to_string(&mut rest).ok();
        bail!("{method} {path}: {status} {rest}");
    }
    Ok((status, location))
}

const BUSYBOX_APPLETS: &str = "sh ash cat echo ls ps true false sleep env id hostname touch rm mkdir rmdir \
    mount umount grep sed awk head tail wc seq dd sync kill test [ stat readlink ln cp mv chmod chown date \
    tee tr sort uniq cut yes printf ip ifconfig nc wget httpd stty tty trap find du df free top uname whoami \
    pwd basename dirname expr mkfifo nproc sha256sum md5sum od xargs usleep";
