//! A registry that misbehaves on cue.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::Image;

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Answers with this status line and an empty body.
    Status(&'static str),
    /// Accepts the request and says nothing.
    Hang,
    /// Announces everything and closes the connection after so many bytes.
    Cut(usize),
    /// Sends so many bytes every tenth of a second.
    Slow(usize),
    /// Sends these bytes instead, with a matching length and no other hint.
    Instead(Vec<u8>),
    /// The whole answer, from its status line on.
    Raw(Arc<Vec<u8>>),
}

#[derive(Debug)]
struct Cue {
    path: String,
    fault: Fault,
    times: usize,
}

/// Serves one image under any repository and the tag `1`. Requests whose path contains a cue's
/// text get its fault, as many times as was said.
#[derive(Debug)]
pub struct ScriptedRegistry {
    port: u16,
    cues: Arc<Mutex<Vec<Cue>>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl ScriptedRegistry {
    /// Starts serving on loopback.
    ///
    /// # Panics
    /// When no port is free.
    pub fn start(image: Image) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let registry = Self {
            port: listener.local_addr().unwrap().port(),
            cues: Arc::default(),
            requests: Arc::default(),
        };
        let (cues, requests, image) = (registry.cues.clone(), registry.requests.clone(), Arc::new(image));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (cues, requests, image) = (cues.clone(), requests.clone(), image.clone());
                std::thread::spawn(move || serve(stream, &image, &cues, &requests));
            }
        });
        registry
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A reference to the image.
    pub fn reference(&self) -> String {
        format!("{}/lab/scripted:1", self.host())
    }

    /// The next `times` requests whose path contains `path` go wrong.
    ///
    /// # Panics
    /// When another thread has panicked.
    pub fn cue(&self, path: &str, fault: Fault, times: usize) {
        self.cues.lock().unwrap().push(Cue { path: path.into(), fault, times });
    }

    /// From now on all is well.
    ///
    /// # Panics
    /// When another thread has panicked.
    pub fn recover(&self) {
        self.cues.lock().unwrap().clear();
    }

    /// Request lines so far, with the Range header behind where there was one.
    ///
    /// # Panics
    /// When another thread has panicked.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, image: &Image, cues: &Mutex<Vec<Cue>>, requests: &Mutex<Vec<String>>) {
    let Ok(mut out) = stream.try_clone() else { return };
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).is_ok_and(|length| length > 0) {
            let mut range = None;
            loop {
                let mut header = String::new();
                if reader.read_line(&mut header).is_ok_and(|length| length > 0) && !header.trim().is_empty() {
                    let header = header.to_ascii_lowercase();
                    if let Some(value) = header.strip_prefix("range: bytes=") {
                        range = value.trim().trim_end_matches('-').parse::<usize>().ok();
                    }
                    continue;
                }
                break;
            }
            let line = line.trim().to_owned();
            requests.lock().unwrap().push(match range {
                Some(offset) => format!("{line} from {offset}"),
                None => line.clone(),
            });
            if answer(&mut out, &line, range, image, cues).is_none() {
                return;
            }
            continue;
        }
        return;
    }
}

/// Answers one request; nothing when the connection is to be closed.
fn answer(
    out: &mut TcpStream,
    line: &str,
    range: Option<usize>,
    image: &Image,
    cues: &Mutex<Vec<Cue>>,
) -> Option<()> {
    let mut words = line.split(' ');
    let (method, path) = (words.next()?, words.next()?);
    let fault = {
        let mut cues = cues.lock().unwrap();
        cues.iter_mut().find(|cue| cue.times > 0 && path.contains(&cue.path)).map(|cue| {
            cue.times -= 1;
            cue.fault.clone()
        })
    };
    let name = path.rsplit('/').next().unwrap_or_default();
    let blob = std::iter::once(&image.target).chain(&image.blobs).find(|blob| {
        (name == "1" && blob.digest() == image.target.digest()) || blob.digest().as_str() == name
    });
    let (mut data, kind, digest) = match blob {
        Some(blob) => (blob.data.clone(), blob.media_type.clone(), blob.digest().to_string()),
        None if path == "/v2/" => (b"{}".to_vec(), "application/json".into(), String::new()),
        None => {
            out.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").ok()?;
            return Some(());
        }
    };
    let (mut cut, mut pace) = (usize::MAX, usize::MAX);
    match fault {
        Some(Fault::Status(status)) => {
            write!(out, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").ok()?;
            return Some(());
        }
        Some(Fault::Hang) => {
            std::thread::sleep(Duration::from_secs(600));
            return None;
        }
        Some(Fault::Cut(after)) => cut = after,
        Some(Fault::Slow(bytes)) => pace = bytes.max(1),
        Some(Fault::Instead(other)) => data = other,
        Some(Fault::Raw(answer)) => {
            out.write_all(&answer).ok()?;
            return Some(());
        }
        None => {}
    }
    let start = range.unwrap_or(0).min(data.len());
    let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
    let body = data.get(start..).unwrap_or_default();
    write!(out, "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n", body.len()).ok()?;
    if range.is_some() {
        write!(out, "Content-Range: bytes {start}-{}/{}\r\n", data.len().saturating_sub(1), data.len())
            .ok()?;
    }
    write!(out, "Docker-Content-Digest: {digest}\r\n\r\n").ok()?;
    if method != "HEAD" {
        let end = body.len().min(cut);
        for piece in body.get(..end)?.chunks(pace) {
            out.write_all(piece).ok()?;
            if pace < usize::MAX {
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        if end < body.len() {
            out.flush().ok();
            out.shutdown(std::net::Shutdown::Both).ok();
            return None;
        }
    }
    Some(())
}
