//! A content store in another process.

use std::collections::BTreeSet;

use bytes::Bytes;
use corten_api::keys::MAX_MESSAGE;
use corten_api::services::content::{self as api, content_client::ContentClient};
use corten_content::{RemoteBlobs, RemoteIngest};
use corten_types::{Context, Digest, Error, Result};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use super::{Connection, request};

/// Speaks the service of content with it.
#[derive(Debug)]
pub struct ProxyBlobs {
    connection: Connection,
}

impl ProxyBlobs {
    /// The store behind a connection.
    pub fn new(connection: Connection) -> Self {
        Self { connection }
    }

    fn client(&self) -> ContentClient<Channel> {
        ContentClient::new(self.connection.channel())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }
}

/// A write that goes on.
#[derive(Debug)]
struct ProxyIngest {
    connection: Connection,
    requests: mpsc::Sender<api::WriteContentRequest>,
    answers: Streaming<api::WriteContentResponse>,
    total: i64,
    offset: i64,
}

impl ProxyIngest {
    /// A message and its answer.
    async fn say(&mut self, message: api::WriteContentRequest) -> Result<()> {
        let ended = || Error::unavailable("the content store ended the write");
        // What it ended the write with is in its answer.
        let _ = self.requests.send(message).await;
        let answer = self.answers.message().await.map_err(|status| self.connection.error(&status))?;
        answer.map(drop).ok_or_else(ended)
    }
}

#[async_trait::async_trait]
impl RemoteIngest for ProxyIngest {
    async fn write(&mut self, data: Bytes) -> Result<()> {
        let count = i64::try_from(data.len()).unwrap_or(0);
        let action = api::WriteAction::Write.into();
        // What it has of an earlier try is sent again: offset 0 begins anew.
        let (offset, total) = (self.offset, self.total);
        self.say(api::WriteContentRequest { action, offset, total, data, ..Default::default() }).await?;
        self.offset += count;
        Ok(())
    }

    async fn commit(&mut self, digest: &Digest) -> Result<()> {
        let message = api::WriteContentRequest {
            action: api::WriteAction::Commit.into(),
            offset: self.offset,
            total: self.offset,
            expected: digest.to_string(),
            ..Default::default()
        };
        match self.say(message).await {
            Err(error) if error.is_already_exists() => Ok(()),
            other => other,
        }
    }
}

#[async_trait::async_trait]
impl RemoteBlobs for ProxyBlobs {
    async fn size(&self, ctx: Option<&Context>, digest: &Digest) -> Result<Option<u64>> {
        let message = api::InfoRequest { digest: digest.to_string() };
        match self.client().info(request(ctx, message)?).await {
            Ok(answer) => {
                let size = answer.into_inner().info.unwrap_or_default().size;
                Ok(Some(u64::try_from(size).unwrap_or(0)))
            }
            Err(status) => match self.connection.error(&status) {
                error if error.is_not_found() => Ok(None),
                error => Err(error),
            },
        }
    }

    async fn read(&self, ctx: &Context, digest: &Digest, offset: u64, most: u64) -> Result<Bytes> {
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let message = api::ReadContentRequest {
            digest: digest.to_string(),
            offset: signed(offset),
            size: signed(most),
        };
        let failed = |status: Status| self.connection.error(&status);
        let mut parts = self.client().read(request(Some(ctx), message)?).await.map_err(failed)?.into_inner();
        let mut data = Vec::new();
        while let Some(part) = parts.message().await.map_err(failed)? {
            data.extend_from_slice(&part.data);
            if data.len() as u64 >= most {
                break;
            }
        }
        Ok(Bytes::from(data))
    }

    async fn ingest(&self, ctx: &Context, reference: &str, total: u64) -> Result<Box<dyn RemoteIngest>> {
        let total = i64::try_from(total).unwrap_or(i64::MAX);
        let (requests, receiver) = mpsc::channel(1);
        let call: Request<_> = request(Some(ctx), ReceiverStream::new(receiver))?;
        let first = api::WriteContentRequest {
            action: api::WriteAction::Stat.into(),
            r#ref: reference.to_owned(),
            total,
            ..Default::default()
        };
        // It answers nothing before it was told something.
        let _ = requests.send(first).await;
        let failed = |status: Status| self.connection.error(&status);
        let answers = self.client().write(call).await.map_err(failed)?.into_inner();
        let connection = self.connection.clone();
        let mut ingest = ProxyIngest { connection, requests, answers, total, offset: 0 };
        let known = ingest.answers.message().await.map_err(failed)?;
        known.ok_or_else(|| Error::unavailable("the content store ended the write"))?;
        Ok(Box::new(ingest))
    }

    async fn abort(&self, ctx: &Context, reference: &str) -> Result<()> {
        let message = api::AbortRequest { r#ref: reference.to_owned() };
        match self.client().abort(request(Some(ctx), message)?).await {
            Ok(_) => Ok(()),
            Err(status) => match self.connection.error(&status) {
                error if error.is_not_found() => Ok(()),
                error => Err(error),
            },
        }
    }

    async fn list(&self) -> Result<BTreeSet<String>> {
        let failed = |status: Status| self.connection.error(&status);
        let message = api::ListContentRequest::default();
        let mut blocks = self.client().list(request(None, message)?).await.map_err(failed)?.into_inner();
        let mut digests = BTreeSet::new();
        while let Some(block) = blocks.message().await.map_err(failed)? {
            digests.extend(block.info.into_iter().map(|info| info.digest));
        }
        Ok(digests)
    }

    async fn delete(&self, digest: &str) -> Result<()> {
        let message = api::DeleteContentRequest { digest: digest.to_owned() };
        match self.client().delete(request(None, message)?).await {
            Ok(_) => Ok(()),
            Err(status) => match self.connection.error(&status) {
                error if error.is_not_found() => Ok(()),
                error => Err(error),
            },
        }
    }
}
