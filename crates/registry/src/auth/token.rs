//! Tokens: asked of the realm that a challenge names, kept as long as they are valid.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use corten_types::{Error, Result};
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method};
use serde::Deserialize;
use tokio::sync::OnceCell;

use super::Credential;
use super::challenge::Challenge;
use crate::request::unexpected_status;
use crate::transport::{Client, Request, Response};
use crate::url::{Url, escape_value};

const CLIENT_ID: &str = "containerd-client";
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// A token that ends this soon is not used any more.
const MARGIN: Duration = Duration::from_secs(5);
const MAX_ANSWER: usize = 1 << 20;

/// The token server of a host.
pub(super) struct TokenServer {
    realm: Url,
    service: String,
    credential: Option<Credential>,
    /// What the host itself asked for.
    scopes: BTreeSet<String>,
    tokens: Mutex<HashMap<BTreeSet<String>, Arc<OnceCell<Token>>>>,
}

#[derive(Clone)]
struct Token {
    header: HeaderValue,
    valid_until: Instant,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    token: String,
    access_token: String,
    expires_in: u64,
}

impl TokenServer {
    pub fn new(challenge: &Challenge, credential: Option<Credential>) -> Result<Self> {
        let realm = challenge.parameter("realm");
        if realm.is_empty() {
            return Err(Error::unknown("no realm specified for token auth challenge"));
        }
        let realm = Url::parse(realm).map_err(|_| {
            Error::unknown(format!("invalid token auth challenge realm: {}", printable(realm)))
        })?;
        Ok(Self {
            realm,
            service: challenge.parameter("service").to_owned(),
            credential,
            scopes: split_scopes(challenge.parameter("scope")),
            tokens: Mutex::default(),
        })
    }

    /// Whether a challenge leads to the same server and asks for nothing more than is known.
    pub fn covers(&self, challenge: &Challenge) -> bool {
        Url::parse(challenge.parameter("realm")).is_ok_and(|realm| realm == self.realm)
            && self.service == challenge.parameter("service")
            && split_scopes(challenge.parameter("scope")).is_subset(&self.scopes)
    }

    pub fn credential(&self) -> Option<&Credential> {
        self.credential.as_ref()
    }

    /// The header line for these scopes. Callers who want the same at once share one request.
    pub async fn authorization(&self, client: &Client, scopes: &BTreeSet<String>) -> Result<HeaderValue> {
        let scopes: BTreeSet<String> = scopes.union(&self.scopes).cloned().collect();
        let cell = {
            let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
            let stale = |token: &Token| token.valid_until.saturating_duration_since(Instant::now()) < MARGIN;
            if tokens.get(&scopes).is_some_and(|cell| cell.get().is_some_and(stale)) {
                tokens.remove(&scopes);
            }
            Arc::clone(tokens.entry(scopes.clone()).or_default())
        };
        let token = cell.get_or_try_init(|| self.fetch(client, &scopes)).await?;
        Ok(token.header.clone())
    }

    /// Forgets all tokens, since the host refused one.
    pub fn forget(&self) {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    async fn fetch(&self, client: &Client, scopes: &BTreeSet<String>) -> Result<Token> {
        let answer = match &self.credential {
            None | Some(Credential::Header(_)) => self
                .get(client, scopes, None)
                .await
                .map_err(|error| error.context("failed to fetch anonymous token"))?,
            Some(credential) => self.fetch_with_secret(client, scopes, credential).await?,
        };
        let life = match answer.expires_in {
            0 => DEFAULT_LIFE,
            seconds => Duration::from_secs(seconds.min(24 * 3600)),
        };
        let mut header = HeaderValue::from_str(&format!("Bearer {}", answer.access_token))
            .map_err(|_| Error::unknown("the token is not a valid header value"))?;
        header.set_sensitive(true);
        Ok(Token { header, valid_until: Instant::now() + life })
    }

    async fn fetch_with_secret(
        &self,
        client: &Client,
        scopes: &BTreeSet<String>,
        credential: &Credential,
    ) -> Result<Answer> {
        let response = self.post(client, scopes, credential).await?;
        let status = response.status.as_u16();
        let has_user = matches!(credential, Credential::Basic { .. });
        if (200..300).contains(&status) {
            let answer = read(response).await?;
            if answer.access_token.is_empty() {
                return Err(Error::unknown(
                    "failed to fetch oauth token: authorization server did not include a token in the response",
                ));
            }
            return Ok(answer);
        }
        if matches!(status, 400 | 401 | 404) || (status == 405 && has_user) {
            let basic = basic_header(credential)?;
            return self
                .get(client, scopes, Some(basic))
                .await
                .map_err(|error| error.context("failed to fetch oauth token"));
        }
        Err(unexpected_status(&Method::POST, response).await.context("failed to fetch oauth token"))
    }

    async fn post(
        &self,
        client: &Client,
        scopes: &BTreeSet<String>,
        credential: &Credential,
    ) -> Result<Response> {
        let scope = scopes.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
        let mut form = vec![("client_id", CLIENT_ID)];
        match credential {
            Credential::Basic { username, secret } => {
                form.extend([("grant_type", "password"), ("password", secret), ("username", username)]);
            }
            Credential::Refresh(secret) => {
                form.extend([("grant_type", "refresh_token"), ("refresh_token", secret)]);
            }
            Credential::Header(_) => {}
        }
        form.extend([("scope", scope.as_str()), ("service", self.service.as_str())]);
        form.sort_unstable();
        let mut request = Request::new(Method::POST, self.realm.clone());
        request.body = Bytes::from(encode(&form));
        let content_type = HeaderValue::from_static("application/x-www-form-urlencoded; charset=utf-8");
        request.private.insert(CONTENT_TYPE, content_type);
        send(client, &request).await.map_err(|error| error.context("failed to fetch oauth token"))
    }

    async fn get(
        &self,
        client: &Client,
        scopes: &BTreeSet<String>,
        basic: Option<HeaderValue>,
    ) -> Result<Answer> {
        let mut form: Vec<(&str, &str)> = scopes.iter().map(|scope| ("scope", scope.as_str())).collect();
        if !self.service.is_empty() {
            form.push(("service", &self.service));
        }
        let mut url = self.realm.clone();
        if !form.is_empty() {
            url.target.push(if url.target.contains('?') { '&' } else { '?' });
            url.target.push_str(&encode(&form));
        }
        let mut request = Request::new(Method::GET, url);
        if let Some(basic) = basic {
            request.private.insert(AUTHORIZATION, basic);
        }
        let response = send(client, &request).await?;
        if !response.status.is_success() {
            return Err(unexpected_status(&Method::GET, response).await);
        }
        let mut answer = read(response).await?;
        if answer.access_token.is_empty() {
            answer.access_token = std::mem::take(&mut answer.token);
        }
        if answer.access_token.is_empty() {
            return Err(Error::unknown("authorization server did not include a token in the response"));
        }
        Ok(answer)
    }
}

/// The header line for Basic.
pub(super) fn basic_header(credential: &Credential) -> Result<HeaderValue> {
    let text = match credential {
        Credential::Basic { username, secret } => format!("{username}:{secret}"),
        Credential::Refresh(secret) => format!(":{secret}"),
        Credential::Header(value) => {
            return HeaderValue::from_str(value)
                .map_err(|_| Error::invalid_argument("the authorization header is not valid"));
        }
    };
    let mut value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(text)))
        .map_err(|_| Error::invalid_argument("the credentials are not valid"))?;
    value.set_sensitive(true);
    Ok(value)
}

async fn send(client: &Client, request: &Request) -> Result<Response> {
    client.send(request).await.map_err(|error| {
        // Only the realm: queries of some servers carry secrets.
        let mut url = request.url.clone();
        url.target = url.target.split('?').next().unwrap_or_default().to_owned();
        let method = if request.method == Method::POST { "Post" } else { "Get" };
        Error::unknown(format!("{method} \"{url}\": {error}"))
    })
}

async fn read(response: Response) -> Result<Answer> {
    let body = response.body.read(MAX_ANSWER).await.map_err(|error| Error::unknown(error.to_string()))?;
    let body = body.ok_or_else(|| Error::unknown("the answer of the token server is too long"))?;
    serde_json::from_slice(&body)
        .map_err(|error| Error::unknown(format!("unable to decode token response: {error}")))
}

fn split_scopes(text: &str) -> BTreeSet<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn encode(form: &[(&str, &str)]) -> String {
    let pairs = form.iter().map(|(name, value)| format!("{name}={}", escape_value(value)));
    pairs.collect::<Vec<_>>().join("&")
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
