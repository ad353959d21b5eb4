//! Where secrets come from.

use std::fmt;

use corten_types::Result;

/// What a registry wants to know about us.
#[derive(Clone, Debug)]
pub struct CredentialRequest {
    /// `host[:port]` that asked; `registry-1.docker.io` for docker.io.
    pub host: String,
    /// The reference that is worked on.
    pub reference: String,
    /// The `WWW-Authenticate` lines of the answer.
    pub challenges: Vec<String>,
}

/// A secret for one host.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A user and a password.
    Basic {
        /// User name.
        username: String,
        /// Password or access token.
        secret: String,
    },
    /// A refresh token (identity token), exchanged for access tokens.
    Refresh(String),
    /// The value of an `Authorization` header, sent as it is.
    Header(String),
}

impl fmt::Debug for Credential {
    /// Never shows a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { username, .. } => write!(f, "user {username}"),
            Self::Refresh(_) => f.write_str("refresh token"),
            Self::Header(_) => f.write_str("authorization header"),
        }
    }
}

/// A source of secrets, asked once per host and operation, after the host demanded one.
#[async_trait::async_trait]
pub trait Credentials: Send + Sync {
    /// The secret for a host; nothing to go on as anonymous.
    ///
    /// # Errors
    /// Whatever kept the source from answering; it ends the operation.
    async fn get(&self, request: CredentialRequest) -> Result<Option<Credential>>;
}
