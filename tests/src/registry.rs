//! A real registry on loopback, its data in a private folder.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::token_server::{self, TokenServer};
use crate::{Image, Peers, Scratch};

/// The authority that signed the certificate of registries with TLS.
pub const AUTHORITY: &str = include_str!("../../crates/registry/src/testing/ca.pem");
pub(crate) const SERVER_CERTIFICATE: &str = include_str!("../../crates/registry/src/testing/server.pem");
pub(crate) const SERVER_KEY: &str = include_str!("../../crates/registry/src/testing/server.key");

/// Debian's docker-registry on a port of its own. Dropping it ends it.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    port: u16,
    _scratch: Scratch,
}

/// How a registry is to be spoken to, and where it keeps what it has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Guard<'a> {
    /// Whether over TLS.
    pub tls: bool,
    /// Whether it wants user `u` with password `p`.
    pub basic: bool,
    /// Whether it wants tokens of this server.
    pub token: Option<&'a TokenServer>,
    /// Whether it keeps everything in memory, so that no disk is waited for.
    pub in_memory: bool,
}

impl Registry {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub fn start() -> Self {
        Self::guarded(Guard::default())
    }

    /// Starts one that does not let everybody in.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn guarded(guard: Guard<'_>) -> Self {
        let scratch = if guard.in_memory { Scratch::in_memory() } else { Scratch::new() };
        // A free port is only known by taking it; the registry takes it over a moment later.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let file = |name: &str, text: &str| {
            std::fs::write(scratch.join(name), text).unwrap();
            scratch.join(name).display().to_string()
        };
        let mut text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp:\n  addr: \"127.0.0.1:{port}\"\n",
            scratch.join("data").display()
        );
        if guard.tls {
            let (certificate, key) = (file("server.pem", SERVER_CERTIFICATE), file("server.key", SERVER_KEY));
            text.push_str(&format!("  tls: {{certificate: {certificate}, key: {key}}}\n"));
        }
        if guard.basic {
            let path = file("htpasswd", "u:$2y$05$abcdefghijklmnopqrstuuqwWMzKt5N8p.u2GX5MuH1t19BMWuLOW\n");
            text.push_str(&format!("auth:\n  htpasswd: {{realm: tests, path: {path}}}\n"));
        }
        if let Some(server) = guard.token {
            let (realm, roots) = (server.realm(), file("ca.pem", AUTHORITY));
            text.push_str(&format!(
                "auth:\n  token: {{realm: \"{realm}\", service: {}, issuer: \"{}\", rootcertbundle: {roots}}}\n",
                token_server::SERVICE,
                token_server::ISSUER
            ));
        }
        let config = scratch.join("config.yml");
        std::fs::write(&config, text).unwrap();
        let child = Command::new(Peers::find().registry())
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        crate::eventually("the registry answers", Duration::from_secs(20), || {
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        Self { child, port, _scratch: scratch }
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Pushes an image as `name` (`repository:tag`); answers its full reference.
    pub fn push(&self, image: &Image, name: &str) -> String {
        image.push(&self.host(), name).unwrap();
        format!("{}/{name}", self.host())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
