//! Spans of gRPC calls, sent to a collector by OTLP when the environment names one (spec 00 §3: plugins `otlp`
//! and `tracing`).
//!
//! Calls never wait for the collector: spans that find the queue full are dropped, and counted in the log.

mod export;
mod messages;
mod settings;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use corten_types::Result;
use http::HeaderMap;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::Code;

use messages::{SERVER, STATUS_ERROR, integer, string};
use settings::{Sampler, Settings};

/// What a skipped plugin says.
pub const NOT_CONFIGURED: &str = "skip plugin: tracing endpoint not configured";

/// How long the last spans may take to be sent when the daemon ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// Makes spans. Clones are the same.
#[derive(Clone)]
pub struct Tracer {
    inner: Arc<Inner>,
}

struct Inner {
    queue: mpsc::Sender<messages::Span>,
    sampler: Sampler,
    /// Spans that found no place in the queue since it was last told.
    dropped: Arc<AtomicU64>,
}

/// The task that sends spans.
pub struct Exporter {
    task: JoinHandle<()>,
    end: tokio::sync::oneshot::Sender<()>,
}

/// A span that has begun.
pub struct Span {
    inner: Arc<Inner>,
    message: messages::Span,
}

/// Where a call comes from, as W3C's `traceparent` says.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Parent {
    trace: [u8; 16],
    span: [u8; 8],
    sampled: bool,
}

/// Begins to send spans; nothing if the environment names no collector.
///
/// # Errors
/// NotImplemented for a protocol that is not spoken, InvalidArgument for an address that is none.
pub fn start() -> Result<Option<(Tracer, Exporter)>> {
    let Some(settings) = Settings::from_environment(|name| std::env::var(name).ok())? else {
        return Ok(None);
    };
    let connection = export::connect(&settings)?;
    let (queue, spans) = mpsc::channel(settings.queue);
    let dropped = Arc::<AtomicU64>::default();
    let sampler = settings.sampler;
    let (end, ending) = tokio::sync::oneshot::channel();
    let task = tokio::spawn(export::run(settings, connection, spans, dropped.clone(), ending));
    Ok(Some((Tracer { inner: Arc::new(Inner { queue, sampler, dropped }) }, Exporter { task, end })))
}

impl Exporter {
    /// Sends what is left.
    pub async fn finish(self) {
        // The task may have ended by itself.
        let _ = self.end.send(());
        let mut task = self.task;
        if tokio::time::timeout(FAREWELL, &mut task).await.is_err() {
            task.abort();
        }
    }
}

impl Tracer {
    /// A span for a call, unless it is not to be sampled.
    pub fn begin(&self, path: &str, namespace: &str, headers: &HeaderMap) -> Option<Span> {
        let parent = headers.get("traceparent").and_then(|value| value.to_str().ok()).and_then(read_parent);
        let mut ids = [0; 24];
        getrandom::fill(&mut ids).ok()?;
        let (mut trace, mut id) = ([0; 16], [0; 8]);
        trace.copy_from_slice(ids.get(..16)?);
        id.copy_from_slice(ids.get(16..)?);
        let trace = parent.map_or(trace, |parent| parent.trace);
        if !self.inner.sampler.takes(parent.map(|parent| parent.sampled), trace) {
            return None;
        }
        let name = path.trim_start_matches('/');
        let (service, method) = name.split_once('/').unwrap_or((name, ""));
        let mut attributes =
            vec![string("rpc.system", "grpc"), string("rpc.service", service), string("rpc.method", method)];
        if !namespace.is_empty() {
            attributes.push(string("containerd.namespace", namespace));
        }
        let message = messages::Span {
            trace_id: trace.to_vec(),
            span_id: id.to_vec(),
            parent_span_id: parent.map(|parent| parent.span.to_vec()).unwrap_or_default(),
            name: name.to_owned(),
            kind: SERVER,
            start_time_unix_nano: now(),
            attributes,
            ..messages::Span::default()
        };
        Some(Span { inner: self.inner.clone(), message })
    }
}

impl Span {
    /// The call has ended.
    pub fn end(mut self, code: Code, text: &str) {
        self.message.end_time_unix_nano = now();
        self.message.attributes.push(integer("rpc.grpc.status_code", code as i64));
        // What is the server's fault, not the caller's.
        let fault = matches!(
            code,
            Code::Unknown
                | Code::DeadlineExceeded
                | Code::Unimplemented
                | Code::Internal
                | Code::Unavailable
                | Code::DataLoss
        );
        if fault {
            self.message.status = Some(messages::Status { message: text.to_owned(), code: STATUS_ERROR });
        }
        if self.inner.queue.try_send(self.message).is_err() {
            self.inner.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Nanoseconds since the epoch.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Reads `00-<trace>-<span>-<flags>`; other versions may have more behind it.
fn read_parent(text: &str) -> Option<Parent> {
    let mut parts = text.trim().split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if version.len() != 2 || version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let [version] = bytes::<1>(version)?;
    let (trace, span, [flags]) = (bytes::<16>(trace)?, bytes::<8>(span)?, bytes::<1>(flags)?);
    let _ = version;
    (trace != [0; 16] && span != [0; 8]).then_some(Parent { trace, span, sampled: flags & 1 == 1 })
}

/// Lower-case hexadecimal digits.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    if !digits || text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_read_as_w3c_has_it() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let parent = read_parent(good).unwrap();
        assert_eq!((parent.trace[0], parent.span[7], parent.sampled), (0x0a, 0x31, true));
        assert!(!read_parent(&good.replace("-01", "-00")).unwrap().sampled);
        assert!(read_parent(&good.replace("00-0a", "01-0a").replace("-01", "-01-more")).is_some());
        for bad in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333é-1",
        ] {
            assert_eq!(read_parent(bad), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn a_full_queue_drops_spans_and_never_waits() {
        let (queue, mut spans) = mpsc::channel(2);
        let dropped = Arc::<AtomicU64>::default();
        let inner = Inner { queue, sampler: Sampler::Always, dropped: dropped.clone() };
        let tracer = Tracer { inner: Arc::new(inner) };
        for _ in 0..5 {
            tracer.begin("/a.B/C", "ns", &HeaderMap::new()).unwrap().end(Code::Internal, "why");
        }
        assert_eq!(dropped.load(Ordering::Relaxed), 3);
        let span = spans.recv().await.unwrap();
        assert_eq!((span.name.as_str(), span.kind, span.trace_id.len()), ("a.B/C", SERVER, 16));
        assert_eq!(span.status.unwrap().message, "why");
    }
}
