//! A body that is read from its source while it is sent, again from the start if need be.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

const PIECE: u64 = 128 << 10;

/// Bytes that can be read anywhere, such as a blob of the store.
pub trait BlobSource: Send + Sync {
    /// How many there are.
    fn size(&self) -> u64;

    /// Reads at an offset; 0 only at the end.
    ///
    /// # Errors
    /// What the store says.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> corten_types::Result<usize>;
}

/// Is told how many bytes have gone out.
pub type Sent = Arc<dyn Fn(u64) + Send + Sync>;

/// A source, and how much of it has been sent.
#[derive(Clone)]
pub(crate) struct Upload {
    pub source: Arc<dyn BlobSource>,
    /// Where in the source the body begins.
    pub offset: u64,
    pub told: Sent,
    /// Bytes of all tries, so that it only grows.
    pub sent: Arc<AtomicU64>,
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload").field("size", &self.source.size()).finish_non_exhaustive()
    }
}

impl Upload {
    pub fn new(source: Arc<dyn BlobSource>, told: Sent) -> Self {
        Self { source, offset: 0, told, sent: Arc::default() }
    }

    /// The same, without the bytes that the host has already.
    pub fn from(&self, offset: u64) -> Self {
        Self { offset, ..self.clone() }
    }

    /// Bytes of the body.
    pub fn left(&self) -> u64 {
        self.source.size().saturating_sub(self.offset)
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// What goes out with a request.
pub(crate) enum Outgoing {
    Small(Option<Bytes>),
    Large { upload: Upload, offset: u64 },
}

impl Outgoing {
    pub fn new(small: Bytes, upload: Option<Upload>) -> Self {
        match upload {
            Some(upload) => Self::Large { offset: upload.offset, upload },
            None => Self::Small(Some(small).filter(|data| !data.is_empty())),
        }
    }

    fn left(&self) -> u64 {
        match self {
            Self::Small(data) => data.as_ref().map_or(0, |data| data.len() as u64),
            Self::Large { upload, offset } => upload.source.size().saturating_sub(*offset),
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let left = self.left();
        match &mut *self {
            Self::Small(data) => Poll::Ready(data.take().map(|data| Ok(Frame::data(data)))),
            Self::Large { .. } if left == 0 => Poll::Ready(None),
            Self::Large { upload, offset } => {
                let mut piece = vec![0; usize::try_from(left.min(PIECE)).unwrap_or(0)];
                let count = match upload.source.read_at(&mut piece, *offset) {
                    Ok(0) => return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
                    Ok(count) => count,
                    Err(error) => return Poll::Ready(Some(Err(io::Error::other(error)))),
                };
                piece.truncate(count);
                *offset += count as u64;
                upload.sent.fetch_add(count as u64, Ordering::Relaxed);
                (upload.told)(*offset);
                Poll::Ready(Some(Ok(Frame::data(piece.into()))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left())
    }
}
