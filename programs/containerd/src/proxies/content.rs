//! A content store in another process.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use corten_api::keys::MAX_MESSAGE;
use corten_api::services::content::{self as api, content_client::ContentClient};
use corten_content::RemoteBlobs;
use corten_types::{Context, Digest, Error, Labels, Result};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::{Connection, request};

/// Bytes in one message.
const CHUNK: usize = 1 << 20;

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

    /// The conversation of a write: its bytes, then the commit.
    async fn send(&self, ctx: &Context, first: api::WriteContentRequest, data: Arc<File>) -> Result<()> {
        let (digest, size) = (first.expected.clone(), first.total);
        let (sender, receiver) = mpsc::channel(4);
        let failed = |status: Status| self.connection.error(&status);
        let gone = |_| Error::unavailable("the content store ended the write");
        sender.send(first.clone()).await.map_err(gone)?;
        let call: Request<_> = request(Some(ctx), ReceiverStream::new(receiver))?;
        let mut answers = self.client().write(call).await.map_err(failed)?.into_inner();
        let none = || Error::unavailable("the content store ended the write");
        let known = answers.message().await.map_err(failed)?.ok_or_else(none)?;
        let base = api::WriteContentRequest { labels: Labels::new(), ..first };
        // It may have all of it already. What it has of an earlier try is sent again: offset 0 begins anew.
        let mut offset = if known.offset == size { size } else { 0 };
        while offset < size {
            let (file, from) = (Arc::clone(&data), u64::try_from(offset).unwrap_or(0));
            let chunk = tokio::task::spawn_blocking(move || -> Result<Vec<u8>> {
                let mut chunk = vec![0; CHUNK];
                let count = file.read_at(&mut chunk, from)?;
                chunk.truncate(count);
                Ok(chunk)
            });
            let chunk = chunk.await.map_err(|error| Error::internal(error.to_string()))??;
            if chunk.is_empty() {
                return Err(Error::internal("the ingest is shorter than it was"));
            }
            let action = api::WriteAction::Write.into();
            let count = i64::try_from(chunk.len()).unwrap_or(0);
            let message = api::WriteContentRequest {
                action,
                offset,
                data: Bytes::from(chunk),
                expected: String::new(),
                ..base.clone()
            };
            sender.send(message).await.map_err(gone)?;
            answers.message().await.map_err(failed)?.ok_or_else(none)?;
            offset += count;
        }
        let action = api::WriteAction::Commit.into();
        let message = api::WriteContentRequest { action, offset, expected: digest, ..base };
        sender.send(message).await.map_err(gone)?;
        answers.message().await.map_err(failed)?.ok_or_else(none)?;
        Ok(())
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

    async fn write(
        &self,
        ctx: &Context,
        reference: &str,
        digest: &Digest,
        size: u64,
        data: File,
    ) -> Result<()> {
        let first = api::WriteContentRequest {
            action: api::WriteAction::Stat.into(),
            r#ref: reference.to_owned(),
            total: i64::try_from(size).unwrap_or(i64::MAX),
            expected: digest.to_string(),
            ..Default::default()
        };
        match self.send(ctx, first, Arc::new(data)).await {
            Err(error) if error.is_already_exists() => Ok(()),
            other => other,
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
