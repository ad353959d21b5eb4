//! From a reference to a descriptor (spec 03 §6).

use corten_types::{Descriptor, Digest, Digester, Error, Reference, Result};
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use crate::MAX_MANIFEST_SIZE;
use crate::request::{Endpoint, Failure, denied, unexpected_status};
use crate::resolver::{Repository, Resolver};
use crate::transport::{Response, TransportKind};

const MANIFEST_TYPES: &str = "application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*";
const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// How much an error says; the one that says most is reported.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    Transport,
    NotFound,
    Status,
    TooLarge,
}

/// The errors of all hosts asked, of which one is reported and the others are a hint.
#[derive(Default)]
struct Errors {
    worst: Option<(Weight, Error)>,
    tried: Vec<String>,
}

impl Errors {
    fn add(&mut self, endpoint: &Endpoint, weight: Weight, error: Error) {
        tracing::debug!(host = %endpoint.host.authority, %error, "trying next host");
        self.tried.push(format!("{}: {error}", endpoint.describe()));
        if self.worst.as_ref().is_none_or(|(known, _)| *known < weight) {
            self.worst = Some((weight, error));
        }
    }

    fn into_error(self, reference: &str) -> Error {
        match self.worst {
            Some((Weight::NotFound, _)) | None => Error::not_found(reference),
            Some((_, error)) if self.tried.len() > 1 && error.hint().is_none() => {
                error.with_hint(format!("tried {}", self.tried.join("; ")))
            }
            Some((_, error)) => match (error.hint(), self.tried.first()) {
                (None, Some(tried)) => {
                    let who = tried.split(": ").next().unwrap_or_default().to_owned();
                    error.with_hint(format!("asked {who}"))
                }
                _ => error,
            },
        }
    }
}

impl Resolver {
    /// The descriptor that a reference names now: of a tag what the first host that can resolve says, of a
    /// digest what a host says about it. The digest of the reference, if it has one, is kept.
    ///
    /// # Errors
    /// NotFound `<ref>: not found`; else as the host that says most answered.
    pub async fn resolve(&self, reference: &Reference) -> Result<Descriptor> {
        let repository = self.repository(reference)?;
        let digest = reference.digest()?;
        let paths = match &digest {
            Some(digest) => vec![format!("manifests/{digest}"), format!("blobs/{digest}")],
            None => match reference.tag() {
                Some(tag) => vec![format!("manifests/{tag}")],
                None => return Err(Error::invalid_argument("object required")),
            },
        };
        let endpoints = repository.capable(|can| if digest.is_some() { can.pull } else { can.resolve });
        if endpoints.is_empty() {
            return Err(Error::not_found("no resolve hosts"));
        }
        let mut errors = Errors::default();
        for path in &paths {
            for (index, endpoint) in endpoints.iter().enumerate() {
                let last = index + 1 == endpoints.len();
                let asked = Asked { repository: &repository, endpoint, path, digest: digest.as_ref(), last };
                match asked.descriptor().await {
                    Ok(descriptor) => return Ok(descriptor),
                    Err((weight, error)) => errors.add(endpoint, weight, error),
                }
            }
        }
        Err(errors.into_error(&repository.reference))
    }
}

/// One question to one host.
struct Asked<'a> {
    repository: &'a Repository,
    endpoint: &'a Endpoint,
    path: &'a str,
    digest: Option<&'a Digest>,
    last: bool,
}

impl Asked<'_> {
    async fn descriptor(&self) -> Result<Descriptor, (Weight, Error)> {
        let response = self.send(Method::HEAD).await?;
        let complete = match response.status {
            StatusCode::METHOD_NOT_ALLOWED => None,
            _ => {
                let response = self.check(Method::HEAD, response).await?;
                self.told_by_headers(&response.headers)?
            }
        };
        match complete {
            Some(descriptor) => Ok(descriptor),
            None => self.told_by_body().await,
        }
    }

    async fn send(&self, method: Method) -> Result<Response, (Weight, Error)> {
        let accept = (ACCEPT, HeaderValue::from_static(MANIFEST_TYPES));
        let request = self.endpoint.request(method, self.path, &[accept]);
        self.endpoint.send(request, &self.repository.scopes, self.last).await.map_err(|failure| {
            let weight = match &failure {
                Failure::Transport { kind: TransportKind::Connect | TransportKind::Timeout, .. } => {
                    Weight::Transport
                }
                Failure::Transport { .. } | Failure::Auth(_) => Weight::Transport,
                Failure::Denied(_) => Weight::Status,
            };
            (weight, failure.into_error())
        })
    }

    async fn check(&self, method: Method, response: Response) -> Result<Response, (Weight, Error)> {
        match response.status.as_u16() {
            200..=299 => Ok(response),
            404 => Err((Weight::NotFound, Error::not_found(&self.repository.reference))),
            status @ (401 | 403) => {
                let error = unexpected_status(&method, response).await;
                let hint = match error.hint() {
                    Some(said) => format!("asked {}; {said}", self.endpoint.describe()),
                    None => format!("asked {}, which answered {status}", self.endpoint.describe()),
                };
                Err((Weight::Status, denied(error.message()).with_hint(hint)))
            }
            _ => Err((Weight::Status, unexpected_status(&method, response).await)),
        }
    }

    /// The descriptor, if the headers say enough. This is the only place where the registry is trusted.
    fn told_by_headers(&self, headers: &HeaderMap) -> Result<Option<Descriptor>, (Weight, Error)> {
        let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let size: Option<i64> = text(&CONTENT_LENGTH).and_then(|value| value.parse().ok());
        let (Some(size), Some(digest)) = (size, text(&CONTENT_DIGEST)) else {
            return Ok(None);
        };
        let digest: Digest = digest.parse().map_err(|error: Error| {
            let printable: String = digest.chars().take(100).collect();
            (Weight::Status, error.context(format!("{printable:?} in header not a valid digest")))
        })?;
        self.accept(media_type(headers), digest, size).map(Some)
    }

    /// Reads and hashes the manifest itself, for hosts that do not tell.
    async fn told_by_body(&self) -> Result<Descriptor, (Weight, Error)> {
        let response = self.check(Method::GET, self.send(Method::GET).await?).await?;
        let media_type = media_type(&response.headers);
        let algorithm = self.digest.map_or(corten_types::digest::Algorithm::Sha256, Digest::algorithm);
        let (mut digester, mut size) = (Digester::new(algorithm), 0i64);
        let mut body = response.body;
        loop {
            let chunk = body.chunk().await.map_err(|error| {
                (Weight::Transport, Error::unknown(format!("failed to do request: {error}")))
            })?;
            let Some(chunk) = chunk else { break };
            size += i64::try_from(chunk.len()).unwrap_or(i64::MAX);
            if size > MAX_MANIFEST_SIZE {
                return self.accept(media_type, digester.finish(), size);
            }
            digester.update(&chunk);
        }
        let found = digester.finish();
        if let Some(digest) = self.digest
            && *digest != found
        {
            let text = format!("unexpected digest {found} of {}", self.repository.reference);
            return Err((Weight::Status, Error::failed_precondition(text)));
        }
        self.accept(media_type, found, size)
    }

    fn accept(&self, media_type: String, found: Digest, size: i64) -> Result<Descriptor, (Weight, Error)> {
        if size > MAX_MANIFEST_SIZE {
            let text = format!("rejecting {size} byte manifest for {}", self.repository.reference);
            return Err((Weight::TooLarge, Error::not_found(text)));
        }
        // What the caller asked for counts, whatever a header says; the content is verified later.
        Ok(Descriptor::new(media_type, self.digest.cloned().unwrap_or(found), size))
    }
}

fn media_type(headers: &HeaderMap) -> String {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match text.split(';').next().unwrap_or_default().trim() {
        // Old registries serve schema 1 so.
        "text/plain" => SCHEMA_1.to_owned(),
        other => other.to_owned(),
    }
}
