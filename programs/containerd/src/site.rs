//! Small HTTP sites for people and tools on this machine: debugging and metrics.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

/// Connections at once; more wait.
const CONNECTIONS: usize = 64;
/// How long the head of a request may take, and how long a connection may wait for another one.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest body of a request that is read, bytes.
const MAX_BODY: usize = 64 << 10;

/// An answer, whole.
pub type Answer = Response<Full<Bytes>>;

/// What is asked.
#[derive(Debug)]
pub struct Question {
    /// The path, without the query.
    pub path: String,
    /// The query, still encoded.
    pub query: String,
    /// The body.
    pub body: Bytes,
}

impl Question {
    /// A value of the query.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|x| x.1)
    }

    /// A number of the query; 0 for none.
    pub fn number(&self, name: &str) -> u64 {
        self.value(name).and_then(|text| text.parse().ok()).unwrap_or(0)
    }
}

/// Answers questions.
#[async_trait]
pub trait Site: Send + Sync + 'static {
    /// The answer.
    async fn answer(&self, question: Question) -> Answer;
}

/// A socket that connections come from.
pub enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// Serves until the future is dropped, with the connections of that moment.
pub async fn serve(listener: Listener, site: Arc<dyn Site>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let site = site.clone();
        let accepted = match &listener {
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                connections.spawn(async move {
                    connection(stream, site).await;
                    drop(permit);
                })
            }),
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                connections.spawn(async move {
                    connection(stream, site).await;
                    drop(permit);
                })
            }),
        };
        if let Err(error) = accepted {
            tracing::warn!(%error, "accept");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, site: Arc<dyn Site>) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let site = site.clone();
        async move { Ok::<_, Infallible>(respond(request, &*site).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, "http");
    }
}

async fn respond(request: Request<Incoming>, site: &dyn Site) -> Answer {
    let (head, body) = request.into_parts();
    let Ok(Ok(body)) = tokio::time::timeout(PATIENCE, Limited::new(body, MAX_BODY).collect()).await else {
        return text(StatusCode::PAYLOAD_TOO_LARGE, "request body too large or too slow");
    };
    let question = Question {
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        body: body.to_bytes(),
    };
    site.answer(question).await
}

/// An answer of some type.
pub fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// A line or more of text.
pub fn text(status: StatusCode, text: impl Into<String>) -> Answer {
    answer(status, "text/plain; charset=utf-8", text.into())
}

/// A file to be saved under a name.
pub fn file(name: &str, body: Vec<u8>) -> Answer {
    let mut answer = answer(StatusCode::OK, "application/octet-stream", body);
    if let Ok(value) = HeaderValue::from_str(&format!("attachment; filename={name:?}")) {
        answer.headers_mut().insert(CONTENT_DISPOSITION, value);
    }
    answer
}

/// There is no such page.
pub fn not_found() -> Answer {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}
