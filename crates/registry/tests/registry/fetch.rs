//! From descriptors to bytes.

use std::sync::Arc;

use corten_registry::Limits;
use corten_registry::testing::{AuthRule, Fault, ScriptedRegistry};
use corten_types::ErrorClass;

use super::*;

#[tokio::test]
async fn blobs_and_manifests_come_from_their_own_addresses() {
    let registry = ScriptedRegistry::start().await;
    let data = noise(300_000);
    let blob = registry.blob("lab/img", LAYER, &data);
    let manifest = registry.manifest("lab/img", "", MANIFEST, b"{}");
    let fetcher = fetcher(&registry);
    assert_eq!(read(&fetcher, &blob, 0).await.unwrap(), data);
    assert_eq!(read(&fetcher, &manifest, 0).await.unwrap(), b"{}");
    let requests = registry.requests();
    assert_eq!(
        registry.lines(),
        [
            format!("GET /v2/lab/img/blobs/{}", blob.digest),
            format!("GET /v2/lab/img/manifests/{}", manifest.digest)
        ]
    );
    assert_eq!(requests[0].header("accept"), Some(format!("{LAYER}, */*").as_str()));
    assert_eq!(requests[0].header("accept-encoding"), Some("zstd;q=1.0, gzip;q=0.8, deflate;q=0.5"));
}

#[tokio::test]
async fn a_fetch_goes_on_from_an_offset_even_if_the_host_ignores_it() {
    let registry = ScriptedRegistry::start().await;
    let data = noise(300_000);
    let blob = registry.blob("lab/img", LAYER, &data);
    let fetcher = fetcher(&registry);
    assert_eq!(read(&fetcher, &blob, 123_456).await.unwrap(), data[123_456..]);
    registry.cue("GET", Fault::IgnoreRange, 1);
    assert_eq!(read(&fetcher, &blob, 123_456).await.unwrap(), data[123_456..]);
    assert_eq!(registry.requests()[1].header("range"), Some("bytes=123456-"));
    assert_eq!(read(&fetcher, &blob, 300_000).await.unwrap(), b"");
    assert_eq!(registry.requests().len(), 2, "nothing is asked for what is complete");
}

#[tokio::test]
async fn a_download_survives_cuts_and_silence() {
    let registry = ScriptedRegistry::start().await;
    let data = noise(1_000_000);
    let blob = registry.blob("lab/img", LAYER, &data);
    for fault in
        [Fault::CutAfter(100_000), Fault::HangAfter(100_000), Fault::LengthPlus(5), Fault::CutAfter(0)]
    {
        registry.recover();
        registry.cue("GET", fault.clone(), 4);
        assert_eq!(read(&fetcher(&registry), &blob, 0).await.unwrap(), data, "{fault:?}");
    }
    let ranges: Vec<_> =
        registry.requests().iter().filter_map(|request| request.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges[..4], ["bytes=100000-", "bytes=200000-", "bytes=300000-", "bytes=400000-"]);
}

#[tokio::test]
async fn a_host_without_end_of_trouble_is_named_with_the_layer() {
    let registry = ScriptedRegistry::start().await;
    let blob = registry.blob("lab/img", LAYER, &noise(100_000));
    registry.cue("GET", Fault::HangAfter(10), 99);
    let error = read(&fetcher(&registry), &blob, 0).await.unwrap_err();
    let want = format!("layer {} from {}: no data for 300ms after ", blob.digest, registry.host());
    assert!(error.to_string().starts_with(&want), "{error}");
    assert_eq!(error.class(), ErrorClass::Unavailable);
    assert_eq!(registry.requests().len(), 5);
}

#[tokio::test]
async fn a_mirror_that_always_cuts_gives_way_to_the_next_host() {
    let (mirror, origin) = (ScriptedRegistry::start().await, ScriptedRegistry::start().await);
    let data = noise(100_000);
    let blob = mirror.blob("lab/img", LAYER, &data);
    origin.blob("lab/img", LAYER, &data);
    mirror.cue("GET", Fault::CutAfter(1000), 99);
    let dir = hosts_dir(&format!("server = 'http://{}'\n[host.'http://{}']\n", origin.host(), mirror.host()));
    let fetcher = configured(&dir).fetcher(&reference("reg.example", "1.0")).unwrap();
    assert_eq!(read(&fetcher, &blob, 0).await.unwrap(), data);
    assert_eq!(origin.requests()[0].header("range"), Some("bytes=1000-"));
}

#[tokio::test]
async fn a_body_longer_than_declared_is_refused() {
    let registry = ScriptedRegistry::start().await;
    let blob = registry.blob("lab/img", LAYER, &noise(1000));
    registry.cue("GET", Fault::BodyPlus(1), 9);
    let error = read(&fetcher(&registry), &blob, 0).await.unwrap_err();
    assert!(error.to_string().contains("more than 1000 bytes"), "{error}");
}

#[tokio::test]
async fn transfer_encodings_are_undone() {
    let registry = ScriptedRegistry::start().await;
    let data = noise(200_000);
    let blob = registry.blob("lab/img", LAYER, &data);
    for encoding in ["gzip", "zstd"] {
        registry.cue("GET", Fault::Encoded(encoding), 1);
        assert_eq!(read(&fetcher(&registry), &blob, 0).await.unwrap(), data, "{encoding}");
    }
}

#[tokio::test]
async fn what_no_host_has_is_not_found() {
    let registry = ScriptedRegistry::start().await;
    let mut missing = registry.blob("other", LAYER, b"x");
    let error = fetcher(&registry).fetch(&missing, 0).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "httpReadSeeker: failed open: could not fetch content descriptor {} ({LAYER}) from remote: not found",
            missing.digest
        )
    );
    missing.media_type = MANIFEST.to_owned();
    let error = fetcher(&registry).fetch(&missing, 0).await.unwrap_err();
    let url = format!("http://{}/v2/lab/img/manifests/{}", registry.host(), missing.digest);
    assert_eq!(
        error.to_string(),
        format!("httpReadSeeker: failed open: content at {url} not found: not found")
    );
    assert!(error.is_not_found());
}

#[tokio::test]
async fn what_the_registry_says_is_a_hint() {
    let registry = ScriptedRegistry::start().await;
    let blob = registry.blob("lab/img", LAYER, b"x");
    let body = br#"{"errors":[{"code":"UNAVAILABLE","message":"on\u0007 holiday"}]}"#;
    registry.cue("GET", Fault::Answer(502, Vec::new(), body.to_vec()), 9);
    let error = fetcher(&registry).fetch(&blob, 0).await.unwrap_err();
    assert!(error.to_string().contains("unexpected status from GET request to http://"), "{error}");
    assert!(error.hint().unwrap().contains("unavailable: on holiday"), "{error:?}");
}

#[tokio::test]
async fn garbage_and_strange_ranges_are_errors() {
    let registry = ScriptedRegistry::start().await;
    let blob = registry.blob("lab/img", LAYER, &noise(100));
    registry.cue("GET", Fault::Garbage, 99);
    fetcher(&registry).fetch(&blob, 0).await.unwrap_err();
    registry.recover();
    let range = vec![("Content-Range".to_owned(), "bytes 7-99/100".to_owned())];
    registry.cue("GET", Fault::Answer(206, range, vec![0; 93]), 9);
    let error = fetcher(&registry).fetch(&blob, 50).await.unwrap_err();
    assert!(error.to_string().contains("unhandled content range in response: bytes 7-99/100"), "{error}");
}

#[tokio::test]
async fn redirects_are_followed_and_take_no_credentials_along() {
    let (registry, store) = (ScriptedRegistry::start().await, ScriptedRegistry::start().await);
    let data = noise(5000);
    let blob = registry.blob("lab/img", LAYER, &data);
    store.blob("elsewhere", LAYER, &data);
    registry.protect(AuthRule::basic("u", "secret"));
    let location = format!("http://{}/v2/elsewhere/blobs/{}?sig=1", store.host(), blob.digest);
    registry.cue("GET", Fault::Status(401), 0);
    let dir = hosts_dir(&format!("server = 'http://{}'\n[header]\nx-secret = 'h'\n", registry.host()));
    let resolver = Resolver::new(ResolverOptions {
        hosts_dirs: vec![dir.path().to_owned()],
        credentials: Some(auth::user("u", "secret")),
        ..options()
    });
    let fetcher = resolver.fetcher(&reference("reg.example", "1.0")).unwrap();
    // The first request learns that credentials are wanted; from then on they are sent at once.
    read(&fetcher, &blob, 0).await.unwrap();
    registry.cue("GET", Fault::Redirect(location), 9);
    assert_eq!(read(&fetcher, &blob, 0).await.unwrap(), data);
    let asked = registry.requests();
    assert!(asked.last().unwrap().header("authorization").is_some());
    assert_eq!(asked.last().unwrap().header("x-secret"), Some("h"));
    let led = &store.requests()[0];
    assert_eq!(led.header("authorization"), None);
    assert_eq!(led.header("x-secret"), None);
    assert_eq!(led.header("accept"), Some(format!("{LAYER}, */*").as_str()));
    // A host that we were led to may ask for credentials, and gets none.
    store.protect(AuthRule::basic("u", "secret"));
    store.forget_requests();
    let error = fetcher.fetch(&blob, 0).await.unwrap_err();
    assert!(error.to_string().contains("401"), "{error}");
    assert!(store.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn redirects_end() {
    let registry = ScriptedRegistry::start().await;
    let blob = registry.blob("lab/img", LAYER, b"x");
    registry.cue("GET", Fault::Redirect("/v2/round".to_owned()), 99);
    let error = fetcher(&registry).fetch(&blob, 0).await.unwrap_err();
    assert!(error.to_string().contains("stopped after 10 redirects"), "{error}");
    assert_eq!(registry.requests().len(), 11);
}

/// CVE-2020-15157.
#[tokio::test]
async fn addresses_named_by_a_manifest_get_no_credentials() {
    let (registry, foreign) = (ScriptedRegistry::start().await, ScriptedRegistry::start().await);
    let data = noise(5000);
    let mut blob = registry.blob("lab/img", LAYER, &data);
    registry.protect(AuthRule::bearer("u", "secret"));
    foreign.protect(AuthRule::bearer("u", "secret"));
    blob.urls = vec![format!("http://{}/layer", foreign.host()), "file:///etc/passwd".to_owned()];
    let resolver = Resolver::new(ResolverOptions {
        credentials: Some(auth::user("u", "secret")),
        headers: vec![("x-secret".to_owned(), "h".to_owned())],
        ..options()
    });
    let fetcher = resolver.fetcher(&reference(&registry.host(), "1.0")).unwrap();
    // The registry has it nevertheless.
    assert_eq!(read(&fetcher, &blob, 0).await.unwrap(), data);
    let seen = foreign.requests();
    assert!(!seen.is_empty());
    for request in &seen {
        assert_eq!(request.header("authorization"), None);
        assert_eq!(request.header("x-secret"), None);
        assert!(!request.body.contains("secret"), "{request:?}");
    }
}

#[tokio::test]
async fn addresses_named_by_a_manifest_come_first() {
    let (registry, foreign) = (ScriptedRegistry::start().await, ScriptedRegistry::start().await);
    let data = noise(5000);
    let mut blob = registry.blob("lab/img", LAYER, &data);
    foreign.blob("x", LAYER, &data);
    blob.urls = vec![format!("http://{}/v2/x/blobs/{}", foreign.host(), blob.digest)];
    assert_eq!(read(&fetcher(&registry), &blob, 0).await.unwrap(), data);
    assert!(registry.lines().is_empty());
}

#[tokio::test]
async fn connections_are_used_again() {
    let registry = ScriptedRegistry::start().await;
    let data = noise(5000);
    let blob = registry.blob("lab/img", LAYER, &data);
    let fetcher = fetcher(&registry);
    for _ in 0..9 {
        read(&fetcher, &blob, 0).await.unwrap();
    }
    assert_eq!(registry.traffic().connections, 1);
    for _ in 0..3 {
        // An idle connection that the peer closed is no failure.
        registry.cue("GET", Fault::Close, 1);
        read(&fetcher, &blob, 0).await.unwrap();
    }
}

#[tokio::test]
async fn what_was_learnt_while_resolving_serves_the_fetch() {
    let registry = ScriptedRegistry::start().await;
    let blob = registry.blob("lab/img", LAYER, &noise(5000));
    registry.manifest("lab/img", "1.0", MANIFEST, b"{}");
    registry.protect(AuthRule { expires_in: 300, ..AuthRule::anonymous() });
    let (resolver, reference) = (resolver(), reference(&registry.host(), "1.0"));
    resolver.resolve(&reference).await.unwrap();
    registry.forget_requests();
    read(&resolver.fetcher(&reference).unwrap(), &blob, 0).await.unwrap();
    assert_eq!(registry.lines(), [format!("GET /v2/lab/img/blobs/{}", blob.digest)]);
    assert_eq!(registry.traffic().connections, 1);
}

#[tokio::test]
async fn a_host_is_asked_for_no_more_at_once_than_the_limit_says() {
    let registry = ScriptedRegistry::start().await;
    let blobs: Vec<_> = (0..8).map(|n| registry.blob("lab/img", LAYER, &noise(50_000 + n))).collect();
    registry.cue("GET", Fault::Hang, 99);
    let limits = Arc::new(Limits::new(2));
    // Two operations that share the limit.
    let fetchers = [0, 1].map(|_| {
        let patient = ResolverOptions { stall_timeout: Duration::from_secs(60), ..options() };
        let resolver = Resolver::new(ResolverOptions { limits: Arc::clone(&limits), ..patient });
        resolver.fetcher(&reference(&registry.host(), "1.0")).unwrap()
    });
    let reads = blobs.iter().zip(fetchers.iter().cycle()).map(|(blob, fetcher)| read(fetcher, blob, 0));
    let watch = async {
        while registry.traffic().at_once < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Time for a third one, which must not come.
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    tokio::select! {
        _ = futures_util::future::join_all(reads) => panic!("nothing was answered"),
        () = watch => {}
    }
    assert_eq!(registry.traffic().at_once, 2);
}

/// Silence is for other tests: on a busy machine it says nothing.
fn patient() -> ResolverOptions {
    ResolverOptions { stall_timeout: Duration::from_secs(60), ..options() }
}

fn splitting(registry: &ScriptedRegistry) -> Fetcher {
    let resolver = Resolver::new(ResolverOptions { split_after: Duration::from_millis(50), ..patient() });
    resolver.fetcher(&reference(&registry.host(), "1.0")).unwrap()
}

#[tokio::test]
async fn a_large_blob_that_comes_slowly_is_fetched_in_parts() {
    let registry = ScriptedRegistry::start().await;
    let data = noise(30_000_001);
    let blob = registry.blob("lab/img", LAYER, &data);
    registry.cue("GET", Fault::Slow(64 << 10, 5), 99);
    assert!(read(&splitting(&registry), &blob, 0).await.unwrap() == data);
    let requests = registry.requests();
    let parts: Vec<_> = requests.iter().filter_map(|request| request.header("range")).collect();
    assert!(parts.len() > 5 && parts.iter().all(|range| !range.ends_with('-')), "{parts:?}");
}

#[tokio::test]
async fn a_part_that_fails_costs_only_its_connection() {
    for fault in [Fault::Status(500), Fault::IgnoreRange, Fault::CutAfter(1000), Fault::BodyPlus(7)] {
        let registry = ScriptedRegistry::start().await;
        let data = noise(20_000_000);
        let blob = registry.blob("lab/img", LAYER, &data);
        // The first connection is so slow that parts are asked for. The second one fails, and whatever is asked for
        // then is answered at once.
        registry.cue_parts(Fault::Slow(64 << 10, 1), 1);
        registry.cue_parts(fault.clone(), 1);
        registry.cue("GET", Fault::Slow(64 << 10, 25), 1);
        assert!(read(&splitting(&registry), &blob, 0).await.unwrap() == data, "{fault:?}");
        assert_eq!(registry.faults_left(), 0, "{fault:?}: no part met it");
    }
}

#[tokio::test]
async fn parts_that_are_asked_for_begin_at_once() {
    let registry = ScriptedRegistry::start().await;
    let data = noise(5_000_001);
    let blob = registry.blob("lab/img", LAYER, &data);
    let parts = Some(Parts { size: 1 << 20, count: 3 });
    let fetcher = |parts| {
        let resolver = Resolver::new(ResolverOptions { parts, ..patient() });
        resolver.fetcher(&reference(&registry.host(), "1.0")).unwrap()
    };
    assert!(read(&fetcher(parts), &blob, 0).await.unwrap() == data);
    let requests = registry.requests();
    let mut ranges: Vec<_> = requests.iter().filter_map(|request| request.header("range")).collect();
    ranges.sort_unstable();
    let wanted = [
        "bytes=0-1048575",
        "bytes=1048576-2097151",
        "bytes=2097152-3145727",
        "bytes=3145728-4194303",
        "bytes=4194304-5000000",
    ];
    assert_eq!(ranges, wanted);
    // What fits into one part comes over one connection.
    registry.forget_requests();
    assert!(read(&fetcher(Some(Parts { size: 8 << 20, count: 3 })), &blob, 0).await.unwrap() == data);
    assert_eq!(registry.requests().len(), 1);
}
