//! gRPC calls as they pass: counted for the metrics endpoint, noted for the debug socket, traced for a
//! collector. Without any of these, calls go by untouched.

mod body;
mod methods;
mod open;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use corten_api::keys::NAMESPACE;
use futures_util::future::Either;
use http::{Request, Response};
use tonic::Code;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::metrics::{Counts, Method};
use crate::traces::{Span, Tracer};

use body::{Received, Sent};
#[cfg(fuzzing)]
pub use methods::Kind;
pub use methods::{SERVICES, kind};
use open::OpenCall;
pub use open::OpenCalls;

/// Who wants to know of calls.
#[derive(Clone, Default)]
pub struct Watch {
    /// Counters for the metrics endpoint.
    pub counts: Option<Arc<Counts>>,
    /// What is going on, for the debug socket.
    pub open: Option<OpenCalls>,
    /// Spans for a collector.
    pub tracer: Option<Tracer>,
}

impl Watch {
    /// A service is there, with calls or without.
    pub fn serve(&self, service: &str) {
        if let Some(counts) = &self.counts {
            counts.serve(service);
        }
    }

    fn is_idle(&self) -> bool {
        self.counts.is_none() && self.open.is_none() && self.tracer.is_none()
    }

    fn begin(&self, request: &Request<Body>) -> Call {
        let path = request.uri().path();
        let method = self.counts.as_ref().and_then(|counts| counts.method(path));
        if let Some(method) = &method {
            method.started();
        }
        let namespace = request.headers().get(NAMESPACE).and_then(|value| value.to_str().ok());
        let namespace = namespace.unwrap_or_default();
        Call {
            method,
            span: self.tracer.as_ref().and_then(|tracer| tracer.begin(path, namespace, request.headers())),
            open: self.open.as_ref().map(|open| open.begin(path, namespace)),
            begun: Instant::now(),
            ended: false,
        }
    }
}

/// A call, from its request to its end, which is told once: with its status, or, if its client goes away
/// before, as cancelled.
struct Call {
    method: Option<Arc<Method>>,
    span: Option<Span>,
    open: Option<OpenCall>,
    begun: Instant,
    ended: bool,
}

impl Call {
    /// The answer begins, and with an error it has ended already.
    fn answered(mut self, response: Response<Body>) -> Response<Body> {
        if let Some(code) = body::code(response.headers()) {
            self.end(code, &body::message(response.headers()));
        }
        response.map(|body| Body::new(Sent::new(body, self)))
    }

    fn end(&mut self, code: Code, message: &str) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let took: Duration = self.begun.elapsed();
        if let Some(method) = &self.method {
            method.handled(code, took);
        }
        if let Some(span) = self.span.take() {
            span.end(code, message);
        }
        if let Some(open) = self.open.take() {
            open.end(code, took);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled, "context canceled");
    }
}

impl<S> Layer<S> for Watch {
    type Service = Watched<S>;

    fn layer(&self, inner: S) -> Watched<S> {
        Watched { inner, watch: (!self.is_idle()).then(|| Arc::new(self.clone())) }
    }
}

/// The services, watched.
#[derive(Clone)]
pub struct Watched<S> {
    inner: S,
    watch: Option<Arc<Watch>>,
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<S> Service<Request<Body>> for Watched<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Answer<S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Some(watch) = &self.watch else { return Either::Left(self.inner.call(request)) };
        let call = watch.begin(&request);
        let request = match &call.method {
            Some(method) => request.map(|body| Body::new(Received::new(body, method.clone()))),
            None => request,
        };
        let answer = self.inner.call(request);
        Either::Right(Box::pin(async move { Ok(call.answered(answer.await?)) }))
    }
}
