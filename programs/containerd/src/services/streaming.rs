//! Streams that other services consume (spec 01 §12).

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use corten_api::services::streaming::{StreamInit, streaming_server};
use corten_api::transfer_types::{Data, WindowUpdate};
use corten_metadata::{Leases, Sweeper};
use corten_types::{Any, Context, Error, Namespace};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::unknown::received;
use super::{Services, context, status};

/// Messages that wait on either side.
const QUEUE: usize = 64;
/// Bytes that a sender may be ahead.
const WINDOW: i32 = 1 << 20;
/// Bytes of one message.
const PIECE: usize = 128 << 10;
/// How long a service waits for a stream that its caller has just opened.
const PATIENCE: Duration = Duration::from_secs(10);
/// Streams that nobody has consumed yet.
const LIMIT: usize = 1024;

/// An open stream, taken by the service that consumes it. Dropping it ends the call.
pub struct Stream {
    pub incoming: Streaming<Any>,
    pub outgoing: mpsc::Sender<Result<Any, Status>>,
}

/// Streams that wait for their service. Those that were opened with a lease end with it, if nothing else keeps them.
pub struct Streams {
    waiting: Mutex<HashMap<(Namespace, String), Waiting>>,
    arrived: Notify,
    leases: Leases,
}

struct Waiting {
    stream: Stream,
    lease: Option<String>,
}

impl Streams {
    /// Streams with these leases.
    pub fn new(leases: Leases) -> Self {
        Self { waiting: Mutex::default(), arrived: Notify::new(), leases }
    }

    /// Takes a stream, waiting for it if need be.
    pub async fn take(&self, namespace: &Namespace, id: &str) -> Result<Stream, Error> {
        let key = (namespace.clone(), id.to_owned());
        let wait = async {
            loop {
                let arrived = self.arrived.notified();
                if let Some(waiting) = self.lock().remove(&key) {
                    return waiting.stream;
                }
                arrived.await;
            }
        };
        let missing = |_| Error::not_found(format!("failed to get stream {id:?}"));
        tokio::time::timeout(PATIENCE, wait).await.map_err(missing)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(Namespace, String), Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait::async_trait]
impl Sweeper for Streams {
    async fn sweep(&self) -> Result<(), Error> {
        let mut ended = Vec::new();
        for (key, waiting) in self.lock().iter() {
            let Some(lease) = &waiting.lease else { continue };
            let known = self.leases.resources(&Context::new(key.0.clone()), lease);
            if known.is_err_and(|error| error.is_not_found()) {
                ended.push(key.clone());
            }
        }
        // A stream without its lease is rare: only then it is asked what else keeps it.
        let mut kept: HashMap<Namespace, BTreeSet<String>> = HashMap::new();
        for (namespace, id) in ended {
            let referenced = match kept.entry(namespace.clone()) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => unknown.insert(self.leases.referenced_streams(&namespace)?),
            };
            if !referenced.contains(&id) {
                self.lock().remove(&(namespace, id));
            }
        }
        Ok(())
    }
}

impl Stream {
    /// The bytes that the client sends, as it is allowed to.
    pub fn bytes(self) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send {
        futures_util::stream::unfold((self, 0_i32), |(mut stream, mut window)| async move {
            loop {
                if window < WINDOW {
                    let update = corten_api::pack(&WindowUpdate { update: WINDOW });
                    // A client that is gone is noticed below.
                    let _ = stream.outgoing.send(Ok(update)).await;
                    window += WINDOW;
                }
                let message = match stream.incoming.message().await {
                    Ok(Some(message)) => message,
                    Ok(None) => return None,
                    Err(error) => {
                        return Some((
                            Err(std::io::Error::other(error.message().to_owned())),
                            (stream, window),
                        ));
                    }
                };
                match corten_api::unpack::<Data>(&message) {
                    Ok(data) if data.data.is_empty() => {}
                    Ok(data) => {
                        window -= i32::try_from(data.data.len()).unwrap_or(i32::MAX);
                        return Some((Ok(data.data), (stream, window)));
                    }
                    Err(error) => return Some((Err(std::io::Error::other(error)), (stream, window))),
                }
            }
        })
    }

    /// Sends bytes as the client allows, until there are no more.
    ///
    /// # Errors
    /// When the client is gone, or the bytes cannot be read.
    pub async fn send(mut self, mut bytes: impl AsyncRead + Unpin) -> Result<(), Error> {
        let gone = || Error::unavailable("the client closed its stream");
        let (mut window, mut piece) = (0_i64, vec![0; PIECE]);
        loop {
            while window <= 0 {
                let message = self.incoming.message().await.map_err(|_| gone())?.ok_or_else(gone)?;
                window += i64::from(corten_api::unpack::<WindowUpdate>(&message)?.update.max(0));
            }
            let most = piece.len().min(usize::try_from(window).unwrap_or(usize::MAX));
            let count = bytes.read(piece.get_mut(..most).unwrap_or_default()).await?;
            if count == 0 {
                return Ok(());
            }
            window -= i64::try_from(count).unwrap_or(0);
            let data = Bytes::copy_from_slice(piece.get(..count).unwrap_or_default());
            self.outgoing.send(Ok(corten_api::pack(&Data { data }))).await.map_err(|_| gone())?;
        }
    }
}

#[tonic::async_trait]
impl streaming_server::Streaming for Services {
    type StreamStream = ReceiverStream<Result<Any, Status>>;

    async fn stream(&self, request: Request<Streaming<Any>>) -> Result<Response<Self::StreamStream>, Status> {
        let ctx = context(&request)?;
        let mut incoming = request.into_inner();
        let (outgoing, receiver) = mpsc::channel(QUEUE);
        let streams = self.streams.clone();
        // The first message may come after the client has seen our headers.
        tokio::spawn(async move {
            let refused = match incoming.message().await {
                Ok(Some(first)) => match corten_api::unpack::<StreamInit>(&first) {
                    Ok(init) => {
                        let accepted = Any { type_url: "google.protobuf.Empty".into(), value: vec![] };
                        let mut waiting = streams.lock();
                        waiting.retain(|_, waiting| !waiting.stream.outgoing.is_closed());
                        let key = (ctx.namespace, init.id);
                        if waiting.contains_key(&key) {
                            Some(status(Error::already_exists(format!("stream {:?}", key.1))))
                        } else if waiting.len() >= LIMIT {
                            Some(Status::resource_exhausted("too many streams"))
                        } else if outgoing.try_send(Ok(accepted)).is_err() {
                            // The client has gone already.
                            None
                        } else {
                            let stream = Stream { incoming, outgoing: outgoing.clone() };
                            waiting.insert(key, Waiting { stream, lease: ctx.lease });
                            drop(waiting);
                            streams.arrived.notify_waiters();
                            None
                        }
                    }
                    Err(error) => Some(status(Error::unknown(error.message()))),
                },
                Ok(None) => None,
                Err(error) => Some(received(error)),
            };
            if let Some(refused) = refused {
                let _ = outgoing.send(Err(refused)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
