//! What the server itself refuses, in the words of Go's servers: unknown services and methods, messages that are too
//! long.

use std::sync::Arc;
use std::task::{Context, Poll};

use corten_api::keys::MAX_MESSAGE;
use futures_util::future::{BoxFuture, FutureExt};
use tonic::codegen::http::{HeaderValue, Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};

/// The code as it is in headers.
const UNIMPLEMENTED: &str = "12";

/// Adds the message to answers that lack one. It knows the services by their full names.
#[derive(Clone, Debug)]
pub struct Named(pub Arc<[&'static str]>);

impl<S> Layer<S> for Named {
    type Service = NamedService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        NamedService { inner, services: Arc::clone(&self.0) }
    }
}

/// What [`Named`] makes of a service.
#[derive(Clone, Debug)]
pub struct NamedService<S> {
    inner: S,
    services: Arc<[&'static str]>,
}

impl<S, A, B> Service<Request<A>> for NamedService<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let path = request.uri().path().to_owned();
        let services = Arc::clone(&self.services);
        let answer = self.inner.call(request);
        async move {
            let mut answer = answer.await?;
            let headers = answer.headers_mut();
            let unknown = headers.get("grpc-status").is_some_and(|code| code == UNIMPLEMENTED);
            if unknown && !headers.contains_key("grpc-message") {
                // Paths are of letters that headers may have.
                if let Ok(text) = HeaderValue::from_str(&message(&path, &services)) {
                    headers.insert("grpc-message", text);
                }
            } else if headers.contains_key("grpc-status") {
                let refused = Status::from_header_map(headers).map(received);
                if let Some(refused) = refused.filter(|refused| refused.code() == Code::ResourceExhausted) {
                    // What cannot be a header stays as it was.
                    let _ = refused.add_header(headers);
                }
            }
            Ok(answer)
        }
        .boxed()
    }
}

/// The status for a message that was not read; of one that is too long it has Go's class and words.
pub fn received(status: Status) -> Status {
    const TOO_LONG: &str = "Error, decoded message length too large: found ";
    match status.message().strip_prefix(TOO_LONG).and_then(|rest| rest.split(' ').next()) {
        Some(length) if status.code() == Code::OutOfRange => Status::resource_exhausted(format!(
            "grpc: received message larger than max ({length} vs. {MAX_MESSAGE})"
        )),
        _ => status,
    }
}

fn message(path: &str, services: &[&str]) -> String {
    let path = path.trim_start_matches('/');
    match path.rsplit_once('/') {
        Some((service, method)) if services.contains(&service) => {
            format!("unknown method {method} for service {service}")
        }
        Some((service, _)) => format!("unknown service {service}"),
        None => format!("malformed method name: \"/{path}\""),
    }
}
