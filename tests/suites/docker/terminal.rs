//! A command of the client on a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::process::Child;
use std::sync::mpsc;
use std::time::Instant;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use corten_tests::engine::{Engine, PATIENCE};
use corten_tests::words::words;

/// The master's end.
pub struct Terminal {
    master: File,
    child: Child,
    output: mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    /// Starts a command of the client with a terminal as its streams.
    pub fn start(engine: &Engine, line: &str) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = || File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let child =
            engine.command(words(line)).stdin(slave()).stdout(slave()).stderr(slave()).spawn().unwrap();
        let master = File::from(master);
        let mut reader = master.try_clone().unwrap();
        let (sender, output) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { master, child, output, seen: String::new() }
    }

    /// Changes its size.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.master, size).unwrap();
    }

    /// Types.
    pub fn send(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Waits for a text, and forgets what came until its end.
    ///
    /// # Panics
    /// When it does not come.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        let late = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            match self.output.recv_timeout(late.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("{text:?} did not come; {:?} did", self.seen),
            }
        }
    }

    /// The exit code of the command, which has to end by itself.
    #[track_caller]
    pub fn end(mut self) -> i32 {
        let status = corten_tests::eventually("the command ends", PATIENCE, || self.child.try_wait().ok()?);
        status.code().unwrap_or(-1)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
