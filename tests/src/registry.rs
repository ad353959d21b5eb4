//! A real registry on loopback, its data in a private folder.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::{Image, Peers, Scratch};

/// Debian's docker-registry on a port of its own. Dropping it ends it.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    port: u16,
    _scratch: Scratch,
}

impl Registry {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub fn start() -> Self {
        let scratch = Scratch::new();
        // A free port is only known by taking it; the registry takes it over a moment later.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = scratch.join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp: {{addr: \"127.0.0.1:{port}\"}}\n",
            scratch.join("data").display()
        );
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
