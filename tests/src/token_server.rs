//! A token server, as registries send their clients to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::json;

use crate::registry::{SERVER_CERTIFICATE, SERVER_KEY};

/// Whom the tokens are from, and for whom.
pub(crate) const ISSUER: &str = "corten tests";
pub(crate) const SERVICE: &str = "tests";
/// What it takes for a refresh token.
pub const REFRESH_TOKEN: &str = "refresh-me";

/// Gives tokens to one user; to others only for reading. It listens as long as the test runs.
#[derive(Debug)]
pub struct TokenServer {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl TokenServer {
    /// Starts one that knows a user.
    ///
    /// # Panics
    /// When loopback cannot be used.
    pub fn start(user: &str, password: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (log, user, password) = (Arc::clone(&asked), user.to_owned(), password.to_owned());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = answer(stream, &log, &user, &password);
            }
        });
        Self { port, asked }
    }

    /// Where it is asked.
    pub fn realm(&self) -> String {
        format!("http://127.0.0.1:{}/token", self.port)
    }

    /// Requests so far: method, and query or form.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn answer(
    mut stream: TcpStream,
    log: &Mutex<Vec<String>>,
    user: &str,
    password: &str,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut line, mut headers) = (String::new(), Vec::new());
    reader.read_line(&mut line)?;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
            break;
        }
        headers.push(header.trim().to_owned());
    }
    let header = |name: &str| {
        let pairs = headers.iter().filter_map(|line| line.split_once(": "));
        pairs.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    };
    let length = header("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let (method, target) = line.split_once(' ').unwrap_or_default();
    let target = target.split(' ').next().unwrap_or_default();
    let form = match method {
        "POST" => String::from_utf8_lossy(&body).into_owned(),
        _ => target.split_once('?').map_or("", |(_, query)| query).to_owned(),
    };
    log.lock().unwrap().push(format!("{method} {form}"));
    let fields: Vec<(String, String)> = form
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), unescape(value)))
        .collect();
    let has = |key: &str, value: &str| fields.iter().any(|(one, known)| one == key && known == value);
    let basic = header("authorization").is_some();
    let knows = has("username", user) && has("password", password)
        || has("refresh_token", REFRESH_TOKEN)
        || header("authorization")
            == Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))).as_str());
    if (method == "POST" || basic) && !knows {
        return stream
            .write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
    let scopes = fields.iter().filter(|(key, _)| key == "scope").flat_map(|(_, value)| value.split(' '));
    let access: Vec<_> = scopes.filter_map(|scope| granted(scope, knows)).collect();
    let token = token(&access);
    let body = json!({"token": token, "access_token": token, "expires_in": 300}).to_string();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// What a scope becomes: everything for who is known, reading for others.
fn granted(scope: &str, knows: bool) -> Option<serde_json::Value> {
    let mut parts = scope.splitn(3, ':');
    let (kind, name, actions) = (parts.next()?, parts.next()?, parts.next()?);
    let actions: Vec<&str> = actions.split(',').filter(|action| knows || *action == "pull").collect();
    Some(json!({"type": kind, "name": name, "actions": actions}))
}

fn unescape(text: &str) -> String {
    let mut rest = text.replace('+', " ").into_bytes().into_iter();
    let mut bytes = Vec::new();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let hex: Vec<u8> = rest.by_ref().take(2).collect();
        let hex = String::from_utf8_lossy(&hex).into_owned();
        bytes.push(u8::from_str_radix(&hex, 16).unwrap_or(b'?'));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A signed token, with the certificate by which it can be checked.
fn token(access: &[serde_json::Value]) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(der(SERVER_CERTIFICATE))]});
    let claims = json!({
        "iss": ISSUER, "sub": "tests", "aud": SERVICE, "exp": now + 300, "nbf": now - 60, "iat": now,
        "jti": format!("{now}"), "access": access,
    });
    let encode = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(&header), encode(&claims));
    let random = SystemRandom::new();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der(SERVER_KEY), &random).unwrap();
    let signature = key.sign(&random, signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The first block of a PEM file.
fn der(pem: &str) -> Vec<u8> {
    let lines = pem.lines().skip(1).take_while(|line| !line.starts_with("-----"));
    STANDARD.decode(lines.collect::<String>()).unwrap()
}
