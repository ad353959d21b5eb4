//! `content`.

use std::io::{Read, Write};

use bytes::Bytes;
use clap::{Args, Subcommand};
use corten_api::services::{content as api, leases as lease_api};
use corten_types::{Digest, Error, Labels, Result, ResultExt, timestamp};

use super::content_remote::{Fetch, FetchBlob, FetchObject, PushObject};
use super::leases;
use super::{Listing, blobs};
use crate::client::{Daemon, error};
use crate::container::{labels, read_blob};
use crate::output::{self, Ends, Format, Table};

/// Bytes of standard input that are sent at once.
const PIECE: usize = 1 << 20;
/// How long a lease lives whose end has the collector run, should this program be ended before.
const LIFE: std::time::Duration = std::time::Duration::from_secs(300);

/// Blobs.
#[derive(Debug, Subcommand)]
pub enum Content {
    /// Ingests under way.
    Active {
        /// As the original has it.
        #[arg(short, long = "timeout", env = "CONTAINERD_FETCH_TIMEOUT", id = "active-timeout")]
        _timeout: Option<String>,
        /// As the original has it.
        #[arg(long = "root")]
        _root: Option<String>,
        /// How to show them.
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
        /// Only those that match.
        filter: Option<String>,
    },
    /// Remove them.
    #[command(visible_aliases = ["del", "remove", "rm"])]
    Delete { digests: Vec<String> },
    /// Change one in an editor; the result is another one.
    Edit(Edit),
    /// Bring an image from a registry without unpacking it.
    Fetch(Fetch),
    /// Write what a registry has under a name to standard output.
    FetchObject(FetchObject),
    /// Write blobs of a registry to standard output.
    FetchBlob(FetchBlob),
    /// Write one to standard output.
    Get {
        #[arg(default_value = "")]
        digest: String,
    },
    /// Make one of standard input.
    Ingest(Ingest),
    /// List them.
    #[command(visible_alias = "ls")]
    List(Listing),
    /// Send a blob or manifest to a registry.
    PushObject(PushObject),
    /// Show and change labels of one; an empty value removes a label.
    Label {
        #[arg(default_value = "")]
        digest: String,
        #[arg(value_name = "KEY=VALUE")]
        labels: Vec<String>,
    },
    /// Make room.
    #[command(subcommand)]
    Prune(Prune),
}

/// Make a blob of standard input.
#[derive(Debug, Args)]
pub struct Ingest {
    /// How many bytes there must be.
    #[arg(long, default_value_t = 0)]
    expected_size: i64,
    /// What they must be.
    #[arg(long, default_value = "")]
    expected_digest: String,
    /// A name for the write, by which it is found while it lasts.
    #[arg(default_value = "")]
    key: String,
}

/// Change a blob in an editor.
#[derive(Debug, Args)]
pub struct Edit {
    /// As the original has it.
    #[arg(long, default_value = "")]
    validate: String,
    /// The editor.
    #[arg(long, env = "EDITOR", default_value = "")]
    editor: String,
    #[arg(default_value = "")]
    digest: String,
}

/// Make room.
#[derive(Debug, Subcommand)]
pub enum Prune {
    /// Let layers go that nothing but their manifests keeps, such as those that are unpacked.
    References {
        /// Do not wait for the collector.
        #[arg(long = "async")]
        asynchronous: bool,
        /// Only say what would be done.
        #[arg(long)]
        dry: bool,
    },
}

/// A digest as a person gives it, refused in the original's words.
pub(super) fn digest(text: &str) -> Result<Digest> {
    text.parse().map_err(|_| Error::unknown("invalid checksum digest format"))
}

impl Content {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        match self {
            Self::List(listing) => list(daemon, listing).await,
            Self::Get { digest: text } => get(daemon, &digest(&text)?).await,
            Self::Ingest(ingest) => ingest.run(daemon).await,
            Self::Edit(edit) => edit.run(daemon).await,
            Self::Label { digest: text, labels: wanted } => {
                label(daemon, &digest(&text)?, labels(&wanted)).await
            }
            Self::Active { filter, format, .. } => active(daemon, filter, format).await,
            Self::Fetch(fetch) => fetch.run(daemon).await,
            Self::FetchObject(fetch) => fetch.run().await,
            Self::FetchBlob(fetch) => fetch.run().await,
            Self::PushObject(push) => push.run(daemon).await,
            Self::Prune(Prune::References { asynchronous, dry }) => prune(daemon, asynchronous, dry).await,
            Self::Delete { digests } => delete(daemon, digests).await,
        }
    }
}

async fn get(daemon: &Daemon, digest: &Digest) -> Result<()> {
    let request = api::ReadContentRequest { digest: digest.to_string(), offset: 0, size: 0 };
    let mut stream = daemon.content().read(request).await.map_err(error)?.into_inner();
    while let Some(message) = stream.message().await.map_err(error)? {
        output::bytes(&message.data);
    }
    Ok(())
}

/// Removes what there is, and says it; the first failure is the command's.
async fn delete(daemon: &Daemon, digests: Vec<String>) -> Result<()> {
    let mut first = None;
    for text in digests {
        let deleted = match digest(&text) {
            Ok(_) => {
                let request = api::DeleteContentRequest { digest: text.clone() };
                daemon.content().delete(request).await.map(drop).map_err(error)
            }
            Err(bad) => Err(bad),
        };
        match deleted {
            Ok(()) => println!("{text}"),
            Err(failed) if failed.is_not_found() => {}
            Err(failed) => {
                crate::log::error(&format!("could not delete {text}"), &failed);
                first.get_or_insert(failed);
            }
        }
    }
    first.map_or(Ok(()), Err)
}

async fn active(daemon: &Daemon, filter: Option<String>, format: Format) -> Result<()> {
    let request = api::ListStatusesRequest { filters: filter.into_iter().collect() };
    let found = daemon.content().list_statuses(request).await.map_err(error)?.into_inner();
    let mut table = Table::tabbed(&["REF", "SIZE", "AGE"]);
    for status in found.statuses {
        let begun = timestamp::to_system(&status.started_at.unwrap_or_default());
        table.row([status.r#ref, output::decimal_size(status.offset), output::age(begun)]);
    }
    table.show(format)
}

async fn label(daemon: &Daemon, digest: &Digest, wanted: Labels) -> Result<()> {
    let known = if wanted.is_empty() {
        let request = api::InfoRequest { digest: digest.to_string() };
        daemon.content().info(request).await.map_err(error)?.into_inner().info
    } else {
        let paths = wanted.keys().map(|key| format!("labels.{key}")).collect();
        let info = api::Info { digest: digest.to_string(), labels: wanted, ..Default::default() };
        let update_mask = Some(prost_types::FieldMask { paths });
        let request = api::UpdateRequest { info: Some(info), update_mask };
        daemon.content().update(request).await.map_err(error)?.into_inner().info
    };
    println!("{}", output::labels(&known.unwrap_or_default().labels, ""));
    Ok(())
}

impl Ingest {
    async fn run(self, daemon: &Daemon) -> Result<()> {
        if self.key.is_empty() {
            return Err(Error::unknown("must specify a transaction reference"));
        }
        let expected = match self.expected_digest.as_str() {
            "" => None,
            text => Some(digest(text)?),
        };
        let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(4);
        let limit = self.expected_size;
        // Standard input is read by a thread: a terminal can only be waited for so.
        let reading = tokio::task::spawn_blocking(move || -> Result<()> {
            let (mut input, mut count) = (std::io::stdin().lock(), 0_i64);
            loop {
                let mut piece = vec![0; PIECE];
                let read = input.read(&mut piece)?;
                count += i64::try_from(read).unwrap_or(i64::MAX);
                piece.truncate(read);
                if read == 0 && limit > 0 && count < limit {
                    let text = format!("short read: expected {limit} bytes but got {count}: unexpected EOF");
                    return Err(Error::unknown(text));
                }
                if read == 0 || sender.blocking_send(piece.into()).is_err() {
                    return Ok(());
                }
            }
        });
        let wanted = blobs::Wanted { reference: self.key, labels: Labels::new(), size: limit, expected };
        blobs::write_checked(daemon, wanted, receiver, reading).await.map(drop)
    }
}

impl Edit {
    async fn run(self, daemon: &Daemon) -> Result<()> {
        if !self.validate.is_empty() {
            return Err(Error::unknown("validating the edit result not supported"));
        }
        let old = digest(&self.digest)?;
        if self.editor.is_empty() {
            return Err(Error::unknown("editor is required"));
        }
        let data = read_blob(daemon, old.as_str()).await?;
        let edited = tokio::task::spawn_blocking(move || edited(&data, &self.editor)).await;
        let data = edited.map_err(|bad| Error::internal(bad.to_string()))??;
        let new = Digest::sha256(&data);
        if new == old {
            return Err(Error::unknown(format!("commit failed: blob with expected digest {old} exists")));
        }
        blobs::write(daemon, format!("edit-{old}"), Labels::new(), blobs::once(data)).await?;
        println!("{new}");
        Ok(())
    }
}

/// What an editor makes of some bytes.
fn edited(data: &[u8], editor: &str) -> Result<Vec<u8>> {
    let path = std::env::temp_dir().join(super::images::unique("edit"));
    let mut options = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let created = options.write(true).create_new(true).open(&path);
    let mut file = created.with_context(|| path.display().to_string())?;
    let done = (|| {
        file.write_all(data)?;
        let mut shell = std::process::Command::new("sh");
        let status = shell.arg("-c").arg(format!("{editor} {}", path.display())).status()?;
        if !status.success() {
            // The editor's exit code is ours, as that of a process.
            let code = status.code().unwrap_or(-1);
            eprintln!("exit status {code}");
            std::fs::remove_file(&path).ok();
            std::process::exit(code);
        }
        // An editor may have put another file in its place.
        Ok(std::fs::read(&path)?)
    })();
    std::fs::remove_file(&path).ok();
    done
}

/// Takes labels away from a blob; one that is gone has none.
async fn unlabel(daemon: &Daemon, digest: &str, keys: &[String]) -> Result<()> {
    let info = api::Info { digest: digest.to_owned(), ..Default::default() };
    let paths = keys.iter().map(|key| format!("labels.{key}")).collect();
    let update_mask = Some(prost_types::FieldMask { paths });
    let request = api::UpdateRequest { info: Some(info), update_mask };
    match daemon.content().update(request).await.map_err(error) {
        Err(failed) if !failed.is_not_found() => Err(failed),
        _ => Ok(()),
    }
}

/// Lets the layers of an image go.
pub async fn release_layers(daemon: &Daemon, target: &str) -> Result<()> {
    let request = api::InfoRequest { digest: target.to_owned() };
    let info = match daemon.content().info(request).await.map_err(error) {
        Ok(found) => found.into_inner().info.unwrap_or_default(),
        // Of an index, what is not of our platform.
        Err(missing) if missing.is_not_found() => return Ok(()),
        Err(failed) => return Err(failed),
    };
    for (key, digest) in &info.labels {
        if key.starts_with("containerd.io/gc.ref.content.m.") {
            Box::pin(release_layers(daemon, digest)).await?;
        }
    }
    let keys: Vec<String> = info.labels.keys().filter(|key| keeps_layer(key)).cloned().collect();
    if keys.is_empty() { Ok(()) } else { unlabel(daemon, target, &keys).await }
}

/// Takes the labels away by which manifests keep their layers, and has the collector run.
async fn prune(daemon: &Daemon, asynchronous: bool, dry: bool) -> Result<()> {
    let mut stream =
        daemon.content().list(api::ListContentRequest::default()).await.map_err(error)?.into_inner();
    let mut changes = Vec::new();
    while let Some(block) = stream.message().await.map_err(error)? {
        for info in block.info {
            let keys: Vec<String> = info.labels.keys().filter(|key| keeps_layer(key)).cloned().collect();
            if !keys.is_empty() {
                changes.push((info.digest, keys));
            }
        }
    }
    if dry {
        crate::log::debug("dry run, no changes will be applied", &[]);
    }
    for (digest, keys) in &changes {
        if dry {
            let tell = |key: &String| {
                crate::log::debug("Removing label", &[("digest", digest.as_str()), ("label", key.as_str())])
            };
            keys.iter().for_each(tell);
            continue;
        }
        unlabel(daemon, digest, keys).await?;
    }
    if !dry && !asynchronous {
        // The end of a lease is what the collector can be waited for with.
        let id = leases::create(daemon, None, LIFE, Labels::new()).await?;
        let mut service = daemon.leases();
        let collecting = service.delete(lease_api::DeleteRequest { id, sync: true });
        crate::waiting::told("waiting for the collector", collecting).await.map_err(error)?;
    }
    Ok(())
}

/// Whether a label of a manifest names a layer; the oldest ones only count what they name, the config first.
fn keeps_layer(key: &str) -> bool {
    let Some(rest) = key.strip_prefix("containerd.io/gc.ref.content.") else { return false };
    let number = rest.strip_prefix("l.").unwrap_or(rest);
    number.parse::<u32>().is_ok_and(|number| number > 0 || rest.starts_with("l."))
}

async fn list(daemon: &Daemon, listing: Listing) -> Result<()> {
    let request = api::ListContentRequest { filters: listing.filters };
    let mut table = Table::tabbed(&["DIGEST", "SIZE", "AGE", "LABELS"]).ends(Ends::Bare);
    let mut stream = match daemon.content().list(request).await.map_err(error) {
        Ok(stream) => stream.into_inner(),
        Err(failed) => {
            // The original has written the header by then.
            if !listing.shown.quiet {
                table.show(listing.shown.format)?;
            }
            return Err(failed);
        }
    };
    while let Some(block) = stream.message().await.map_err(error)? {
        for info in block.info {
            let created = timestamp::to_system(&info.created_at.unwrap_or_default());
            let (size, age) = (output::decimal_size(info.size), output::age(created));
            table.row([info.digest, size, age, output::labels(&info.labels, "-")]);
        }
    }
    table.show_as(&listing.shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_keep_layers_are_known() {
        for (key, want) in
            [("l.0", true), ("l.12", true), ("config", false), ("m.0", false), ("0", false), ("3", true)]
        {
            assert_eq!(keeps_layer(&format!("containerd.io/gc.ref.content.{key}")), want, "{key}");
        }
        assert!(!keeps_layer("containerd.io/gc.ref.snapshot.overlayfs"));
    }
}
