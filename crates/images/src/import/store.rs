//! Blobs written from a thread.

use std::io::Read;
use std::time::Duration;

use corten_content::{Writer, WriterOptions};
use corten_types::{Context, Descriptor, Digest, Digester, Error, ErrorClass, Labels, Result};
use tokio::runtime::Handle;

use super::BUFFER;
use crate::ImageService;

const FIRST_WAIT: Duration = Duration::from_millis(16);
const LAST_WAIT: Duration = Duration::from_millis(2048);

/// The content store, seen from a thread that may block.
pub(crate) struct BlobStore {
    pub service: ImageService,
    pub ctx: Context,
    runtime: Handle,
}

impl BlobStore {
    pub fn new(service: ImageService, ctx: Context, runtime: Handle) -> Self {
        Self { service, ctx, runtime }
    }

    /// Stores a file of an archive.
    pub fn file(&self, path: &str, size: u64, reader: &mut dyn Read) -> Result<Digest> {
        // The path may promise the digest; then what is stored already is not written again.
        let promised =
            path.strip_prefix("blobs/").and_then(|rest| rest.replace('/', ":").parse::<Digest>().ok());
        self.write(&format!("tar-{path}"), Some(size), promised, reader, Labels::new())
    }

    /// Stores a document.
    pub fn document(&self, media_type: &str, data: &[u8], labels: Labels) -> Result<Descriptor> {
        let digest = Digest::sha256(data);
        let key = format!("import-{digest}");
        self.write(&key, Some(data.len() as u64), Some(digest.clone()), &mut &*data, labels.clone())?;
        // Labels of a commit do not reach a blob that is there already.
        self.runtime.block_on(self.service.set_labels(&self.ctx, &digest, labels))?;
        Ok(Descriptor::new(media_type, digest, i64::try_from(data.len()).unwrap_or(i64::MAX)))
    }

    /// Stores what `reader` gives, and returns its digest. It is not read if it is stored already under the
    /// digest that it is promised to have.
    pub fn write(
        &self,
        reference: &str,
        size: Option<u64>,
        promised: Option<Digest>,
        reader: &mut dyn Read,
        labels: Labels,
    ) -> Result<Digest> {
        let total = size.unwrap_or(0);
        if size == Some(0) {
            return Ok(Digest::sha256(b""));
        }
        let mut writer = match self.open(reference, total, promised.clone()) {
            Ok(writer) => writer,
            Err(error) if error.is_already_exists() => {
                return promised.ok_or(error);
            }
            Err(error) => return Err(error),
        };
        // What an import before this one left may be of another archive.
        if writer.offset() > 0 {
            writer.truncate()?;
        }
        let (digest, written) = match copy(reader, &mut writer) {
            Ok(copied) => copied,
            Err(error) => {
                drop(writer);
                self.abort(reference);
                return Err(error);
            }
        };
        let commit = writer.commit(size.unwrap_or(written), promised.as_ref(), labels);
        match self.runtime.block_on(commit) {
            Err(error) if error.is_already_exists() => Ok(digest),
            Err(error) if error.class() == ErrorClass::FailedPrecondition => {
                self.abort(reference);
                Err(error)
            }
            other => other,
        }
    }

    /// Throws away an ingest that nobody can go on with: the next archive begins anew.
    fn abort(&self, reference: &str) {
        if let Err(error) = self.runtime.block_on(self.service.shared.content.abort(&self.ctx, reference)) {
            tracing::debug!(ingest = reference, %error, "failed to discard an ingest");
        }
    }

    /// Waits while another import writes under the same name.
    fn open(&self, reference: &str, total: u64, expected: Option<Digest>) -> Result<Writer> {
        let mut wait = FIRST_WAIT;
        loop {
            let options =
                WriterOptions { reference: reference.to_owned(), total, expected: expected.clone() };
            match self.runtime.block_on(self.service.shared.content.writer(&self.ctx, options)) {
                Err(error) if error.class() == ErrorClass::Unavailable => {
                    std::thread::sleep(wait);
                    wait = (wait * 2).min(LAST_WAIT);
                }
                other => return other,
            }
        }
    }

    /// Runs what only the runtime can do.
    pub fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }
}

fn copy(reader: &mut dyn Read, writer: &mut Writer) -> Result<(Digest, u64)> {
    let mut digester = Digester::default();
    let mut buffer = vec![0; BUFFER];
    let mut written = 0;
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::from(error)),
        };
        let data = buffer.get(..read).unwrap_or_default();
        digester.update(data);
        writer.write(data)?;
        written += read as u64;
    }
    Ok((digester.finish(), written))
}

impl ImageService {
    /// Stores a document that was made here.
    pub(crate) async fn store_document(
        &self,
        ctx: &Context,
        media_type: &str,
        data: &[u8],
    ) -> Result<Descriptor> {
        let store = BlobStore::new(self.clone(), ctx.clone(), Handle::current());
        let (media_type, data) = (media_type.to_owned(), data.to_vec());
        let thread = tokio::task::spawn_blocking(move || store.document(&media_type, &data, Labels::new()));
        thread.await.map_err(|error| Error::internal(error.to_string()))?
    }
}
