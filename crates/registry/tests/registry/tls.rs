//! Encrypted registries, and those of which it is not known.

use corten_registry::Tls;
use corten_registry::testing::{CA, CLIENT, Listen, ScriptedRegistry};

use super::*;

async fn resolve(registry: &ScriptedRegistry, options: ResolverOptions) -> Result<Descriptor> {
    Resolver::new(options).resolve(&reference(&registry.host(), "1.0")).await
}

fn defaults() -> ResolverOptions {
    ResolverOptions { default_scheme: None, ..options() }
}

async fn setup(listen: Listen) -> (ScriptedRegistry, Descriptor) {
    let registry = ScriptedRegistry::listen(listen).await;
    let descriptor = registry.manifest("lab/img", "1.0", MANIFEST, b"{}");
    (registry, descriptor)
}

#[tokio::test]
async fn loopback_is_tried_with_tls_then_without() {
    let (registry, want) = setup(Listen::Tls).await;
    assert_eq!(resolve(&registry, defaults()).await.unwrap(), want);
    let (registry, want) = setup(Listen::Plain).await;
    assert_eq!(resolve(&registry, defaults()).await.unwrap(), want);
}

#[tokio::test]
async fn a_peer_that_speaks_neither_is_an_error() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"SSH-2.0-OpenSSH_9.9\r\n").await;
        }
    });
    let resolver = Resolver::new(defaults());
    let error = resolver.resolve(&reference(&host, "1.0")).await.unwrap_err();
    let want = "tls: first record does not look like a TLS handshake";
    assert!(error.to_string().ends_with(want), "{error}");
    task.abort();
}

#[tokio::test]
async fn certificates_are_checked_against_the_configured_authority() {
    let (registry, want) = setup(Listen::Tls).await;
    let dir = hosts_dir(&format!("server = 'https://{}'\nca = 'ca.pem'\n", registry.host()));
    let ca = dir.path().join("_default/ca.pem");
    std::fs::write(&ca, CA).unwrap();
    let with_ca = || ResolverOptions { hosts_dirs: vec![dir.path().to_owned()], ..defaults() };
    assert_eq!(resolve(&registry, with_ca()).await.unwrap(), want);

    let unknown = hosts_dir(&format!("server = 'https://{}'\n", registry.host()));
    let options = ResolverOptions { hosts_dirs: vec![unknown.path().to_owned()], ..defaults() };
    let error = resolve(&registry, options).await.unwrap_err();
    let text = "tls: failed to verify certificate: x509: certificate signed by unknown authority";
    assert!(error.to_string().ends_with(text), "{error}");

    let skip = Tls { skip_verify: Some(true), ..Tls::default() };
    let options = ResolverOptions { hosts_dirs: vec![unknown.path().to_owned()], tls: skip, ..defaults() };
    assert_eq!(resolve(&registry, options).await.unwrap(), want);

    std::fs::write(&ca, "no certificate").unwrap();
    std::fs::remove_file(&ca).unwrap();
    let error = resolve(&registry, with_ca()).await.unwrap_err();
    assert!(error.to_string().contains("failed to load"), "{error}");
}

#[tokio::test]
async fn we_identify_ourselves_with_a_certificate() {
    let (registry, want) = setup(Listen::MutualTls).await;
    let dir = hosts_dir(&format!(
        "server = 'https://{}'\nca = 'ca.pem'\nclient = [['c.pem', 'c.key']]\n",
        registry.host()
    ));
    for (name, text) in [("ca.pem", CA), ("c.pem", CLIENT.0), ("c.key", CLIENT.1)] {
        std::fs::write(dir.path().join("_default").join(name), text).unwrap();
    }
    let options = || ResolverOptions { hosts_dirs: vec![dir.path().to_owned()], ..defaults() };
    assert_eq!(resolve(&registry, options()).await.unwrap(), want);
    let text = format!("server = 'https://{}'\nca = 'ca.pem'\nclient = 'both.pem'\n", registry.host());
    std::fs::write(dir.path().join("_default/hosts.toml"), text).unwrap();
    std::fs::write(dir.path().join("_default/both.pem"), format!("{}{}", CLIENT.0, CLIENT.1)).unwrap();
    assert_eq!(resolve(&registry, options()).await.unwrap(), want);
    let text = format!("server = 'https://{}'\nca = 'ca.pem'\n", registry.host());
    std::fs::write(dir.path().join("_default/hosts.toml"), text).unwrap();
    resolve(&registry, options()).await.unwrap_err();
}

/// A host that speaks HTTP/2 and nothing else, and has one manifest.
async fn http2_only() -> String {
    use std::sync::Arc;

    use http::{Request, Response};
    use hyper_util::rt::{TokioExecutor, TokioIo};

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let mut config = corten_registry::testing::server_config(false);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
        let body = if request.method() == http::Method::HEAD { "" } else { "{}" };
        let answer = Response::builder()
            .header("content-type", MANIFEST)
            .header("docker-content-digest", corten_types::Digest::sha256(b"{}").as_str())
            .header("content-length", "2")
            .body(http_body_util::Full::new(bytes::Bytes::from(body)));
        Ok::<_, std::convert::Infallible>(answer.unwrap())
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    host
}

#[tokio::test]
async fn a_host_that_speaks_only_http2_is_understood() {
    let host = http2_only().await;
    let resolver = Resolver::new(defaults());
    let reference = reference(&host, "1.0");
    let target = resolver.resolve(&reference).await.unwrap();
    assert_eq!(target.digest, corten_types::Digest::sha256(b"{}"));
    let fetcher = resolver.fetcher(&reference).unwrap();
    for _ in 0..3 {
        assert_eq!(read(&fetcher, &target, 0).await.unwrap(), b"{}");
    }
}
