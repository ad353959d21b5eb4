//! Client and server against each other, and each against a peer that misbehaves.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use corten_ttrpc::{CallOptions, Client, MAX_MESSAGE, Reply, Request, Server, Service, reply};
use corten_types::{Error, ErrorClass};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Barrier, Notify};

#[derive(Clone, PartialEq, prost::Message)]
struct Text {
    #[prost(bytes = "vec", tag = "1")]
    bytes: Vec<u8>,
}

fn text(bytes: impl Into<Vec<u8>>) -> Text {
    Text { bytes: bytes.into() }
}

struct Echo {
    together: Barrier,
    release: Notify,
    abandoned: Arc<AtomicUsize>,
}

impl Echo {
    fn new() -> Self {
        Self { together: Barrier::new(100), release: Notify::new(), abandoned: Arc::default() }
    }
}

impl Service for Echo {
    fn call(&self, request: Request) -> Reply<'_> {
        Box::pin(async move {
            let closed = request.closed();
            match &*request.method {
                "Echo" => reply(request.payload, async |text: Text| Ok(text)).await,
                "Namespace" => {
                    let namespace = request.namespace().unwrap_or("none").to_owned();
                    reply(request.payload, async |_: Text| Ok(text(namespace))).await
                }
                "Timeout" => {
                    let timeout = format!("{:?}", request.timeout);
                    reply(request.payload, async |_: Text| Ok(text(timeout))).await
                }
                "Together" => {
                    self.together.wait().await;
                    reply(request.payload, async |text: Text| Ok(text)).await
                }
                "Hang" => {
                    closed.await;
                    self.abandoned.fetch_add(1, Ordering::SeqCst);
                    Ok(Vec::new())
                }
                "Released" => {
                    self.release.notified().await;
                    reply(request.payload, async |text: Text| Ok(text)).await
                }
                "Large" => reply(request.payload, async |_: Text| Ok(text(vec![0; MAX_MESSAGE]))).await,
                "Missing" => Err(Error::not_found("container not created")),
                _ => Err(request.unknown()),
            }
        })
    }
}

fn pair() -> Client {
    served(Arc::new(Echo::new()))
}

fn served(service: Arc<Echo>) -> Client {
    let (ours, theirs) = UnixStream::pair().unwrap();
    tokio::spawn(async move { Server::new(service).serve_connection(theirs).await });
    Client::new(ours)
}

async fn call(client: &Client, method: &str, request: Text) -> corten_types::Result<Text> {
    client.call("test.Echo", method, &request, CallOptions::default()).await
}

#[tokio::test]
async fn a_call_returns_what_the_method_answers() {
    let client = pair();
    assert_eq!(call(&client, "Echo", text("hello")).await.unwrap(), text("hello"));
    assert_eq!(call(&client, "Echo", text("")).await.unwrap(), text(""));
    let large = text(vec![7; 3 << 20]);
    assert_eq!(call(&client, "Echo", large.clone()).await.unwrap(), large);
}

#[tokio::test]
async fn namespace_and_timeout_travel_with_the_call() {
    let client = pair();
    let options = CallOptions { namespace: Some("lab".into()), timeout: Some(Duration::from_secs(3600)) };
    let answer: Text = client.call("t", "Namespace", &text(""), options.clone()).await.unwrap();
    assert_eq!(answer, text("lab"));
    let answer: Text = client.call("t", "Timeout", &text(""), options).await.unwrap();
    assert_eq!(answer, text("Some(3600s)"));
    assert_eq!(call(&client, "Timeout", text("")).await.unwrap(), text("None"));
}

#[tokio::test]
async fn errors_keep_their_class_and_text() {
    let client = pair();
    let error = call(&client, "Missing", text("")).await.unwrap_err();
    assert_eq!((error.class(), error.message()), (ErrorClass::NotFound, "container not created: not found"));
    let error = call(&client, "Nonsense", text("")).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::NotImplemented);
}

#[tokio::test]
async fn a_hundred_calls_are_in_progress_at_once() {
    let client = pair();
    let calls: Vec<_> = (0..100u8)
        .map(|n| {
            let client = client.clone();
            tokio::spawn(async move { (n, call(&client, "Together", text(vec![n])).await.unwrap()) })
        })
        .collect();
    for task in calls {
        let (n, answer) = task.await.unwrap();
        assert_eq!(answer, text(vec![n]));
    }
}

#[tokio::test]
async fn large_calls_in_both_directions_do_not_block_each_other() {
    let client = pair();
    let calls: Vec<_> = (0..16u8)
        .map(|n| {
            let client = client.clone();
            tokio::spawn(async move { (n, call(&client, "Echo", text(vec![n; 1 << 20])).await.unwrap()) })
        })
        .collect();
    for task in calls {
        let (n, answer) = task.await.unwrap();
        assert_eq!(answer, text(vec![n; 1 << 20]));
    }
}

#[tokio::test]
async fn a_call_beyond_its_deadline_fails_and_the_connection_lives_on() {
    let client = pair();
    let options = CallOptions { timeout: Some(Duration::from_millis(1)), ..CallOptions::default() };
    let result: corten_types::Result<Text> = client.call("t", "Hang", &text(""), options).await;
    let error = result.unwrap_err();
    assert_eq!((error.class(), error.message()), (ErrorClass::DeadlineExceeded, "context deadline exceeded"));
    assert_eq!(call(&client, "Echo", text("on")).await.unwrap(), text("on"));
}

#[tokio::test]
async fn closing_fails_pending_and_later_calls() {
    let client = pair();
    let pending = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "Hang", text("")).await }
    });
    call(&client, "Echo", text("")).await.unwrap();
    let closed = client.closed();
    client.close();
    closed.await;
    for error in [pending.await.unwrap().unwrap_err(), call(&client, "Echo", text("")).await.unwrap_err()] {
        assert!(Client::is_closed(&error));
        assert_eq!(error.to_string(), "ttrpc: closed");
    }
}

#[tokio::test]
async fn the_end_of_the_server_fails_pending_calls() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let client = Client::new(ours);
    let pending = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "Hang", text("")).await }
    });
    let mut byte = [0];
    theirs.readable().await.unwrap();
    let _ = theirs.try_read(&mut byte);
    drop(theirs);
    assert!(Client::is_closed(&pending.await.unwrap().unwrap_err()));
    client.closed().await;
}

#[tokio::test]
async fn the_connection_ends_with_the_last_clone() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let client = Client::new(ours);
    let (closed, other) = (client.closed(), client.clone());
    drop(client);
    drop(other);
    closed.await;
    assert_eq!(theirs.read(&mut [0; 8]).await.unwrap(), 0);
}

#[tokio::test]
async fn requests_learn_that_their_client_is_gone() {
    let service = Arc::new(Echo::new());
    let abandoned = service.abandoned.clone();
    let client = served(service);
    let pending = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "Hang", text("")).await }
    });
    call(&client, "Echo", text("")).await.unwrap();
    client.close();
    let _ = pending.await;
    while abandoned.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn oversized_messages_are_refused_on_both_sides() {
    let client = pair();
    for (method, request) in [("Echo", text(vec![0; MAX_MESSAGE])), ("Large", text(""))] {
        let error = call(&client, method, request).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::ResourceExhausted);
        assert!(error.message().contains("exceed maximum message size of 4194304"), "{error}");
    }
    assert_eq!(call(&client, "Echo", text("on")).await.unwrap(), text("on"));
}

#[tokio::test]
async fn shutdown_answers_what_is_in_progress() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let service = Arc::new(Echo::new());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = Server::new(service.clone()).grace(Duration::from_secs(600));
    let serving = tokio::spawn(async move {
        server
            .serve(listener, async {
                let _ = stopped.await;
            })
            .await;
    });
    let client = Client::connect(&path).await.unwrap();
    let pending = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "Released", text("late")).await }
    });
    call(&client, "Echo", text("")).await.unwrap();
    stop.send(()).unwrap();
    tokio::task::yield_now().await;
    service.release.notify_one();
    assert_eq!(pending.await.unwrap().unwrap(), text("late"));
    serving.await.unwrap();
    client.closed().await;
}

#[tokio::test]
async fn peers_of_another_user_are_refused() {
    for (uid, admitted) in [(0, true), (12345, false)] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = Server::new(Arc::new(Echo::new())).require_peer(uid, 0);
        tokio::spawn(async move { server.serve_connection(theirs).await });
        let answer = call(&Client::new(ours), "Echo", text("in")).await;
        assert_eq!(answer.is_ok(), admitted);
    }
}

fn frame(stream: u32, kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(stream.to_be_bytes());
    bytes.extend([kind, flags]);
    bytes.extend(payload);
    bytes
}

/// Sends raw frames to a server; the stream id and the status code of each of `count` answers.
async fn answers(frames: &[Vec<u8>], count: usize) -> Vec<(u32, u8)> {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    tokio::spawn(async move { Server::new(Arc::new(Echo::new())).serve_connection(theirs).await });
    for frame in frames {
        ours.write_all(frame).await.unwrap();
    }
    let mut answers = Vec::new();
    for _ in 0..count {
        let mut header = [0; 10];
        ours.read_exact(&mut header).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes(header[..4].try_into().unwrap()) as usize];
        ours.read_exact(&mut payload).await.unwrap();
        assert_eq!(header[8], 2);
        // Field 1 (status), its length, field 1 of the status (code), the code.
        answers.push((u32::from_be_bytes(header[4..8].try_into().unwrap()), payload[3]));
    }
    answers
}

#[tokio::test]
async fn requests_out_of_order_are_refused() {
    let frames = [frame(2, 1, 0, b""), frame(5, 1, 0, b""), frame(5, 1, 0, b""), frame(3, 1, 0, b"")];
    let mut answers = answers(&frames, 4).await;
    answers.sort_unstable();
    // The well-formed one names no method: Unimplemented.
    assert_eq!(answers, [(2, 3), (3, 3), (5, 3), (5, 12)]);
}

#[tokio::test]
async fn streams_and_malformed_requests_are_answered() {
    let frames =
        [frame(1, 1, 2, b""), frame(1, 3, 0, b"data"), frame(1, 3, 5, b""), frame(3, 1, 0, b"\xff\xff")];
    assert_eq!(answers(&frames, 2).await, [(1, 12), (3, 3)]);
}

#[tokio::test]
async fn an_oversized_request_is_answered_and_skipped() {
    let frames = [frame(1, 1, 0, &vec![0; MAX_MESSAGE + 1]), frame(3, 1, 0, b"")];
    assert_eq!(answers(&frames, 2).await, [(1, 8), (3, 12)]);
}

#[tokio::test]
async fn a_response_sent_to_a_server_ends_the_connection() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let serving =
        tokio::spawn(async move { Server::new(Arc::new(Echo::new())).serve_connection(theirs).await });
    ours.write_all(&frame(1, 2, 0, b"")).await.unwrap();
    serving.await.unwrap();
    assert_eq!(ours.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn more_requests_than_the_limit_are_refused() {
    let service = Arc::new(Echo::new());
    let client = served(service);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..1025 {
        let client = client.clone();
        calls.spawn(async move { call(&client, "Hang", text("")).await });
    }
    let first = calls.join_next().await.unwrap().unwrap().unwrap_err();
    assert_eq!(first.class(), ErrorClass::ResourceExhausted);
}
