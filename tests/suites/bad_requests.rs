//! Requests that no honest client sends: to every method of every service, made from their descriptions, so that
//! new methods are covered by themselves. Each gets a clear status; nothing panics, nothing is left open.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bytes::Bytes;
use corten_api::services as api;
use corten_tests::dynamic::{Answer, With, methods, path, pool};
use corten_tests::{Call, Caller, Node, eventually};
use prost_reflect::prost::Message;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor, Value};

/// How long a call may take that has to end by itself.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one is watched that may stay open.
const GLANCE: Duration = Duration::from_millis(100);
const WITH: With<'static> = With { namespace: Some("lab"), lease: None };
const ANY: &str = "google.protobuf.Any";

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(work)
}

/// What is still well afterwards: the daemon answers, and did not panic.
fn well(node: Node) {
    assert!(!node.log().contains("panicked"), "{}", node.log());
    node.ctr(["version"]).ok();
    node.finish();
}

/// A message with every field set to something that gets far.
fn filled(kind: &MessageDescriptor, depth: usize) -> DynamicMessage {
    let mut message = DynamicMessage::new(kind.clone());
    if kind.full_name() == ANY {
        message.set_field_by_name("type_url", Value::String("containerd.types.Mount".into()));
        return message;
    }
    for field in kind.fields() {
        if let Some(value) = value(&field, depth) {
            message.set_field(&field, value);
        }
    }
    message
}

fn value(field: &FieldDescriptor, depth: usize) -> Option<Value> {
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else { return None };
        let value = single(&entry.map_entry_value_field(), depth)?;
        return Some(Value::Map([(prost_reflect::MapKey::String("x".into()), value)].into()));
    }
    let one = single(field, depth)?;
    Some(if field.is_list() { Value::List(vec![one]) } else { one })
}

fn single(field: &FieldDescriptor, depth: usize) -> Option<Value> {
    Some(match field.kind() {
        Kind::Message(_) if depth == 0 => return None,
        Kind::Message(kind) => Value::Message(filled(&kind, depth - 1)),
        Kind::String => Value::String(text(field.name()).into()),
        Kind::Bytes => Value::Bytes(Bytes::from_static(b"x")),
        Kind::Enum(_) => Value::EnumNumber(1),
        Kind::Bool => Value::Bool(true),
        Kind::Int32 => Value::I32(1),
        Kind::Int64 => Value::I64(1),
        Kind::Uint32 => Value::U32(1),
        Kind::Uint64 => Value::U64(1),
        Kind::Double => Value::F64(1.0),
        _ => return None,
    })
}

fn text(name: &str) -> &'static str {
    match name {
        "digest" | "expected" => "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "snapshotter" => "native",
        "topic" => "/x",
        "media_type" => "application/vnd.oci.image.layer.v1.tar",
        "paths" | "fields" => "labels",
        "filters" => "id==x",
        _ => "x",
    }
}

/// The values that a field must not have, or hardly can.
fn odd(field: &FieldDescriptor) -> Vec<Value> {
    let texts = |list: &[&str]| list.iter().map(|text| Value::String((*text).into())).collect();
    match field.kind() {
        Kind::String => texts(&["", "a/../../b\u{0}\n", "ä\u{202e}", &"x".repeat(5000), "=", "/"]),
        Kind::Bytes => vec![Value::Bytes(Bytes::from(vec![0xff; 70_000]))],
        Kind::Enum(_) => vec![Value::EnumNumber(99), Value::EnumNumber(-1)],
        Kind::Int32 => vec![Value::I32(-1), Value::I32(i32::MAX), Value::I32(i32::MIN)],
        Kind::Int64 => vec![Value::I64(-1), Value::I64(i64::MAX), Value::I64(i64::MIN)],
        Kind::Uint32 => vec![Value::U32(u32::MAX)],
        Kind::Uint64 => vec![Value::U64(u64::MAX)],
        Kind::Message(kind) if kind.full_name() == ANY => [
            ("containerd.runc.v1.Options", "\u{fffd}"),
            ("containerd.services.images.v1.Image", "x"),
            ("no.such.Type", ""),
            ("", ""),
        ]
        .into_iter()
        .map(|(url, bytes)| {
            let mut any = DynamicMessage::new(kind.clone());
            any.set_field_by_name("type_url", Value::String(url.into()));
            any.set_field_by_name("value", Value::Bytes(Bytes::from_static(bytes.as_bytes())));
            Value::Message(any)
        })
        .collect(),
        Kind::Message(kind) => vec![Value::Message(DynamicMessage::new(kind))],
        _ => Vec::new(),
    }
}

/// The message, and the same with one field of it missing or odd, also deeper down.
fn variants(message: &DynamicMessage, depth: usize) -> Vec<DynamicMessage> {
    let mut all = Vec::new();
    for (field, value) in message.fields() {
        let with = |value: Value| {
            let mut other = message.clone();
            other.set_field(&field, value);
            other
        };
        let mut without = message.clone();
        without.clear_field(&field);
        all.push(without);
        if field.is_map() {
            continue;
        }
        let wrap = |one: Value| if field.is_list() { Value::List(vec![one]) } else { one };
        all.extend(odd(&field).into_iter().map(|one| with(wrap(one))));
        let inner = match value {
            Value::Message(inner) => Some(inner),
            Value::List(list) => list.first().and_then(Value::as_message),
            _ => None,
        };
        if let (Some(inner), 1..) = (inner, depth) {
            all.extend(variants(inner, depth - 1).into_iter().map(|one| with(wrap(Value::Message(one)))));
        }
    }
    all
}

/// Sends one request; what is wrong with the answer.
async fn ask(caller: &Caller, method: &MethodDescriptor, request: Bytes) -> Option<String> {
    let mut call = caller.call(&path(method), WITH);
    call.send(request);
    call.close();
    let open = method.is_server_streaming();
    match tokio::time::timeout(if open { GLANCE } else { PATIENCE }, call.rest()).await {
        // A write that was given up a moment ago may hold its reference still: that is a clear answer.
        Ok((_, status)) if status.message().contains(" locked for ") => None,
        Ok((_, status)) if status.code() == tonic::Code::Unavailable => Some(format!("{status:?}")),
        Ok((_, status)) if status.message().contains("panic") => Some(format!("{status:?}")),
        Ok(_) => None,
        Err(_) if open => None,
        Err(_) => Some("no answer".into()),
    }
}

/// Asks every method everything that `requests` makes for it, methods side by side.
async fn ask_all(node: &Node, requests: impl Fn(&MethodDescriptor) -> Vec<Bytes>) {
    let (mut asked, mut tasks) = (0, tokio::task::JoinSet::new());
    for method in methods(&pool()) {
        let requests = requests(&method);
        asked += requests.len();
        let caller = Caller::new(&node.address());
        tasks.spawn(async move {
            let mut wrong = Vec::new();
            for request in requests {
                let shown = request.slice(..request.len().min(200));
                if let Some(why) = ask(&caller, &method, request).await {
                    wrong.push(format!("{}: {why}: {shown:?}", method.full_name()));
                }
            }
            wrong
        });
    }
    let wrong: Vec<String> = tasks.join_all().await.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "of {asked} requests:\n{}", wrong.join("\n"));
    assert!(asked > methods(&pool()).len());
}

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[test]
fn requests_with_missing_and_odd_parts_get_a_status() {
    let node = Node::start();
    block_on(ask_all(&node, |method| {
        let message = filled(&method.input(), 3);
        let mut all = vec![Bytes::new(), Bytes::from(message.encode_to_vec())];
        all.extend(variants(&message, 2).iter().map(|one| Bytes::from(one.encode_to_vec())));
        all
    }));
    well(node);
}

#[test]
fn random_bytes_get_a_status() {
    let node = Node::start();
    block_on(ask_all(&node, |method| {
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ method.full_name().len() as u64);
        let message = filled(&method.input(), 3).encode_to_vec();
        let mut all = Vec::new();
        for _ in 0..20 {
            let length = random.next() % 300;
            all.push((0..length).map(|_| random.next() as u8).collect());
            // One that was right, with some bytes changed.
            let mut broken = message.clone();
            for _ in 0..3 {
                let at = random.next() as usize % broken.len().max(1);
                broken.get_mut(at).into_iter().for_each(|byte| *byte = random.next() as u8);
            }
            all.push(broken.into());
        }
        all
    }));
    well(node);
}

#[test]
fn messages_over_16_mib_are_refused_as_by_the_original() {
    let node = Node::start();
    block_on(async {
        let caller = Caller::new(&node.address());
        let large = Bytes::from(vec![0; (16 << 20) + 1]);
        for method in methods(&pool()) {
            let mut call = caller.call(&path(&method), WITH);
            call.send(large.clone());
            call.close();
            let (_, status) = tokio::time::timeout(PATIENCE, call.rest()).await.unwrap();
            if status.message().starts_with("unknown service") {
                continue;
            }
            assert_eq!(
                (status.code(), status.message()),
                (
                    tonic::Code::ResourceExhausted,
                    "grpc: received message larger than max (16777217 vs. 16777216)"
                ),
                "{}",
                method.full_name()
            );
        }
    });
    well(node);
}

/// Open files of the daemon.
fn open_files(node: &Node) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", node.pid().unwrap())).unwrap().count()
}

/// Waits until the daemon has let go of what clients have left.
fn lets_go(node: &Node, before: usize) {
    eventually("the daemon closes what clients left", Duration::from_secs(30), || {
        (open_files(node) <= before + 8).then_some(())
    });
}

fn write(reference: &str, data: &[u8]) -> Bytes {
    let request = api::content::WriteContentRequest {
        action: 1,
        r#ref: reference.into(),
        data: Bytes::copy_from_slice(data),
        ..Default::default()
    };
    request.encode_to_vec().into()
}

const WRITE: &str = "/containerd.services.content.v1.Content/Write";

#[test]
fn writes_that_are_cut_leave_no_lock_and_no_file_open() {
    let node = Node::start();
    let before = open_files(&node);
    block_on(async {
        for round in 0..100 {
            // Half of the clients go away with their connection, half on one that stays.
            let caller = Caller::new(&node.address());
            let mut call = caller.call(WRITE, WITH);
            call.send(write("cut", b"half"));
            if round % 3 > 0 {
                let answer = tokio::time::timeout(PATIENCE, call.next()).await.unwrap();
                let locked =
                    matches!(&answer, Answer::End(status) if status.code() == tonic::Code::Unavailable);
                assert!(locked || matches!(answer, Answer::Message(_)), "{answer:?}");
            }
            drop(call);
        }
        // Whoever comes then has the reference to himself, sooner or later.
        let caller = Caller::new(&node.address());
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            let (messages, status) = caller.once(WRITE, WITH, write("cut", b"whole")).await;
            if status.code() == tonic::Code::Ok {
                assert!(!messages.is_empty());
                break;
            }
            assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
            assert!(tokio::time::Instant::now() < end, "{status:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    lets_go(&node, before);
    well(node);
}

#[test]
fn thousands_of_open_streams_of_one_client_hold_up_nobody() {
    let node = Node::start();
    let before = open_files(&node);
    block_on(async {
        let caller = Caller::new(&node.address());
        let open = |path: &str, first: Bytes| -> Call {
            let call = caller.call(path, WITH);
            call.send(first);
            call
        };
        let mut calls: Vec<Call> = Vec::new();
        for number in 0..1000 {
            calls.push(open("/containerd.services.events.v1.Events/Subscribe", Bytes::new()));
            calls.push(open(WRITE, write(&format!("r{number}"), b"x")));
            let init = corten_api::services::streaming::StreamInit { id: format!("s{number}") };
            let init = corten_api::pack(&init).encode_to_vec();
            calls.push(open("/containerd.services.streaming.v1.Streaming/Stream", init.into()));
        }
        // All but the subscriptions are answered.
        for (_, call) in calls.iter_mut().enumerate().filter(|(at, _)| at % 3 > 0) {
            let answer = tokio::time::timeout(PATIENCE, call.next()).await.unwrap();
            assert!(matches!(answer, Answer::Message(_)), "{answer:?}");
        }
        let version = "/containerd.services.version.v1.Version/Version";
        let other = Caller::new(&node.address());
        for caller in [&caller, &other] {
            let (_, status) =
                tokio::time::timeout(PATIENCE, caller.once(version, WITH, Bytes::new())).await.unwrap();
            assert_eq!(status.code(), tonic::Code::Ok, "{status:?}");
        }
    });
    lets_go(&node, before);
    well(node);
}

/// Memory of the daemon that no file stands behind, in KiB.
fn anonymous(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim_end_matches("kB").trim().parse().unwrap()
}

/// Sends hundreds of requests that are refused, each with 16 KiB of garbage, and leaves as many streams.
async fn badger(node: &Node) {
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..4 {
        let caller = Caller::new(&node.address());
        tasks.spawn(async move {
            let garbage = Bytes::from(vec![b'x'; 16 << 10]);
            for number in 0..100 {
                for path in [
                    // Not a message at all.
                    "/containerd.services.images.v1.Images/Create",
                    // A message with a long text where an identifier belongs.
                    "/containerd.services.containers.v1.Containers/Get",
                ] {
                    let request = match path.ends_with("Get") {
                        true => api::containers::GetContainerRequest { id: "x".repeat(16 << 10) }
                            .encode_to_vec()
                            .into(),
                        false => garbage.clone(),
                    };
                    let (_, status) = caller.once(path, WITH, request).await;
                    assert_ne!(status.code(), tonic::Code::Ok);
                }
                let dropped = [
                    caller.call(WRITE, WITH),
                    caller.call("/containerd.services.events.v1.Events/Subscribe", WITH),
                    caller.call("/containerd.services.streaming.v1.Streaming/Stream", WITH),
                ];
                dropped[0].send(write(&format!("m{client}"), &garbage));
                dropped[1].send(Bytes::new());
                dropped[2].send(garbage.clone());
                if number % 3 == 0 {
                    // Some have begun, others have not.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        });
    }
    tasks.join_all().await;
}

#[test]
fn thousands_of_bad_requests_and_dropped_streams_leave_no_memory_behind() {
    let node = Node::start();
    let files = open_files(&node);
    // What is made once and kept is there after the first time.
    block_on(badger(&node));
    lets_go(&node, files);
    let before = anonymous(&node);
    for _ in 0..3 {
        block_on(badger(&node));
    }
    lets_go(&node, files);
    // The garbage of these six thousand calls alone is 96 MiB.
    eventually("memory is given back", Duration::from_secs(60), || {
        (anonymous(&node) < before + (16 << 10)).then_some(())
    });
    well(node);
}

#[test]
fn many_connections_and_garbage_on_them_hold_up_nobody() {
    let node = Node::start();
    let before = open_files(&node);
    let mut random = Random(7);
    let mut held = Vec::new();
    for number in 0..300 {
        let mut socket = UnixStream::connect(node.address()).unwrap();
        socket.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
        let garbage: Vec<u8> = (0..random.next() % 400).map(|_| random.next() as u8).collect();
        let start: &[u8] = if number % 2 == 0 { b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" } else { b"" };
        // The daemon may have closed it by then.
        let _ = socket.write_all(start).and_then(|()| socket.write_all(&garbage));
        held.push(socket);
    }
    block_on(async {
        let caller = Caller::new(&node.address());
        let version = "/containerd.services.version.v1.Version/Version";
        let (_, status) =
            tokio::time::timeout(PATIENCE, caller.once(version, WITH, Bytes::new())).await.unwrap();
        assert_eq!(status.code(), tonic::Code::Ok, "{status:?}");
    });
    for socket in &mut held {
        socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let _ = socket.read(&mut [0; 64]);
    }
    drop(held);
    lets_go(&node, before);
    well(node);
}
