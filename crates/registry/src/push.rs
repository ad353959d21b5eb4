//! From the store to a registry (spec 03 §6.2): what the host has is not sent, what a neighbouring repository has is
//! mounted, the rest is uploaded in one request; manifests come last.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use corten_types::{Descriptor, Digest, Error, Reference, Result, ResultExt, media_type};
use http::header::{ACCEPT, CONTENT_TYPE, LOCATION};
use http::{HeaderName, HeaderValue, Method};

use crate::auth::{pull_scope, push_scope};
use crate::hosts::{Capabilities, Host, Tls};
use crate::request::{Endpoint, Failure, unexpected_status};
use crate::resolver::{Repository, Resolver};
use crate::transport::{BlobSource, Request, Response, Sent, TransportKind, Upload};
use crate::url::{Url, escape_value};

/// Uploads of one blob, each from its start.
const MAX_UPLOADS: u32 = 3;
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// How content got there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// The repository had it.
    Existed,
    /// Another repository of the registry had it.
    Mounted,
    /// It was sent.
    Sent,
}

/// Writes to one repository. Its connections and tokens are shared by its clones.
#[derive(Clone)]
pub struct Pusher {
    repository: Arc<Repository>,
    name: String,
    object: Option<String>,
}

impl std::fmt::Debug for Pusher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pusher").field("reference", &self.repository.reference).finish_non_exhaustive()
    }
}

impl Resolver {
    /// A pusher for the repository of a reference.
    ///
    /// # Errors
    /// NotFound `no push hosts` where none may be written to.
    pub fn pusher(&self, reference: &Reference) -> Result<Pusher> {
        let mut repository = self.repository(reference)?;
        repository.scopes = BTreeSet::from([push_scope(reference.path())]);
        if !repository.endpoints.iter().any(|endpoint| endpoint.host.capabilities.push) {
            return Err(Error::not_found("no push hosts"));
        }
        let object = match (reference.tag(), reference.digest()?) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, digest) => digest.map(|digest| digest.to_string()),
        };
        Ok(Pusher { repository: Arc::new(repository), name: reference.path().to_owned(), object })
    }
}

impl Pusher {
    fn endpoint(&self) -> Result<&Endpoint> {
        let mut endpoints = self.repository.endpoints.iter();
        endpoints.find(|one| one.host.capabilities.push).ok_or_else(|| Error::not_found("no push hosts"))
    }

    /// Writes a manifest or index: under the tag of the reference if it is the `root`, else under its digest.
    ///
    /// # Errors
    /// What the host answers; Unknown where it stored something else.
    pub async fn manifest(&self, descriptor: &Descriptor, data: Bytes, root: bool) -> Result<Pushed> {
        let endpoint = self.endpoint()?;
        let object = match &self.object {
            Some(object) if root => object.clone(),
            _ => descriptor.digest.to_string(),
        };
        let what = format!("manifests/{object}");
        let kind = HeaderValue::from_str(&descriptor.media_type)
            .map_err(|_| Error::invalid_argument(format!("invalid media type of {}", descriptor.digest)))?;
        let response = self.ask(endpoint, Method::HEAD, &what, &descriptor.media_type).await?;
        match response.status.as_u16() {
            200 if said(&response).is_none_or(|digest| digest == descriptor.digest.as_str())
                && (said(&response).is_some() || object == descriptor.digest.as_str()) =>
            {
                return Ok(Pushed::Existed);
            }
            200 | 404 => {}
            _ => return Err(self.unexpected(Method::HEAD, response).await),
        }
        response.body.finish().await;
        let mut request = endpoint.request(Method::PUT, &what, &[(CONTENT_TYPE, kind)]);
        request.body = data;
        let response = self.send(endpoint, request, &self.repository.scopes).await?;
        self.stored(Method::PUT, response, descriptor).await.map(|()| Pushed::Sent)
    }

    /// Writes a blob. `mount_from` is a repository of the same registry that may have it; `told` hears of bytes.
    ///
    /// # Errors
    /// What the host answers; what reading the source says.
    pub async fn blob(
        &self,
        descriptor: &Descriptor,
        mount_from: Option<&str>,
        source: Arc<dyn BlobSource>,
        told: Sent,
    ) -> Result<Pushed> {
        let endpoint = self.endpoint()?;
        let what = format!("blobs/{}", descriptor.digest);
        let response = self.ask(endpoint, Method::HEAD, &what, &descriptor.media_type).await?;
        match response.status.as_u16() {
            200 => return Ok(Pushed::Existed),
            404 => {}
            _ => return Err(self.unexpected(Method::HEAD, response).await),
        }
        let mut from = mount_from.filter(|from| *from != self.name);
        for attempt in 1.. {
            let Some(place) = self.begin(endpoint, &descriptor.digest, from.take()).await? else {
                return Ok(Pushed::Mounted);
            };
            let upload = Upload::new(Arc::clone(&source), Arc::clone(&told));
            match self.upload(endpoint, place, descriptor, upload).await {
                Ok(response) => {
                    return self.stored(Method::PUT, response, descriptor).await.map(|()| Pushed::Sent);
                }
                // The session may be gone with the connection: a new one, from the start.
                Err(Failure::Transport { error, kind: TransportKind::Eof | TransportKind::Timeout })
                    if attempt < MAX_UPLOADS =>
                {
                    tracing::debug!(digest = %descriptor.digest, %error, "uploading again");
                }
                Err(failure) => return Err(push_failure(failure)),
            }
        }
        Err(Error::internal("no attempt was made"))
    }

    /// Opens an upload and returns its address; nothing where the blob was mounted.
    async fn begin(&self, endpoint: &Endpoint, digest: &Digest, from: Option<&str>) -> Result<Option<Url>> {
        let mut scopes = self.repository.scopes.clone();
        let mut request = endpoint.request(Method::POST, "blobs/uploads/", &[]);
        if let Some(from) = from {
            scopes.insert(pull_scope(from));
            add_query(&mut request.url, &format!("mount={digest}&from={}", from.replace('/', "%2F")));
        }
        let mut response = match self.send(endpoint, request, &scopes).await {
            // Whoever may not read the other repository may still send.
            Ok(response) if from.is_some() && matches!(response.status.as_u16(), 401 | 403 | 404 | 405) => {
                response.body.finish().await;
                self.send_begin(endpoint).await?
            }
            Err(error) if from.is_some() => {
                tracing::debug!(%digest, %error, "mounting failed, sending");
                self.send_begin(endpoint).await?
            }
            other => other?,
        };
        match response.status.as_u16() {
            201 if from.is_some() => return Ok(None),
            200 | 201 | 202 | 204 => {}
            _ => return Err(self.unexpected(Method::POST, response).await),
        }
        let location = response.headers.remove(LOCATION);
        let location =
            location.ok_or_else(|| Error::unknown("the registry opened an upload without a Location"))?;
        let place = response.url.join(&String::from_utf8_lossy(location.as_bytes()))?;
        response.body.finish().await;
        Ok(Some(place))
    }

    async fn send_begin(&self, endpoint: &Endpoint) -> Result<Response> {
        let request = endpoint.request(Method::POST, "blobs/uploads/", &[]);
        self.send(endpoint, request, &self.repository.scopes).await
    }

    async fn upload(
        &self,
        endpoint: &Endpoint,
        mut place: Url,
        descriptor: &Descriptor,
        upload: Upload,
    ) -> Result<Response, Failure> {
        add_query(&mut place, &format!("digest={}", escape_value(descriptor.digest.as_str())));
        let fill = |mut request: Request, url: Url| {
            request.url = url;
            request.upload = Some(upload.clone());
            request
        };
        let own = endpoint.url("");
        if place.same_origin(&own) {
            let request = endpoint.request(Method::PUT, "", &[(CONTENT_TYPE, OCTETS)]);
            return endpoint.send(fill(request, place), &self.repository.scopes, true).await;
        }
        // The host sends us elsewhere: nothing of ours goes there but the bytes.
        let host = Host {
            scheme: place.scheme,
            authority: place.authority.clone(),
            path: String::new(),
            capabilities: Capabilities::ALL,
            headers: Vec::new(),
            tls: Tls::default(),
            dial_timeout: None,
            http_fallback: false,
        };
        let options = self.repository.client_options.clone();
        let other = Endpoint::new(host, &place.authority, "", "", None, options);
        let request = other.request(Method::PUT, "", &[(CONTENT_TYPE, OCTETS)]);
        other.send(fill(request, place), &BTreeSet::new(), true).await
    }

    async fn ask(&self, endpoint: &Endpoint, method: Method, what: &str, kind: &str) -> Result<Response> {
        let accept = HeaderValue::from_str(&format!("{kind}, */*"));
        let accept = accept.unwrap_or(HeaderValue::from_static("*/*"));
        let request = endpoint.request(method, what, &[(ACCEPT, accept)]);
        self.send(endpoint, request, &self.repository.scopes).await
    }

    async fn send(
        &self,
        endpoint: &Endpoint,
        request: Request,
        scopes: &BTreeSet<String>,
    ) -> Result<Response> {
        endpoint.send(request, scopes, true).await.map_err(push_failure)
    }

    async fn unexpected(&self, method: Method, response: Response) -> Error {
        let who = self.endpoint().map(Endpoint::describe).unwrap_or_default();
        let denied = matches!(response.status.as_u16(), 401 | 403);
        let error = unexpected_status(&method, response).await;
        if denied && error.hint().is_none() {
            return error.with_hint(format!("asked {who}; may it write to {}?", self.name));
        }
        error
    }

    /// Checks that the host took what it was given.
    async fn stored(&self, method: Method, response: Response, descriptor: &Descriptor) -> Result<()> {
        if !matches!(response.status.as_u16(), 200 | 201 | 202 | 204) {
            let missing = response.status.as_u16() == 404 && media_type::is_index(&descriptor.media_type);
            let error = self.unexpected(method, response).await;
            if missing {
                let text = "manifest list/index references to blobs and/or manifests are missing in your target registry";
                return Err(error).context(text);
            }
            return Err(error);
        }
        let wrong = said(&response).filter(|digest| *digest != descriptor.digest.as_str());
        if let Some(digest) = wrong {
            return Err(Error::unknown(format!("got digest {digest}, expected {}", descriptor.digest)));
        }
        response.body.finish().await;
        Ok(())
    }
}

fn push_failure(failure: Failure) -> Error {
    match failure {
        Failure::Denied(reason) => Error::unknown(format!(
            "push access denied, repository does not exist or may require authorization: {reason}: authorization failed"
        )),
        other => other.into_error(),
    }
}

/// The digest that a host says it has.
fn said(response: &Response) -> Option<&str> {
    response.headers.get(CONTENT_DIGEST)?.to_str().ok().filter(|text| !text.is_empty())
}

fn add_query(url: &mut Url, query: &str) {
    url.target.push(if url.target.contains('?') { '&' } else { '?' });
    url.target.push_str(query);
}
