//! The debug socket (spec 00 §4): HTTP, with the paths of Go's `expvar` and `net/http/pprof`, about this process.

mod cpu;
mod heap;
mod pprof;
mod threads;
mod unwind;

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use corten_types::{Error, ErrorClass, Result};
use http::{Response, StatusCode};
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;

use crate::calls::OpenCalls;
use crate::site::{Answer, Question, Site, answer, file, not_found, text};

pub use heap::RATE as HEAP_RATE;

/// The longest that anyone may look.
const LONGEST: u64 = 600;
/// Calls in a trace at most.
const MAX_TRACED: usize = 100_000;

const PROFILES: [(&str, &str); 8] = [
    ("allocs", "A sampling of all past memory allocations"),
    ("block", "Always empty: where threads wait for each other is not recorded"),
    ("goroutine", "Threads, tasks and open calls. Use debug=2 as a query parameter for text."),
    ("heap", "A sampling of memory allocations of live objects."),
    ("mutex", "Always empty: holders of contended locks are not recorded"),
    ("profile", "CPU profile. You can specify the duration in the seconds GET parameter."),
    ("threadcreate", "The threads"),
    ("trace", "The gRPC calls that end while it looks, as JSON for Perfetto or chrome://tracing."),
];

/// The pages.
pub struct Debug {
    pub calls: OpenCalls,
}

#[async_trait]
impl Site for Debug {
    async fn answer(&self, question: Question) -> Answer {
        match question.path.as_str() {
            "/debug/vars" => answer(StatusCode::OK, "application/json; charset=utf-8", variables()),
            "/debug/pprof" => moved(),
            "/debug/pprof/" => answer(StatusCode::OK, "text/html; charset=utf-8", index()),
            "/debug/pprof/cmdline" => text(StatusCode::OK, command_line().join("\0")),
            "/debug/pprof/symbol" => text(StatusCode::OK, symbols(&question)),
            path => match path.strip_prefix("/debug/pprof/") {
                Some(name) => self.profile(name, &question).await.unwrap_or_else(failed),
                None => not_found(),
            },
        }
    }
}

impl Debug {
    async fn profile(&self, name: &str, question: &Question) -> Result<Answer> {
        let legible = question.number("debug") > 0;
        Ok(match name {
            "profile" => {
                let duration = seconds(question, 30)?;
                let looked = tokio::task::spawn_blocking(move || cpu::profile(duration)).await;
                file(name, looked.map_err(Error::internal)??)
            }
            "heap" | "allocs" if legible => text(StatusCode::OK, heap::text()),
            "heap" | "allocs" => file(name, blocking(heap::profile).await?),
            "goroutine" | "threadcreate" if legible => {
                text(StatusCode::OK, threads::text(&self.calls.list()))
            }
            "goroutine" => file(name, threads::profile("goroutine")?),
            "threadcreate" => file(name, threads::profile("threadcreate")?),
            "block" | "mutex" if legible => {
                text(StatusCode::OK, "--- contention:\ncycles/second=1000000000\n")
            }
            "block" | "mutex" => file(
                name,
                pprof::Profile::new(&[("contentions", "count"), ("delay", "nanoseconds")]).finish()?,
            ),
            "trace" => file(name, self.trace(seconds(question, 1)?).await.into_bytes()),
            _ => text(StatusCode::NOT_FOUND, "Unknown profile\n"),
        })
    }

    /// The calls that end in this time, as events of the Chrome trace format: times in microseconds, a row per
    /// namespace.
    async fn trace(&self, duration: Duration) -> String {
        let mut ended = self.calls.watch();
        let mut events = Vec::new();
        let end = tokio::time::Instant::now() + duration;
        while events.len() < MAX_TRACED {
            let call = match tokio::time::timeout_at(end, ended.recv()).await {
                Ok(Ok(call)) => call,
                Ok(Err(RecvError::Lagged(_))) => continue,
                Ok(Err(RecvError::Closed)) | Err(_) => break,
            };
            let begun = call.begun.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            events.push(json!({
                "name": call.path.trim_start_matches('/'), "cat": "grpc", "ph": "X",
                "ts": begun.as_secs_f64() * 1e6, "dur": call.took.as_secs_f64() * 1e6,
                "pid": std::process::id(), "tid": call.number,
                "args": { "namespace": call.namespace, "code": format!("{:?}", call.code) },
            }));
        }
        json!({ "displayTimeUnit": "ms", "traceEvents": events }).to_string()
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(Error::internal)?
}

fn seconds(question: &Question, usual: u64) -> Result<Duration> {
    match question.number("seconds") {
        0 => Ok(Duration::from_secs(usual)),
        long if long > LONGEST => Err(Error::invalid_argument(format!("seconds: at most {LONGEST}"))),
        seconds => Ok(Duration::from_secs(seconds)),
    }
}

fn failed(error: Error) -> Answer {
    let status = match error.class() {
        ErrorClass::InvalidArgument => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    text(status, format!("{}\n", error.message()))
}

fn moved() -> Answer {
    let mut answer = Response::new("<a href=\"/debug/pprof/\">Moved Permanently</a>.\n\n".into());
    *answer.status_mut() = StatusCode::MOVED_PERMANENTLY;
    answer.headers_mut().insert(http::header::LOCATION, http::HeaderValue::from_static("/debug/pprof/"));
    answer
}

fn index() -> String {
    let mut page = String::from(
        "<html>\n<head>\n<title>/debug/pprof/</title>\n</head>\n<body>\n/debug/pprof/\n<br>\n\
         <p>Set debug=1 as a query parameter for text</p>\n<table>\n",
    );
    for (name, help) in PROFILES {
        // Writing to a string cannot fail.
        let _ = writeln!(page, "<tr><td><a href='{name}'>{name}</a></td><td>{help}</td></tr>");
    }
    page.push_str("</table>\n</body>\n</html>\n");
    page
}

fn command_line() -> Vec<String> {
    std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect()
}

/// What Go's `expvar` publishes, as far as it means something here.
fn variables() -> String {
    let heap = corten_sys::heap_usage();
    let memory = json!({
        "Alloc": heap.used, "HeapAlloc": heap.used, "HeapInuse": heap.used, "HeapIdle": heap.free,
        "HeapSys": heap.used.saturating_add(heap.free), "Sys": heap.used.saturating_add(heap.free),
    });
    json!({ "cmdline": command_line(), "memstats": memory }).to_string()
}

/// Functions at the addresses `0x…+0x…` of the body or the query, a line each.
fn symbols(question: &Question) -> String {
    let asked = match question.body.is_empty() {
        true => question.query.clone(),
        false => String::from_utf8_lossy(&question.body).into_owned(),
    };
    let mut lines = String::from("num_symbols: 1\n");
    for word in asked.split('+').filter(|word| !word.is_empty()) {
        let Ok(address) = usize::from_str_radix(word.trim_start_matches("0x"), 16) else { continue };
        if let Some(line) = heap::resolve(address.saturating_add(1)).lines.first() {
            // Writing to a string cannot fail.
            let _ = writeln!(lines, "{address:#x} {}", line.function);
        }
    }
    lines
}
