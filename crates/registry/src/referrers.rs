//! What refers to a manifest: signatures, attestations (spec 03 §6.3).

use corten_types::{Descriptor, Digest, Error, Result, media_type};
use http::header::ACCEPT;
use http::{HeaderValue, Method};
use serde::Deserialize;

use crate::fetch::Fetcher;
use crate::request::unexpected_status;
use crate::{MAX_MANIFEST_SIZE, url};

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
        let fallback = format!("manifests/{}-{}", digest.algorithm().as_str(), digest.hex());
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
        let repository = self.repository();
        let mut first_error = None;
        let endpoints = repository.capable(|can| can.referrers);
        for (index, endpoint) in endpoints.iter().enumerate() {
            let accept = (ACCEPT, HeaderValue::from_static(media_type::OCI_INDEX));
            let mut request = endpoint.request(Method::GET, what, &[accept]);
            if !artifact_type.is_empty() && what.starts_with("referrers/") {
                let mark = if request.url.target.contains('?') { '&' } else { '?' };
                let query = format!("{mark}artifactType={}", url::escape_value(artifact_type));
                request.url.target.push_str(&query);
            }
            let last = index + 1 == endpoints.len();
            match endpoint.send(request, &repository.scopes, last).await {
                Ok(response) if response.status.as_u16() == 404 => {}
                Ok(response) if response.status.is_success() => {
                    let limit = usize::try_from(MAX_MANIFEST_SIZE).unwrap_or(usize::MAX);
                    let body = response.body.read(limit).await;
                    let body = body.map_err(|error| Error::unknown(error.to_string()))?;
                    let body = body.ok_or_else(|| Error::unknown("the list of referrers is too long"))?;
                    let index: Index = serde_json::from_slice(&body)
                        .map_err(|error| Error::unknown(format!("list of referrers: {error}")))?;
                    return Ok(Some(index.manifests));
                }
                Ok(response) => {
                    first_error.get_or_insert(unexpected_status(&Method::GET, response).await);
                }
                Err(failure) => {
                    first_error.get_or_insert(failure.into_error());
                }
            }
        }
        first_error.map_or(Ok(None), Err)
    }
}
