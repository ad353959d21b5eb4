//! From references to descriptors.

use corten_registry::testing::{Fault, ScriptedRegistry};
use corten_types::ErrorClass;

use super::*;

const BODY: &[u8] = br#"{"schemaVersion": 2}"#;

#[tokio::test]
async fn a_tag_is_resolved_with_one_head() {
    let registry = ScriptedRegistry::start().await;
    let want = registry.manifest("lab/img", "1.0", MANIFEST, BODY);
    let got = resolver().resolve(&reference(&registry.host(), "1.0")).await.unwrap();
    assert_eq!(got, want);
    let requests = registry.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].line(), "HEAD /v2/lab/img/manifests/1.0");
    assert_eq!(requests[0].header("user-agent"), Some("containerd/test"));
    assert_eq!(requests[0].header("host"), Some(registry.host().as_str()));
    assert_eq!(requests[0].header("accept-encoding"), None);
    assert_eq!(
        requests[0].header("accept"),
        Some(
            "application/vnd.docker.distribution.manifest.v2+json, \
             application/vnd.docker.distribution.manifest.list.v2+json, \
             application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*"
        )
    );
}

#[tokio::test]
async fn a_host_that_does_not_tell_is_read_and_hashed() {
    let registry = ScriptedRegistry::start().await;
    let want = registry.manifest("lab/img", "1.0", MANIFEST, BODY);
    for fault in [Fault::Bare, Fault::Status(405)] {
        registry.recover();
        registry.forget_requests();
        registry.cue("HEAD", fault, 9);
        registry.cue("GET", Fault::Bare, 9);
        let got = resolver().resolve(&reference(&registry.host(), "1.0")).await.unwrap();
        assert_eq!(got, want);
        assert_eq!(registry.lines(), ["HEAD /v2/lab/img/manifests/1.0", "GET /v2/lab/img/manifests/1.0"]);
    }
}

#[tokio::test]
async fn a_digest_is_kept_whatever_the_header_says() {
    let registry = ScriptedRegistry::start().await;
    let want = registry.manifest("lab/img", "1.0", MANIFEST, BODY);
    let other = corten_types::Digest::sha256(b"other");
    let headers = vec![
        ("Docker-Content-Digest".to_owned(), other.to_string()),
        ("Content-Type".to_owned(), MANIFEST.to_owned()),
    ];
    registry.cue("HEAD", Fault::Answer(200, headers, BODY.to_vec()), 1);
    let reference = reference(&registry.host(), &format!("1.0@{}", want.digest));
    assert_eq!(resolver().resolve(&reference).await.unwrap(), want);
    assert_eq!(registry.lines(), [format!("HEAD /v2/lab/img/manifests/{}", want.digest)]);
}

#[tokio::test]
async fn a_digest_that_is_no_manifest_may_be_a_blob() {
    let registry = ScriptedRegistry::start().await;
    let want = registry.blob("lab/img", "", b"blob");
    let got = resolver().resolve(&reference(&registry.host(), &format!("@{}", want.digest))).await.unwrap();
    assert_eq!((got.digest, got.size), (want.digest, want.size));
}

#[tokio::test]
async fn what_does_not_exist_is_not_found() {
    let registry = ScriptedRegistry::start().await;
    let reference = reference(&registry.host(), "none");
    let error = resolver().resolve(&reference).await.unwrap_err();
    assert_eq!(error.to_string(), format!("{}/lab/img:none: not found", registry.host()));
    assert_eq!(error.class(), ErrorClass::NotFound);
}

#[tokio::test]
async fn a_status_is_named_with_its_request() {
    let registry = ScriptedRegistry::start().await;
    registry.cue("HEAD", Fault::Status(500), 9);
    let error = resolver().resolve(&reference(&registry.host(), "1.0")).await.unwrap_err();
    let url = format!("http://{}/v2/lab/img/manifests/1.0", registry.host());
    assert_eq!(
        error.to_string(),
        format!("unexpected status from HEAD request to {url}: 500 Internal Server Error")
    );
    // The same status twice is not tried a third time.
    assert_eq!(registry.requests().len(), 2);
}

#[tokio::test]
async fn a_passing_failure_is_tried_again() {
    for fault in [Fault::Status(500), Fault::Status(429), Fault::Status(408), Fault::Close, Fault::Hang] {
        let registry = ScriptedRegistry::start().await;
        let want = registry.manifest("lab/img", "1.0", MANIFEST, BODY);
        registry.cue("HEAD", fault.clone(), 1);
        let got = resolver().resolve(&reference(&registry.host(), "1.0")).await;
        assert_eq!(got.unwrap(), want, "{fault:?}");
        assert_eq!(registry.requests().len(), 2, "{fault:?}");
    }
}

#[tokio::test]
async fn a_host_that_asks_for_patience_gets_it() {
    let registry = ScriptedRegistry::start().await;
    let want = registry.manifest("lab/img", "1.0", MANIFEST, BODY);
    let busy = Fault::Answer(429, vec![("Retry-After".to_owned(), "1".to_owned())], Vec::new());
    registry.cue("HEAD", busy, 2);
    let begun = std::time::Instant::now();
    assert_eq!(resolver().resolve(&reference(&registry.host(), "1.0")).await.unwrap(), want);
    assert!(begun.elapsed() >= Duration::from_secs(2), "as long as it said, each time");
    // It never relents.
    registry.cue("HEAD", Fault::Status(429), 99);
    registry.forget_requests();
    let error = resolver().resolve(&reference(&registry.host(), "1.0")).await.unwrap_err();
    assert!(error.to_string().ends_with("429 Too Many Requests"), "{error}");
    assert_eq!(registry.requests().len(), 5);
}

#[tokio::test]
async fn nobody_there_is_a_transport_error() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = resolver().resolve(&reference(&host, "bar")).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "failed to do request: Head \"http://{host}/v2/lab/img/manifests/bar\": \
             dial tcp {host}: connect: connection refused"
        )
    );
}

#[tokio::test]
async fn a_manifest_beyond_the_limit_is_refused_by_header_and_by_body() {
    let registry = ScriptedRegistry::start().await;
    let big = vec![b' '; 5 << 20];
    registry.manifest("lab/img", "1.0", MANIFEST, &big);
    for bare in [false, true] {
        if bare {
            registry.cue("lab/img", Fault::Bare, 9);
        }
        let error = resolver().resolve(&reference(&registry.host(), "1.0")).await.unwrap_err();
        assert!(error.to_string().contains("rejecting "), "{error}");
    }
}

#[tokio::test]
async fn mirrors_come_first_and_are_told_whose_name_is_asked() {
    let (mirror, broken, origin) =
        (ScriptedRegistry::start().await, ScriptedRegistry::start().await, ScriptedRegistry::start().await);
    let want = mirror.manifest("lab/img", "1.0", MANIFEST, BODY);
    broken.cue("HEAD", Fault::Status(500), 9);
    let dir = hosts_dir(&format!(
        "server = 'http://{}'\n[host.'http://{}']\n[host.'http://{}']\ncapabilities=['pull','resolve']\n\
         [host.'http://{}'.header]\nx-a=['1','2']\n",
        origin.host(),
        broken.host(),
        mirror.host(),
        mirror.host()
    ));
    let got = configured(&dir).resolve(&reference("reg.example:5", "1.0")).await.unwrap();
    assert_eq!(got, want);
    assert_eq!(broken.lines(), ["HEAD /v2/lab/img/manifests/1.0?ns=reg.example%3A5"]);
    assert_eq!(mirror.lines(), ["HEAD /v2/lab/img/manifests/1.0?ns=reg.example%3A5"]);
    let sent: Vec<_> =
        mirror.requests()[0].headers.iter().filter(|(name, _)| name == "x-a").cloned().collect();
    assert_eq!(sent.len(), 2);
    assert!(origin.lines().is_empty());
}

#[tokio::test]
async fn hosts_without_the_capability_are_not_asked() {
    let (pull_only, origin) = (ScriptedRegistry::start().await, ScriptedRegistry::start().await);
    pull_only.manifest("lab/img", "1.0", MANIFEST, BODY);
    let want = origin.manifest("lab/img", "1.0", MANIFEST, BODY);
    let dir = hosts_dir(&format!(
        "server = 'http://{}'\n[host.'http://{}']\ncapabilities=['pull']\n",
        origin.host(),
        pull_only.host()
    ));
    assert_eq!(configured(&dir).resolve(&reference("reg.example", "1.0")).await.unwrap(), want);
    assert!(pull_only.lines().is_empty());
}

#[tokio::test]
async fn the_error_that_says_most_is_reported() {
    let (missing, broken) = (ScriptedRegistry::start().await, ScriptedRegistry::start().await);
    broken.cue("HEAD", Fault::Status(502), 9);
    let dir = hosts_dir(&format!(
        "server = 'http://{}'\n[host.'http://127.0.0.1:1']\n[host.'http://{}']\n",
        missing.host(),
        broken.host()
    ));
    let error = configured(&dir).resolve(&reference("reg.example", "1.0")).await.unwrap_err();
    assert!(error.to_string().contains("502 Bad Gateway"), "{error}");
    let hint = error.hint().unwrap();
    assert!(hint.contains("connection refused") && hint.contains(&missing.host()), "{hint}");
}

#[tokio::test]
async fn referrers_come_from_the_list_or_from_the_tag_that_stands_in() {
    let registry = ScriptedRegistry::start().await;
    let subject = registry.manifest("lab/img", "1.0", MANIFEST, BODY);
    let fetcher = fetcher(&registry);
    assert_eq!(fetcher.referrers(&subject.digest, "").await.unwrap(), []);
    let mut signature = registry.blob("lab/img", MANIFEST, b"signature");
    signature.artifact_type = Some("sig".to_owned());
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [signature]}).to_string();
    let tag = format!("sha256-{}", subject.digest.hex());
    registry.manifest("lab/img", &tag, "application/vnd.oci.image.index.v1+json", index.as_bytes());
    assert_eq!(fetcher.referrers(&subject.digest, "").await.unwrap(), [signature.clone()]);
    let other = registry.blob("lab/img", MANIFEST, b"other");
    registry.referrers("lab/img", &subject.digest, vec![signature.clone(), other]);
    assert_eq!(fetcher.referrers(&subject.digest, "sig").await.unwrap(), [signature]);
}

/// A page of a list of referrers, and where the next one is.
fn page(manifests: &[&Descriptor], next: Option<&str>) -> Fault {
    let links = ["</elsewhere>; rel=\"first\", ", "; rel=\"next\""];
    let header = next.map(|next| ("Link".to_owned(), format!("{}<{next}>{}", links[0], links[1])));
    let body = serde_json::json!({"schemaVersion": 2, "manifests": manifests}).to_string();
    Fault::Answer(200, header.into_iter().collect(), body.into_bytes())
}

#[tokio::test]
async fn lists_of_referrers_go_on_at_their_own_host_alone() {
    let (registry, other) = (ScriptedRegistry::start().await, ScriptedRegistry::start().await);
    let subject = registry.manifest("lab/img", "1.0", MANIFEST, BODY);
    let [first, second] = ["first", "second"].map(|data| registry.blob("lab/img", MANIFEST, data.as_bytes()));
    let path = format!("/v2/lab/img/referrers/{}", subject.digest);
    registry.cue("page=2", page(&[&second], None), 1);
    registry.cue(&path, page(&[&first], Some(&format!("{path}?page=2"))), 1);
    let fetcher = fetcher(&registry);
    let found = fetcher.referrers(&subject.digest, "").await.unwrap();
    assert_eq!(found, [first.clone(), second]);
    // Nobody is followed to another host, nor round and round.
    let away = format!("http://{}/v2/lab/img/referrers/{}", other.host(), subject.digest);
    registry.cue(&path, page(&[&first], Some(&away)), 1);
    let refused = fetcher.referrers(&subject.digest, "").await.unwrap_err();
    assert!(refused.message().contains("goes on at another host"), "{refused}");
    assert!(other.lines().is_empty(), "{:?}", other.lines());
    registry.cue(&path, page(&[&first], Some(&path)), 200);
    let refused = fetcher.referrers(&subject.digest, "").await.unwrap_err();
    assert!(refused.message().contains("more than 100 pages"), "{refused}");
}

#[tokio::test]
async fn the_tag_that_stands_in_for_a_list_is_never_too_long() {
    let registry = ScriptedRegistry::start().await;
    let digest: corten_types::Digest = format!("sha512:{}", "ab".repeat(64)).parse().unwrap();
    assert_eq!(fetcher(&registry).referrers(&digest, "").await.unwrap(), []);
    let tag = format!("/manifests/sha512-{}", "ab".repeat(32));
    assert!(registry.lines().last().unwrap().ends_with(&tag), "{:?}", registry.lines());
}
