//! Bodies whose messages are counted as they pass.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};

use super::Call;
use crate::metrics::Method;

/// Counts messages by their heads: a byte, and four bytes of length.
#[derive(Debug, Default)]
struct Messages {
    head: [u8; 5],
    /// Bytes of the head that have passed.
    have: usize,
    /// Bytes of the message that are still to pass.
    left: usize,
}

impl Messages {
    /// Messages that are complete with these bytes.
    fn pass(&mut self, mut data: &[u8]) -> u64 {
        let mut complete = 0;
        while !data.is_empty() {
            if self.have < self.head.len() {
                let count = data.len().min(self.head.len() - self.have);
                let (now, rest) = data.split_at(count);
                self.head.iter_mut().skip(self.have).zip(now).for_each(|(to, from)| *to = *from);
                (self.have, data) = (self.have + count, rest);
                if self.have < self.head.len() {
                    break;
                }
                let [_, a, b, c, d] = self.head;
                self.left = u32::from_be_bytes([a, b, c, d]) as usize;
            }
            let count = data.len().min(self.left);
            self.left -= count;
            data = data.get(count..).unwrap_or_default();
            if self.left == 0 {
                (self.have, complete) = (0, complete + 1);
            }
        }
        complete
    }
}

/// The body of a request.
pub(super) struct Received {
    inner: Body,
    messages: Messages,
    method: Arc<Method>,
}

impl Received {
    pub fn new(inner: Body, method: Arc<Method>) -> Self {
        Self { inner, messages: Messages::default(), method }
    }
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            let count = self.messages.pass(data);
            self.method.received(count);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The body of an answer; its trailers end the call.
pub(super) struct Sent {
    inner: Body,
    messages: Messages,
    call: Call,
}

impl Sent {
    pub fn new(inner: Body, call: Call) -> Self {
        Self { inner, messages: Messages::default(), call }
    }
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        match &frame {
            Some(Ok(part)) => {
                if let Some(data) = part.data_ref() {
                    let count = self.messages.pass(data);
                    if let Some(method) = &self.call.method {
                        method.sent(count);
                    }
                }
                if let Some(trailers) = part.trailers_ref() {
                    self.call.end(code(trailers).unwrap_or(Code::Unknown), &message(trailers));
                }
            }
            Some(Err(status)) => self.call.end(status.code(), status.message()),
            None => self.call.end(Code::Unknown, "no status"),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The status in the headers of an answer that is an error, or in trailers.
pub(super) fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()))
}

/// The words that come with a status, percent-encoded as they are sent.
pub(super) fn message(headers: &HeaderMap) -> String {
    let message = headers.get("grpc-message").and_then(|value| value.to_str().ok());
    message.unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let mut wire = Vec::new();
        for length in [0_u32, 1, 300, 0, 7, 0] {
            wire.push(0);
            wire.extend(length.to_be_bytes());
            wire.extend(std::iter::repeat_n(9, length as usize));
        }
        for size in [1, 2, 3, 5, 6, 64, wire.len()] {
            let mut messages = Messages::default();
            let counted: u64 = wire.chunks(size).map(|part| messages.pass(part)).sum();
            assert_eq!(counted, 6, "in parts of {size}");
        }
    }
}
