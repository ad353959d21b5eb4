//! A command on a terminal, and what the terminal shows.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// For what a command does in its own time.
const PATIENCE: Duration = Duration::from_secs(120);

/// The master's end.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    child: Child,
    output: mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    /// Starts a command with a terminal as its streams.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(command: Command) -> Self {
        Self::sized(command, 0, 0)
    }

    /// As [`Terminal::start`], on one of this size.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn sized(mut command: Command, rows: u16, columns: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).unwrap();
        let slave = || File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let child = command.stdin(slave()).stdout(slave()).stderr(slave()).spawn().unwrap();
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

    /// Pid of the command.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the command writes next; nothing once it has ended.
    pub fn next_output(&mut self) -> Option<Vec<u8>> {
        self.output.recv_timeout(PATIENCE).ok()
    }

    /// Changes its size.
    ///
    /// # Panics
    /// When it has gone.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.master, size).unwrap();
    }

    /// Types.
    ///
    /// # Panics
    /// When nobody can read it.
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
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn end(mut self) -> i32 {
        let status = crate::eventually("the command ends", PATIENCE, || self.child.try_wait().ok()?);
        status.code().unwrap_or(-1)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The lines that a terminal shows after what was written to it.
#[derive(Debug)]
pub struct Screen {
    lines: Vec<Vec<char>>,
    row: usize,
    column: usize,
    rows: usize,
    /// The beginning of an order that has not come as a whole.
    order: Option<String>,
}

impl Screen {
    /// An empty one of so many lines, which are wide enough.
    pub fn new(rows: usize) -> Self {
        Self { lines: vec![Vec::new(); rows], row: 0, column: 0, rows, order: None }
    }

    /// Shows what is written. Orders that move the cursor or clear something are followed, others mean nothing.
    pub fn write(&mut self, bytes: &[u8]) {
        for symbol in String::from_utf8_lossy(bytes).chars() {
            if let Some(order) = &mut self.order {
                order.push(symbol);
                if symbol.is_ascii_alphabetic() {
                    let order = self.order.take().unwrap_or_default();
                    self.follow(order.trim_start_matches('['));
                }
                continue;
            }
            match symbol {
                '\u{1b}' => self.order = Some(String::new()),
                '\r' => self.column = 0,
                '\n' if self.row + 1 == self.rows => {
                    self.lines.remove(0);
                    self.lines.push(Vec::new());
                }
                '\n' => self.row += 1,
                other => {
                    let line = &mut self.lines[self.row];
                    line.resize(line.len().max(self.column + 1), ' ');
                    line[self.column] = other;
                    self.column += 1;
                }
            }
        }
    }

    fn follow(&mut self, order: &str) {
        let (count, kind) = order.split_at(order.len() - 1);
        let count = count.parse().unwrap_or(1);
        match kind {
            "A" => self.row = self.row.saturating_sub(count),
            "B" => self.row = (self.row + count).min(self.rows - 1),
            "K" => self.lines[self.row].clear(),
            "J" => self.lines[self.row..].iter_mut().for_each(Vec::clear),
            _ => {}
        }
    }

    /// The lines that are not empty.
    pub fn lines(&self) -> Vec<String> {
        let lines = self.lines.iter().map(|line| line.iter().collect::<String>().trim_end().to_owned());
        lines.filter(|line| !line.is_empty()).collect()
    }
}
