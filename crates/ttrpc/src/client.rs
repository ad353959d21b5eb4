//! The calling side.

use std::collections::HashMap;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message;
use prost::bytes::Bytes;
use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

use corten_types::{Error, ErrorClass, Result, ResultExt};

use crate::frame::{self, Decoder};
use crate::message::{KeyValue, RequestMessage, ResponseMessage};
use crate::outgoing::{Outgoing, Sent};
use crate::{NAMESPACE_KEY, error_of};

const CLOSED: &str = "ttrpc: closed";

/// A connection to a server, shared by its clones. Calls are concurrent. The connection ends when
/// the last clone is dropped, when the peer closes it, or by [`Client::close`].
#[derive(Clone, Debug)]
pub struct Client {
    handle: Arc<Handle>,
}

/// What goes with a call.
#[derive(Clone, Debug, Default)]
pub struct CallOptions {
    /// The namespace, sent as metadata.
    pub namespace: Option<String>,
    /// How long to wait for the answer; told to the server too.
    pub timeout: Option<Duration>,
}

impl Client {
    /// Connects to a unix socket.
    ///
    /// # Errors
    /// What connect(2) says.
    pub async fn connect(path: &Path) -> Result<Self> {
        let stream =
            UnixStream::connect(path).await.with_context(|| format!("dial unix {}", path.display()))?;
        Ok(Self::new(stream))
    }

    /// A client on a connected socket. Must be called within a runtime.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        let connection = Arc::new(Connection {
            outgoing: Outgoing::new(stream),
            calls: Mutex::new(Calls { next: 1, waiting: HashMap::new(), closed: false }),
            over: Notify::new(),
        });
        let task = tokio::spawn(drive(CloseOnDrop(connection.clone())));
        Self { handle: Arc::new(Handle { connection, task: task.abort_handle() }) }
    }

    /// Calls a method and waits for its answer. Dropping the future forgets the call; the server
    /// is not told.
    ///
    /// # Errors
    /// The error that the server answered, its text verbatim; [`ErrorClass::DeadlineExceeded`]
    /// `context deadline exceeded`; [`Client::is_closed`] when the connection is or becomes closed;
    /// ResourceExhausted for messages beyond 4 MiB.
    pub async fn call<Q: Message, R: Message + Default>(
        &self,
        service: &str,
        method: &str,
        request: &Q,
        options: CallOptions,
    ) -> Result<R> {
        let namespace = options.namespace.map(|value| KeyValue { key: NAMESPACE_KEY.into(), value });
        let message = RequestMessage {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: request.encode_to_vec().into(),
            timeout_nano: options.timeout.map_or(0, nanoseconds),
            metadata: namespace.into_iter().collect(),
        };
        let frame = frame::encode(0, frame::REQUEST, &message)?;
        let exchange = self.handle.connection.exchange(frame);
        let payload = match options.timeout {
            None => exchange.await,
            Some(timeout) => tokio::time::timeout(timeout, exchange)
                .await
                .unwrap_or_else(|_| Err(Error::new(ErrorClass::DeadlineExceeded, ""))),
        }?;
        R::decode(payload)
            .map_err(|error| Error::internal(format!("{service}/{method}: bad answer: {error}")))
    }

    /// Closes the connection for all clones; pending calls fail as [`Client::is_closed`].
    pub fn close(&self) {
        self.handle.connection.close();
        self.handle.task.abort();
    }

    /// Resolves when the connection is over. The future itself does not keep it open.
    pub fn closed(&self) -> impl Future<Output = ()> + Send + 'static {
        let connection = self.handle.connection.clone();
        async move {
            loop {
                let mut over = pin!(connection.over.notified());
                over.as_mut().enable();
                if connection.lock().closed {
                    return;
                }
                over.await;
            }
        }
    }

    /// The error of calls on a connection that is over.
    #[must_use]
    pub fn closed_error() -> Error {
        Error::unknown(CLOSED)
    }

    /// Whether an error says that the connection, rather than the call, failed.
    #[must_use]
    pub fn is_closed(error: &Error) -> bool {
        error.class() == ErrorClass::Unknown && error.message().ends_with(CLOSED)
    }
}

/// Ends the connection with the last clone of the client.
#[derive(Debug)]
struct Handle {
    connection: Arc<Connection>,
    task: AbortHandle,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug)]
struct Connection {
    outgoing: Outgoing,
    calls: Mutex<Calls>,
    over: Notify,
}

#[derive(Debug)]
struct Calls {
    /// The stream id of the next call: odd and increasing.
    next: u32,
    waiting: HashMap<u32, oneshot::Sender<Result<Bytes>>>,
    closed: bool,
}

impl Connection {
    /// Sends a request and waits for the payload of its answer.
    async fn exchange(&self, mut frame: Vec<u8>) -> Result<Bytes> {
        let (sender, receiver) = oneshot::channel();
        let mut sender = Some(sender);
        let call = loop {
            match self.try_start(&mut frame, &mut sender)? {
                Some(stream) => break Call { connection: self, stream },
                None => self.outgoing.room().await,
            }
        };
        drop(frame);
        let answer = receiver.await;
        drop(call);
        answer.unwrap_or_else(|_| Err(Client::closed_error()))
    }

    /// Takes a stream id and sends, in one step, so that ids increase on the wire. None: no room.
    fn try_start(
        &self,
        frame: &mut [u8],
        sender: &mut Option<oneshot::Sender<Result<Bytes>>>,
    ) -> Result<Option<u32>> {
        let mut calls = self.lock();
        if calls.closed {
            return Err(Error::unknown(CLOSED));
        }
        let stream = calls.next;
        frame::set_stream(frame, stream);
        match self.outgoing.try_send(frame) {
            Sent::Full => return Ok(None),
            Sent::Closed => return Err(Error::unknown(CLOSED)),
            Sent::Yes => {}
        }
        // Ids are never used again: a connection that has used them all is over.
        match stream.checked_add(2) {
            Some(next) => calls.next = next,
            None => calls.closed = true,
        }
        if let Some(sender) = sender.take() {
            calls.waiting.insert(stream, sender);
        }
        Ok(Some(stream))
    }

    fn answer(&self, stream: u32, answer: Result<Bytes>) {
        // Nobody waits any more if the call timed out or was dropped.
        if let Some(sender) = self.lock().waiting.remove(&stream) {
            let _ = sender.send(answer);
        }
    }

    fn close(&self) {
        let waiting = {
            let mut calls = self.lock();
            calls.closed = true;
            std::mem::take(&mut calls.waiting)
        };
        drop(waiting);
        self.outgoing.close();
        self.over.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets a call when its caller is done with it.
struct Call<'a> {
    connection: &'a Connection,
    stream: u32,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.connection.lock().waiting.remove(&self.stream);
    }
}

/// Closes the connection when its task ends, however it ends: even unpolled.
struct CloseOnDrop(Arc<Connection>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

async fn drive(connection: CloseOnDrop) {
    tokio::select! {
        () = read_answers(&connection.0) => {}
        () = connection.0.outgoing.drive() => {}
    }
}

async fn read_answers(connection: &Connection) {
    let mut decoder = Decoder::default();
    while let Ok(Some(frame)) = decoder.read(connection.outgoing.stream()).await {
        if frame.kind != frame::RESPONSE {
            tracing::debug!(stream = frame.stream, kind = frame.kind, "unexpected ttrpc frame");
            if frame.kind == frame::DATA {
                continue;
            }
            return;
        }
        connection.answer(frame.stream, frame.payload.map_err(Error::from).and_then(unwrap_response));
    }
}

fn unwrap_response(payload: Bytes) -> Result<Bytes> {
    let response = ResponseMessage::decode(payload)
        .map_err(|error| Error::internal(format!("ttrpc: malformed response: {error}")))?;
    match response.status {
        Some(status) if status.code != 0 => Err(error_of(&status)),
        _ => Ok(response.payload),
    }
}

fn nanoseconds(timeout: Duration) -> i64 {
    // Zero would mean no limit.
    i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX).max(1)
}
