//! Against the registry that most people run, where it is installed (`REGISTRY_BIN`, or
//! `docker-registry` or `registry` in `PATH`).

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

struct Registry {
    child: Child,
    host: String,
    _dir: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn binary() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("REGISTRY_BIN") {
        return Some(PathBuf::from(path));
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .flat_map(|dir| [dir.join("docker-registry"), dir.join("registry")])
        .find(|path| path.is_file())
}

async fn start() -> Option<Registry> {
    let Some(binary) = binary() else {
        eprintln!("skipped: no registry (set REGISTRY_BIN)");
        return None;
    };
    let dir = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    drop(listener);
    let config = format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n",
        dir.path().display()
    );
    let file = dir.path().join("config.yml");
    std::fs::write(&file, config).unwrap();
    let child = Command::new(binary)
        .arg("serve")
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let registry = Registry { child, host, _dir: dir };
    for _ in 0..200 {
        if TcpStream::connect(&registry.host).await.is_ok() {
            return Some(registry);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the registry does not listen");
}

/// Speaks HTTP by hand, so that the client under test does not test itself. Returns status and headers.
async fn send(host: &str, method: &str, target: &str, media_type: &str, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(host).await.unwrap();
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

async fn push_blob(host: &str, data: &[u8]) -> Descriptor {
    let digest = corten_types::Digest::sha256(data);
    let answer = send(host, "POST", "/v2/lab/img/blobs/uploads/", "", b"").await;
    let line = answer.lines().find(|line| line.to_ascii_lowercase().starts_with("location:")).unwrap();
    let location = line.split_once(": ").unwrap().1.trim();
    let target = location.trim_start_matches("http://").trim_start_matches(host).to_owned();
    let answer =
        send(host, "PUT", &format!("{target}&digest={digest}"), "application/octet-stream", data).await;
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    Descriptor::new(LAYER, digest, data.len() as i64)
}

#[tokio::test]
async fn images_come_back_as_they_were_pushed() {
    let Some(registry) = start().await else { return };
    let host = registry.host.as_str();
    let data = noise(3_000_000);
    let layer = push_blob(host, &data).await;
    let mut config = push_blob(host, b"{}").await;
    config.media_type = "application/vnd.oci.image.config.v1+json".to_owned();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]
    })
    .to_string();
    let answer = send(host, "PUT", "/v2/lab/img/manifests/1.0", MANIFEST, manifest.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");

    // Loopback without options: TLS is tried first.
    for default_scheme in [None, Some(Scheme::Http)] {
        let resolver = Resolver::new(ResolverOptions { default_scheme, ..options() });
        let reference = reference(host, "1.0");
        let target = resolver.resolve(&reference).await.unwrap();
        assert_eq!(target.media_type, MANIFEST);
        let fetcher = resolver.fetcher(&reference).unwrap();
        assert_eq!(read(&fetcher, &target, 0).await.unwrap(), manifest.as_bytes());
        assert_eq!(read(&fetcher, &layer, 0).await.unwrap(), data);
        assert_eq!(read(&fetcher, &layer, 2_345_678).await.unwrap(), data[2_345_678..]);
    }
    let error = resolver().resolve(&super::reference(host, "2.0")).await.unwrap_err();
    assert_eq!(error.to_string(), format!("{host}/lab/img:2.0: not found"));
}
