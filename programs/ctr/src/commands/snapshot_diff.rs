//! `snapshots diff`: what a snapshot changes, as a layer on standard output.

use clap::Args;
use corten_api::services::{content, diff, snapshots};
use corten_api::types::Mount;
use corten_types::{Error, Labels, Result};

use crate::client::{Daemon, error};
use crate::commands::snapshots::{ROOT, stat};
use crate::container::labels;
use crate::output;

/// When reproducible layers are made.
type Epoch = Option<prost_types::Timestamp>;

/// What a snapshot changes.
#[derive(Debug, Args)]
pub struct Diff {
    /// Type of the layer.
    #[arg(long, default_value = "application/vnd.oci.image.layer.v1.tar+gzip")]
    media_type: String,
    /// Name of the upload.
    #[arg(long = "ref")]
    reference: Option<String>,
    /// Keep the layer in the content store.
    #[arg(long)]
    keep: bool,
    /// Labels of the layer, K=V.
    #[arg(long)]
    label: Vec<String>,
    #[arg(default_value = "", value_name = "A")]
    a: String,
    #[arg(default_value = "", value_name = "[B]")]
    b: String,
}

impl Diff {
    pub async fn run(self, daemon: &Daemon, snapshotter: &str) -> Result<()> {
        if self.a.is_empty() {
            return Err(Error::unknown("snapshot id must be provided"));
        }
        let epoch = source_date_epoch();
        super::leases::held(daemon, async |leased| self.made(leased, snapshotter, epoch).await).await
    }

    async fn made(&self, daemon: &Daemon, snapshotter: &str, epoch: Epoch) -> Result<()> {
        let mut views = Views::new(daemon, snapshotter);
        let layer = self.compare(&mut views, epoch).await;
        views.remove().await;
        copy(daemon, &layer?).await
    }

    /// Has the layer made; answers its digest.
    async fn compare(&self, views: &mut Views<'_>, epoch: Epoch) -> Result<String> {
        let (left, right) = match self.b.is_empty() {
            true => {
                let parent = stat(views.daemon, views.snapshotter, &self.a).await?.parent;
                (views.of(&parent).await?, views.mounts(&self.a).await?)
            }
            false => (views.mounts(&self.a).await?, views.mounts(&self.b).await?),
        };
        let mut labels = labels(&self.label);
        if self.keep {
            labels.insert(ROOT.into(), output::local_time(std::time::SystemTime::now()));
        }
        let request = diff::DiffRequest {
            left,
            right,
            media_type: self.media_type.clone(),
            r#ref: self.reference.clone().unwrap_or_default(),
            labels,
            source_date_epoch: epoch,
        };
        let made = views.daemon.diff().diff(request).await.map_err(error)?.into_inner();
        Ok(made.diff.unwrap_or_default().digest)
    }
}

/// The time that reproducible layers are made at, if one is set; one that cannot be read is told, and not used.
fn source_date_epoch() -> Epoch {
    let text = std::env::var("SOURCE_DATE_EPOCH").ok().filter(|text| !text.is_empty())?;
    let Ok(seconds) = text.parse() else {
        let why = format!(
            "invalid SOURCE_DATE_EPOCH value: invalid value: strconv.ParseInt: parsing {text:?}: invalid syntax"
        );
        crate::log::warning_of("Failed to read SOURCE_DATE_EPOCH", &why);
        return None;
    };
    Some(prost_types::Timestamp { seconds, nanos: 0 })
}

/// Views made for a comparison, and their keys.
pub struct Views<'a> {
    daemon: &'a Daemon,
    snapshotter: &'a str,
    keys: Vec<String>,
}

impl<'a> Views<'a> {
    pub fn new(daemon: &'a Daemon, snapshotter: &'a str) -> Self {
        Self { daemon, snapshotter, keys: Vec::new() }
    }

    /// Has the difference of two lists of mounts made, as an archive that is not compressed; answers its digest.
    pub async fn layer(&self, left: Vec<Mount>, right: Vec<Mount>) -> Result<String> {
        let media_type = "application/vnd.oci.image.layer.v1.tar".into();
        let request = diff::DiffRequest { left, right, media_type, ..Default::default() };
        let made = self.daemon.diff().diff(request).await.map_err(error)?.into_inner();
        Ok(made.diff.unwrap_or_default().digest)
    }

    /// Mounts of a snapshot: its own where it is active, else those of a view of it.
    pub async fn mounts(&mut self, key: &str) -> Result<Vec<Mount>> {
        let info = stat(self.daemon, self.snapshotter, key).await?;
        if info.kind() == snapshots::Kind::Committed {
            return self.of(key).await;
        }
        let request = snapshots::MountsRequest { snapshotter: self.snapshotter.into(), key: key.into() };
        Ok(self.daemon.snapshots().mounts(request).await.map_err(error)?.into_inner().mounts)
    }

    /// Mounts of a view of a committed snapshot; of an empty one without a parent.
    pub async fn of(&mut self, parent: &str) -> Result<Vec<Mount>> {
        let key = format!("{parent}-view-{}-{}", std::process::id(), self.keys.len());
        let request = snapshots::ViewSnapshotRequest {
            snapshotter: self.snapshotter.into(),
            key: key.clone(),
            parent: parent.into(),
            labels: Labels::new(),
        };
        let mounts = self.daemon.snapshots().view(request).await.map_err(error)?.into_inner().mounts;
        self.keys.push(key);
        Ok(mounts)
    }

    pub async fn remove(self) {
        for key in self.keys {
            let request = snapshots::RemoveSnapshotRequest { snapshotter: self.snapshotter.into(), key };
            self.daemon.snapshots().remove(request).await.ok();
        }
    }
}

/// Copies a blob to standard output as it arrives.
async fn copy(daemon: &Daemon, digest: &str) -> Result<()> {
    let request = content::ReadContentRequest { digest: digest.into(), offset: 0, size: 0 };
    let mut stream = daemon.content().read(request).await.map_err(error)?.into_inner();
    while let Some(message) = stream.message().await.map_err(error)? {
        output::bytes(&message.data);
    }
    Ok(())
}
