//! The sending half of a connection. A frame is written at once by whoever sends it if the socket
//! takes it; what it does not take is kept, in order, for the connection's own task. So a sender
//! that is dropped half-way never leaves half a frame, and the common case costs no task switch.

use std::io::ErrorKind;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::net::UnixStream;
use tokio::sync::Notify;

/// Senders wait while more than this is unsent.
const LIMIT: usize = 64 << 10;

/// What became of a frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// Written or queued.
    Yes,
    /// Too much is unsent: try again after [`Outgoing::room`].
    Full,
    /// The connection is over.
    Closed,
}

#[derive(Debug)]
pub(crate) struct Outgoing {
    stream: UnixStream,
    queue: Mutex<Queue>,
    /// Wakes the connection's task: there is something to write.
    work: Notify,
    /// Wakes senders: the queue is empty or the connection over.
    room: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    bytes: Vec<u8>,
    written: usize,
    closed: bool,
}

impl Outgoing {
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, queue: Mutex::default(), work: Notify::new(), room: Notify::new() }
    }

    /// The socket, for reading.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends a frame without waiting.
    pub fn try_send(&self, frame: &[u8]) -> Sent {
        let mut queue = self.lock();
        if queue.closed {
            return Sent::Closed;
        }
        if queue.bytes.len() - queue.written > LIMIT {
            return Sent::Full;
        }
        let mut rest = frame;
        if queue.bytes.is_empty() {
            match self.stream.try_write(frame) {
                Ok(written) => rest = frame.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => {
                    queue.closed = true;
                    self.work.notify_one();
                    return Sent::Closed;
                }
            }
        }
        if !rest.is_empty() {
            queue.bytes.extend_from_slice(rest);
            self.work.notify_one();
        }
        Sent::Yes
    }

    /// Sends a frame, waiting for room. False if the connection is over.
    pub async fn send(&self, frame: &[u8]) -> bool {
        loop {
            match self.try_send(frame) {
                Sent::Yes => return true,
                Sent::Closed => return false,
                Sent::Full => self.room().await,
            }
        }
    }

    /// Returns once the queue is empty or the connection is over.
    pub async fn room(&self) {
        loop {
            let mut room = pin!(self.room.notified());
            room.as_mut().enable();
            if self.idle() {
                return;
            }
            room.await;
        }
    }

    /// Writes what is queued, for as long as the connection lives: returns when it is over.
    pub async fn drive(&self) {
        loop {
            while self.pending() {
                if self.stream.writable().await.is_err() || !self.write_some() {
                    break;
                }
            }
            if self.lock().closed {
                return;
            }
            self.work.notified().await;
        }
    }

    /// Ends the connection, for the peer too, whoever else still holds the socket. What is queued
    /// is dropped.
    pub fn close(&self) {
        *self.lock() = Queue { closed: true, ..Queue::default() };
        // Fails only if the peer was faster.
        let _ = rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Both);
        self.room.notify_waiters();
        self.work.notify_one();
    }

    fn write_some(&self) -> bool {
        let mut queue = self.lock();
        match self.stream.try_write(queue.bytes.get(queue.written..).unwrap_or_default()) {
            Ok(written) => queue.written += written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
            Err(_) => {
                queue.closed = true;
                return false;
            }
        }
        if queue.written == queue.bytes.len() {
            queue.bytes = Vec::new();
            queue.written = 0;
            self.room.notify_waiters();
        }
        true
    }

    fn pending(&self) -> bool {
        let queue = self.lock();
        !queue.closed && !queue.bytes.is_empty()
    }

    fn idle(&self) -> bool {
        let queue = self.lock();
        queue.closed || queue.bytes.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
