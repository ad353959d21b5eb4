//! One connection of the test registry.

use std::io;
use std::io::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{Cue, Fault, Recorded, State, Stored, lock, uploads};

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

pub(super) struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

impl Answer {
    pub fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Bytes::new() }
    }
}

pub(super) async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, state: Arc<State>) {
    let origin = format!(
        "{}://{}",
        if tls.is_some() { "https" } else { "http" },
        listener.local_addr().map(|address| address.to_string()).unwrap_or_default()
    );
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, state, origin) = (tls.clone(), Arc::clone(&state), origin.clone());
        connections.spawn(async move {
            let stream: Box<dyn Io> = match tls {
                None => Box::new(stream),
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => Box::new(stream),
                    Err(_) => return,
                },
            };
            // A client that goes away is part of what is tested.
            let _ = connection(stream, &state, &origin).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(stream: Box<dyn Io>, state: &State, origin: &str) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    lock(&state.traffic).connections += 1;
    loop {
        let Some(request) = read_request(&mut stream).await? else {
            return Ok(());
        };
        let Some(mut request) = request else {
            // What is no HTTP gets what servers answer to it.
            stream
                .write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                .await?;
            return stream.shutdown().await;
        };
        let fault = take_fault(state, &request);
        let length = request.header("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
        let cut = match fault {
            Some(Fault::CutRequest(after)) => Some(after.min(length)),
            _ => None,
        };
        let mut data = vec![0; cut.unwrap_or(length)];
        stream.read_exact(&mut data).await?;
        request.body = String::from_utf8_lossy(&data).into_owned();
        lock(&state.log).push(request.clone());
        let _busy = Busy::new(state);
        let answer = respond(state, &request, (&data, cut.is_none()), fault.as_ref(), origin);
        if cut.is_some() || !write(&mut stream, &request, answer, fault).await? {
            return stream.shutdown().await;
        }
    }
}

/// A request being answered.
struct Busy<'a>(&'a State);

impl<'a> Busy<'a> {
    fn new(state: &'a State) -> Self {
        lock(&state.traffic).at_once += 1;
        Self(state)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        lock(&self.0.traffic).at_once -= 1;
    }
}

/// The head of a request. Nothing at the end of the connection; an empty inner option for what is no request.
async fn read_request(stream: &mut BufReader<Box<dyn Io>>) -> io::Result<Option<Option<Recorded>>> {
    if stream.fill_buf().await?.is_empty() {
        return Ok(None);
    }
    if !stream.buffer()[0].is_ascii_uppercase() {
        return Ok(Some(None));
    }
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut request =
        Recorded { method: method.to_owned(), target: target.to_owned(), ..Recorded::default() };
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Ok(Some(Some(request)))
}

fn take_fault(state: &State, request: &Recorded) -> Option<Fault> {
    let line = request.line();
    let mut cues = lock(&state.cues);
    let meets = |cue: &Cue| line.contains(&cue.pattern) && (!cue.parts || request.is_part());
    let cue = cues.iter_mut().find(|cue| cue.left > 0 && meets(cue))?;
    cue.left -= 1;
    Some(cue.fault.clone())
}

fn respond(
    state: &State,
    request: &Recorded,
    (data, is_whole): (&[u8], bool),
    fault: Option<&Fault>,
    origin: &str,
) -> Answer {
    match fault {
        Some(Fault::Status(status)) => return Answer::status(*status),
        Some(Fault::Answer(status, headers, body)) => {
            return Answer { status: *status, headers: headers.clone(), body: body.clone().into() };
        }
        Some(Fault::Redirect(location)) => {
            let headers = vec![("Location".to_owned(), location.clone())];
            return Answer { headers, ..Answer::status(307) };
        }
        _ => {}
    }
    let rule = lock(&state.auth).clone();
    let path = request.target.split('?').next().unwrap_or_default();
    if let Some(rule) = rule {
        if path == "/token" {
            let (status, body) = rule.token(request);
            return Answer { body: body.into(), ..Answer::status(status) };
        }
        if !rule.admits(request) {
            return Answer { headers: rule.challenges(request, origin), ..Answer::status(401) };
        }
    }
    if let Some(answer) = uploads::answer(state, request, data, is_whole) {
        return answer;
    }
    if let Some(list) = lock(&state.referrers).get(path) {
        let body = serde_json::json!({"schemaVersion": 2, "manifests": list}).to_string();
        return Answer { body: body.into(), ..Answer::status(200) };
    }
    match lock(&state.content).get(path) {
        None => Answer::status(404),
        Some(stored) => content(stored, request, fault),
    }
}

fn content(stored: &Stored, request: &Recorded, fault: Option<&Fault>) -> Answer {
    let mut headers = vec![("Content-Type".to_owned(), stored.media_type.clone())];
    if !matches!(fault, Some(Fault::Bare)) {
        headers.push(("Docker-Content-Digest".to_owned(), stored.digest.to_string()));
    }
    let mut body = stored.data.clone();
    let range = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let mut status = 200;
    if let Some((Ok(start), end)) = range.map(|(start, end)| (start.parse::<usize>(), end.parse::<usize>()))
        && !matches!(fault, Some(Fault::IgnoreRange))
    {
        let total = body.len();
        let end = end.map_or(total, |last| total.min(last + 1));
        headers
            .push(("Content-Range".to_owned(), format!("bytes {start}-{}/{total}", end.saturating_sub(1))));
        body = body.slice(start.min(end)..end);
        status = 206;
    }
    match fault {
        Some(Fault::WrongBytes) => body = body.iter().map(|byte| byte ^ 0x55).collect::<Vec<u8>>().into(),
        Some(Fault::BodyPlus(more)) => body = [&body[..], &vec![b'x'; *more]].concat().into(),
        Some(Fault::Encoded(name)) => {
            headers.push(("Content-Encoding".to_owned(), (*name).to_owned()));
            body = encode(name, &body).into();
        }
        _ => {}
    }
    Answer { status, headers, body }
}

fn encode(name: &str, data: &[u8]) -> Vec<u8> {
    if name == "zstd" {
        return zstd::encode_all(data, 1).unwrap_or_default();
    }
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let _ = encoder.write_all(data);
    encoder.finish().unwrap_or_default()
}

/// Returns whether the connection goes on.
async fn write(
    stream: &mut BufReader<Box<dyn Io>>,
    request: &Recorded,
    answer: Answer,
    fault: Option<Fault>,
) -> io::Result<bool> {
    let mut length = Some(answer.body.len());
    let mut cut = None;
    match &fault {
        Some(Fault::Hang) => return hang().await,
        Some(Fault::Close) => return Ok(false),
        Some(Fault::Garbage) => {
            stream.write_all(b"\x00\x01this is not HTTP\r\n\r\n").await?;
            return Ok(false);
        }
        Some(Fault::CutAfter(count) | Fault::HangAfter(count)) => cut = Some(*count),
        Some(Fault::LengthPlus(more)) => length = Some(answer.body.len() + more),
        Some(Fault::Bare) => length = None,
        _ => {}
    }
    let mut head = format!("HTTP/1.1 {} Scripted\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    match length {
        Some(length) => head.push_str(&format!("Content-Length: {length}\r\n\r\n")),
        None => head.push_str("Connection: close\r\n\r\n"),
    }
    stream.write_all(head.as_bytes()).await?;
    if request.method != "HEAD" {
        let end = cut.unwrap_or(answer.body.len()).min(answer.body.len());
        if let Some(Fault::Slow(size, pause)) = fault {
            for piece in answer.body.chunks(size) {
                stream.write_all(piece).await?;
                stream.flush().await?;
                tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
            }
        } else {
            stream.write_all(&answer.body[..end]).await?;
        }
    }
    stream.flush().await?;
    if let Some(Fault::HangAfter(_)) = fault {
        return hang().await;
    }
    Ok(cut.is_none() && length == Some(answer.body.len()))
}

async fn hang() -> io::Result<bool> {
    std::future::pending::<()>().await;
    Ok(false)
}
