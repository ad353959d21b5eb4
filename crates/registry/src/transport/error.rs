//! Why a request got no answer, in the words that clients know.

use std::fmt;
use std::net::SocketAddr;

/// What failed, as far as the decision to try again depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TransportKind {
    /// No connection came about.
    Connect,
    /// Nothing came in time.
    Timeout,
    /// The peer closed the connection.
    Eof,
    /// Anything else.
    Other,
}

/// A request that got no answer.
#[derive(Clone, Debug)]
pub(crate) struct Transport {
    pub kind: TransportKind,
    pub text: String,
}

impl Transport {
    pub fn new(kind: TransportKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// A failure to dial an address.
    pub fn dial(address: SocketAddr, error: &std::io::Error) -> Self {
        Self::new(TransportKind::Connect, format!("dial tcp {address}: connect: {}", io_text(error)))
    }

    /// A failure while talking HTTP.
    pub fn http(error: &hyper::Error) -> Self {
        if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
            return Self::new(TransportKind::Eof, "unexpected EOF");
        }
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(inner) = source {
            if let Some(io) = inner.downcast_ref::<std::io::Error>() {
                return Self::io(io);
            }
            source = inner.source();
        }
        Self::new(TransportKind::Other, error.to_string())
    }

    /// A failure while reading or writing.
    pub fn io(error: &std::io::Error) -> Self {
        use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        match error.kind() {
            UnexpectedEof => Self::new(TransportKind::Eof, "unexpected EOF"),
            ConnectionReset | BrokenPipe => Self::new(TransportKind::Eof, io_text(error)),
            _ => Self::new(TransportKind::Other, io_text(error)),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The text of a system error, as clients expect it (`connection refused`).
fn io_text(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => corten_types::Error::from(std::io::Error::from_raw_os_error(code)).message().to_owned(),
        None => error.to_string(),
    }
}
