//! The entrance: options of an operation, and the hosts of a reference.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use corten_types::{Error, Reference, Result};
use http::HeaderValue;

use crate::auth::{Credentials, pull_scope};
use crate::hosts::{self, Capabilities, HostOptions, Tls};
use crate::request::Endpoint;
use crate::transport::{ClientOptions, Limits};
use crate::url::Scheme;

/// Gets the lines of requests and answers, without secrets.
pub type Trace = Arc<dyn Fn(&str) + Send + Sync>;

/// The parts in which blobs are fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Bytes of each.
    pub size: u64,
    /// How many at once.
    pub count: usize,
}

/// How registries are found and spoken to.
#[derive(Clone)]
pub struct ResolverOptions {
    /// Roots of certs.d; the first one that has a folder for a host counts.
    pub hosts_dirs: Vec<PathBuf>,
    /// Scheme of hosts of which hosts.toml says nothing.
    pub default_scheme: Option<Scheme>,
    /// TLS options of all hosts, below those of hosts.toml.
    pub tls: Tls,
    /// Header lines for all hosts that serve the reference.
    pub headers: Vec<(String, String)>,
    /// Where secrets come from; nothing to be anonymous.
    pub credentials: Option<Arc<dyn Credentials>>,
    /// `containerd/<version>`.
    pub user_agent: String,
    /// Longest silence of a host before it is tried again.
    pub stall_timeout: Duration,
    /// How long a blob may come slowly over one connection before further ones are tried beside it.
    pub split_after: Duration,
    /// Whether blobs are fetched in parts from the beginning, and in which.
    pub parts: Option<Parts>,
    /// Bound on requests per host; share it to share the bound.
    pub limits: Arc<Limits>,
    /// Sees requests and answers.
    pub trace: Option<Trace>,
}

impl Default for ResolverOptions {
    fn default() -> Self {
        Self {
            hosts_dirs: Vec::new(),
            default_scheme: None,
            tls: Tls::default(),
            headers: Vec::new(),
            credentials: None,
            user_agent: concat!("containerd/", env!("CARGO_PKG_VERSION")).to_owned(),
            stall_timeout: Duration::from_secs(30),
            split_after: Duration::from_secs(1),
            parts: None,
            limits: Arc::default(),
            trace: None,
        }
    }
}

impl fmt::Debug for ResolverOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResolverOptions")
            .field("hosts_dirs", &self.hosts_dirs)
            .field("default_scheme", &self.default_scheme)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// Access to registries for the time of one operation. What is learnt of the hosts of a reference (connections,
/// tokens, who is unreachable) serves all that is asked of them afterwards.
#[derive(Clone)]
pub struct Resolver {
    options: ResolverOptions,
    /// The hosts of the reference that was looked up last.
    last: Arc<Mutex<Option<Known>>>,
}

/// A reference and its hosts.
type Known = (String, Arc<[Endpoint]>);

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("options", &self.options).finish_non_exhaustive()
    }
}

/// The hosts of one reference, and what is asked of them.
pub(crate) struct Repository {
    /// The reference as given.
    pub reference: String,
    pub endpoints: Arc<[Endpoint]>,
    /// For addresses outside of the registry, to which nothing of ours is sent.
    pub client_options: ClientOptions,
    pub scopes: BTreeSet<String>,
    /// How long a blob may come slowly before it is split.
    pub split_after: Duration,
    pub parts: Option<Parts>,
}

impl Resolver {
    /// A resolver; reads and connects nothing yet.
    #[must_use]
    pub fn new(options: ResolverOptions) -> Self {
        Self { options, last: Arc::default() }
    }

    /// The hosts of a reference, looked up once in a row.
    pub(crate) fn repository(&self, reference: &Reference) -> Result<Repository> {
        let (registry, path, text) = (reference.host(), reference.path(), reference.to_string());
        if path.is_empty() {
            return Err(Error::invalid_argument(format!("no repository in {text:?}")));
        }
        let client_options = self.client_options()?;
        let endpoints = {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            match &*last {
                Some((known, endpoints)) if *known == text => Arc::clone(endpoints),
                _ => {
                    let endpoints = self.endpoints(registry, path, &text, &client_options);
                    *last = Some((text.clone(), Arc::clone(&endpoints)));
                    endpoints
                }
            }
        };
        let scopes = BTreeSet::from([pull_scope(path)]);
        let (split_after, parts) = (self.options.split_after, self.options.parts);
        Ok(Repository { reference: text, endpoints, client_options, scopes, split_after, parts })
    }

    fn endpoints(
        &self,
        registry: &str,
        path: &str,
        reference: &str,
        client_options: &ClientOptions,
    ) -> Arc<[Endpoint]> {
        let options = HostOptions {
            dirs: self.options.hosts_dirs.clone(),
            default_scheme: self.options.default_scheme,
            tls: self.options.tls.clone(),
        };
        hosts::lookup(registry, &options)
            .into_iter()
            .map(|mut host| {
                host.headers.extend(self.options.headers.iter().cloned());
                let credentials = self.options.credentials.clone();
                Endpoint::new(host, registry, path, reference, credentials, client_options.clone())
            })
            .collect()
    }

    fn client_options(&self) -> Result<ClientOptions> {
        let invalid = |_| Error::invalid_argument("the user agent is not a valid header value");
        Ok(ClientOptions {
            stall: self.options.stall_timeout,
            user_agent: HeaderValue::from_str(&self.options.user_agent).map_err(invalid)?,
            limits: Arc::clone(&self.options.limits),
            trace: self.options.trace.clone(),
        })
    }
}

impl Repository {
    /// The hosts that can do something, unreachable ones last.
    pub fn capable(&self, can: impl Fn(&Capabilities) -> bool) -> Vec<&Endpoint> {
        let mut endpoints: Vec<&Endpoint> =
            self.endpoints.iter().filter(|endpoint| can(&endpoint.host.capabilities)).collect();
        endpoints.sort_by_key(|endpoint| endpoint.is_unreachable());
        endpoints
    }
}
