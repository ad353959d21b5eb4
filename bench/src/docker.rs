//! Docker Engine over both daemons: whole commands, and the time that it waits for the daemon's answers.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use corten_tests::engine::{BOX, Engine, Kind};
use serde_json::json;

use crate::{median, row};

/// An engine, and the calls that it has made.
struct Side {
    engine: Engine,
    calls: Arc<Mutex<Duration>>,
}

impl Side {
    fn start(reference: bool) -> Self {
        let calls = Arc::new(Mutex::new(Duration::ZERO));
        let meter = Arc::clone(&calls);
        let engine = Engine::start_over(Kind::Docker26, reference, &json!({}), |daemon| {
            let path = daemon.with_extension("metered");
            let listener = UnixListener::bind(&path).unwrap();
            let daemon = daemon.to_owned();
            std::thread::spawn(move || forward(&listener, &daemon, &meter));
            path
        });
        Self { engine, calls }
    }

    /// Milliseconds of the whole, and of the calls in it.
    fn run(&self, flags: &str) -> (f64, f64) {
        *self.calls.lock().unwrap() = Duration::ZERO;
        let begun = Instant::now();
        self.engine.docker(&format!("run --rm {flags} {BOX} true")).ok();
        (milliseconds(begun.elapsed()), milliseconds(*self.calls.lock().unwrap()))
    }

    fn at_once(&self, count: usize) -> f64 {
        let begun = Instant::now();
        let running: Vec<_> =
            (0..count).map(|_| self.engine.docker_running(&format!("run --rm {BOX} true"))).collect();
        for command in running {
            command.finish().ok();
        }
        milliseconds(begun.elapsed())
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// `docker run --rm IMAGE true`, alone and many at once, the sides taking turns. What is ours is measured without
/// a network of the container's own: for that, the engine has its own program run by the OCI runtime.
pub fn runs(runs: usize, containers: usize) {
    let (ours, theirs) = (Side::start(false), Side::start(true));
    for (flags, what, budget) in [
        ("", "docker run --rm IMAGE true", None),
        ("--network host", "docker run --rm --network host IMAGE true", Some(1.0 / 4.0)),
    ] {
        let sides = [&ours, &theirs];
        let mut figures = [(Vec::new(), Vec::new()), (Vec::new(), Vec::new())];
        for side in sides {
            side.run(flags);
        }
        for _ in 0..runs {
            for (side, (whole, calls)) in sides.iter().zip(&mut figures) {
                let (first, second) = side.run(flags);
                whole.push(first);
                calls.push(second);
            }
        }
        let [(our_whole, our_calls), (their_whole, their_calls)] = figures;
        row(&format!("{what} (median of {runs})"), "ms", median(our_whole), median(their_whole), None);
        row("  the calls in it", "ms", median(our_calls), median(their_calls), budget);
    }
    let best = |side: &Side| side.at_once(containers).min(side.at_once(containers));
    row(&format!("{containers} × docker run --rm at once"), "ms", best(&ours), best(&theirs), None);
}

/// Passes connections on, and adds up how long each call took from its first frame to its last one.
fn forward(listener: &UnixListener, daemon: &Path, calls: &Arc<Mutex<Duration>>) {
    for client in listener.incoming().map_while(Result::ok) {
        let Ok(server) = UnixStream::connect(daemon) else { return };
        let begun = Arc::new(Mutex::new(HashMap::new()));
        let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        let opened = Arc::clone(&begun);
        std::thread::spawn(move || {
            copy(from, to, Frames::after("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len()), |kind, _, stream| {
                if kind == HEADERS {
                    opened.lock().unwrap().entry(stream).or_insert_with(Instant::now);
                }
            })
        });
        let calls = Arc::clone(calls);
        std::thread::spawn(move || {
            copy(server, client, Frames::after(0), |kind, flags, stream| {
                if (kind == HEADERS || kind == DATA) && flags & END_STREAM != 0 {
                    let took = begun.lock().unwrap().remove(&stream).map(|begun| begun.elapsed());
                    *calls.lock().unwrap() += took.unwrap_or_default();
                }
            })
        });
    }
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const END_STREAM: u8 = 1;

/// Copies until one side ends, and tells of each frame that has begun: kind, flags, stream.
fn copy(mut from: UnixStream, mut to: UnixStream, mut frames: Frames, mut tell: impl FnMut(u8, u8, u32)) {
    let mut buffer = [0; 65536];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        frames.see(&buffer[..length], &mut tell);
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    to.shutdown(std::net::Shutdown::Both).ok();
}

/// Finds the heads of HTTP/2's frames in a stream of bytes.
struct Frames {
    /// Bytes to pass before the next head.
    rest: usize,
    head: Vec<u8>,
}

impl Frames {
    fn after(rest: usize) -> Self {
        Self { rest, head: Vec::new() }
    }

    fn see(&mut self, mut bytes: &[u8], tell: &mut impl FnMut(u8, u8, u32)) {
        while !bytes.is_empty() {
            let passed = self.rest.min(bytes.len());
            self.rest -= passed;
            bytes = &bytes[passed..];
            let wanted = (9 - self.head.len()).min(bytes.len());
            self.head.extend_from_slice(&bytes[..wanted]);
            bytes = &bytes[wanted..];
            if let [a, b, c, kind, flags, stream @ ..] = self.head.as_slice()
                && let Ok(stream) = stream.try_into()
            {
                tell(*kind, *flags, u32::from_be_bytes(stream));
                self.rest = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
                self.head.clear();
            }
        }
    }
}
