//! A snapshotter in another process.

use corten_api::keys::MAX_MESSAGE;
use corten_api::services::snapshots::{self as api, snapshots_client::SnapshotsClient};
use corten_snapshots::{Info, Kind, Snapshotter, Usage};
use corten_types::timestamp::to_system;
use corten_types::{Context, Error, Labels, Mount, Result};
use tonic::transport::Channel;

use super::{Connection, mask, mounts, request};

/// Speaks the service of snapshots with it.
#[derive(Debug)]
pub struct ProxySnapshotter {
    /// The name that it knows itself by; most do not care.
    name: String,
    connection: Connection,
}

impl ProxySnapshotter {
    /// The snapshotter `name` behind a connection.
    pub fn new(name: &str, connection: Connection) -> Self {
        Self { name: name.to_owned(), connection }
    }

    fn client(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.connection.channel())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }
}

fn from_api(info: api::Info) -> Info {
    let kind = match info.kind {
        1 => Kind::View,
        3 => Kind::Committed,
        _ => Kind::Active,
    };
    Info {
        key: info.name,
        parent: info.parent,
        kind,
        labels: info.labels,
        created_at: to_system(&info.created_at.unwrap_or_default()),
        updated_at: to_system(&info.updated_at.unwrap_or_default()),
    }
}

fn answered(info: Option<api::Info>) -> Result<Info> {
    info.map(from_api).ok_or_else(|| Error::unknown("the snapshotter answered without an info"))
}

#[async_trait::async_trait]
impl Snapshotter for ProxySnapshotter {
    async fn prepare(&self, ctx: &Context, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>> {
        let snapshotter = self.name.clone();
        let message =
            api::PrepareSnapshotRequest { snapshotter, key: key.into(), parent: parent.into(), labels };
        let answer = self.client().prepare(request(Some(ctx), message)?).await;
        Ok(mounts(answer.map_err(|status| self.connection.error(&status))?.into_inner().mounts))
    }

    async fn view(&self, ctx: &Context, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>> {
        let snapshotter = self.name.clone();
        let message =
            api::ViewSnapshotRequest { snapshotter, key: key.into(), parent: parent.into(), labels };
        let answer = self.client().view(request(Some(ctx), message)?).await;
        Ok(mounts(answer.map_err(|status| self.connection.error(&status))?.into_inner().mounts))
    }

    async fn mounts(&self, ctx: &Context, key: &str) -> Result<Vec<Mount>> {
        let message = api::MountsRequest { snapshotter: self.name.clone(), key: key.into() };
        let answer = self.client().mounts(request(Some(ctx), message)?).await;
        Ok(mounts(answer.map_err(|status| self.connection.error(&status))?.into_inner().mounts))
    }

    async fn commit(&self, ctx: &Context, name: &str, key: &str, parent: &str, labels: Labels) -> Result<()> {
        let message = api::CommitSnapshotRequest {
            snapshotter: self.name.clone(),
            name: name.into(),
            key: key.into(),
            labels,
            parent: parent.into(),
        };
        let answer = self.client().commit(request(Some(ctx), message)?).await;
        answer.map(drop).map_err(|status| self.connection.error(&status))
    }

    async fn stat(&self, ctx: &Context, key: &str) -> Result<Info> {
        let message = api::StatSnapshotRequest { snapshotter: self.name.clone(), key: key.into() };
        let answer = self.client().stat(request(Some(ctx), message)?).await;
        answered(answer.map_err(|status| self.connection.error(&status))?.into_inner().info)
    }

    async fn update(&self, ctx: &Context, key: &str, labels: Labels, paths: Vec<String>) -> Result<Info> {
        let info = api::Info { name: key.into(), labels, ..api::Info::default() };
        let message = api::UpdateSnapshotRequest {
            snapshotter: self.name.clone(),
            info: Some(info),
            update_mask: mask(paths),
        };
        let answer = self.client().update(request(Some(ctx), message)?).await;
        answered(answer.map_err(|status| self.connection.error(&status))?.into_inner().info)
    }

    async fn usage(&self, ctx: &Context, key: &str) -> Result<Usage> {
        let message = api::UsageRequest { snapshotter: self.name.clone(), key: key.into() };
        let answer = self.client().usage(request(Some(ctx), message)?).await;
        let usage = answer.map_err(|status| self.connection.error(&status))?.into_inner();
        let number = |signed: i64| u64::try_from(signed).unwrap_or(0);
        Ok(Usage { size: number(usage.size), inodes: number(usage.inodes) })
    }

    async fn list(&self, ctx: Option<&Context>, filters: Vec<String>) -> Result<Vec<Info>> {
        let message = api::ListSnapshotsRequest { snapshotter: self.name.clone(), filters };
        let failed = |status: tonic::Status| self.connection.error(&status);
        let mut blocks = self.client().list(request(ctx, message)?).await.map_err(failed)?.into_inner();
        let mut infos = Vec::new();
        while let Some(block) = blocks.message().await.map_err(failed)? {
            infos.extend(block.info.into_iter().map(from_api));
        }
        Ok(infos)
    }

    async fn remove(&self, key: &str) -> Result<()> {
        let message = api::RemoveSnapshotRequest { snapshotter: self.name.clone(), key: key.into() };
        let answer = self.client().remove(request(None, message)?).await;
        answer.map(drop).map_err(|status| self.connection.error(&status))
    }

    async fn cleanup(&self) -> Result<()> {
        let message = api::CleanupRequest { snapshotter: self.name.clone() };
        let answer = self.client().cleanup(request(None, message)?).await;
        answer.map(drop).map_err(|status| self.connection.error(&status))
    }
}
