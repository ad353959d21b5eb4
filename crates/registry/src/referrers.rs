//! What refers to a manifest: signatures, attestations (spec 03 §6.3).

use corten_types::{Descriptor, Digest, Error, Result, media_type};
use http::header::{ACCEPT, LINK};
use http::{HeaderMap, HeaderValue, Method};
use serde::Deserialize;

use crate::fetch::Fetcher;
use crate::request::{Endpoint, Failure, unexpected_status};
use crate::url;

/// Bytes of a list, all its pages together.
const MAX_SIZE: usize = 16 << 20;
const MAX_PAGES: usize = 100;
/// Characters of a digest that the tag has which stands in for the list: tags are short.
const TAG: usize = 64;

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

impl Fetcher {
    /// The manifests that name `digest` as their subject; empty when the registry knows of none.
    /// `artifact_type` narrows the answer, where it is not empty.
    ///
    /// # Errors
    /// What the hosts answer, unless they know neither the request nor the tag that stands in for it.
    pub async fn referrers(&self, digest: &Digest, artifact_type: &str) -> Result<Vec<Descriptor>> {
        let hex: String = digest.hex().chars().take(TAG).collect();
        let fallback = format!("manifests/{}-{hex}", digest.algorithm().as_str());
        for what in [format!("referrers/{digest}"), fallback] {
            if let Some(mut found) = self.referrers_at(&what, artifact_type).await? {
                // A host may ignore the query.
                found.retain(|descriptor| {
                    artifact_type.is_empty() || descriptor.artifact_type.as_deref() == Some(artifact_type)
                });
                return Ok(found);
            }
        }
        Ok(Vec::new())
    }

    async fn referrers_at(&self, what: &str, artifact_type: &str) -> Result<Option<Vec<Descriptor>>> {
        let mut first_error = None;
        let endpoints = self.repository().capable(|can| can.referrers);
        for (index, endpoint) in endpoints.iter().enumerate() {
            let last = index + 1 == endpoints.len();
            match self.referrers_of(endpoint, what, artifact_type, last).await {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        first_error.map_or(Ok(None), Err)
    }

    /// All pages of one host's list; nothing if it has none.
    async fn referrers_of(
        &self,
        endpoint: &Endpoint,
        what: &str,
        artifact_type: &str,
        last: bool,
    ) -> Result<Option<Vec<Descriptor>>> {
        let accept = (ACCEPT, HeaderValue::from_static(media_type::OCI_INDEX));
        let mut request = endpoint.request(Method::GET, what, &[accept]);
        if !artifact_type.is_empty() && what.starts_with("referrers/") {
            let mark = if request.url.target.contains('?') { '&' } else { '?' };
            let query = format!("{mark}artifactType={}", url::escape_value(artifact_type));
            request.url.target.push_str(&query);
        }
        let (mut found, mut left) = (Vec::new(), MAX_SIZE);
        for page in 0..MAX_PAGES {
            let sent = endpoint.send(request.clone(), &self.repository().scopes, last).await;
            let response = sent.map_err(Failure::into_error)?;
            match response.status.as_u16() {
                200..=299 => {}
                404 if page == 0 => return Ok(None),
                _ => return Err(unexpected_status(&Method::GET, response).await),
            }
            let next = next_page(&response.headers).map(|target| response.url.join(&target)).transpose()?;
            let body = response.body.read(left).await.map_err(|error| Error::unknown(error.to_string()))?;
            let body = body.ok_or_else(|| Error::unknown("the list of referrers is too long"))?;
            left -= body.len();
            let index: Index = serde_json::from_slice(&body)
                .map_err(|error| Error::unknown(format!("list of referrers: {error}")))?;
            found.extend(index.manifests);
            match next {
                None => return Ok(Some(found)),
                // Our credentials are for this host alone.
                Some(next) if !next.same_origin(&request.url) => {
                    let text = format!("the list of referrers goes on at another host: {next}");
                    return Err(Error::unknown(text));
                }
                Some(next) => request.url = next,
            }
        }
        Err(Error::unknown(format!("the list of referrers has more than {MAX_PAGES} pages")))
    }
}

/// The address of the page after this one: `<address>; rel="next"`.
fn next_page(headers: &HeaderMap) -> Option<String> {
    let lines = headers.get_all(LINK).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split('<').skip(1)).find_map(|link| {
        let (target, parameters) = link.split_once('>')?;
        let is_next = |one: &str| ["rel=next", "rel=\"next\""].contains(&one.trim());
        parameters.split([';', ',']).any(is_next).then(|| target.to_owned())
    })
}
