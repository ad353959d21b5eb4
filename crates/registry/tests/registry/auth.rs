//! Challenges, tokens and secrets.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use corten_registry::testing::{AuthRule, Fault, ScriptedRegistry};
use corten_registry::{Credential, CredentialRequest, Credentials};

use super::*;

struct Fixed {
    credential: Credential,
    asked: AtomicUsize,
}

#[async_trait::async_trait]
impl Credentials for Fixed {
    async fn get(&self, request: CredentialRequest) -> Result<Option<Credential>> {
        assert!(request.host.starts_with("127.0.0.1:"));
        assert!(!request.challenges.is_empty());
        self.asked.fetch_add(1, Ordering::Relaxed);
        Ok(Some(self.credential.clone()))
    }
}

pub fn user(username: &str, secret: &str) -> Arc<dyn Credentials> {
    let credential = Credential::Basic { username: username.to_owned(), secret: secret.to_owned() };
    Arc::new(Fixed { credential, asked: AtomicUsize::new(0) })
}

async fn setup(rule: AuthRule) -> (ScriptedRegistry, Descriptor) {
    let registry = ScriptedRegistry::start().await;
    let descriptor = registry.manifest("lab/img", "1.0", MANIFEST, b"{}");
    registry.protect(rule);
    (registry, descriptor)
}

async fn resolve(
    registry: &ScriptedRegistry,
    credentials: Option<Arc<dyn Credentials>>,
) -> Result<Descriptor> {
    let resolver = Resolver::new(ResolverOptions { credentials, ..options() });
    resolver.resolve(&reference(&registry.host(), "1.0")).await
}

const HEAD: &str = "HEAD /v2/lab/img/manifests/1.0";

#[tokio::test]
async fn anonymous_tokens_come_by_get() {
    let (registry, want) = setup(AuthRule::anonymous()).await;
    assert_eq!(resolve(&registry, None).await.unwrap(), want);
    let token = "GET /token?scope=repository%3Alab%2Fimg%3Apull&service=svc";
    assert_eq!(registry.lines(), [HEAD, token, HEAD]);
    assert_eq!(registry.requests()[2].header("authorization"), Some("Bearer token-1"));
}

#[tokio::test]
async fn tokens_for_a_user_come_by_post() {
    let (registry, want) = setup(AuthRule::bearer("u", "p")).await;
    assert_eq!(resolve(&registry, Some(user("u", "p"))).await.unwrap(), want);
    let requests = registry.requests();
    assert_eq!(registry.lines(), [HEAD, "POST /token", HEAD]);
    assert_eq!(
        requests[1].body,
        "client_id=containerd-client&grant_type=password&password=p&\
         scope=repository%3Alab%2Fimg%3Apull&service=svc&username=u"
    );
    assert_eq!(requests[1].header("content-type"), Some("application/x-www-form-urlencoded; charset=utf-8"));
}

#[tokio::test]
async fn a_token_server_without_post_is_asked_by_get_with_basic() {
    for status in [404, 401, 400, 405] {
        let (registry, want) =
            setup(AuthRule { post_status: status, only_token: true, ..AuthRule::bearer("u", "p") }).await;
        assert_eq!(resolve(&registry, Some(user("u", "p"))).await.unwrap(), want, "{status}");
        let requests = registry.requests();
        assert_eq!(requests[2].header("authorization"), Some("Basic dTpw"));
    }
}

#[tokio::test]
async fn a_token_server_that_fails_is_named() {
    let (registry, _) = setup(AuthRule { post_status: 500, ..AuthRule::bearer("u", "p") }).await;
    let error = resolve(&registry, Some(user("u", "p"))).await.unwrap_err();
    let want = "failed to authorize: failed to fetch oauth token: unexpected status from POST request to";
    assert!(error.to_string().starts_with(want), "{error}");
    let (registry, _) = setup(AuthRule { only_token: true, ..AuthRule::bearer("u", "p") }).await;
    let error = resolve(&registry, Some(user("u", "p"))).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "failed to authorize: failed to fetch oauth token: \
         authorization server did not include a token in the response"
    );
    let (registry, _) = setup(AuthRule::bearer("u", "p")).await;
    let error = resolve(&registry, None).await.unwrap_err();
    assert!(
        error.to_string().contains("failed to fetch anonymous token: unexpected status from GET"),
        "{error}"
    );
}

#[tokio::test]
async fn refresh_tokens_are_exchanged() {
    let (registry, want) = setup(AuthRule::bearer("", "refresh-1")).await;
    let credentials =
        Fixed { credential: Credential::Refresh("refresh-1".to_owned()), asked: AtomicUsize::new(0) };
    assert_eq!(resolve(&registry, Some(Arc::new(credentials))).await.unwrap(), want);
    let body = &registry.requests()[1].body;
    assert!(body.contains("grant_type=refresh_token&refresh_token=refresh-1"), "{body}");
}

#[tokio::test]
async fn basic_works_and_is_not_tried_twice_with_the_same_secret() {
    let (registry, want) = setup(AuthRule::basic("u", "p")).await;
    assert_eq!(resolve(&registry, Some(user("u", "p"))).await.unwrap(), want);
    registry.forget_requests();
    let error = resolve(&registry, Some(user("u", "wrong"))).await.unwrap_err();
    assert!(
        error.to_string().starts_with(
            "pull access denied, repository does not exist or may require authorization: unexpected status from HEAD"
        ),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("as user u"), "{error:?}");
    assert_eq!(registry.requests().len(), 2);
    let error = resolve(&registry, None).await.unwrap_err();
    assert_eq!(error.to_string(), "failed to authorize: no basic auth credentials");
}

#[tokio::test]
async fn bearer_is_chosen_where_both_are_offered() {
    let (registry, want) = setup(AuthRule { basic: true, ..AuthRule::bearer("u", "p") }).await;
    assert_eq!(resolve(&registry, Some(user("u", "p"))).await.unwrap(), want);
    assert!(registry.lines().contains(&"POST /token".to_owned()));
}

#[tokio::test]
async fn a_token_that_is_refused_ends_in_the_words_of_the_server() {
    let rule = AuthRule { refuse: true, error: "insufficient_scope".to_owned(), ..AuthRule::anonymous() };
    let (registry, _) = setup(rule).await;
    let error = resolve(&registry, None).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "pull access denied, repository does not exist or may require authorization: \
         server message: insufficient_scope: authorization failed"
    );
    let (registry, _) = setup(AuthRule { refuse: true, ..AuthRule::anonymous() }).await;
    let error = resolve(&registry, None).await.unwrap_err();
    assert!(error.to_string().contains("401 Unauthorized"), "{error}");
    assert!(registry.requests().len() < 8, "{:?}", registry.lines());
}

#[tokio::test]
async fn parallel_requests_share_one_token_and_one_question() {
    let registry = ScriptedRegistry::start().await;
    registry.protect(AuthRule { expires_in: 300, ..AuthRule::bearer("u", "p") });
    let blobs: Vec<_> = (0..6).map(|n| registry.blob("lab/img", LAYER, &noise(10_000 + n))).collect();
    let credential = Credential::Basic { username: "u".to_owned(), secret: "p".to_owned() };
    let credentials = Arc::new(Fixed { credential, asked: AtomicUsize::new(0) });
    let resolver = Resolver::new(ResolverOptions { credentials: Some(credentials.clone()), ..options() });
    let fetcher = resolver.fetcher(&reference(&registry.host(), "1.0")).unwrap();
    let fetches = blobs.iter().map(|blob| read(&fetcher, blob, 0));
    for result in futures_util::future::join_all(fetches).await {
        result.unwrap();
    }
    assert_eq!(registry.lines().iter().filter(|line| *line == "POST /token").count(), 1);
    assert_eq!(credentials.asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_token_that_ran_out_is_replaced() {
    let registry = ScriptedRegistry::start().await;
    let blob = registry.blob("lab/img", LAYER, b"data");
    // Tokens that end within the margin are fetched anew for each request.
    registry.protect(AuthRule { expires_in: 1, ..AuthRule::anonymous() });
    let fetcher = fetcher(&registry);
    read(&fetcher, &blob, 0).await.unwrap();
    read(&fetcher, &blob, 0).await.unwrap();
    assert_eq!(registry.lines().iter().filter(|line| line.starts_with("GET /token")).count(), 2);
}

#[tokio::test]
async fn a_realm_that_is_no_address_is_an_error() {
    let (registry, _) = setup(AuthRule { realm: "file:///etc".to_owned(), ..AuthRule::anonymous() }).await;
    let error = resolve(&registry, None).await.unwrap_err();
    assert_eq!(error.to_string(), "failed to authorize: invalid token auth challenge realm: file:///etc");
}

#[tokio::test]
async fn a_token_server_that_answers_nonsense_is_an_error() {
    let (registry, _) = setup(AuthRule::anonymous()).await;
    registry.cue("/token", Fault::Answer(200, Vec::new(), b"<html>".to_vec()), 9);
    let error = resolve(&registry, None).await.unwrap_err();
    assert!(error.to_string().contains("unable to decode token response"), "{error}");
}
