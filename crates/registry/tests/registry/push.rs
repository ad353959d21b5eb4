//! From descriptors and bytes to a registry.

use std::sync::{Arc, Mutex};

use corten_registry::testing::{AuthRule, Fault, ScriptedRegistry};
use corten_registry::{BlobSource, Pushed, Pusher};

use super::*;

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const UPLOADS: &str = "/v2/lab/img/blobs/uploads/";

struct Memory(Vec<u8>);

impl BlobSource for Memory {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let rest = &self.0[usize::try_from(offset).unwrap().min(self.0.len())..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
}

fn pusher(registry: &ScriptedRegistry, options: ResolverOptions) -> Pusher {
    Resolver::new(options).pusher(&reference(&registry.host(), "1.0")).unwrap()
}

fn described(media_type: &str, data: &[u8]) -> Descriptor {
    Descriptor::new(media_type, corten_types::Digest::sha256(data), data.len() as i64)
}

async fn send(pusher: &Pusher, data: &[u8], from: Option<&str>) -> Result<Pushed> {
    pusher.blob(&described(LAYER, data), from, Arc::new(Memory(data.to_vec())), Arc::new(|_| {})).await
}

#[tokio::test]
async fn a_blob_is_looked_for_and_sent_in_one_request() {
    let registry = ScriptedRegistry::start().await;
    let pusher = pusher(&registry, options());
    let data = noise(300_000);
    let digest = described(LAYER, &data).digest;
    assert_eq!(send(&pusher, &data, None).await.unwrap(), Pushed::Sent);
    let put = format!("PUT {UPLOADS}0?digest={}", digest.as_str().replace(':', "%3A"));
    assert_eq!(
        registry.lines(),
        [format!("HEAD /v2/lab/img/blobs/{digest}"), format!("POST {UPLOADS}"), put]
    );
    let requests = registry.requests();
    assert_eq!(requests[1].header("content-length"), Some("0"));
    assert_eq!(requests[2].header("content-type"), Some("application/octet-stream"));
    assert_eq!(requests[2].header("content-length"), Some("300000"));
    assert!(registry.written(&format!("lab/img/blobs/{digest}")).unwrap() == data);
    registry.forget_requests();
    assert_eq!(send(&pusher, &data, None).await.unwrap(), Pushed::Existed);
    assert_eq!(registry.lines(), [format!("HEAD /v2/lab/img/blobs/{digest}")]);
}

#[tokio::test]
async fn more_blobs_than_a_host_has_places_do_not_wait_for_each_other() {
    let registry = ScriptedRegistry::start().await;
    let limits = Arc::new(corten_registry::Limits::new(2));
    let pusher = pusher(&registry, ResolverOptions { limits, ..options() });
    let blobs: Vec<_> = (1..6).map(|length| noise(length * 1000)).collect();
    let sent = futures_util::future::join_all(blobs.iter().map(|blob| send(&pusher, blob, None)));
    let sent = tokio::time::timeout(std::time::Duration::from_secs(60), sent).await.expect("they wait");
    assert!(sent.into_iter().all(|sent| sent.unwrap() == Pushed::Sent));
}

#[tokio::test]
async fn a_blob_of_a_neighbour_is_mounted_or_else_sent() {
    let registry = ScriptedRegistry::start().await;
    let pusher = pusher(&registry, options());
    let (there, nowhere) = (noise(1000), noise(2000));
    let digest = registry.blob("other/img", LAYER, &there).digest;
    let mount = |digest| format!("POST {UPLOADS}?mount={digest}&from=other%2Fimg");
    assert_eq!(send(&pusher, &there, Some("other/img")).await.unwrap(), Pushed::Mounted);
    // That is all that is asked.
    assert_eq!(registry.lines(), [mount(digest)]);
    registry.forget_requests();
    // The upload that the host opens instead is the one that is used.
    assert_eq!(send(&pusher, &nowhere, Some("other/img")).await.unwrap(), Pushed::Sent);
    let digest = described(LAYER, &nowhere).digest;
    let methods: Vec<_> = registry.requests().into_iter().map(|one| one.method).collect();
    assert_eq!(
        (methods, &registry.lines()[0]),
        (["POST", "HEAD", "PUT"].map(Into::into).into(), &mount(digest))
    );
    // Whoever may not read the neighbour may write nevertheless.
    for status in [400, 401, 403, 404, 405, 500] {
        registry.cue("mount=", Fault::Status(status), 9);
        let data = noise(3000 + usize::from(status));
        assert_eq!(send(&pusher, &data, Some("other/img")).await.unwrap(), Pushed::Sent, "{status}");
        registry.recover();
    }
}

#[tokio::test]
async fn a_host_that_mounts_nothing_is_asked_what_it_has_first() {
    let registry = ScriptedRegistry::start().await;
    let pusher = pusher(&registry, options());
    let blobs: Vec<_> = (1..4).map(|length| noise(length * 1000)).collect();
    for data in &blobs {
        registry.blob("lab/img", LAYER, data);
        assert_eq!(send(&pusher, data, Some("other/img")).await.unwrap(), Pushed::Existed);
    }
    // The upload that the first question opened is closed again.
    let methods: Vec<_> = registry.requests().into_iter().map(|one| one.method).collect();
    assert_eq!(methods, ["POST", "HEAD", "DELETE", "HEAD", "HEAD"]);
    // What it does not have may still be mounted.
    let data = noise(9000);
    registry.blob("other/img", LAYER, &data);
    assert_eq!(send(&pusher, &data, Some("other/img")).await.unwrap(), Pushed::Mounted);
}

#[tokio::test]
async fn mounting_asks_for_both_repositories_in_one_token() {
    let registry = ScriptedRegistry::start().await;
    registry.protect(AuthRule::bearer("u", "p"));
    let data = noise(1000);
    registry.blob("other/img", LAYER, &data);
    let pusher = pusher(&registry, ResolverOptions { credentials: Some(auth::user("u", "p")), ..options() });
    assert_eq!(send(&pusher, &data, Some("other/img")).await.unwrap(), Pushed::Mounted);
    let bodies: Vec<_> =
        registry.requests().into_iter().map(|one| one.body).filter(|body| !body.is_empty()).collect();
    assert!(bodies[0].contains("repository%3Alab%2Fimg%3Apull%2Cpush"), "{bodies:?}");
    assert!(
        bodies.last().unwrap().contains("repository%3Alab%2Fimg%3Apull%2Cpush")
            && bodies.last().unwrap().contains("repository%3Aother%2Fimg%3Apull"),
        "{bodies:?}"
    );
}

#[tokio::test]
async fn an_upload_goes_on_where_it_broke_off() {
    let registry = ScriptedRegistry::start().await;
    let pusher = pusher(&registry, options());
    let data = noise(900_000);
    registry.cue("PUT", Fault::CutRequest(200_000), 1);
    registry.cue("PATCH", Fault::CutRequest(300_000), 1);
    assert_eq!(send(&pusher, &data, None).await.unwrap(), Pushed::Sent);
    let digest = described(LAYER, &data).digest;
    assert!(registry.written(&format!("lab/img/blobs/{digest}")).unwrap() == data);
    let requests = registry.requests();
    let ranges: Vec<_> = requests.iter().filter_map(|one| one.header("content-range")).collect();
    assert_eq!(ranges, ["200000-899999", "500000-899999"]);
    assert_eq!(requests.iter().filter(|one| one.line() == format!("POST {UPLOADS}")).count(), 1);
    assert_eq!(requests.last().unwrap().header("content-length"), Some("0"));
}

#[tokio::test]
async fn an_upload_that_the_host_forgot_begins_anew() {
    let registry = ScriptedRegistry::start().await;
    let pusher = pusher(&registry, options());
    for (number, fault) in
        [("GET", Fault::Status(404)), ("PATCH", Fault::Status(416))].into_iter().enumerate()
    {
        let data = noise(400_000 + number);
        registry.cue("PUT", Fault::CutRequest(100_000), 1);
        registry.cue(fault.0, fault.1, 9);
        assert_eq!(send(&pusher, &data, None).await.unwrap(), Pushed::Sent);
        let digest = described(LAYER, &data).digest;
        assert!(registry.written(&format!("lab/img/blobs/{digest}")).unwrap() == data);
        registry.recover();
    }
    registry.cue("PUT", Fault::CutRequest(0), 99);
    let error = send(&pusher, &noise(500_000), None).await.unwrap_err();
    assert!(error.to_string().contains("failed to do request: Put"), "{error}");
}

#[tokio::test]
async fn what_a_host_says_is_stored_must_be_what_was_sent() {
    let registry = ScriptedRegistry::start().await;
    let pusher = pusher(&registry, options());
    let other = corten_types::Digest::sha256(b"other");
    let headers = vec![("Docker-Content-Digest".to_owned(), other.to_string())];
    registry.cue("PUT", Fault::Answer(201, headers, Vec::new()), 1);
    let data = noise(1000);
    let error = send(&pusher, &data, None).await.unwrap_err();
    let digest = described(LAYER, &data).digest;
    assert_eq!(error.to_string(), format!("got digest {other}, expected {digest}"));
}

#[tokio::test]
async fn bytes_sent_elsewhere_take_no_credentials_along() {
    let (registry, store) = (ScriptedRegistry::start().await, ScriptedRegistry::start().await);
    registry.protect(AuthRule::basic("u", "secret"));
    let location = format!("http://{}/put/here?sig=1", store.host());
    registry.cue("POST", Fault::Answer(202, vec![("Location".into(), location)], vec![]), 1);
    store.cue("PUT", Fault::Status(201), 1);
    let options = ResolverOptions {
        credentials: Some(auth::user("u", "secret")),
        headers: vec![("x-secret".to_owned(), "h".to_owned())],
        ..options()
    };
    let data = noise(1000);
    assert_eq!(send(&pusher(&registry, options), &data, None).await.unwrap(), Pushed::Sent);
    let led = &store.requests()[0];
    assert!(led.target.starts_with("/put/here?sig=1&digest=sha256"), "{}", led.target);
    assert_eq!((led.header("authorization"), led.header("x-secret")), (None, None));
    assert_eq!(led.header("content-length"), Some("1000"));
}

#[tokio::test]
async fn the_root_gets_the_tag_and_others_their_digest() {
    let registry = ScriptedRegistry::start().await;
    let pusher = pusher(&registry, options());
    let (root, child) = (b"{\"root\": 1}".as_slice(), b"{\"child\": 1}".as_slice());
    let descriptor = described(MANIFEST, child);
    pusher.manifest(&descriptor, child.into(), false).await.unwrap();
    pusher.manifest(&described(MANIFEST, root), root.into(), true).await.unwrap();
    let place = "/v2/lab/img/manifests";
    assert_eq!(
        registry.lines(),
        [
            format!("HEAD {place}/{}", descriptor.digest),
            format!("PUT {place}/{}", descriptor.digest),
            format!("HEAD {place}/1.0"),
            format!("PUT {place}/1.0")
        ]
    );
    assert_eq!(registry.requests()[1].header("content-type"), Some(MANIFEST));
    assert_eq!(
        pusher.manifest(&described(MANIFEST, root), root.into(), true).await.unwrap(),
        Pushed::Existed
    );
    // The tag means something else by now.
    let other = b"{\"other\": 1}".as_slice();
    assert_eq!(pusher.manifest(&described(MANIFEST, other), other.into(), true).await.unwrap(), Pushed::Sent);
}

#[tokio::test]
async fn an_index_whose_parts_are_missing_says_so() {
    let registry = ScriptedRegistry::start().await;
    let pusher = pusher(&registry, options());
    registry.cue("PUT", Fault::Status(404), 9);
    let index = b"{}".as_slice();
    let descriptor = described("application/vnd.oci.image.index.v1+json", index);
    let error = pusher.manifest(&descriptor, index.into(), true).await.unwrap_err();
    let want =
        "manifest list/index references to blobs and/or manifests are missing in your target registry: ";
    assert!(error.to_string().starts_with(want), "{error}");
}

#[tokio::test]
async fn only_hosts_that_may_be_written_to_are() {
    let (mirror, origin) = (ScriptedRegistry::start().await, ScriptedRegistry::start().await);
    let dir = hosts_dir(&format!(
        "server = 'http://{}'\n[host.'http://{}']\ncapabilities=['pull','resolve']\n",
        origin.host(),
        mirror.host()
    ));
    let pusher = configured(&dir).pusher(&reference("reg.example", "1.0")).unwrap();
    assert_eq!(send(&pusher, &noise(100), None).await.unwrap(), Pushed::Sent);
    assert!(mirror.lines().is_empty() && !origin.lines().is_empty());
    let dir = hosts_dir("server = 'http://127.0.0.1:1'\ncapabilities=['pull']\n");
    let error = configured(&dir).pusher(&reference("reg.example", "1.0")).unwrap_err();
    assert_eq!(error.to_string(), "no push hosts: not found");
}

#[tokio::test]
async fn bytes_are_told_as_they_go_out() {
    let registry = ScriptedRegistry::start().await;
    let data = noise(1_000_000);
    let told = Arc::new(Mutex::new(Vec::new()));
    let pusher = pusher(&registry, options());
    let heard = Arc::clone(&told);
    let listener = Arc::new(move |sent| heard.lock().unwrap().push(sent));
    pusher.blob(&described(CONFIG, &data), None, Arc::new(Memory(data.clone())), listener).await.unwrap();
    let told = told.lock().unwrap();
    assert!(told.is_sorted() && told.len() > 3, "{told:?}");
    assert_eq!(told.last(), Some(&1_000_000));
}
