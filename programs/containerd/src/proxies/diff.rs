//! A differ in another process.

use corten_api::keys::MAX_MESSAGE;
use corten_api::services::diff::{self as api, diff_client::DiffClient};
use corten_diff::{Applied, ApplyRequest, DiffRequest, Differ};
use corten_types::{Context, Descriptor, Error, Mount, Result, timestamp};
use tonic::transport::Channel;

use super::{Connection, request};

/// Speaks the diff service with it. It reads and writes the content store as a client of this daemon.
#[derive(Debug)]
pub struct ProxyDiffer {
    id: String,
    connection: Connection,
}

impl ProxyDiffer {
    /// The differ `id` behind a connection.
    pub fn new(id: &str, connection: Connection) -> Self {
        Self { id: id.to_owned(), connection }
    }

    fn client(&self) -> DiffClient<Channel> {
        DiffClient::new(self.connection.channel())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }
}

fn mounts(mounts: &[Mount]) -> Vec<corten_api::types::Mount> {
    mounts.iter().cloned().map(Into::into).collect()
}

fn answered(descriptor: Option<corten_api::types::Descriptor>) -> Result<Descriptor> {
    let missing = || Error::unknown("the differ answered without a descriptor");
    Descriptor::try_from(descriptor.ok_or_else(missing)?)
}

#[async_trait::async_trait]
impl Differ for ProxyDiffer {
    fn id(&self) -> &str {
        &self.id
    }

    fn is_streaming(&self) -> bool {
        false
    }

    async fn apply(&self, ctx: &Context, asked: &ApplyRequest) -> Result<Applied> {
        let message = api::ApplyRequest {
            diff: Some(asked.layer.clone().into()),
            mounts: mounts(&asked.mounts),
            payloads: asked.payloads.clone().into_iter().collect(),
            sync_fs: asked.sync,
        };
        let answer = self.client().apply(request(Some(ctx), message)?).await;
        let applied =
            answered(answer.map_err(|status| self.connection.error(&status))?.into_inner().applied)?;
        Ok(Applied {
            media_type: applied.media_type,
            digest: applied.digest,
            size: u64::try_from(applied.size).unwrap_or(0),
            implied: Vec::new(),
        })
    }

    async fn diff(&self, ctx: &Context, asked: &DiffRequest) -> Result<Descriptor> {
        let message = api::DiffRequest {
            left: mounts(&asked.lower),
            right: mounts(&asked.upper),
            media_type: asked.media_type.clone(),
            r#ref: asked.reference.clone(),
            labels: asked.labels.clone(),
            source_date_epoch: asked.source_date_epoch.map(timestamp::from_system),
        };
        let answer = self.client().diff(request(Some(ctx), message)?).await;
        answered(answer.map_err(|status| self.connection.error(&status))?.into_inner().diff)
    }
}
