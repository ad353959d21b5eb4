//! The answering side.

use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::Duration;

use prost::Message;
use prost::bytes::Bytes;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use corten_types::{Error, ErrorClass, Result};

use crate::frame::{self, Decoder, Frame};
use crate::message::{RequestMessage, ResponseMessage};
use crate::outgoing::Outgoing;
use crate::service::{Request, Service};
use crate::status_of;

/// Requests of one connection that may be unanswered at a time.
const MAX_REQUESTS: u32 = 1024;
/// How long requests in progress may take once the server is told to stop.
const GRACE: Duration = Duration::from_secs(1);
/// Pause after accept(2) failed, most likely for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves one [`Service`] on any number of connections. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    service: Arc<dyn Service>,
    peer: Option<(u32, u32)>,
    grace: Duration,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Server {
    /// A server that lets anyone in who can connect.
    #[must_use]
    pub fn new(service: Arc<dyn Service>) -> Self {
        Self { service, peer: None, grace: GRACE }
    }

    /// Lets in only peers of this user and group (SO_PEERCRED); others find the connection closed.
    #[must_use]
    pub fn require_peer(mut self, uid: u32, gid: u32) -> Self {
        self.peer = Some((uid, gid));
        self
    }

    /// How long requests in progress may take after `shutdown`; one second if not set.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Accepts connections until `shutdown` resolves; then lets requests in progress end, sends
    /// their answers, and returns.
    pub async fn serve(&self, listener: UnixListener, shutdown: impl Future<Output = ()>) {
        let (stop, stopping) = watch::channel(false);
        let mut connections = JoinSet::new();
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let (server, stopping) = (self.clone(), stopping.clone());
                        connections.spawn(async move { server.serve_until(stream, stopping).await });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "ttrpc: accept");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(listener);
        let _ = stop.send(true);
        while connections.join_next().await.is_some() {}
    }

    /// Serves one connection until its end.
    pub async fn serve_connection(&self, stream: UnixStream) {
        let (_never, stopping) = watch::channel(false);
        self.serve_until(stream, stopping).await;
    }

    async fn serve_until(&self, stream: UnixStream, mut stopping: watch::Receiver<bool>) {
        if !self.admits(&stream) {
            return;
        }
        let connection = Connection::new(self.service.clone(), stream);
        tokio::select! {
            () = connection.read_requests() => {}
            () = connection.outgoing.drive() => {}
            () = told_to_stop(&mut stopping) => {
                let drained = async { tokio::join!(connection.drained(), connection.outgoing.drive()) };
                let _ = tokio::time::timeout(self.grace, drained).await;
            }
        }
        connection.outgoing.close();
    }

    fn admits(&self, stream: &UnixStream) -> bool {
        let Some((uid, gid)) = self.peer else { return true };
        match stream.peer_cred() {
            Ok(peer) if (peer.uid(), peer.gid()) == (uid, gid) => true,
            Ok(peer) => {
                tracing::warn!(uid = peer.uid(), gid = peer.gid(), "ttrpc: peer refused");
                false
            }
            Err(error) => {
                tracing::warn!(%error, "ttrpc: peer credentials");
                false
            }
        }
    }
}

/// Resolves when the server stops; a server that is gone without a word never will.
async fn told_to_stop(stopping: &mut watch::Receiver<bool>) {
    if stopping.wait_for(|&stop| stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

struct Connection {
    service: Arc<dyn Service>,
    /// Requests hold it weakly: the socket closes with the connection, not with its last request.
    outgoing: Arc<Outgoing>,
    slots: Arc<Semaphore>,
    /// Dropped with the connection, which is what requests can wait for.
    end: watch::Sender<()>,
}

impl Connection {
    fn new(service: Arc<dyn Service>, stream: UnixStream) -> Self {
        Self {
            service,
            outgoing: Arc::new(Outgoing::new(stream)),
            slots: Arc::new(Semaphore::new(MAX_REQUESTS as usize)),
            end: watch::channel(()).0,
        }
    }

    /// Returns at the end of the stream or when the peer breaks the protocol.
    async fn read_requests(&self) {
        let mut decoder = Decoder::default();
        let mut last = 0;
        while let Ok(Some(frame)) = decoder.read(self.outgoing.stream()).await {
            let stream = frame.stream;
            let refusal = match frame.kind {
                // Belongs to a stream, which has been refused when it was opened.
                frame::DATA => continue,
                frame::REQUEST => self.start(frame, &mut last).err(),
                _ => {
                    tracing::warn!(kind = frame.kind, "ttrpc: protocol violation, connection closed");
                    return;
                }
            };
            if let Some(error) = refusal
                && !respond(&self.outgoing, stream, Err(error)).await
            {
                return;
            }
        }
    }

    /// Starts the task that answers a request.
    fn start(&self, frame: Frame, last: &mut u32) -> Result<()> {
        let stream = frame.stream;
        if stream % 2 != 1 {
            return Err(Error::bare(
                ErrorClass::InvalidArgument,
                "StreamID must be odd for client initiated streams",
            ));
        }
        if stream <= *last {
            return Err(Error::bare(
                ErrorClass::InvalidArgument,
                "StreamID cannot be re-used and must increment",
            ));
        }
        *last = stream;
        let message = RequestMessage::decode(frame.payload?)
            .map_err(|error| Error::invalid_argument(format!("malformed ttrpc request: {error}")))?;
        let request = Request::received(message, self.end.subscribe());
        if frame.flags & frame::REMOTE_OPEN != 0 {
            return Err(Error::not_implemented(format!(
                "streaming method /{}/{}",
                request.service, request.method
            )));
        }
        let slot = self.slots.clone().try_acquire_owned().map_err(|_| {
            Error::new(
                ErrorClass::ResourceExhausted,
                format!("more than {MAX_REQUESTS} requests in progress"),
            )
        })?;
        tokio::spawn(answer(self.service.clone(), request, Arc::downgrade(&self.outgoing), stream, slot));
        Ok(())
    }

    /// Resolves, and ends the connection, once every request is answered and every answer sent.
    async fn drained(&self) {
        let _ = self.slots.acquire_many(MAX_REQUESTS).await;
        self.outgoing.room().await;
        self.outgoing.close();
    }
}

async fn answer(
    service: Arc<dyn Service>,
    request: Request,
    outgoing: Weak<Outgoing>,
    stream: u32,
    slot: OwnedSemaphorePermit,
) {
    let result = service.call(request).await;
    if let Some(outgoing) = outgoing.upgrade() {
        respond(&outgoing, stream, result).await;
    }
    drop(slot);
}

/// Sends an answer; false if the connection is over.
async fn respond(outgoing: &Outgoing, stream: u32, result: Result<Vec<u8>>) -> bool {
    let message = match result {
        Ok(payload) => ResponseMessage { status: None, payload: payload.into() },
        Err(error) => refusal(&error),
    };
    let frame = frame::encode(stream, frame::RESPONSE, &message)
        .or_else(|oversized| frame::encode(stream, frame::RESPONSE, &refusal(&oversized.into())));
    match frame {
        Ok(frame) => outgoing.send(&frame).await,
        Err(_) => false,
    }
}

fn refusal(error: &Error) -> ResponseMessage {
    ResponseMessage { status: Some(status_of(error)), payload: Bytes::new() }
}
