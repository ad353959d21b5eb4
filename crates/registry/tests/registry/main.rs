//! The client against registries that misbehave on cue, and against a real one.

#![allow(clippy::unwrap_used, reason = "a test may fail this way")]

mod auth;
mod fetch;
mod push;
mod real;
mod resolve;
mod tls;

use std::time::Duration;

use corten_registry::testing::ScriptedRegistry;
use corten_registry::{Fetcher, Parts, Resolver, ResolverOptions, Scheme};
use corten_types::{Descriptor, Reference, Result};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

fn options() -> ResolverOptions {
    ResolverOptions {
        default_scheme: Some(Scheme::Http),
        user_agent: "containerd/test".to_owned(),
        stall_timeout: Duration::from_millis(300),
        ..ResolverOptions::default()
    }
}

fn resolver() -> Resolver {
    Resolver::new(options())
}

fn reference(host: &str, object: &str) -> Reference {
    Reference { locator: format!("{host}/lab/img"), object: object.to_owned() }
}

/// Bytes that do not repeat within a piece.
fn noise(size: usize) -> Vec<u8> {
    let mut state = 1u64;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    })
    .take(size)
    .collect()
}

fn fetcher(registry: &ScriptedRegistry) -> Fetcher {
    resolver().fetcher(&reference(&registry.host(), "1.0")).unwrap()
}

async fn read(fetcher: &Fetcher, descriptor: &Descriptor, offset: u64) -> Result<Vec<u8>> {
    let mut download = fetcher.fetch(descriptor, offset).await?;
    let mut data = Vec::new();
    while let Some(chunk) = download.chunk().await? {
        data.extend_from_slice(&chunk);
    }
    assert_eq!(download.offset(), offset + data.len() as u64);
    Ok(data)
}

/// A folder of certs.d with one hosts.toml for all hosts.
fn hosts_dir(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("_default")).unwrap();
    std::fs::write(dir.path().join("_default/hosts.toml"), text).unwrap();
    dir
}

fn configured(dir: &tempfile::TempDir) -> Resolver {
    Resolver::new(ResolverOptions {
        hosts_dirs: vec![dir.path().to_owned()],
        default_scheme: None,
        ..options()
    })
}
