//! Snapshots.

use corten_api::services::snapshots::{self as api, snapshots_server};
use corten_api::types;
use corten_metadata::SnapshotRecord;
use corten_snapshots::Commit;
use corten_types::{Error, Mount};
use tonic::{Request, Response, Status};

use super::{Answers, Services, answers, context, paths, required, status, timestamp};

/// Infos in one message of a list.
const BLOCK: usize = 100;

fn to_api(snapshot: SnapshotRecord) -> api::Info {
    api::Info {
        name: snapshot.name,
        parent: snapshot.parent,
        kind: snapshot.kind as i32,
        created_at: timestamp(snapshot.created_at),
        updated_at: timestamp(snapshot.updated_at),
        labels: snapshot.labels,
    }
}

fn mounts(mounts: Vec<Mount>) -> Vec<types::Mount> {
    mounts.into_iter().map(types::Mount::from).collect()
}

#[tonic::async_trait]
impl snapshots_server::Snapshots for Services {
    async fn prepare(
        &self,
        request: Request<api::PrepareSnapshotRequest>,
    ) -> Result<Response<api::PrepareSnapshotResponse>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        let made = self.snapshots.prepare(&ctx, &r.snapshotter, &r.key, &r.parent, r.labels).await;
        Ok(Response::new(api::PrepareSnapshotResponse { mounts: mounts(made.map_err(status)?) }))
    }

    async fn view(
        &self,
        request: Request<api::ViewSnapshotRequest>,
    ) -> Result<Response<api::ViewSnapshotResponse>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        let made = self.snapshots.view(&ctx, &r.snapshotter, &r.key, &r.parent, r.labels).await;
        Ok(Response::new(api::ViewSnapshotResponse { mounts: mounts(made.map_err(status)?) }))
    }

    async fn mounts(
        &self,
        request: Request<api::MountsRequest>,
    ) -> Result<Response<api::MountsResponse>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        let found = self.snapshots.mounts(&ctx, &r.snapshotter, &r.key).await.map_err(status)?;
        Ok(Response::new(api::MountsResponse { mounts: mounts(found) }))
    }

    async fn commit(&self, request: Request<api::CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        let commit = Commit {
            snapshotter: &r.snapshotter,
            name: &r.name,
            key: &r.key,
            parent: &r.parent,
            labels: r.labels,
            is_synced: false,
        };
        self.snapshots.commit(&ctx, commit).await.map_err(status)?;
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<api::RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        self.snapshots.remove(&ctx, &r.snapshotter, &r.key).await.map_err(status)?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<api::StatSnapshotRequest>,
    ) -> Result<Response<api::StatSnapshotResponse>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        let found = self.snapshots.stat(&ctx, &r.snapshotter, &r.key).await.map_err(status)?;
        Ok(Response::new(api::StatSnapshotResponse { info: Some(to_api(found)) }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateSnapshotRequest>,
    ) -> Result<Response<api::UpdateSnapshotResponse>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        let info = required(r.info, "info")?;
        let changed =
            self.snapshots.update(&ctx, &r.snapshotter, &info.name, info.labels, paths(r.update_mask)).await;
        Ok(Response::new(api::UpdateSnapshotResponse { info: Some(to_api(changed.map_err(status)?)) }))
    }

    type ListStream = Answers<api::ListSnapshotsResponse>;

    async fn list(
        &self,
        request: Request<api::ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        let found = self.snapshots.list(&ctx, &r.snapshotter, &r.filters).await.map_err(status)?;
        let infos: Vec<api::Info> = found.into_iter().map(to_api).collect();
        Ok(Response::new(answers(
            infos.chunks(BLOCK).map(|block| api::ListSnapshotsResponse { info: block.to_vec() }).collect(),
        )))
    }

    async fn usage(
        &self,
        request: Request<api::UsageRequest>,
    ) -> Result<Response<api::UsageResponse>, Status> {
        let (ctx, r) = (context(&request)?, request.into_inner());
        let usage = self.snapshots.usage(&ctx, &r.snapshotter, &r.key).await.map_err(status)?;
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        Ok(Response::new(api::UsageResponse { size: signed(usage.size), inodes: signed(usage.inodes) }))
    }

    async fn cleanup(&self, request: Request<api::CleanupRequest>) -> Result<Response<()>, Status> {
        context(&request)?;
        self.snapshots.capabilities(&request.into_inner().snapshotter).map_err(status)?;
        // The collector does it by itself; the original hides it from clients too.
        Err(status(Error::not_implemented("snapshotter does not implement Cleanup method")))
    }
}
