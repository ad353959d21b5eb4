//! A registry for tests: it serves what it is given, records what it is asked, and misbehaves on cue.
//!
//! It speaks HTTP/1.1 by hand over plain sockets, because most of what is tested here no well-made server
//! would do.

mod auth;
mod serve;
mod uploads;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use corten_types::{Descriptor, Digest};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

pub use auth::AuthRule;

/// The certificate of the authority that signed the TLS certificates used here.
pub const CA: &str = include_str!("ca.pem");
/// A certificate that [`Listen::MutualTls`] accepts, and its key.
pub const CLIENT: (&str, &str) = (include_str!("client.pem"), include_str!("client.key"));
const SERVER: (&str, &str) = (include_str!("server.pem"), include_str!("server.key"));

/// What happens to a request instead of a proper answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// A status without a body.
    Status(u16),
    /// A status with header lines and a body.
    Answer(u16, Vec<(String, String)>, Vec<u8>),
    /// No answer, ever; the connection stays open.
    Hang,
    /// The connection is closed instead of an answer.
    Close,
    /// Bytes that are no HTTP.
    Garbage,
    /// The body ends after so many bytes, and the connection with it.
    CutAfter(usize),
    /// The body stops after so many bytes, and the connection stays open.
    HangAfter(usize),
    /// The body in pieces of so many bytes with a pause of so many milliseconds after each.
    Slow(usize, u64),
    /// The right number of wrong bytes.
    WrongBytes,
    /// `Range` is ignored: 200 and the whole body.
    IgnoreRange,
    /// A `Content-Length` that is so much larger than the body.
    LengthPlus(usize),
    /// A body that is so much longer than the content.
    BodyPlus(usize),
    /// Neither digest nor length in the header.
    Bare,
    /// The body compressed for the transfer.
    Encoded(&'static str),
    /// A redirect.
    Redirect(String),
    /// The connection is closed after so many bytes of the request's body. What came of an upload is kept.
    CutRequest(usize),
}

/// How it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// Plain HTTP.
    Plain,
    /// TLS.
    Tls,
    /// TLS, and clients have to show a certificate.
    MutualTls,
}

/// A request as it came.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// `GET`, `HEAD`, …
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Header lines, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: String,
}

impl Recorded {
    /// The value of a header line.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Whether a range with an end is asked for.
    fn is_part(&self) -> bool {
        self.header("range").is_some_and(|range| !range.ends_with('-'))
    }

    /// `GET /v2/…`.
    #[must_use]
    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.target)
    }
}

#[derive(Clone, Debug)]
struct Stored {
    media_type: String,
    digest: Digest,
    data: Bytes,
}

struct Cue {
    /// Part of `METHOD target`.
    pattern: String,
    /// Whether it is for requests of a range that has an end.
    parts: bool,
    fault: Fault,
    left: usize,
}

#[derive(Default)]
struct State {
    content: Mutex<HashMap<String, Stored>>,
    cues: Mutex<Vec<Cue>>,
    log: Mutex<Vec<Recorded>>,
    auth: Mutex<Option<AuthRule>>,
    referrers: Mutex<HashMap<String, Vec<Descriptor>>>,
    uploads: Mutex<HashMap<String, Vec<u8>>>,
    traffic: Mutex<Traffic>,
}

/// How many connections and requests there have been.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// Connections in all.
    pub connections: usize,
    /// Requests being answered now.
    pub at_once: usize,
}

/// A registry on a port of its own, until it is dropped.
pub struct ScriptedRegistry {
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl std::fmt::Debug for ScriptedRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScriptedRegistry").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for ScriptedRegistry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ScriptedRegistry {
    /// Listens in plain HTTP.
    ///
    /// # Panics
    /// When loopback cannot be used.
    pub async fn start() -> Self {
        Self::listen(Listen::Plain).await
    }

    /// Listens.
    ///
    /// # Panics
    /// When loopback cannot be used.
    #[allow(clippy::expect_used, reason = "for tests only")]
    pub async fn listen(listen: Listen) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("address");
        let state = Arc::new(State::default());
        let acceptor = (listen != Listen::Plain)
            .then(|| TlsAcceptor::from(Arc::new(server_config(listen == Listen::MutualTls))));
        let task = tokio::spawn(serve::accept(listener, acceptor, Arc::clone(&state)));
        Self { address, state, task }
    }

    /// `127.0.0.1:port`.
    #[must_use]
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Stores a blob of a repository.
    pub fn blob(&self, repository: &str, media_type: &str, data: &[u8]) -> Descriptor {
        let digest = Digest::sha256(data);
        let path = format!("/v2/{repository}/blobs/{digest}");
        self.store(path, "application/octet-stream", &digest, data);
        Descriptor::new(media_type, digest, i64::try_from(data.len()).unwrap_or(i64::MAX))
    }

    /// Stores a manifest or index under its digest and, unless empty, a tag.
    pub fn manifest(&self, repository: &str, tag: &str, media_type: &str, data: &[u8]) -> Descriptor {
        let digest = Digest::sha256(data);
        let path = format!("/v2/{repository}/manifests/");
        self.store(format!("{path}{digest}"), media_type, &digest, data);
        if !tag.is_empty() {
            self.store(format!("{path}{tag}"), media_type, &digest, data);
        }
        Descriptor::new(media_type, digest, i64::try_from(data.len()).unwrap_or(i64::MAX))
    }

    /// Lists descriptors as referrers of a digest.
    pub fn referrers(&self, repository: &str, subject: &Digest, list: Vec<Descriptor>) {
        lock(&self.state.referrers).insert(format!("/v2/{repository}/referrers/{subject}"), list);
    }

    /// The next `times` requests whose `METHOD target` contains `pattern` meet a fault.
    pub fn cue(&self, pattern: &str, fault: Fault, times: usize) {
        lock(&self.state.cues).push(Cue { pattern: pattern.to_owned(), parts: false, fault, left: times });
    }

    /// The next `times` requests for a part of something, that is for a range with an end, meet a fault.
    pub fn cue_parts(&self, fault: Fault, times: usize) {
        lock(&self.state.cues).push(Cue { pattern: String::new(), parts: true, fault, left: times });
    }

    /// How many faults are still to be met.
    #[must_use]
    pub fn faults_left(&self) -> usize {
        lock(&self.state.cues).iter().map(|cue| cue.left).sum()
    }

    /// Ends all faults.
    pub fn recover(&self) {
        lock(&self.state.cues).clear();
    }

    /// Demands credentials from now on.
    pub fn protect(&self, rule: AuthRule) {
        *lock(&self.state.auth) = Some(rule);
    }

    /// The requests so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Recorded> {
        lock(&self.state.log).clone()
    }

    /// The requests so far as `METHOD target`.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.requests().iter().map(Recorded::line).collect()
    }

    /// Connections and requests so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        *lock(&self.state.traffic)
    }

    /// What was written to a repository: a blob or manifest by digest or tag.
    #[must_use]
    pub fn written(&self, path: &str) -> Option<Bytes> {
        lock(&self.state.content).get(&format!("/v2/{path}")).map(|stored| stored.data.clone())
    }

    /// Forgets the requests so far.
    pub fn forget_requests(&self) {
        lock(&self.state.log).clear();
    }

    fn store(&self, path: String, media_type: &str, digest: &Digest, data: &[u8]) {
        let stored = Stored {
            media_type: media_type.to_owned(),
            digest: digest.clone(),
            data: Bytes::copy_from_slice(data),
        };
        lock(&self.state.content).insert(path, stored);
    }
}

/// What a server with our certificate says in handshakes; a `mutual` one wants a certificate of clients.
///
/// # Panics
/// When the certificates that are compiled in cannot be read.
#[allow(clippy::expect_used, reason = "for tests only")]
#[must_use]
pub fn server_config(mutual: bool) -> rustls::ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("protocol versions");
    let builder = if mutual {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(CA.as_bytes()).expect("authority")).expect("authority");
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        builder.with_client_cert_verifier(verifier.build().expect("verifier"))
    } else {
        builder.with_no_client_auth()
    };
    let chain = vec![CertificateDer::from_pem_slice(SERVER.0.as_bytes()).expect("certificate")];
    let key = PrivateKeyDer::from_pem_slice(SERVER.1.as_bytes()).expect("key");
    builder.with_single_cert(chain, key).expect("certificate")
}
