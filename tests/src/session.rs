//! A session at a terminal: a command that owns it, as a shell does; what the whole screen shows, what is typed.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::terminal::{set_size, start};

/// How long something may take to appear.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running command, and the terminal around it. Dropping it ends the command.
pub struct Session {
    line: String,
    child: Child,
    keyboard: File,
    screen: Arc<Mutex<vt100::Parser>>,
    reader: Option<JoinHandle<Vec<u8>>>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` shows\n{}", self.line, self.screen())
    }
}

impl Session {
    /// Starts a command on a new terminal of 80 columns and 24 lines.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(command: &Command) -> Self {
        let line = format!("{command:?}");
        let (child, keyboard) = start(command, 24, 80);
        let screen = Arc::new(Mutex::new(vt100::Parser::new(24, 80, 0)));
        let mut output = keyboard.try_clone().unwrap();
        let shown = Arc::clone(&screen);
        let reader = std::thread::spawn(move || {
            let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
            // The last that has the other end closes it, which is an error here.
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                shown.lock().unwrap().process(&buffer[..count]);
                all.extend_from_slice(&buffer[..count]);
            }
            all
        });
        Self { line, child, keyboard, screen, reader: Some(reader) }
    }

    /// Presses keys; after the end nobody reads them.
    pub fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).ok();
    }

    /// Whether the command has ended.
    ///
    /// # Panics
    /// When that cannot be known.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Makes the terminal as large as this: columns and lines.
    pub fn resize(&self, (columns, lines): (u16, u16)) {
        set_size(&self.keyboard, lines, columns);
        self.screen.lock().unwrap().screen_mut().set_size(lines, columns);
    }

    /// What the screen shows.
    pub fn screen(&self) -> String {
        self.screen.lock().unwrap().screen().contents()
    }

    /// Whether the other page is shown, which whole-screen programs draw on.
    pub fn is_on_other_page(&self) -> bool {
        self.screen.lock().unwrap().screen().alternate_screen()
    }

    /// Waits until the screen shows what is asked for; answers the screen.
    ///
    /// # Panics
    /// After a minute.
    #[track_caller]
    pub fn until(&self, what: &str, condition: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let screen = self.screen();
            if condition(&screen) {
                return screen;
            }
            assert!(Instant::now() < end, "waited in vain: {what}: {}\n{screen}", self.line);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the screen shows a text.
    ///
    /// # Panics
    /// After a minute.
    #[track_caller]
    pub fn shows(&self, text: &str) -> String {
        self.until(text, |screen| screen.contains(text))
    }

    /// Waits for the end: the exit code (128+n for a signal), and all that was written to the terminal.
    ///
    /// # Panics
    /// When it does not end within a minute.
    #[track_caller]
    pub fn finish(mut self) -> (i32, String) {
        use std::os::unix::process::ExitStatusExt;
        let end = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < end, "{} does not end:\n{}", self.line, self.screen());
            std::thread::sleep(Duration::from_millis(10));
        };
        let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap();
        let reader = self.reader.take().unwrap();
        (code, String::from_utf8_lossy(&reader.join().unwrap()).into_owned())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}
