//! What the test registry demands of clients.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Recorded;

/// Who gets in, and how.
#[derive(Clone, Debug, Default)]
pub struct AuthRule {
    /// Whether Bearer is offered; the token server is `/token` of the same host.
    pub bearer: bool,
    /// Whether Basic is offered.
    pub basic: bool,
    /// The one user, if anonymous ones are refused.
    pub user: Option<(String, String)>,
    /// What a POST to the token server is answered, unless 200.
    pub post_status: u16,
    /// The `error` parameter of challenges to a request that had a token.
    pub error: String,
    /// Tokens that the registry refuses although it gave them out.
    pub refuse: bool,
    /// `expires_in` of tokens.
    pub expires_in: u64,
    /// Realm, if not the host's own.
    pub realm: String,
    /// Whether only `token` is answered, without `access_token`.
    pub only_token: bool,
}

impl AuthRule {
    /// Bearer for anybody.
    #[must_use]
    pub fn anonymous() -> Self {
        Self { bearer: true, post_status: 200, ..Self::default() }
    }

    /// Bearer for one user.
    #[must_use]
    pub fn bearer(user: &str, password: &str) -> Self {
        Self { user: Some((user.to_owned(), password.to_owned())), ..Self::anonymous() }
    }

    /// Basic for one user.
    #[must_use]
    pub fn basic(user: &str, password: &str) -> Self {
        Self { basic: true, bearer: false, ..Self::bearer(user, password) }
    }

    pub(super) fn admits(&self, request: &Recorded) -> bool {
        let given = request.header("authorization").unwrap_or_default();
        if self.refuse {
            return false;
        }
        match given.split_once(' ') {
            Some(("Bearer", token)) => self.bearer && token.starts_with("token-"),
            Some(("Basic", _)) => self.basic && self.knows(given),
            _ => false,
        }
    }

    pub(super) fn challenges(&self, request: &Recorded, origin: &str) -> Vec<(String, String)> {
        let mut challenges = Vec::new();
        let repository = request.target.trim_start_matches("/v2/");
        let end = ["/manifests/", "/blobs/", "/referrers/"].iter().find_map(|mark| repository.find(mark));
        let repository = &repository[..end.unwrap_or(0)];
        if self.basic {
            challenges.push("Basic realm=\"tests\"".to_owned());
        }
        if self.bearer {
            let realm = if self.realm.is_empty() { format!("{origin}/token") } else { self.realm.clone() };
            let actions =
                if matches!(request.method.as_str(), "GET" | "HEAD") { "pull" } else { "pull,push" };
            let mut text = format!(
                "Bearer realm=\"{realm}\",service=\"svc\",scope=\"repository:{repository}:{actions}\""
            );
            if !self.error.is_empty() && request.header("authorization").is_some() {
                text.push_str(&format!(",error=\"{}\"", self.error));
            }
            challenges.push(text);
        }
        challenges.into_iter().map(|text| ("WWW-Authenticate".to_owned(), text)).collect()
    }

    /// What the token server answers: status and body.
    pub(super) fn token(&self, request: &Recorded) -> (u16, String) {
        let known = match (&self.user, request.method.as_str()) {
            (None, _) => true,
            (Some((user, password)), "POST") => {
                if self.post_status != 200 {
                    return (self.post_status, String::new());
                }
                request.body.contains(&format!("username={user}"))
                    && request.body.contains(&format!("password={password}"))
                    || request.body.contains(&format!("refresh_token={password}"))
            }
            (Some(_), _) => request.header("authorization").is_some_and(|given| self.knows(given)),
        };
        if !known {
            return (401, String::new());
        }
        let name = if self.only_token { "token" } else { "access_token" };
        (200, format!("{{\"{name}\":\"token-1\",\"expires_in\":{}}}", self.expires_in))
    }

    fn knows(&self, given: &str) -> bool {
        self.user.as_ref().is_some_and(|(user, password)| {
            given == format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
        })
    }
}
