//! Writes to the test registry: uploads that can be broken off and continued, mounts, manifests.

use bytes::Bytes;
use corten_types::Digest;

use super::serve::Answer;
use super::{Recorded, State, Stored, lock};

/// What a write is answered; nothing for a request that is none. Of a body that broke off, `data` is what came.
pub(super) fn answer(state: &State, request: &Recorded, data: &[u8], is_whole: bool) -> Option<Answer> {
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let parameter = |name: &str| {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let value = pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).next()?;
        Some(value.replace("%3A", ":").replace("%2F", "/"))
    };
    match request.method.as_str() {
        "POST" if path.ends_with("/blobs/uploads/") => {
            if let (Some(digest), Some(from)) = (parameter("mount"), parameter("from")) {
                let mut content = lock(&state.content);
                if let Some(stored) = content.get(&format!("/v2/{from}/blobs/{digest}")).cloned() {
                    content.insert(path.replace("uploads/", &digest), stored);
                    return Some(Answer::status(201));
                }
            }
            let mut uploads = lock(&state.uploads);
            let place = format!("{path}{}", uploads.len());
            uploads.insert(place.clone(), Vec::new());
            Some(at(place, 0, 202))
        }
        "GET" if path.contains("/blobs/uploads/") => {
            let have = lock(&state.uploads).get(path).map(Vec::len);
            Some(have.map_or_else(|| Answer::status(404), |have| at(path.to_owned(), have, 204)))
        }
        "DELETE" if path.contains("/blobs/uploads/") => {
            let have = lock(&state.uploads).remove(path);
            Some(Answer::status(if have.is_some() { 204 } else { 404 }))
        }
        "PATCH" | "PUT" if path.contains("/blobs/uploads/") => {
            let mut uploads = lock(&state.uploads);
            let Some(have) = uploads.get_mut(path) else { return Some(Answer::status(404)) };
            have.extend_from_slice(data);
            if !is_whole || request.method == "PATCH" {
                return Some(at(path.to_owned(), have.len(), 202));
            }
            let digest = Digest::sha256(have.as_slice());
            if parameter("digest").as_deref() != Some(digest.as_str()) {
                return Some(Answer::status(400));
            }
            let data = uploads.remove(path).unwrap_or_default();
            let name = path.rsplit_once("uploads/").map_or(path, |(before, _)| before);
            Some(stored(state, &[format!("{name}{digest}")], "application/octet-stream", digest, data.into()))
        }
        "PUT" if path.contains("/manifests/") && is_whole => {
            let digest = Digest::sha256(data);
            let folder = path.rsplit_once('/').map_or(path, |(folder, _)| folder);
            let paths = [path.to_owned(), format!("{folder}/{digest}")];
            let kind = request.header("content-type").unwrap_or_default().to_owned();
            Some(stored(state, &paths, &kind, digest, Bytes::copy_from_slice(data)))
        }
        _ => None,
    }
}

fn stored(state: &State, paths: &[String], media_type: &str, digest: Digest, data: Bytes) -> Answer {
    let stored = Stored { media_type: media_type.to_owned(), digest: digest.clone(), data };
    for path in paths {
        lock(&state.content).insert(path.clone(), stored.clone());
    }
    let headers = vec![("Docker-Content-Digest".to_owned(), digest.to_string())];
    Answer { headers, ..Answer::status(201) }
}

/// The state of an upload of which so many bytes are here.
fn at(place: String, have: usize, status: u16) -> Answer {
    let range = format!("0-{}", have.saturating_sub(1));
    let headers = vec![("Location".to_owned(), place), ("Range".to_owned(), range)];
    Answer { headers, ..Answer::status(status) }
}
