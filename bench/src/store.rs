//! What records and blobs cost.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use corten_api::services::{containers, content, images};
use corten_api::types::Descriptor;
use corten_tests::{Client, Digest, Node};

use crate::{Sides, median, raw, row, row_alone};

/// Bytes in one message of a read, as the daemon sends them.
const MESSAGE: usize = 256 << 10;
/// Bytes in one message of a write, as clients of the original send them.
const CHUNK: usize = 1 << 20;

fn client(node: &Node) -> Client {
    Client::new(&node.address(), Some("bench"))
}

/// Milliseconds that something takes.
fn time(work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64() * 1000.0
}

/// Does something `count` times, shared by some clients with a connection each.
fn share(node: &Node, clients: usize, count: usize, work: impl Fn(&Client, usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                let client = client(node);
                loop {
                    match next.fetch_add(1, Ordering::SeqCst) {
                        n if n < count => work(&client, n),
                        _ => break,
                    }
                }
            });
        }
    });
}

fn create(client: &Client, id: String) {
    let container = containers::Container {
        labels: BTreeMap::from([("app".into(), "bench".into()), ("id".into(), id.clone())]),
        image: "docker.io/library/bench:latest".into(),
        runtime: Some(containers::container::Runtime { name: "io.containerd.runc.v2".into(), options: None }),
        spec: Some(prost_types::Any { type_url: "bench".into(), value: vec![b'x'; 500] }),
        snapshotter: "overlayfs".into(),
        snapshot_key: id.clone(),
        id,
        ..Default::default()
    };
    let request = containers::CreateContainerRequest { container: Some(container) };
    client.wait(client.containers().create(request)).unwrap();
}

/// Containers are created by one client, and by many at once; the sides take turns.
pub fn writes(sides: &Sides, count: usize) {
    for clients in [1, 32] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..3 {
            for (node, figures) in [(&sides.ours, &mut ours), (&sides.theirs, &mut theirs)] {
                figures.push(time(|| {
                    share(node, clients, count, |client, n| {
                        create(client, format!("w{clients}-{round}-{n}"))
                    });
                }));
            }
        }
        let clients = if clients == 1 { "1 client".to_owned() } else { format!("{clients} clients") };
        row(
            &format!("{count} containers created by {clients}"),
            "ms",
            median(ours),
            median(theirs),
            Some(0.5),
        );
    }
    let flushes: f64 = raw::flushes(sides.ours.root(), count).iter().sum();
    println!("{:44} {flushes:>9.1} ms", format!("the disk alone: {count} pages flushed one by one"));
}

/// All records in one answer, which is received but not decoded: the client's part is small.
pub fn list(sides: &Sides, records: usize) {
    for node in [&sides.ours, &sides.theirs] {
        share(node, 32, records, |client, n| create(client, format!("list-{n:06}")));
    }
    let clients = [client(&sides.ours), client(&sides.theirs)];
    let list = |client: &Client, filters: &[String], least: usize| {
        let request = containers::ListContainersRequest { filters: filters.to_vec() };
        time(|| {
            let length = raw::call(client, "/containerd.services.containers.v1.Containers/List", &request);
            assert!(length > 500 * least, "{length} bytes");
        })
    };
    for (what, filters, least) in
        [("", &[][..], records), (", one of them asked for", &["id==list-000007".to_owned()], 1)]
    {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..15 {
            ours.push(list(&clients[0], filters, least));
            theirs.push(list(&clients[1], filters, least));
        }
        row(
            &format!("containers listed, {records}{what}"),
            "ms",
            median(ours),
            median(theirs),
            Some(1.0 / 3.0),
        );
    }
}

/// One large blob in and out, in MB per second turned into the time that it takes.
pub fn content(sides: &Sides, megabytes: usize) {
    let mut data = vec![0u8; megabytes * 1_000_000];
    let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
    let (mut written, mut read) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for _ in 0..3 {
        for word in data.chunks_exact_mut(8) {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            word.copy_from_slice(&seed.to_le_bytes());
        }
        let digest = Digest::sha256(&data).to_string();
        for (side, node) in [&sides.ours, &sides.theirs].into_iter().enumerate() {
            let client = client(node);
            written[side].push(time(|| write(&client, &data, &digest)));
            read[side].push(time(|| assert!(fetch(&client, &digest) >= data.len())));
            client
                .wait(client.content().delete(content::DeleteContentRequest { digest: digest.clone() }))
                .unwrap();
        }
    }
    for (what, [ours, theirs]) in [("written", written), ("read", read)] {
        row(&format!("a blob of {megabytes} MB {what}"), "ms", median(ours), median(theirs), Some(0.5));
    }
    let socket = sides.ours.join("memory.sock");
    raw::serve(&socket, MESSAGE, data.len() / MESSAGE);
    let client = Client::new(&socket, None);
    let times = (0..5).map(|_| time(|| assert!(fetch(&client, "") > data.len() - MESSAGE))).collect();
    println!("{:44} {:>9.1} ms", "gRPC alone: as much read from memory", median(times));
}

/// Writes as clients of the original do: each message waits for its answer.
fn write(client: &Client, data: &[u8], digest: &str) {
    client.block_on(async {
        let (sender, requests) = tokio::sync::mpsc::channel(1);
        let mut content = client.content();
        let message =
            |action: content::WriteAction, offset: usize, data: &[u8]| content::WriteContentRequest {
                action: action as i32,
                r#ref: format!("bench-{digest}"),
                offset: offset as i64,
                data: data.to_vec().into(),
                ..Default::default()
            };
        sender.send(message(content::WriteAction::Stat, 0, b"")).await.unwrap();
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        let mut answers = content.write(requests).await.unwrap().into_inner();
        answers.message().await.unwrap().unwrap();
        let mut at = 0;
        for chunk in data.chunks(CHUNK) {
            sender.send(message(content::WriteAction::Write, at, chunk)).await.unwrap();
            at = answers.message().await.unwrap().unwrap().offset as usize;
        }
        let mut last = message(content::WriteAction::Commit, at, b"");
        (last.total, last.expected) = (data.len() as i64, digest.to_owned());
        sender.send(last).await.unwrap();
        answers.message().await.unwrap().unwrap();
    });
}

/// Reads all of a blob, and answers how many bytes came.
fn fetch(client: &Client, digest: &str) -> usize {
    let request = content::ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
    raw::call(client, "/containerd.services.content.v1.Content/Read", &request)
}

/// The longest wait of a writer while much is collected: on this disk, with what the disk alone makes wait, and in
/// memory, where only the collector does.
pub fn collect(node: &Node, objects: usize) {
    let waits = raw::flushes(node.root(), 5000);
    println!("{:44} {:>9.1} ms", "the disk alone: the longest of 5,000 flushes", longest(&waits));
    collect_on(node, objects, "");
    let memory = PathBuf::from(format!("/dev/shm/corten-bench-{}", std::process::id()));
    let node = Node::builder().config(crate::images::OURS).root(&memory).start();
    collect_on(&node, objects, ", in memory");
    node.finish();
    std::fs::remove_dir_all(&memory).unwrap();
}

fn longest(waits: &[f64]) -> f64 {
    waits.iter().copied().fold(0.0, f64::max)
}

/// Images run out all at once; how long a writer waits at most, before that and while they are collected.
fn collect_on(node: &Node, objects: usize, place: &str) {
    let digest = Digest::sha256(b"none").to_string();
    // Time to make them all; what is late is collected a little later.
    let end = SystemTime::now() + Duration::from_secs(15 + objects as u64 / 2000);
    let end_text = corten_types::timestamp::rfc3339(end);
    share(node, 64, objects, |client, n| {
        let image = images::Image {
            name: format!("example.com/bench/expiring:{n:06}"),
            labels: BTreeMap::from([("containerd.io/gc.expire".into(), end_text.clone())]),
            target: Some(Descriptor {
                media_type: "bench".into(),
                digest: digest.clone(),
                size: 1,
                ..Default::default()
            }),
            ..Default::default()
        };
        let request = images::CreateImageRequest { image: Some(image), ..Default::default() };
        client.wait(client.images().create(request)).unwrap();
    });
    let early = end.duration_since(SystemTime::now()).unwrap_or_default();
    println!("{objects} images made, {early:.1?} before they run out");
    let gone = AtomicBool::new(false);
    let (mut before, mut during, mut late) = (Vec::new(), Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        // What no daemon can do anything about.
        scope.spawn(|| {
            const NAP: Duration = Duration::from_millis(1);
            while !gone.load(Ordering::SeqCst) {
                late.push(time(|| std::thread::sleep(NAP)) - 1.0);
            }
        });
        scope.spawn(|| {
            let client = client(node);
            let count = || {
                let filters = vec!["name~=^example.com/bench/expiring:..0000$".to_owned()];
                client.wait(client.images().list(images::ListImagesRequest { filters })).unwrap().images.len()
            };
            std::thread::sleep(early);
            // Asking costs something too: seldom.
            while count() > 0 {
                std::thread::sleep(Duration::from_millis(500));
            }
            gone.store(true, Ordering::SeqCst);
        });
        let client = client(node);
        let mut n = 0;
        while !gone.load(Ordering::SeqCst) {
            let waited = time(|| create(&client, format!("wait-{n}")));
            if SystemTime::now() < end {
                before.push(waited)
            } else {
                during.push(waited)
            }
            n += 1;
        }
    });
    for (waits, when) in
        [(&mut before, "before".to_owned()), (&mut during, format!("while {objects} were collected"))]
    {
        waits.sort_by(f64::total_cmp);
        let part = |share: usize| waits.get(waits.len() * share / 1000).copied().unwrap_or(f64::NAN);
        println!(
            "{} writes {when}: median {:.1} ms, of 100 one longer than {:.1} ms, of 1000 one longer than {:.1} ms",
            waits.len(),
            part(500),
            part(990),
            part(999)
        );
    }
    let what = "the machine alone: longest oversleep of a nap";
    println!("{what:44} {:>9.1} ms, of 1000 one longer than {:.1} ms", longest(&late), {
        late.sort_by(f64::total_cmp);
        late.get(late.len() * 999 / 1000).copied().unwrap_or(f64::NAN)
    });
    let what = |when: &str| format!("longest wait of a writer, {when}{place}");
    row_alone(&what("nothing collected"), "ms", longest(&before), None, 10.0);
    row_alone(&what(&format!("{objects} collected")), "ms", longest(&during), None, 10.0);
}
