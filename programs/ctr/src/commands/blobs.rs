//! Blobs on their way into the store.

use bytes::Bytes;
use corten_api::services::content as api;
use corten_types::{Digest, Digester, Error, Labels, Result};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

use crate::client::{Daemon, error};

/// What is written, as far as it is known before.
pub struct Wanted {
    /// Name of the write.
    pub reference: String,
    pub labels: Labels,
    /// 0 where it is not known.
    pub size: i64,
    pub expected: Option<Digest>,
}

/// One piece.
pub fn once(data: Vec<u8>) -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(1);
    // There is room for one.
    let _ = sender.try_send(data.into());
    receiver
}

/// Writes a blob as its bytes come; answers digest and size.
pub async fn write(
    daemon: &Daemon,
    reference: String,
    labels: Labels,
    data: mpsc::Receiver<Bytes>,
) -> Result<(Digest, i64)> {
    let wanted = Wanted { reference, labels, size: 0, expected: None };
    write_checked(daemon, wanted, data, tokio::spawn(async { Ok(()) })).await
}

/// As [`write`]; it is committed only if the source says in the end that all went well.
pub async fn write_checked(
    daemon: &Daemon,
    wanted: Wanted,
    data: mpsc::Receiver<Bytes>,
    source: JoinHandle<Result<()>>,
) -> Result<(Digest, i64)> {
    let (sender, requests) = mpsc::channel(4);
    let answering = async {
        let mut answers =
            daemon.content().write(ReceiverStream::new(requests)).await.map_err(error)?.into_inner();
        while answers.message().await.map_err(error)?.is_some() {}
        Ok::<_, Error>(())
    };
    let fatal = |answered: Result<()>| match answered {
        Err(failed) if !failed.is_already_exists() => Err(failed),
        _ => Ok(()),
    };
    let name = wanted.reference.clone();
    let feeding = feed(wanted, data, source, sender);
    tokio::pin!(answering, feeding);
    tokio::select! {
        biased;
        made = &mut feeding => {
            let made = made?;
            // The last word is that about the commit.
            let refused = |failed: Error| match failed.message().starts_with("unexpected commit") {
                true => failed.context("commit failed").context(format!("failed commit on ref {name:?}")),
                false => failed,
            };
            fatal(answering.await).map(|()| made).map_err(refused)
        }
        // Who waits for a source that says nothing need not wait when the daemon has gone.
        answered = &mut answering => {
            fatal(answered)?;
            feeding.await
        }
    }
}

async fn feed(
    wanted: Wanted,
    mut data: mpsc::Receiver<Bytes>,
    source: JoinHandle<Result<()>>,
    sender: mpsc::Sender<api::WriteContentRequest>,
) -> Result<(Digest, i64)> {
    let Wanted { reference, labels, size, expected } = wanted;
    let (mut digester, mut offset) = (Digester::default(), 0_i64);
    let message = |action: api::WriteAction, offset: i64| api::WriteContentRequest {
        action: action.into(),
        r#ref: reference.clone(),
        offset,
        total: size,
        expected: expected.as_ref().map(ToString::to_string).unwrap_or_default(),
        ..Default::default()
    };
    let mut open = sender.send(message(api::WriteAction::Stat, 0)).await.is_ok();
    while let Some(data) = data.recv().await {
        digester.update(&data);
        let length = i64::try_from(data.len()).unwrap_or(i64::MAX);
        let request = api::WriteContentRequest { data, ..message(api::WriteAction::Write, offset) };
        open = open && sender.send(request).await.is_ok();
        offset += length;
    }
    source.await.map_err(|bad| Error::internal(bad.to_string()))??;
    let digest = digester.finish();
    let mut commit = message(api::WriteAction::Commit, offset);
    commit.labels = labels;
    if commit.total == 0 {
        commit.total = offset;
    }
    if commit.expected.is_empty() {
        commit.expected = digest.to_string();
    }
    if open {
        let _ = sender.send(commit).await;
    }
    Ok((digest, offset))
}
