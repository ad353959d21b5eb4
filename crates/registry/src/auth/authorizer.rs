//! The state of our standing with one host: what it demanded, and what we answer since.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use corten_types::{Error, Result};
use http::{HeaderMap, HeaderValue};

use super::challenge::{self, Challenge, Method};
use super::token::{TokenServer, basic_header};
use super::{Credential, CredentialRequest, Credentials};
use crate::transport::Client;

/// What a 401 led to.
#[derive(Debug)]
pub(crate) enum Challenged {
    /// Another try makes sense.
    Retry,
    /// We have nothing to answer.
    GiveUp,
    /// The host refuses what we have: its words.
    Refused(String),
}

/// Answers the challenges of one host.
pub(crate) struct Authorizer {
    /// `host[:port]` that the secrets are for.
    host: String,
    reference: String,
    credentials: Option<Arc<dyn Credentials>>,
    answer: Mutex<Answer>,
    /// Held while a challenge is taken up, so that parallel requests ask for a secret once.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Clone, Default)]
enum Answer {
    /// Nothing was demanded yet.
    #[default]
    None,
    Fixed(HeaderValue, String),
    Token(Arc<TokenServer>),
}

impl Authorizer {
    pub fn new(host: &str, reference: &str, credentials: Option<Arc<dyn Credentials>>) -> Self {
        Self {
            host: host.to_owned(),
            reference: reference.to_owned(),
            credentials,
            answer: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// The `Authorization` header for these scopes; nothing while none was demanded.
    pub async fn authorization(
        &self,
        client: &Client,
        scopes: &BTreeSet<String>,
    ) -> Result<Option<HeaderValue>> {
        match self.answer() {
            Answer::None => Ok(None),
            Answer::Fixed(value, _) => Ok(Some(value)),
            Answer::Token(server) => server.authorization(client, scopes).await.map(Some),
        }
    }

    /// Whose credentials are used, for messages.
    pub fn identity(&self) -> String {
        match self.answer() {
            Answer::Fixed(_, identity) => identity,
            Answer::Token(server) => identity(server.credential()),
            Answer::None => "anonymous".to_owned(),
        }
    }

    /// Takes up a 401. `repeated` is set when the same request got the same answer already.
    pub async fn challenged(
        &self,
        headers: &HeaderMap,
        sent: Option<&HeaderValue>,
        repeated: bool,
    ) -> Result<Challenged> {
        let _turn = self.turn.lock().await;
        let lines = challenge::lines(headers);
        // The preferred one comes first, and is the only one that is taken up.
        let Some(challenge) = challenge::parse(&lines).into_iter().next() else {
            return Ok(Challenged::GiveUp);
        };
        match challenge.method {
            Method::Bearer => self.bearer(&challenge, lines, sent, repeated).await,
            Method::Basic => self.basic(lines, sent).await,
        }
    }

    async fn basic(&self, lines: Vec<String>, sent: Option<&HeaderValue>) -> Result<Challenged> {
        if let Answer::Fixed(..) = self.answer() {
            // Sent already, the same secret would be refused again.
            return Ok(if sent.is_some() { Challenged::GiveUp } else { Challenged::Retry });
        }
        let Some(credential) = self.credential(lines).await? else {
            return Err(Error::unknown("no basic auth credentials"));
        };
        self.set(Answer::Fixed(basic_header(&credential)?, identity(Some(&credential))));
        Ok(Challenged::Retry)
    }

    async fn bearer(
        &self,
        challenge: &Challenge,
        lines: Vec<String>,
        sent: Option<&HeaderValue>,
        repeated: bool,
    ) -> Result<Challenged> {
        let reason = challenge.parameter("error");
        if repeated && !reason.is_empty() {
            self.set(Answer::None);
            return Ok(Challenged::Refused(format!("server message: {reason}")));
        }
        if let Answer::Token(server) = self.answer()
            && server.covers(challenge)
        {
            if sent.is_some() {
                // Perhaps it ran out; a second refusal is final.
                server.forget();
            }
            return Ok(if repeated { Challenged::GiveUp } else { Challenged::Retry });
        }
        let credential = self.credential(lines).await?;
        if let Some(credential @ Credential::Header(_)) = &credential {
            if sent.is_some() {
                return Ok(Challenged::GiveUp);
            }
            self.set(Answer::Fixed(basic_header(credential)?, identity(Some(credential))));
            return Ok(Challenged::Retry);
        }
        self.set(Answer::Token(Arc::new(TokenServer::new(challenge, credential)?)));
        Ok(Challenged::Retry)
    }

    async fn credential(&self, challenges: Vec<String>) -> Result<Option<Credential>> {
        let Some(credentials) = &self.credentials else {
            return Ok(None);
        };
        let request =
            CredentialRequest { host: self.host.clone(), reference: self.reference.clone(), challenges };
        credentials.get(request).await
    }

    fn answer(&self) -> Answer {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, answer: Answer) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer;
    }
}

fn identity(credential: Option<&Credential>) -> String {
    credential.map_or_else(|| "anonymous".to_owned(), |credential| format!("{credential:?}"))
}
