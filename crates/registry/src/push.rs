//! From the store to a registry (spec 03 §6.2): what a neighbouring repository has is mounted, what the host has is not
//! sent, the rest is uploaded in one request, and sent on where it broke off if the host says where; manifests
//! come last.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use corten_types::{Descriptor, Digest, Error, Reference, Result, ResultExt, media_type};
use http::header::{ACCEPT, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use http::{HeaderName, HeaderValue, Method};

use crate::auth::{pull_scope, push_scope};
use crate::hosts::{Capabilities, Host, Tls};
use crate::request::{Endpoint, Failure, unexpected_status};
use crate::resolver::{Repository, Resolver};
use crate::transport::{BlobSource, Request, Response, Sent, TransportKind, Upload};
use crate::url::{Url, escape_value};

/// Tries to send one blob.
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
    /// Whether blobs of neighbours are mounted before they are looked for, which is one request instead of two.
    mounts_first: Arc<AtomicBool>,
}

impl std::fmt::Debug for Pusher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pusher").field("reference", &self.repository.reference).finish_non_exhaustive()
    }
}

/// An upload under way.
#[derive(Clone, Debug)]
struct Session {
    /// The address that the host gave for what comes next.
    place: Url,
    /// Bytes that the host has.
    offset: u64,
}

/// What became of a request to mount a blob.
enum Mounting {
    Done,
    /// The host opened an upload instead.
    Opened(Session),
    Refused,
}

impl Session {
    /// The session after an answer that tells of its state; nothing if it does not.
    fn after(&self, response: &Response) -> Option<Self> {
        let text = |name| response.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
        // The range is that of the bytes that are there, its end included; registries leave the unit away.
        let range = text(RANGE)?;
        let last: u64 = range.trim_start_matches("bytes=").strip_prefix("0-")?.parse().ok()?;
        let place = match text(LOCATION) {
            Some(location) => response.url.join(&location).ok()?,
            None => self.place.clone(),
        };
        // An empty upload is told as one byte by some: it is begun anew.
        Some(Self { place, offset: if last == 0 { 0 } else { last + 1 } })
    }
}

fn is_opened(response: &Response) -> bool {
    matches!(response.status.as_u16(), 200 | 201 | 202 | 204)
}

/// The upload that an answer tells of; nothing if it tells of none.
async fn opened(mut response: Response) -> Result<Option<Session>> {
    let location = response.headers.remove(LOCATION).filter(|_| is_opened(&response));
    let place = location.map(|location| response.url.join(&String::from_utf8_lossy(location.as_bytes())));
    response.body.finish().await;
    Ok(place.transpose()?.map(|place| Session { place, offset: 0 }))
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
        let name = reference.path().to_owned();
        let mounts_first = Arc::new(AtomicBool::new(true));
        Ok(Pusher { repository: Arc::new(repository), name, object, mounts_first })
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
        let mut from = mount_from.filter(|from| *from != self.name);
        let mut begun: Option<Session> = None;
        if let Some(from) = from.take_if(|_| self.mounts_first.load(Ordering::Relaxed)) {
            match self.mount(endpoint, &descriptor.digest, from).await {
                Mounting::Done => return Ok(Pushed::Mounted),
                Mounting::Opened(session) => begun = Some(session),
                Mounting::Refused => {}
            }
        }
        if self.exists(endpoint, descriptor).await? {
            if let Some(session) = begun {
                self.give_up(endpoint, session).await;
            }
            return Ok(Pushed::Existed);
        }
        if let Some(from) = from {
            match self.mount(endpoint, &descriptor.digest, from).await {
                Mounting::Done => return Ok(Pushed::Mounted),
                Mounting::Opened(session) => begun = Some(session),
                Mounting::Refused => {}
            }
        }
        let upload = Upload::new(source, told);
        for attempt in 1.. {
            let session = match begun.take() {
                Some(session) => session,
                None => self.begin(endpoint).await?,
            };
            match self.upload(endpoint, session.clone(), descriptor, &upload).await {
                // It does not want the rest: all of it anew.
                Ok(response)
                    if session.offset > 0 && !response.status.is_success() && attempt < MAX_UPLOADS =>
                {
                    response.body.finish().await;
                }
                Ok(response) => {
                    return self.stored(Method::PUT, response, descriptor).await.map(|()| Pushed::Sent);
                }
                Err(Failure::Transport { error, kind: TransportKind::Eof | TransportKind::Timeout })
                    if attempt < MAX_UPLOADS =>
                {
                    begun = self.left_of(endpoint, &session, upload.source.size()).await;
                    let offset = begun.as_ref().map_or(0, |session| session.offset);
                    tracing::info!(digest = %descriptor.digest, %error, offset, "the connection broke, sending on");
                }
                Err(failure) => return Err(push_failure(failure)),
            }
        }
        Err(Error::internal("no attempt was made"))
    }

    /// What a host has of an upload that broke off; nothing if it has nothing, or does not say.
    async fn left_of(&self, endpoint: &Endpoint, session: &Session, size: u64) -> Option<Session> {
        if !session.place.same_origin(&endpoint.url("")) {
            return None;
        }
        let mut request = endpoint.request(Method::GET, "", &[]);
        request.url = session.place.clone();
        let response = endpoint.send(request, &self.repository.scopes, true).await.ok()?;
        let is_told = response.status.as_u16() == 204;
        let session = is_told.then(|| session.after(&response)).flatten();
        response.body.finish().await;
        session.filter(|session| session.offset > 0 && session.offset <= size)
    }

    /// Whether the repository has a blob.
    async fn exists(&self, endpoint: &Endpoint, descriptor: &Descriptor) -> Result<bool> {
        let what = format!("blobs/{}", descriptor.digest);
        let response = self.ask(endpoint, Method::HEAD, &what, &descriptor.media_type).await?;
        match response.status.as_u16() {
            200 => Ok(true),
            404 => {
                // Others wait for its place: as many blobs as there are places would wait for each other.
                response.body.finish().await;
                Ok(false)
            }
            _ => Err(self.unexpected(Method::HEAD, response).await),
        }
    }

    /// Asks for a blob of another repository. Whoever may not read that one may still send.
    async fn mount(&self, endpoint: &Endpoint, digest: &Digest, from: &str) -> Mounting {
        let mut scopes = self.repository.scopes.clone();
        scopes.insert(pull_scope(from));
        let mut request = endpoint.request(Method::POST, "blobs/uploads/", &[]);
        add_query(&mut request.url, &format!("mount={digest}&from={}", from.replace('/', "%2F")));
        let done = match self.send(endpoint, request, &scopes).await {
            Ok(response) if response.status.as_u16() == 201 => {
                response.body.finish().await;
                Mounting::Done
            }
            Ok(response) => match opened(response).await {
                Ok(Some(session)) => Mounting::Opened(session),
                Ok(None) | Err(_) => Mounting::Refused,
            },
            Err(error) => {
                tracing::debug!(%digest, %error, "mounting failed");
                Mounting::Refused
            }
        };
        // A host that did not will hardly do with the next one: it is first asked what it has.
        self.mounts_first.store(matches!(done, Mounting::Done), Ordering::Relaxed);
        done
    }

    /// Opens an upload.
    async fn begin(&self, endpoint: &Endpoint) -> Result<Session> {
        let request = endpoint.request(Method::POST, "blobs/uploads/", &[]);
        let response = self.send(endpoint, request, &self.repository.scopes).await?;
        if !is_opened(&response) {
            return Err(self.unexpected(Method::POST, response).await);
        }
        let session = opened(response).await?;
        session.ok_or_else(|| Error::unknown("the registry opened an upload without a Location"))
    }

    /// Tells a host that nothing is coming. It would notice, some day.
    async fn give_up(&self, endpoint: &Endpoint, session: Session) {
        if !session.place.same_origin(&endpoint.url("")) {
            return;
        }
        let mut request = endpoint.request(Method::DELETE, "", &[]);
        request.url = session.place;
        if let Ok(response) = endpoint.send(request, &self.repository.scopes, true).await {
            response.body.finish().await;
        }
    }

    /// Sends what is missing of a blob: all of it in the one request that ends the upload, or what a host does
    /// not have yet before that.
    async fn upload(
        &self,
        endpoint: &Endpoint,
        mut session: Session,
        descriptor: &Descriptor,
        upload: &Upload,
    ) -> Result<Response, Failure> {
        let octets = [(CONTENT_TYPE, OCTETS)];
        let (size, mut rest) = (upload.source.size(), Some(upload.clone()));
        if session.offset > 0 {
            if session.offset < size {
                let range = HeaderValue::from_str(&format!("{}-{}", session.offset, size - 1));
                let mut request = endpoint.request(Method::PATCH, "", &octets);
                request.headers.extend(range.ok().map(|range| (CONTENT_RANGE, range)));
                request.url = session.place.clone();
                request.upload = Some(upload.from(session.offset));
                let response = endpoint.send(request, &self.repository.scopes, true).await?;
                if response.status.as_u16() != 202 {
                    return Ok(response);
                }
                session = session.after(&response).unwrap_or(session);
                response.body.finish().await;
            }
            rest = None;
        }
        let mut place = session.place;
        add_query(&mut place, &format!("digest={}", escape_value(descriptor.digest.as_str())));
        if place.same_origin(&endpoint.url("")) {
            let mut request = endpoint.request(Method::PUT, "", &octets);
            (request.url, request.upload) = (place, rest);
            return endpoint.send(request, &self.repository.scopes, true).await;
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
        let mut request = other.request(Method::PUT, "", &octets);
        (request.url, request.upload) = (place, rest);
        other.send(request, &BTreeSet::new(), true).await
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
