//! A command on a terminal, and what it writes there.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
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
    pub fn start(command: &Command) -> Self {
        Self::sized(command, 0, 0)
    }

    /// As [`Terminal::start`], on one of this size.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn sized(command: &Command, rows: u16, columns: u16) -> Self {
        let (child, master) = start(command, rows, columns);
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
        set_size(&self.master, rows, columns);
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

/// Starts a command on a new terminal; answers the master's end, too. The terminal is that of the command's session, as
/// a shell has it: Ctrl-C and changes of size become signals.
///
/// # Panics
/// When it cannot be started.
pub(crate) fn start(command: &Command, rows: u16, columns: u16) -> (Child, File) {
    let (master, slave) = pair(rows, columns);
    // It becomes the command: both have one pid.
    let mut started = Command::new("/usr/bin/setsid");
    started.arg("--ctty").arg(command.get_program()).args(command.get_args()).env("TERM", "xterm");
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => started.env(key, value),
            None => started.env_remove(key),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        started.current_dir(folder);
    }
    let end = || Stdio::from(slave.try_clone().unwrap());
    let child = started.stdin(end()).stdout(end()).stderr(end()).spawn();
    (child.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}")), master)
}

/// The two ends of a new terminal: the master's, and the one for a command.
fn pair(rows: u16, columns: u16) -> (File, File) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let slave = rustix::fs::open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    set_size(&master, rows, columns);
    (File::from(master), File::from(slave))
}

pub(crate) fn set_size(terminal: impl AsFd, rows: u16, columns: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).unwrap();
}
