//! One request to one host, with what it takes to get an answer: credentials, and another try where it
//! may help (spec 03 §6).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use corten_types::{Error, Result};
use http::header::{AUTHORIZATION, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use serde::Deserialize;

use crate::auth::{Authorizer, Challenged, Credentials};
use crate::hosts::Host;
use crate::transport::{Client, ClientOptions, Request, Response, Transport, TransportKind};
use crate::url::{Url, escape_value};

const MAX_ATTEMPTS: u32 = 5;
const LOST_CONNECTION_WAIT: Duration = Duration::from_millis(50);
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);
const MAX_ERROR_BODY: usize = 64 << 10;

/// A host, our connections to it, and our standing with it.
pub(crate) struct Endpoint {
    pub host: Host,
    /// `?ns=<registry>` for a mirror, else empty.
    query: String,
    repository: String,
    client: Client,
    authorizer: Authorizer,
    unreachable: AtomicBool,
}

/// Why an endpoint gave no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No answer at all.
    Transport { error: Error, kind: TransportKind },
    /// It does not let us in.
    Denied(String),
    /// No token, no credentials.
    Auth(Error),
}

impl Failure {
    pub fn into_error(self) -> Error {
        match self {
            Self::Transport { error, .. } | Self::Auth(error) => error,
            Self::Denied(reason) => denied(&format!("{reason}: authorization failed")),
        }
    }
}

impl Endpoint {
    pub fn new(
        host: Host,
        registry: &str,
        repository: &str,
        reference: &str,
        credentials: Option<Arc<dyn Credentials>>,
        options: ClientOptions,
    ) -> Self {
        let query =
            if host.is_origin(registry) { String::new() } else { format!("?ns={}", escape_value(registry)) };
        Self {
            query,
            repository: repository.to_owned(),
            authorizer: Authorizer::new(&host.authority, reference, credentials),
            client: Client::new(host.clone(), options),
            unreachable: AtomicBool::new(false),
            host,
        }
    }

    /// The address of `manifests/<…>`, `blobs/<…>` of the repository.
    pub fn url(&self, what: &str) -> Url {
        self.host.url(&self.repository, what, &self.query)
    }

    /// Whether the last request found nobody there.
    pub fn is_unreachable(&self) -> bool {
        self.unreachable.load(Ordering::Relaxed)
    }

    /// What was tried, for a hint: the host and as whom.
    pub fn describe(&self) -> String {
        format!("{} as {}", self.host.authority, self.authorizer.identity())
    }

    /// A request to an address of this host, with its configured header lines.
    pub fn request(&self, method: Method, what: &str, headers: &[(HeaderName, HeaderValue)]) -> Request {
        let mut request = Request::new(method, self.url(what));
        for (name, value) in headers {
            request.headers.append(name, value.clone());
        }
        for (name, value) in &self.host.headers {
            // Checked when they were read.
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                request.private.append(name, value);
            }
        }
        request
    }

    /// Sends until there is an answer worth having, at most five times. `last` says that no other host is
    /// left to be asked.
    pub async fn send(
        &self,
        mut request: Request,
        scopes: &BTreeSet<String>,
        last: bool,
    ) -> Result<Response, Failure> {
        let mut before: Option<StatusCode> = None;
        for attempt in 1.. {
            let authorization =
                self.authorizer.authorization(&self.client, scopes).await.map_err(authorize_failure)?;
            request.private.remove(AUTHORIZATION);
            if let Some(value) = &authorization {
                request.private.insert(AUTHORIZATION, value.clone());
            }
            let response = match Box::pin(self.client.send(&request)).await {
                Ok(response) => response,
                Err(error) => {
                    let lost = matches!(error.kind, TransportKind::Timeout | TransportKind::Eof);
                    // How much of an upload arrived, only whoever sends it can ask.
                    if lost && last && attempt < MAX_ATTEMPTS && request.upload.is_none() {
                        tokio::time::sleep(LOST_CONNECTION_WAIT).await;
                        continue;
                    }
                    let unreachable = matches!(error.kind, TransportKind::Timeout | TransportKind::Connect);
                    self.unreachable.store(unreachable, Ordering::Relaxed);
                    return Err(transport_failure(&request, error));
                }
            };
            self.unreachable.store(false, Ordering::Relaxed);
            if attempt >= MAX_ATTEMPTS {
                return Ok(response);
            }
            let status = response.status;
            match status.as_u16() {
                // A host that we were led to gets no credentials, whatever it asks for.
                401 if response.url.same_origin(&request.url) => {
                    let repeated = before == Some(status);
                    let taken =
                        self.authorizer.challenged(&response.headers, authorization.as_ref(), repeated);
                    match taken.await.map_err(authorize_failure)? {
                        Challenged::Retry => {}
                        Challenged::GiveUp => return Ok(response),
                        Challenged::Refused(reason) => return Err(Failure::Denied(reason)),
                    }
                }
                408 | 429 => tokio::time::sleep(wait_before_retry(&response, attempt)).await,
                500 | 503 | 504 if last && before != Some(status) => {
                    tokio::time::sleep(wait_before_retry(&response, attempt)).await;
                }
                _ => return Ok(response),
            }
            before = Some(status);
            response.body.finish().await;
        }
        Err(Failure::Auth(Error::internal("no attempt was made")))
    }
}

/// How long to wait: as the host says, else longer each time.
fn wait_before_retry(response: &Response, attempt: u32) -> Duration {
    let said = response.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    match said {
        Some(seconds) => Duration::from_secs(seconds).min(MAX_RETRY_AFTER),
        None => Duration::from_millis(100 << attempt.min(6)),
    }
}

fn authorize_failure(error: Error) -> Failure {
    Failure::Auth(error.context("failed to authorize"))
}

fn transport_failure(request: &Request, error: Transport) -> Failure {
    let method = match request.method {
        Method::HEAD => "Head",
        Method::POST => "Post",
        Method::PUT => "Put",
        Method::PATCH => "Patch",
        _ => "Get",
    };
    let text = format!("failed to do request: {method} \"{}\": {}", request.url, error.text);
    Failure::Transport { error: Error::unknown(text), kind: error.kind }
}

/// The error for a host that does not let us in.
pub(crate) fn denied(reason: &str) -> Error {
    Error::unknown(format!(
        "pull access denied, repository does not exist or may require authorization: {reason}"
    ))
}

/// The error for an answer with a status that nobody expects; what the host says besides is a hint.
pub(crate) async fn unexpected_status(method: &Method, response: Response) -> Error {
    let (status, url) = (response.status, response.url.clone());
    let reason = status.canonical_reason().unwrap_or_default();
    let text = format!("unexpected status from {method} request to {url}: {} {reason}", status.as_u16());
    let error = Error::unknown(text.trim_end());
    match server_message(response).await {
        Some(message) => error.with_hint(format!("{} says: {message}", url.authority)),
        None => error,
    }
}

#[derive(Deserialize)]
struct ServerErrors {
    errors: Vec<ServerError>,
}

#[derive(Deserialize)]
struct ServerError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// The `errors` document of the distribution protocol, as one line.
async fn server_message(response: Response) -> Option<String> {
    let body = response.body.read(MAX_ERROR_BODY).await.ok()??;
    let parsed: ServerErrors = serde_json::from_slice(&body).ok()?;
    let parts = parsed.errors.iter().map(|error| format!("{}: {}", error.code.to_lowercase(), error.message));
    let text: String =
        parts.collect::<Vec<_>>().join("; ").chars().filter(|c| !c.is_control()).take(500).collect();
    (!text.is_empty()).then_some(text)
}
